//! What a model remembers of the tokens of sequences, for generation.

mod error;
mod layer;
mod recurrent;
mod sequence;

use burn::prelude::*;
use frugal_kernels::{AttentionSpec, CacheType, KeyValues};

use crate::layout::SequenceLayout;
pub use error::StateError;
pub use layer::{CachedRows, LayerState, Ring, Routed};
pub use recurrent::RecurrentState;
pub use sequence::{Mark, SequenceState, bytes_held};

use layer::NewRows;

/// How a state is held.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StateOptions {
    /// How keys and values are held.
    pub cache_type: CacheType,
    /// Tokens that can be taken back from layers with a sliding window, which otherwise let go of
    /// everything outside it.
    pub rewindable: usize,
}

/// What a backbone remembers of the sequences of a batch, grown by every forward pass that is given
/// it. [`Backbone::new_state`](crate::Backbone::new_state) makes it.
#[derive(Clone, Debug)]
pub struct DecodeState {
    sequences: Vec<SequenceState>,
    /// One that has not begun.
    empty: SequenceState,
    options: StateOptions,
}

impl DecodeState {
    /// Sequences that have not begun, with layers of these kinds.
    pub fn new(layers: Vec<LayerState>, sequences: usize, options: StateOptions) -> Self {
        let empty = SequenceState {
            layers,
            past: 0,
            invoked_at: None,
        };
        Self {
            sequences: vec![empty.clone(); sequences],
            empty,
            options,
        }
    }

    /// Number of sequences.
    pub fn len(&self) -> usize {
        self.sequences.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.sequences.is_empty()
    }

    /// How it is held.
    pub fn options(&self) -> StateOptions {
        self.options
    }

    /// Positions of each sequence that are remembered.
    pub fn past(&self) -> Vec<usize> {
        self.sequences.iter().map(SequenceState::past).collect()
    }

    /// [`SequenceState::invoked_at`] of each sequence.
    pub fn invoked_at(&self) -> Vec<Option<usize>> {
        self.sequences
            .iter()
            .map(SequenceState::invoked_at)
            .collect()
    }

    /// A sequence that has not begun, for [`DecodeState::join`].
    pub fn empty_sequence(&self) -> SequenceState {
        self.empty.clone()
    }

    /// What is remembered of each sequence.
    pub fn sequences(&self) -> &[SequenceState] {
        &self.sequences
    }

    /// Refuses a pass that does not go on from here.
    ///
    /// # Errors
    /// [`StateError::OtherSequences`], and [`StateError::OtherModel`] for another number of layers.
    pub fn check(&self, layout: &SequenceLayout, layers: usize) -> Result<(), StateError> {
        if self.empty.layers.len() != layers {
            return Err(StateError::OtherModel);
        }
        let past = self.past();
        if layout.past != past || layout.sequences() != past.len() {
            let given = layout.past.clone();
            return Err(StateError::OtherSequences { given, past });
        }
        Ok(())
    }

    /// Adds a sequence behind the others and gives its number.
    ///
    /// # Errors
    /// [`StateError::OtherModel`] for the state of a model with other layers.
    pub fn join(&mut self, sequence: SequenceState) -> Result<usize, StateError> {
        if !sequence.is_like(&self.empty) {
            return Err(StateError::OtherModel);
        }
        self.sequences.push(sequence);
        Ok(self.sequences.len() - 1)
    }

    /// Takes a sequence out; those behind it move up. `None` if there is no such sequence.
    pub fn leave(&mut self, sequence: usize) -> Option<SequenceState> {
        (sequence < self.sequences.len()).then(|| self.sequences.remove(sequence))
    }

    /// Takes all sequences out.
    pub fn leave_all(&mut self) -> Vec<SequenceState> {
        std::mem::take(&mut self.sequences)
    }

    /// A sequence as it is now, which shares memory with it; `None` if there is no such sequence.
    pub fn snapshot(&self, sequence: usize) -> Option<SequenceState> {
        self.sequences.get(sequence).cloned()
    }

    /// Makes a sequence what it was; `false` if there is no such sequence.
    ///
    /// # Errors
    /// [`StateError::OtherModel`] for the state of a model with other layers.
    pub fn rollback(&mut self, sequence: usize, to: &SequenceState) -> Result<bool, StateError> {
        if !to.is_like(&self.empty) {
            return Err(StateError::OtherModel);
        }
        let place = self.sequences.get_mut(sequence);
        Ok(place.map(|place| *place = to.clone()).is_some())
    }

    /// Another sequence that begins as this one, behind the others; its number, or `None` if there
    /// is no such sequence.
    pub fn fork(&mut self, sequence: usize) -> Option<usize> {
        self.sequences.push(self.snapshot(sequence)?);
        Some(self.sequences.len() - 1)
    }

    /// [`SequenceState::crop`] of one sequence; `false` if there is no such sequence.
    ///
    /// # Errors
    /// Those of [`SequenceState::crop`].
    pub fn crop(&mut self, sequence: usize, length: usize) -> Result<bool, StateError> {
        match self.sequences.get_mut(sequence) {
            Some(state) => state.crop(length).map(|()| true),
            None => Ok(false),
        }
    }

    /// Adds new keys and values of a sequence, each `[positions, width]`.
    pub fn append(&mut self, layer: usize, sequence: usize, key: Tensor<2>, value: Tensor<2>) {
        let value = Some(value);
        self.add(layer, sequence, NewRows { key, value });
    }

    /// Says where the tokens of a sequence stand whose keys and values come next in a layer that
    /// holds those of some tokens only ([`LayerState::Routed`]).
    pub fn route(&mut self, layer: usize, sequence: usize, positions: &[u32]) {
        self.sequences[sequence].layers[layer].route(positions);
    }

    /// Adds new vectors of a sequence that are both keys and values, and are held once.
    pub fn append_shared(&mut self, layer: usize, sequence: usize, key: Tensor<2>) {
        self.add(layer, sequence, NewRows { key, value: None });
    }

    fn add(&mut self, layer: usize, sequence: usize, rows: NewRows) {
        let StateOptions {
            cache_type,
            rewindable,
        } = self.options;
        self.sequences[sequence].layers[layer].append(rows, cache_type, rewindable);
    }

    /// Adds new keys and values of a sequence to a layer that holds those of every token, and gives
    /// all of them.
    pub fn extend(
        &mut self,
        layer: usize,
        sequence: usize,
        key: Tensor<2>,
        value: Tensor<2>,
    ) -> (Tensor<2>, Tensor<2>) {
        let device = key.device().inner();
        self.append(layer, sequence, key.clone(), value.clone());
        self.tensors(layer, sequence, &device)
            .unwrap_or((key, value))
    }

    /// All keys and values of a sequence that a layer holds; none if nothing was added yet.
    pub fn tensors(
        &self,
        layer: usize,
        sequence: usize,
        device: &Device,
    ) -> Option<(Tensor<2>, Tensor<2>)> {
        self.sequences[sequence].layers[layer]
            .rows()
            .tensors(device)
    }

    /// What a recurrent layer remembers of a sequence; none of one that has not begun, or of a layer
    /// of another kind.
    pub fn recurrent(&self, layer: usize, sequence: usize) -> Option<&[Tensor<2>]> {
        match &self.sequences[sequence].layers[layer] {
            LayerState::Recurrent(state) => state.parts(),
            _ => None,
        }
    }

    /// Makes this what a recurrent layer remembers of a sequence.
    pub fn set_recurrent(&mut self, layer: usize, sequence: usize, parts: Vec<Tensor<2>>) {
        self.sequences[sequence].layers[layer] = LayerState::Recurrent(RecurrentState::of(parts));
    }

    /// Attention of one new query of each of these sequences to what is held, which includes its
    /// own key; `None` when that is on another device.
    pub fn attend(
        &self,
        layer: usize,
        sequences: &[usize],
        q: Tensor<2>,
        spec: &AttentionSpec,
    ) -> Option<Tensor<2>> {
        let rows = |&sequence: &usize| self.sequences[sequence].layers[layer].rows().blocks();
        let held: Vec<&KeyValues> = sequences.iter().map(rows).collect::<Option<_>>()?;
        Some(frugal_kernels::cached_attention(q, &held, spec))
    }

    /// Records that a pass over `layout` is complete.
    pub fn advance(&mut self, layout: &SequenceLayout) {
        for (sequence, length) in self.sequences.iter_mut().zip(layout.lengths()) {
            sequence.past += length;
        }
        for (sequence, at) in self.sequences.iter_mut().zip(&layout.invoked_at) {
            sequence.invoked_at = *at;
        }
    }

    /// Lets go of what no later token sees. The next pass does the same before it adds anything;
    /// until then [`SequenceState::undo`] can take a pass back.
    pub fn trim(&mut self) {
        for sequence in &mut self.sequences {
            sequence.trim(self.options.rewindable);
        }
    }

    /// Bytes held; what sequences share counts once.
    pub fn bytes(&self) -> usize {
        bytes_held(&self.sequences)
    }
}
