//! Several adapters on one backbone: loaded, switched, disabled, combined, chosen per sequence.

use std::ops::Range;

use burn::prelude::*;
use frugal_kernels::LowRankRows;

use crate::error::ModelError;
use crate::heads::Head;
use crate::layers::{Conv, Embedding, Linear, Norm, Param};
use crate::layout::SequenceLayout;
use crate::seam::adapter::Adapter;
use crate::seam::attention::AttentionControl;
use crate::seam::cached::cached;
use crate::seam::combined::{CombinedPass, refuse_control};
use crate::seam::derived_cache::DerivedCache;
use crate::seam::error::AdaptError;
use crate::seam::hooks::{
    ConvChange, LinearChange, LowRankChange, NoAdapter, NormChange, ParamChange, Pass,
    RouterTraining, Rows, SubLayer, SubLayerIo,
};
use crate::seam::parameter::Mode;

/// Which adapters act in a forward pass.
#[derive(Clone, Debug, PartialEq)]
pub enum ActiveAdapters {
    /// None: the backbone as it is.
    Base,
    /// One.
    One(String),
    /// The weighted sum of several adapters' changes.
    Combined(Vec<(String, f32)>),
    /// One per sequence of the batch, `None` for the backbone as it is.
    PerSequence(Vec<Option<String>>),
}

/// An adapter with the head that was trained with it.
pub struct LoadedAdapter {
    /// The method.
    pub adapter: Box<dyn Adapter>,
    /// Classification head.
    pub head: Option<Head>,
}

/// Adapters by name, on one backbone. Whole weights that a method forms ([`Adapter::materializes_weight`])
/// are kept from one pass without gradients to the next, as long as the adapter is in the set.
#[derive(Default)]
pub struct AdapterSet {
    loaded: Vec<Loaded>,
}

struct Loaded {
    name: String,
    entry: LoadedAdapter,
    kept: DerivedCache,
}

impl Loaded {
    fn pass(&self, mode: Mode) -> Box<dyn Pass + '_> {
        let adapter = self.entry.adapter.as_ref();
        match mode {
            Mode::Eval => cached(adapter, &self.kept),
            Mode::Train { .. } => adapter.pass(mode),
        }
    }
}

impl AdapterSet {
    /// Adds an adapter, or replaces the one of the same name.
    pub fn insert(&mut self, name: impl Into<String>, entry: LoadedAdapter) {
        let name = name.into();
        self.loaded.retain(|loaded| loaded.name != name);
        self.loaded.push(Loaded {
            name,
            entry,
            kept: DerivedCache::default(),
        });
    }

    /// Removes an adapter.
    pub fn remove(&mut self, name: &str) -> Option<LoadedAdapter> {
        let index = self.loaded.iter().position(|loaded| loaded.name == name)?;
        Some(self.loaded.remove(index).entry)
    }

    /// Names in the order of insertion.
    pub fn names(&self) -> Vec<&str> {
        self.loaded
            .iter()
            .map(|loaded| loaded.name.as_str())
            .collect()
    }

    /// The adapter of this name.
    ///
    /// # Errors
    /// [`AdaptError::UnknownAdapter`] with the names that there are.
    pub fn get(&self, name: &str) -> Result<&LoadedAdapter, AdaptError> {
        Ok(&self.find(name)?.entry)
    }

    fn find(&self, name: &str) -> Result<&Loaded, AdaptError> {
        let found = self.loaded.iter().find(|loaded| loaded.name == name);
        found.ok_or_else(|| AdaptError::UnknownAdapter {
            name: name.into(),
            loaded: self.names().join(", "),
        })
    }

    /// Hooks for a pass over a batch of this layout.
    ///
    /// # Errors
    /// Unknown names, a number of choices that differs from the number of sequences, a method that
    /// cannot be mixed.
    pub fn pass(
        &self,
        choice: &ActiveAdapters,
        layout: &SequenceLayout,
        mode: Mode,
    ) -> Result<Box<dyn Pass + '_>, AdaptError> {
        match choice {
            ActiveAdapters::Base => Ok(Box::new(NoAdapter)),
            ActiveAdapters::One(name) => Ok(self.find(name)?.pass(mode)),
            ActiveAdapters::Combined(parts) => {
                for (name, _) in parts.iter().filter(|_| parts.len() > 1) {
                    let adapter = self.mixable(name)?.entry.adapter.as_ref();
                    if adapter.waits_for_invocation() {
                        return Err(AdaptError::Unsupported {
                            method: adapter.method(),
                            action: "act together with other adapters",
                            reason: "it acts from a text on that the others do not wait for".into(),
                        });
                    }
                }
                let parts = parts
                    .iter()
                    .map(|(name, weight)| Ok((self.mixable(name)?.pass(mode), *weight)));
                Ok(Box::new(CombinedPass {
                    parts: parts.collect::<Result<_, AdaptError>>()?,
                }))
            }
            ActiveAdapters::PerSequence(names) => {
                if names.len() != layout.sequences() {
                    return Err(AdaptError::Choices {
                        given: names.len(),
                        sequences: layout.sequences(),
                    });
                }
                let mut parts: Vec<Part<'_>> = Vec::new();
                for (i, (name, range)) in names
                    .iter()
                    .map(Option::as_deref)
                    .zip(layout.cu_seqlens.windows(2))
                    .enumerate()
                {
                    match parts.last_mut() {
                        Some(part) if part.name.as_deref() == name => {
                            (part.tokens.end, part.sequences.end) = (range[1], i + 1)
                        }
                        _ => {
                            let pass: Box<dyn Pass + '_> = match name {
                                Some(name) => self.mixable(name)?.pass(mode),
                                None => Box::new(NoAdapter),
                            };
                            parts.push(Part {
                                name: name.map(str::to_owned),
                                pass,
                                tokens: range[0]..range[1],
                                sequences: i..i + 1,
                            });
                        }
                    }
                }
                Ok(Box::new(PerSequencePass { parts }))
            }
        }
    }

    fn mixable(&self, name: &str) -> Result<&Loaded, AdaptError> {
        let loaded = self.find(name)?;
        let adapter = loaded.entry.adapter.as_ref();
        if adapter.supports_mixed_batch() {
            return Ok(loaded);
        }
        Err(AdaptError::Unsupported {
            method: adapter.method(),
            action: "share a batch with other adapters",
            reason:
                "it changes the positions of a batch; run its sequences in a batch of their own"
                    .into(),
        })
    }
}

/// Neighbouring sequences with the same adapter.
struct Part<'a> {
    name: Option<String>,
    pass: Box<dyn Pass + 'a>,
    tokens: Range<usize>,
    sequences: Range<usize>,
}

impl Part<'_> {
    /// Its rows among all.
    ///
    /// # Panics
    /// For rows of which nobody knows whose they are: a batch of several adapters is never asked
    /// for such.
    fn range(&self, rows: Rows) -> Range<usize> {
        match rows {
            Rows::Tokens => self.tokens.clone(),
            Rows::PerToken(n) => self.tokens.start * n..self.tokens.end * n,
            Rows::Sequences => self.sequences.clone(),
            Rows::OfSequence(_) | Rows::Chosen => {
                unreachable!("rows of one sequence go to its own part, and chosen ones to none")
            }
        }
    }
}

/// Each run of sequences goes through its own adapter.
///
/// Its parts leave positions, prefixes and the order of blocks alone
/// ([`Adapter::supports_mixed_batch`]); all other hooks are forwarded, each part seeing its rows.
struct PerSequencePass<'a> {
    parts: Vec<Part<'a>>,
}

impl PerSequencePass<'_> {
    fn split(
        &mut self,
        rows: Rows,
        mut each: impl FnMut(&mut dyn Pass, Range<usize>) -> Tensor<2>,
    ) -> Tensor<2> {
        let parts = self.parts.iter_mut().map(|part| {
            let range = part.range(rows);
            each(part.pass.as_mut(), range)
        });
        Tensor::cat(parts.collect(), 0)
    }

    /// The first pass that trains the model itself.
    fn trained(&mut self) -> Option<&mut dyn Pass> {
        let mut parts = self.parts.iter_mut();
        let part = parts.find(|part| part.pass.trains_model())?;
        Some(part.pass.as_mut())
    }

    /// The pass that all these rows belong to, where they are one sequence's.
    fn owner(&mut self, rows: Rows) -> Option<&mut dyn Pass> {
        let Rows::OfSequence(sequence) = rows else {
            return None;
        };
        let part = self
            .parts
            .iter_mut()
            .find(|part| part.sequences.contains(&sequence))?;
        Some(part.pass.as_mut())
    }

    /// What the parts add to a layer's own product, if none of them does more.
    fn low_rank_rows(&mut self, base: &Linear, rows: Rows) -> Option<Vec<LowRankRows>> {
        let mut pairs = Vec::new();
        for part in &mut self.parts {
            match part.pass.linear_change(base) {
                LinearChange::None => {}
                LinearChange::LowRank(LowRankChange { a, b, scale }) => {
                    let rows = part.range(rows);
                    pairs.push(LowRankRows { rows, a, b, scale });
                }
                LinearChange::Weight(_) | LinearChange::Opaque => return None,
            }
        }
        Some(pairs)
    }
}

impl Pass for PerSequencePass<'_> {
    fn embed(&mut self, hidden_states: Tensor<2>, layout: &mut SequenceLayout) -> Tensor<2> {
        let lengths = layout.lengths();
        let past = layout.past.clone();
        self.parts
            .iter_mut()
            .map(|part| {
                let own = part.sequences.clone();
                let mut its = SequenceLayout::with_past(&lengths[own.clone()], &past[own.clone()]);
                its.invoked_at = layout.invoked_at[own.clone()].to_vec();
                let states = hidden_states.clone().slice(part.tokens.clone());
                let states = part.pass.embed(states, &mut its);
                layout.invoked_at[own].clone_from_slice(&its.invoked_at);
                states
            })
            .reduce(|all, next| Tensor::cat(vec![all, next], 0))
            .unwrap_or(hidden_states)
    }

    fn beside_attention(&mut self, layer: usize, q: &Tensor<2>, scale: f32) -> Option<Tensor<2>> {
        let added = self.parts.iter_mut().map(|part| {
            let own = q.clone().slice(part.tokens.clone());
            let added = part.pass.beside_attention(layer, &own, scale);
            (own, added)
        });
        let added: Vec<_> = added.collect();
        let acts = added.iter().any(|(_, added)| added.is_some());
        acts.then(|| {
            let parts = added.into_iter();
            let rows = parts.map(|(own, added)| added.unwrap_or_else(|| own.zeros_like()));
            Tensor::cat(rows.collect(), 0)
        })
    }

    fn needs_token_rows(&self) -> bool {
        true
    }

    fn trains_model(&self) -> bool {
        self.parts.iter().any(|part| part.pass.trains_model())
    }

    /// What is said of the whole batch is said once.
    fn model_loss(&mut self, term: Tensor<1>) {
        if let Some(part) = self.trained() {
            part.model_loss(term);
        }
    }

    fn balance(&mut self, bias: &Param, load: &[usize], rate: f64) {
        if let Some(part) = self.trained() {
            part.balance(bias, load, rate);
        }
    }

    fn drop_path(&mut self, layer: usize, rate: f64, sequences: usize) -> Option<Vec<f32>> {
        self.trained()?.drop_path(layer, rate, sequences)
    }

    fn batch_statistics(&mut self, running: [&Param; 2], of_batch: [Tensor<1>; 2], momentum: f64) {
        if let Some(part) = self.trained() {
            part.batch_statistics(running, of_batch, momentum);
        }
    }

    fn embedding(&mut self, base: &Embedding, ids: &[u32]) -> Tensor<2> {
        self.embedding_rows(base, ids, Rows::Tokens)
    }

    fn embedding_rows(&mut self, base: &Embedding, ids: &[u32], rows: Rows) -> Tensor<2> {
        match self.owner(rows) {
            Some(pass) => pass.embedding_rows(base, ids, rows),
            None => self.split(rows, |pass, range| {
                pass.embedding_rows(base, &ids[range], rows)
            }),
        }
    }

    fn linear_change(&mut self, base: &Linear) -> LinearChange {
        let none =
            |part: &mut Part<'_>| matches!(part.pass.linear_change(base), LinearChange::None);
        LinearChange::opaque_if(!self.parts.iter_mut().all(none))
    }

    fn linear(&mut self, base: &Linear, x: Tensor<2>) -> Tensor<2> {
        self.linear_rows(base, x, Rows::Tokens)
    }

    fn linear_rows(&mut self, base: &Linear, x: Tensor<2>, rows: Rows) -> Tensor<2> {
        if let Some(pass) = self.owner(rows) {
            return pass.linear_rows(base, x, rows);
        }
        match self.low_rank_rows(base, rows) {
            Some(pairs) => base.forward_low_rank_rows(x, &pairs),
            None => self.split(rows, |pass, range| {
                pass.linear_rows(base, x.clone().slice(range), rows)
            }),
        }
    }

    fn norm_change(&mut self, _base: &Norm) -> NormChange {
        NormChange::Opaque
    }

    fn norm(&mut self, base: &Norm, x: Tensor<2>) -> Tensor<2> {
        self.norm_rows(base, x, Rows::Tokens)
    }

    fn norm_rows(&mut self, base: &Norm, x: Tensor<2>, rows: Rows) -> Tensor<2> {
        match self.owner(rows) {
            Some(pass) => pass.norm_rows(base, x, rows),
            None => self.split(rows, |pass, range| {
                pass.norm_rows(base, x.clone().slice(range), rows)
            }),
        }
    }

    fn conv_change(&mut self, base: &Conv) -> ConvChange {
        let none = |part: &mut Part<'_>| matches!(part.pass.conv_change(base), ConvChange::None);
        match self.parts.iter_mut().all(none) {
            true => ConvChange::None,
            false => ConvChange::BySequence,
        }
    }

    fn conv(&mut self, base: &Conv, rows: Rows) -> (Tensor<2>, Option<Tensor<1>>) {
        match self.owner(rows) {
            Some(pass) => pass.conv(base, rows),
            None => base.values(),
        }
    }

    fn param_change(&mut self, base: &Param) -> ParamChange {
        let none = |part: &mut Part<'_>| matches!(part.pass.param_change(base), ParamChange::None);
        match self.parts.iter_mut().all(none) {
            true => ParamChange::None,
            false => ParamChange::BySequence,
        }
    }

    fn param(&mut self, base: &Param, rows: Rows) -> Tensor<2> {
        match self.owner(rows) {
            Some(pass) => pass.param(base, rows),
            None => base.value.clone(),
        }
    }

    fn attention(
        &mut self,
        layout: &SequenceLayout,
    ) -> Result<Option<AttentionControl>, ModelError> {
        refuse_control(self.parts.iter_mut().map(|part| &mut part.pass), layout)
    }

    fn before_sub_layer(&mut self, layer: usize, kind: SubLayer, input: &Tensor<2>) {
        for part in &mut self.parts {
            let input = input.clone().slice(part.tokens.clone());
            part.pass.before_sub_layer(layer, kind, &input);
        }
    }

    fn sub_layer(&mut self, io: SubLayerIo<'_>) -> Tensor<2> {
        self.split(Rows::Tokens, |pass, range| {
            let own = |x: &Tensor<2>| x.clone().slice(range.clone());
            pass.sub_layer(SubLayerIo {
                input: &own(io.input),
                output: own(&io.output),
                residual: &own(io.residual),
                ..io.clone()
            })
        })
    }

    fn after_block(&mut self, layer: usize, hidden_states: &Tensor<2>) {
        for part in &mut self.parts {
            let own = hidden_states.clone().slice(part.tokens.clone());
            part.pass.after_block(layer, &own);
        }
    }

    fn router_logits(
        &mut self,
        layer: usize,
        logits: &Tensor<2>,
        training: RouterTraining,
    ) -> Option<Tensor<2>> {
        let mut trained = false;
        let parts = self.parts.iter_mut().map(|part| {
            let own = logits.clone().slice(part.tokens.clone());
            let changed = part.pass.router_logits(layer, &own, training);
            trained |= changed.is_some();
            changed.unwrap_or(own)
        });
        let all: Vec<Tensor<2>> = parts.collect();
        trained.then(|| Tensor::cat(all, 0))
    }

    fn router(
        &mut self,
        layer: usize,
        probabilities: &Tensor<2>,
        chosen: &[usize],
        aux_loss_coef: f64,
    ) {
        let per_token = chosen.len() / probabilities.dims()[0].max(1);
        for part in &mut self.parts {
            let tokens = part.tokens.clone();
            let own = probabilities.clone().slice(tokens.clone());
            let chosen = &chosen[tokens.start * per_token..tokens.end * per_token];
            part.pass.router(layer, &own, chosen, aux_loss_coef);
        }
    }

    fn take_error(&mut self) -> Option<ModelError> {
        self.parts
            .iter_mut()
            .find_map(|part| part.pass.take_error())
    }

    fn auxiliary_loss(&mut self) -> Option<Tensor<1>> {
        self.parts
            .iter_mut()
            .filter_map(|part| part.pass.auxiliary_loss())
            .reduce(|sum, loss| sum + loss)
    }
}
