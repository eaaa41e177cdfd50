//! Sequences in progress: their tokens, and what the model remembers of these.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use frugal_nn::state::{SequenceState, bytes_held};
use frugal_nn::{
    ActiveAdapters, AdapterSet, Backbone, DecodeState, Input, Mode, ModelError, Rows,
    SequenceLayout, StateError, StateOptions, select_rows, to_vec,
};

use crate::DecodeError;
use crate::batch::{Member, batches};
use crate::id::SequenceId;

/// Sequences on one model, each with the adapters that it was begun with. They join and leave at any
/// time, and what was computed for their tokens is kept.
///
/// Sequences that can share a pass do; what comes out of each is what would come out of it alone.
pub struct Session {
    backbone: Arc<dyn Backbone>,
    adapters: Arc<AdapterSet>,
    /// Without sequences: where those of a pass are put together.
    state: DecodeState,
    sequences: BTreeMap<SequenceId, Sequence>,
    next: u64,
    /// Tells this session's snapshots from others'.
    identity: Arc<()>,
}

struct Sequence {
    adapters: ActiveAdapters,
    /// Positions that the model counts beside those of the state.
    prefix: usize,
    tokens: Vec<u32>,
    state: SequenceState,
}

impl Sequence {
    /// Positions of the model that are taken.
    fn used(&self) -> usize {
        // All of a sequence that is computed anew with its next token counts already.
        self.prefix + self.state.past().max(self.tokens.len())
    }
}

/// A sequence as it was, which shares memory with it.
#[derive(Clone)]
pub struct Snapshot {
    adapters: ActiveAdapters,
    prefix: usize,
    tokens: Vec<u32>,
    state: SequenceState,
    identity: Arc<()>,
}

impl Snapshot {
    /// Its tokens.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }
}

/// Tokens to compute of each sequence, and what was kept of those that begin anew.
#[derive(Default)]
struct BegunAnew<'t> {
    parts: Vec<(SequenceId, Cow<'t, [u32]>)>,
    states: Vec<(SequenceId, SequenceState)>,
}

impl Session {
    /// A session without sequences.
    ///
    /// # Errors
    /// When the model cannot generate.
    pub fn new(
        backbone: Arc<dyn Backbone>,
        adapters: Arc<AdapterSet>,
        options: StateOptions,
    ) -> Result<Self, DecodeError> {
        if backbone.lm_head().is_none() {
            return Err(no_head(backbone.as_ref()));
        }
        Ok(Self {
            state: backbone.new_state(0, options)?,
            backbone,
            adapters,
            sequences: BTreeMap::new(),
            next: 0,
            identity: Arc::new(()),
        })
    }

    /// The model.
    pub fn backbone(&self) -> &Arc<dyn Backbone> {
        &self.backbone
    }

    /// The adapters that sequences may use.
    pub fn adapters(&self) -> &Arc<AdapterSet> {
        &self.adapters
    }

    /// Lets an empty sequence join that these adapters act on as long as it lives.
    ///
    /// # Errors
    /// Unknown adapters, those that cannot be combined, a choice for several sequences.
    pub fn add(&mut self, adapters: ActiveAdapters) -> Result<SequenceId, DecodeError> {
        let adapters = match adapters {
            ActiveAdapters::PerSequence(mut names) if names.len() == 1 => {
                let name = names.pop().flatten();
                name.map_or(ActiveAdapters::Base, ActiveAdapters::One)
            }
            other => other,
        };
        // Asks for what every pass of the sequence will ask for.
        let pass = self
            .adapters
            .pass(&adapters, &SequenceLayout::new(&[1]), Mode::Eval)?;
        let prefix = match self.backbone.prefix_takes_positions() {
            true => pass.prefix_length(),
            false => 0,
        };
        drop(pass);
        let state = self.state.empty_sequence();
        Ok(self.join(Sequence {
            adapters,
            prefix,
            tokens: Vec::new(),
            state,
        }))
    }

    fn join(&mut self, sequence: Sequence) -> SequenceId {
        let id = SequenceId(self.next);
        self.next += 1;
        self.sequences.insert(id, sequence);
        id
    }

    /// Lets a sequence leave, frees what was kept for it, and gives its tokens.
    ///
    /// # Errors
    /// [`DecodeError::UnknownSequence`].
    pub fn remove(&mut self, id: SequenceId) -> Result<Vec<u32>, DecodeError> {
        let sequence = self.sequences.remove(&id);
        Ok(sequence.ok_or(DecodeError::UnknownSequence { id })?.tokens)
    }

    fn get(&self, id: SequenceId) -> Result<&Sequence, DecodeError> {
        let sequence = self.sequences.get(&id);
        sequence.ok_or(DecodeError::UnknownSequence { id })
    }

    fn get_mut(&mut self, id: SequenceId) -> Result<&mut Sequence, DecodeError> {
        let sequence = self.sequences.get_mut(&id);
        sequence.ok_or(DecodeError::UnknownSequence { id })
    }

    /// The sequences in the order in which they joined.
    pub fn sequences(&self) -> impl Iterator<Item = SequenceId> + '_ {
        self.sequences.keys().copied()
    }

    /// Tokens of a sequence so far.
    ///
    /// # Errors
    /// [`DecodeError::UnknownSequence`].
    pub fn tokens(&self, id: SequenceId) -> Result<&[u32], DecodeError> {
        Ok(&self.get(id)?.tokens)
    }

    /// The adapters of a sequence.
    ///
    /// # Errors
    /// [`DecodeError::UnknownSequence`].
    pub fn adapters_of(&self, id: SequenceId) -> Result<&ActiveAdapters, DecodeError> {
        Ok(&self.get(id)?.adapters)
    }

    /// Tokens that a sequence may still get.
    ///
    /// # Errors
    /// [`DecodeError::UnknownSequence`].
    pub fn remaining(&self, id: SequenceId) -> Result<usize, DecodeError> {
        let limit = self.backbone.info().max_sequence;
        Ok(limit.saturating_sub(self.get(id)?.used()))
    }

    /// Bytes kept; what sequences share counts once.
    pub fn bytes(&self) -> usize {
        bytes_held(self.sequences.values().map(|sequence| &sequence.state))
    }

    /// Appends at least one token to each of these sequences; returns the logits `[vocab]` that
    /// follow each. An error leaves all as they were.
    ///
    /// # Errors
    /// Sequences that there are not, or that are named twice; nothing to append; token ids that the
    /// model lacks, sequences that get too long, outputs that are no numbers.
    pub fn append(&mut self, new: &[(SequenceId, &[u32])]) -> Result<Vec<Vec<f32>>, DecodeError> {
        frugal_kernels::on_pool(|| self.append_here(new))
    }

    /// [`Session::append`] to one sequence.
    ///
    /// # Errors
    /// As [`Session::append`].
    pub fn append_to(&mut self, id: SequenceId, new: &[u32]) -> Result<Vec<f32>, DecodeError> {
        Ok(self.append(&[(id, new)])?.swap_remove(0))
    }

    fn append_here(&mut self, new: &[(SequenceId, &[u32])]) -> Result<Vec<Vec<f32>>, DecodeError> {
        self.check(new)?;
        let begun_anew = self.begin_anew(new)?;
        let found = self.append_parts(&begun_anew.parts, new);
        if found.is_err() {
            for (id, state) in begun_anew.states {
                self.get_mut(id)?.state = state;
            }
        }
        found
    }

    /// What is computed of each sequence: its new tokens; where they take it over the length at which
    /// all positions are rotated otherwise, or it was cropped to below that, the earlier ones too,
    /// whose keys are forgotten.
    fn begin_anew<'t>(
        &mut self,
        new: &[(SequenceId, &'t [u32])],
    ) -> Result<BegunAnew<'t>, DecodeError> {
        let mut begun = BegunAnew::default();
        let length = self.backbone.info().rotates_anew_beyond;
        let empty = self.state.empty_sequence();
        for &(id, tokens) in new {
            let sequence = self.get_mut(id)?;
            let past = sequence.state.past();
            let crosses = |length| (1..=length).contains(&past) && past + tokens.len() > length;
            let is_cropped = past == 0 && !sequence.tokens.is_empty();
            if is_cropped || length.is_some_and(crosses) {
                let state = std::mem::replace(&mut sequence.state, empty.clone());
                begun.states.push((id, state));
                let all = [sequence.tokens.as_slice(), tokens].concat();
                begun.parts.push((id, Cow::Owned(all)));
            } else {
                begun.parts.push((id, Cow::Borrowed(tokens)));
            }
        }
        Ok(begun)
    }

    /// Computes `parts` of the sequences, whose last tokens are the `new` ones.
    fn append_parts(
        &mut self,
        parts: &[(SequenceId, Cow<'_, [u32]>)],
        new: &[(SequenceId, &[u32])],
    ) -> Result<Vec<Vec<f32>>, DecodeError> {
        let mut members = Vec::with_capacity(new.len());
        let mut marks = Vec::with_capacity(new.len());
        for &(id, _) in new {
            let sequence = self.get(id)?;
            members.push(Member {
                adapters: &sequence.adapters,
                begins: sequence.state.past() == 0,
            });
            marks.push(sequence.state.mark());
        }
        let batches = batches(&members, &self.adapters, self.remembers_narrow())?;
        let mut logits = vec![Vec::new(); new.len()];
        for batch in batches {
            match self.pass(parts, &batch.members, &batch.adapters) {
                Ok(found) => batch
                    .members
                    .iter()
                    .zip(found)
                    .for_each(|(&i, found)| logits[i] = found),
                Err(error) => {
                    for ((id, _), mark) in new.iter().zip(&marks) {
                        self.get_mut(*id)?.state.undo(mark);
                    }
                    return Err(error);
                }
            }
        }
        let rewindable = self.state.options().rewindable;
        for (id, new) in new {
            let sequence = self.get_mut(*id)?;
            sequence.state.trim(rewindable);
            sequence.tokens.extend_from_slice(new);
        }
        Ok(logits)
    }

    fn check(&self, new: &[(SequenceId, &[u32])]) -> Result<(), DecodeError> {
        let mut seen = BTreeSet::new();
        let limit = self.backbone.info().max_sequence;
        for &(id, tokens) in new {
            let used = self.get(id)?.used();
            if !seen.insert(id) {
                return Err(DecodeError::NamedTwice { id });
            }
            if tokens.is_empty() {
                return Err(DecodeError::NothingToAppend { id });
            }
            if tokens.len() > limit.saturating_sub(used) {
                let length = used + tokens.len();
                return Err(ModelError::TooLong { length, limit }.into());
            }
        }
        Ok(())
    }

    /// Whether keys and values are made of narrow vectors, which each adapter may do in its own way.
    fn remembers_narrow(&self) -> bool {
        let empty = self.state.empty_sequence();
        let mut layers = empty.layers().iter();
        layers.any(|layer| matches!(layer, frugal_nn::LayerState::Latent(_)))
    }

    /// One forward pass over these of the sequences.
    fn pass(
        &mut self,
        parts: &[(SequenceId, Cow<'_, [u32]>)],
        members: &[usize],
        adapters: &ActiveAdapters,
    ) -> Result<Vec<Vec<f32>>, DecodeError> {
        for &i in members {
            let sequence = self.get_mut(parts[i].0)?;
            let state = std::mem::take(&mut sequence.state);
            self.state.join(state).map_err(ModelError::from)?;
        }
        let tokens: Vec<&[u32]> = members.iter().map(|&i| parts[i].1.as_ref()).collect();
        let found = self.forward(&tokens, adapters);
        for (&i, state) in members.iter().zip(self.state.leave_all()) {
            self.get_mut(parts[i].0)?.state = state;
        }
        found
    }

    fn forward(
        &mut self,
        tokens: &[&[u32]],
        adapters: &ActiveAdapters,
    ) -> Result<Vec<Vec<f32>>, DecodeError> {
        let lengths: Vec<usize> = tokens.iter().map(|tokens| tokens.len()).collect();
        let past = self.state.past();
        let _span = append_span(&lengths, &past).entered();
        let layout = SequenceLayout::with_past(&lengths, &past);
        let ids = tokens.concat();
        let mut pass = self.adapters.pass(adapters, &layout, Mode::Eval)?;
        let last = layout.last_tokens();
        let input = Input::tokens(&ids, layout);
        let hidden = self
            .backbone
            .forward(&input, pass.as_mut(), Some(&mut self.state))?;
        let logits = self
            .backbone
            .logits(select_rows(hidden, &last), Rows::Sequences, pass.as_mut())
            .ok_or_else(|| no_head(self.backbone.as_ref()))?;
        let vocab = logits.dims()[1];
        let logits = to_vec::<2>(logits);
        self.backbone.info().check_finite("logits", &logits)?;
        Ok(logits.chunks(vocab).map(<[f32]>::to_vec).collect())
    }

    /// Makes a sequence equal `tokens` and returns the logits after it, computing only what differs
    /// from before, or all of it where what comes before is not kept.
    ///
    /// # Errors
    /// As [`Session::append`]; an empty sequence.
    pub fn rewind_to(&mut self, id: SequenceId, tokens: &[u32]) -> Result<Vec<f32>, DecodeError> {
        let before = self.snapshot(id)?;
        let Some(last) = tokens.len().checked_sub(1) else {
            return Err(DecodeError::NothingToAppend { id });
        };
        let equal = before.tokens.iter().zip(tokens);
        let common = equal.take_while(|(a, b)| a == b).count().min(last);
        // Back to positions that are rotated as those of a short sequence.
        let past = before.state.past();
        let in_front = past.saturating_sub(before.tokens.len());
        let shrinks = |length| past > length && in_front + tokens.len() <= length;
        let anew = self.backbone.info().rotates_anew_beyond;
        let common = if anew.is_some_and(shrinks) { 0 } else { common };
        let common = match self.crop(id, common) {
            Ok(()) => common,
            Err(DecodeError::Model(ModelError::State(
                StateError::OutsideWindow { .. } | StateError::Recurrent { .. },
            ))) => self.crop(id, 0).map(|()| 0)?,
            Err(error) => return Err(error),
        };
        let found = self.append_to(id, &tokens[common..]);
        if found.is_err() {
            self.rollback(id, &before)?;
        }
        found
    }

    /// Forgets all but the first `length` tokens of a sequence.
    ///
    /// # Errors
    /// A sequence that there is not; more tokens than it has; layers with a sliding window that have
    /// let go of what the next token would see; recurrent layers, see [`SequenceState::crop`].
    pub fn crop(&mut self, id: SequenceId, length: usize) -> Result<(), DecodeError> {
        let anew = self.backbone.info().rotates_anew_beyond;
        let empty = self.state.empty_sequence();
        let sequence = self.get_mut(id)?;
        let past = sequence.tokens.len();
        if length > past {
            return Err(ModelError::from(StateError::Beyond { length, past }).into());
        }
        // Positions that a method put in front stay as long as there is a token behind them.
        let in_front = sequence.state.past().saturating_sub(past);
        let positions = if length == 0 { 0 } else { in_front + length };
        let before = sequence.state.past();
        if before == 0 {
            sequence.tokens.truncate(length);
            return Ok(());
        }
        sequence.state.crop(positions).map_err(ModelError::from)?;
        // Back to positions that are rotated as those of a short sequence: computed with the next.
        if anew.is_some_and(|short| before > short && positions <= short) {
            sequence.state = empty;
        }
        sequence.tokens.truncate(length);
        Ok(())
    }

    /// Another sequence that begins as this one does, sharing memory with it.
    ///
    /// # Errors
    /// [`DecodeError::UnknownSequence`].
    pub fn fork(&mut self, id: SequenceId) -> Result<SequenceId, DecodeError> {
        let Snapshot {
            adapters,
            prefix,
            tokens,
            state,
            ..
        } = self.snapshot(id)?;
        Ok(self.join(Sequence {
            adapters,
            prefix,
            tokens,
            state,
        }))
    }

    /// Another sequence that begins as this one does and goes on under these adapters. What was
    /// computed of its tokens is shared, which is right only where no adapter has acted on them and
    /// these will not: adapters that wait for a text ([`frugal_nn::Adapter::waits_for_invocation`])
    /// act from its next occurrence on.
    ///
    /// # Errors
    /// A sequence that there is not; unknown adapters; [`frugal_nn::AdaptError::Unsupported`] where
    /// the tokens so far would have to be computed anew.
    pub fn fork_with(
        &mut self,
        id: SequenceId,
        adapters: ActiveAdapters,
    ) -> Result<SequenceId, DecodeError> {
        let sequence = self.get(id)?;
        if adapters == sequence.adapters {
            return self.fork(id);
        }
        let acted = sequence.state.invoked_at().is_some();
        self.leaves_tokens_alone(&sequence.adapters, acted)?;
        self.leaves_tokens_alone(&adapters, false)?;
        let (tokens, state) = (sequence.tokens.clone(), sequence.state.clone());
        Ok(self.join(Sequence {
            adapters,
            prefix: 0,
            tokens,
            state,
        }))
    }

    /// Refuses adapters that act on tokens without waiting, or that have `acted`.
    fn leaves_tokens_alone(
        &self,
        adapters: &ActiveAdapters,
        acted: bool,
    ) -> Result<(), DecodeError> {
        let names = match adapters {
            ActiveAdapters::Base => return Ok(()),
            ActiveAdapters::One(name) => vec![name.as_str()],
            ActiveAdapters::Combined(parts) => parts.iter().map(|(n, _)| n.as_str()).collect(),
            ActiveAdapters::PerSequence(names) => {
                names.iter().flatten().map(|n| n.as_str()).collect()
            }
        };
        for name in names {
            let adapter = self.adapters.get(name)?.adapter.as_ref();
            if acted || !adapter.waits_for_invocation() {
                return Err(frugal_nn::AdaptError::Unsupported {
                    method: adapter.method(),
                    action: "share what was computed of the tokens so far",
                    reason: "it acts on them: begin a sequence with it and append them".into(),
                }
                .into());
            }
        }
        Ok(())
    }

    /// A sequence as it is now.
    ///
    /// # Errors
    /// [`DecodeError::UnknownSequence`].
    pub fn snapshot(&self, id: SequenceId) -> Result<Snapshot, DecodeError> {
        let sequence = self.get(id)?;
        Ok(Snapshot {
            adapters: sequence.adapters.clone(),
            prefix: sequence.prefix,
            tokens: sequence.tokens.clone(),
            state: sequence.state.clone(),
            identity: self.identity.clone(),
        })
    }

    /// Makes a sequence what it, or another one with the same adapters, was.
    ///
    /// # Errors
    /// A sequence that there is not; a snapshot of another session or of other adapters.
    pub fn rollback(&mut self, id: SequenceId, to: &Snapshot) -> Result<(), DecodeError> {
        if !Arc::ptr_eq(&self.identity, &to.identity) {
            return Err(DecodeError::OtherSession);
        }
        let sequence = self.get_mut(id)?;
        if sequence.adapters != to.adapters {
            return Err(DecodeError::OtherAdapters { id });
        }
        sequence.tokens.clone_from(&to.tokens);
        sequence.state = to.state.clone();
        Ok(())
    }
}

/// Reading a prompt, or a token more for each sequence.
fn append_span(lengths: &[usize], past: &[usize]) -> tracing::Span {
    let sequences = lengths.len();
    let is_single = lengths
        .iter()
        .zip(past)
        .all(|(length, past)| *length == 1 && *past > 0);
    if is_single {
        tracing::debug_span!("decode", sequences)
    } else {
        tracing::debug_span!("prefill", sequences, tokens = lengths.iter().sum::<usize>())
    }
}

fn no_head(backbone: &dyn Backbone) -> DecodeError {
    let why = backbone.info().why_no_head();
    DecodeError::NoHead { why }
}
