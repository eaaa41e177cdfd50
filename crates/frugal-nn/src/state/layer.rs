//! What one layer remembers of one sequence.

use burn::prelude::*;
use frugal_kernels::{CacheType, KeyValues};

use super::recurrent::RecurrentState;

/// What one layer remembers of one sequence. A backbone says which kind each of its layers needs
/// ([`Backbone::new_state`](crate::Backbone::new_state)).
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum LayerState {
    /// Keys and values of every token.
    KeyValue(CachedRows),
    /// One narrow vector of every token, from which all heads' keys and values are made; under an
    /// adapter that changes how they are made, the keys and values themselves.
    Latent(CachedRows),
    /// Keys and values of the last tokens, which are all that a sliding window shows.
    Ring(Ring),
    /// What a recurrence has made of all tokens; of earlier ones nothing can be told from it.
    Recurrent(RecurrentState),
    /// Keys and values of the tokens that a router let through.
    Routed(Routed),
}

/// Keys and values of some tokens, and where these stand.
#[derive(Clone, Debug, Default)]
pub struct Routed {
    /// Ascending. There may be more rows than these, those of a prefix in front of them.
    positions: Vec<u32>,
    rows: CachedRows,
}

impl Routed {
    /// Positions of the tokens in the sequence, ascending.
    pub fn positions(&self) -> &[u32] {
        &self.positions
    }

    fn truncate(&mut self, len: usize) {
        let gone = self.rows.len().saturating_sub(len);
        self.positions
            .truncate(self.positions.len().saturating_sub(gone));
        self.rows.truncate(len);
    }
}

/// Keys and values of the tokens that a sliding window still shows.
#[derive(Clone, Debug)]
pub struct Ring {
    window: usize,
    /// Whether rows were let go.
    dropped: bool,
    rows: CachedRows,
}

impl LayerState {
    /// Keys and values of every token.
    pub fn key_value() -> Self {
        Self::KeyValue(CachedRows::default())
    }

    /// Narrow vectors of every token.
    pub fn latent() -> Self {
        Self::Latent(CachedRows::default())
    }

    /// Keys and values of the tokens in a window, which counts the newest token.
    pub fn ring(window: usize) -> Self {
        Self::Ring(Ring {
            window,
            dropped: false,
            rows: CachedRows::default(),
        })
    }

    /// What a recurrence makes of all tokens.
    pub fn recurrent() -> Self {
        Self::Recurrent(RecurrentState::default())
    }

    /// Keys and values of the tokens that a router lets through.
    pub fn routed() -> Self {
        Self::Routed(Routed::default())
    }

    /// What is held of each token; nothing where it is a recurrence's.
    pub fn rows(&self) -> &CachedRows {
        const NONE: &CachedRows = &CachedRows(Held::Nothing);
        match self {
            Self::KeyValue(rows) | Self::Latent(rows) => rows,
            Self::Ring(ring) => &ring.rows,
            Self::Routed(routed) => &routed.rows,
            Self::Recurrent(_) => NONE,
        }
    }

    fn rows_mut(&mut self) -> Option<&mut CachedRows> {
        match self {
            Self::KeyValue(rows) | Self::Latent(rows) => Some(rows),
            Self::Ring(ring) => Some(&mut ring.rows),
            Self::Routed(routed) => Some(&mut routed.rows),
            Self::Recurrent(_) => None,
        }
    }

    /// Whether keys and values are held where a narrow vector could be: an adapter changes how they
    /// are made of it.
    pub fn is_expanded(&self) -> bool {
        matches!(self, Self::Latent(rows) if !rows.is_empty() && !rows.values_are_keys())
    }

    /// Adds rows. The first rows of a sequence are attended to as they come, so that a ring holds
    /// only those that later ones see; of the rows that it has when more come it lets go of all
    /// that these do not see.
    pub(super) fn append(&mut self, new: NewRows, cache_type: CacheType, rewindable: usize) {
        let Self::Ring(ring) = self else {
            if let Some(rows) = self.rows_mut() {
                rows.append(new, cache_type);
            }
            return;
        };
        let kept = ring.window + rewindable;
        ring.trim(rewindable);
        let new = if ring.rows.is_empty() && new.len() > kept {
            ring.dropped = true;
            new.last(kept)
        } else {
            new
        };
        ring.rows.append(new, cache_type);
    }

    /// Says where the tokens stand whose rows come next; of other kinds nothing.
    pub(super) fn route(&mut self, positions: &[u32]) {
        if let Self::Routed(routed) = self {
            routed.positions.extend_from_slice(positions);
        }
    }

    /// Lets go of what no later token sees, except for the last `rewindable` of it.
    pub(super) fn trim(&mut self, rewindable: usize) {
        if let Self::Ring(ring) = self {
            ring.trim(rewindable);
        }
    }

    /// Whether the last `back` positions can be taken back.
    pub(super) fn can_rewind(&self, back: usize) -> bool {
        match self {
            // The next token sees itself and one less than the window.
            Self::Ring(ring) if ring.dropped => ring.rows.len() + 1 >= back + ring.window,
            Self::Recurrent(_) => back == 0,
            _ => true,
        }
    }

    /// Rows that are held when the last `back` positions of `past` are taken back.
    pub(super) fn rows_before(&self, back: usize, past: usize) -> usize {
        let held = self.rows().len();
        match self {
            Self::Routed(routed) => {
                let kept = |position: &&u32| (**position as usize) < past - back;
                let kept = routed.positions.iter().take_while(kept).count();
                held - (routed.positions.len() - kept)
            }
            // A method's prefix counts among the rows but not in `past`.
            _ => held.saturating_sub(back),
        }
    }

    /// Forgets all but the first `len` of the rows that are held.
    pub(super) fn truncate(&mut self, len: usize) {
        if let Self::Routed(routed) = self
            && len > 0
        {
            return routed.truncate(len);
        }
        let Some(rows) = self.rows_mut() else {
            return;
        };
        if len > 0 {
            return rows.truncate(len);
        }
        *rows = CachedRows::default();
        match self {
            Self::Ring(ring) => ring.dropped = false,
            Self::Routed(routed) => routed.positions.clear(),
            _ => {}
        }
    }

    /// Forgets everything.
    pub(super) fn clear(&mut self) {
        match self {
            Self::Recurrent(state) => *state = RecurrentState::default(),
            _ => self.truncate(0),
        }
    }

    /// Whether a state of this kind can stand in for the other.
    pub(super) fn is_like(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Ring(one), Self::Ring(two)) => one.window == two.window,
            _ => std::mem::discriminant(self) == std::mem::discriminant(other),
        }
    }
}

impl Ring {
    fn trim(&mut self, rewindable: usize) {
        let kept = self.window + rewindable;
        if self.rows.len() > kept {
            self.dropped = true;
            self.rows.keep_last(kept);
        }
    }

    /// Positions that the newest token sees, itself among them.
    pub fn window(&self) -> usize {
        self.window
    }
}

/// Rows to remember, each `[positions, width]`; without values the keys are the values.
pub(super) struct NewRows {
    pub key: Tensor<2>,
    pub value: Option<Tensor<2>>,
}

impl NewRows {
    fn len(&self) -> usize {
        self.key.dims()[0]
    }

    fn last(self, count: usize) -> Self {
        let len = self.len();
        let last = |rows: Tensor<2>| rows.slice(len - count..len);
        Self {
            key: last(self.key),
            value: self.value.map(last),
        }
    }
}

/// Remembered keys and values of consecutive positions. Clones have in common what they share until
/// one of them changes it.
#[derive(Clone, Debug, Default)]
pub struct CachedRows(Held);

#[derive(Clone, Debug, Default)]
enum Held {
    #[default]
    Nothing,
    /// In this process's memory, added to in place.
    Blocks { rows: KeyValues, shared: bool },
    /// On another device; without values the keys are the values.
    Tensors(Tensor<2>, Option<Tensor<2>>),
}

impl CachedRows {
    /// Positions.
    pub fn len(&self) -> usize {
        match &self.0 {
            Held::Nothing => 0,
            Held::Blocks { rows, .. } => rows.len(),
            Held::Tensors(key, _) => key.dims()[0],
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether each row is key and value at once.
    pub fn values_are_keys(&self) -> bool {
        match &self.0 {
            Held::Nothing => false,
            Held::Blocks { shared, .. } => *shared,
            Held::Tensors(_, value) => value.is_none(),
        }
    }

    /// All keys and values; none if nothing was added yet.
    pub fn tensors(&self, device: &Device) -> Option<(Tensor<2>, Tensor<2>)> {
        match &self.0 {
            Held::Nothing => None,
            Held::Blocks { rows, .. } => Some(rows.tensors(device)),
            Held::Tensors(key, value) => {
                Some((key.clone(), value.clone().unwrap_or_else(|| key.clone())))
            }
        }
    }

    /// The rows where they are in this process's memory.
    pub(super) fn blocks(&self) -> Option<&KeyValues> {
        match &self.0 {
            Held::Blocks { rows, .. } => Some(rows),
            _ => None,
        }
    }

    fn append(&mut self, new: NewRows, cache_type: CacheType) {
        let NewRows { key, value } = new;
        if matches!(self.0, Held::Nothing) {
            let (shared, width) = (value.is_none(), key.dims()[1]);
            let rows = if shared {
                KeyValues::shared(width, cache_type)
            } else {
                KeyValues::new(width, cache_type)
            };
            self.0 = Held::Blocks { rows, shared };
        }
        if let Held::Blocks { rows, .. } = &mut self.0
            && rows.append(&key, value.as_ref().unwrap_or(&key))
        {
            return;
        }
        let behind = |old: Tensor<2>, new: Tensor<2>| Tensor::cat(vec![old, new], 0);
        self.0 = match std::mem::take(&mut self.0) {
            Held::Tensors(k, v) => {
                let value = v.map(|v| behind(v, value.unwrap_or_else(|| key.clone())));
                Held::Tensors(behind(k, key), value)
            }
            _ => Held::Tensors(key, value),
        };
    }

    fn truncate(&mut self, len: usize) {
        match &mut self.0 {
            Held::Nothing => {}
            Held::Blocks { rows, .. } => rows.truncate(len),
            Held::Tensors(key, value) => {
                let end = len.min(key.dims()[0]);
                *key = key.clone().slice(0..end);
                *value = value.take().map(|value| value.slice(0..end));
            }
        }
    }

    fn keep_last(&mut self, len: usize) {
        match &mut self.0 {
            Held::Nothing => {}
            Held::Blocks { rows, .. } => rows.keep_last(len),
            Held::Tensors(key, value) => {
                let end = key.dims()[0];
                let from = end.saturating_sub(len);
                *key = key.clone().slice(from..end);
                *value = value.take().map(|value| value.slice(from..end));
            }
        }
    }

    /// Bytes of one position.
    pub fn bytes_per_position(&self) -> usize {
        match &self.0 {
            Held::Nothing => 0,
            Held::Blocks { rows, .. } => rows.bytes_per_position(),
            Held::Tensors(key, value) => {
                let width = |rows: &Tensor<2>| rows.dims()[1];
                (width(key) + value.as_ref().map_or(0, width)) * size_of::<f32>()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::SequenceLayout;
    use crate::state::{DecodeState, StateOptions};

    /// Positions 0, 2 and 5 of six behind a prefix of two rows.
    fn state() -> DecodeState {
        let mut state = DecodeState::new(vec![LayerState::routed()], 1, StateOptions::default());
        let rows = |count: usize| Tensor::<2>::ones([count, 4], &Device::flex());
        state.append(0, 0, rows(2), rows(2));
        for (positions, tokens) in [(&[0u32, 2][..], 3), (&[5][..], 3)] {
            state.route(0, 0, positions);
            state.append(0, 0, rows(positions.len()), rows(positions.len()));
            state.advance(&SequenceLayout::with_past(&[tokens], &state.past()));
        }
        state
    }

    fn held(state: &DecodeState) -> (usize, Vec<u32>) {
        let layer = &state.sequences()[0].layers()[0];
        let LayerState::Routed(routed) = layer else {
            panic!("{layer:?}");
        };
        (layer.rows().len(), routed.positions().to_vec())
    }

    #[test]
    fn taking_tokens_back_takes_those_that_were_let_through() {
        assert_eq!(held(&state()), (5, vec![0, 2, 5]));
        for (length, expected) in [
            (6, (5, vec![0, 2, 5])),
            (5, (4, vec![0, 2])),
            (3, (4, vec![0, 2])),
            (2, (3, vec![0])),
            (1, (3, vec![0])),
            (0, (0, vec![])),
        ] {
            let mut state = state();
            assert_eq!(state.crop(0, length), Ok(true));
            assert_eq!(held(&state), expected, "{length}");
        }
        // A pass that failed half way.
        let mut sequence = state().leave_all().remove(0);
        let mark = sequence.mark();
        let mut begun = DecodeState::new(vec![LayerState::routed()], 0, StateOptions::default());
        begun.join(sequence.clone()).unwrap();
        begun.route(0, 0, &[6]);
        let row = Tensor::<2>::ones([1, 4], &Device::flex());
        begun.append(0, 0, row.clone(), row);
        sequence = begun.leave_all().remove(0);
        assert_eq!(sequence.layers()[0].rows().len(), 6);
        sequence.undo(&mark);
        begun.join(sequence).unwrap();
        assert_eq!(held(&begun), (5, vec![0, 2, 5]));
    }
}
