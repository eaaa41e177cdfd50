//! What all layers remember of one sequence.

use std::collections::HashSet;

use super::error::StateError;
use super::layer::LayerState;
use super::recurrent::RecurrentState;

/// What all layers remember of one sequence. Clones have in common what they share, and copy of it
/// only what one of them changes.
#[derive(Clone, Debug, Default)]
pub struct SequenceState {
    pub(super) layers: Vec<LayerState>,
    pub(super) past: usize,
    /// See [`SequenceLayout::invoked_at`](crate::SequenceLayout::invoked_at).
    pub(super) invoked_at: Option<usize>,
}

/// How far a sequence was, to which [`SequenceState::undo`] goes back after a pass that failed.
#[derive(Clone, Debug)]
pub struct Mark {
    rows: Vec<usize>,
    /// What recurrences had made of the tokens, which no rows tell.
    recurrent: Vec<Option<RecurrentState>>,
    past: usize,
    invoked_at: Option<usize>,
}

impl SequenceState {
    /// Positions that complete passes have put here, without those that stand for a prefix.
    pub fn past(&self) -> usize {
        self.past
    }

    /// Where the text stands that turned on a method which waits for one.
    pub fn invoked_at(&self) -> Option<usize> {
        self.invoked_at
    }

    /// What each layer remembers.
    pub fn layers(&self) -> &[LayerState] {
        &self.layers
    }

    /// How far it is.
    pub fn mark(&self) -> Mark {
        Mark {
            rows: self.layers.iter().map(|layer| layer.rows().len()).collect(),
            recurrent: self
                .layers
                .iter()
                .map(|layer| match layer {
                    LayerState::Recurrent(state) => Some(state.clone()),
                    _ => None,
                })
                .collect(),
            past: self.past,
            invoked_at: self.invoked_at,
        }
    }

    /// Takes back what passes have added since the mark, as long as [`SequenceState::trim`] was not
    /// called since.
    pub fn undo(&mut self, mark: &Mark) {
        let marked = mark.rows.iter().zip(&mark.recurrent);
        for (layer, (&rows, recurrent)) in self.layers.iter_mut().zip(marked) {
            match recurrent {
                Some(state) => *layer = LayerState::Recurrent(state.clone()),
                None => layer.truncate(rows),
            }
        }
        (self.past, self.invoked_at) = (mark.past, mark.invoked_at);
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        self.layers.iter_mut().for_each(LayerState::clear);
        (self.past, self.invoked_at) = (0, None);
    }

    /// Forgets what comes after the first `length` positions. What is left is what the passes over
    /// them computed: where rotary frequencies follow from a text's length, those of the longer
    /// text.
    ///
    /// # Errors
    /// More positions than there are; layers with a window that have let go of what the tokens
    /// after `length` see; recurrent layers, which hold nothing of earlier tokens by themselves.
    /// Nothing is changed then.
    pub fn crop(&mut self, length: usize) -> Result<(), StateError> {
        let past = self.past;
        let Some(back) = past.checked_sub(length) else {
            return Err(StateError::Beyond { length, past });
        };
        if length == 0 {
            self.clear();
            return Ok(());
        }
        let is_recurrent = |layer: &LayerState| matches!(layer, LayerState::Recurrent(_));
        if back > 0 && self.layers.iter().any(is_recurrent) {
            return Err(StateError::Recurrent { length, past });
        }
        if !self.layers.iter().all(|layer| layer.can_rewind(back)) {
            return Err(StateError::OutsideWindow { length, past });
        }
        for layer in &mut self.layers {
            layer.truncate(layer.rows_before(back, past));
        }
        self.past = length;
        self.invoked_at = self.invoked_at.filter(|&at| at < length);
        Ok(())
    }

    /// Lets go of what no later token sees, except for the last `rewindable` positions of it.
    pub fn trim(&mut self, rewindable: usize) {
        self.layers
            .iter_mut()
            .for_each(|layer| layer.trim(rewindable));
    }

    /// Whether it can stand in for the other: layer by layer they are of one kind.
    pub fn is_like(&self, other: &Self) -> bool {
        self.layers.len() == other.layers.len()
            && self
                .layers
                .iter()
                .zip(&other.layers)
                .all(|(one, two)| one.is_like(two))
    }

    /// Bytes that are held however many tokens there were: those of recurrent layers.
    pub fn fixed_bytes(&self) -> usize {
        self.recurrent().map(RecurrentState::bytes).sum()
    }

    fn recurrent(&self) -> impl Iterator<Item = &RecurrentState> {
        self.layers.iter().filter_map(|layer| match layer {
            LayerState::Recurrent(state) => Some(state),
            _ => None,
        })
    }

    /// Bytes that each token takes, in all layers together.
    pub fn bytes_per_token(&self) -> usize {
        self.layers
            .iter()
            .map(|layer| layer.rows().bytes_per_position())
            .sum()
    }
}

/// Bytes that these sequences hold; what several of them share counts once.
pub fn bytes_held<'a>(sequences: impl IntoIterator<Item = &'a SequenceState>) -> usize {
    let (mut seen, mut seen_states, mut bytes) = (HashSet::new(), HashSet::new(), 0);
    let sequences: Vec<&SequenceState> = sequences.into_iter().collect();
    for state in sequences.iter().flat_map(|sequence| sequence.recurrent()) {
        if state.id().is_some_and(|id| seen_states.insert(id)) {
            bytes += state.bytes();
        }
    }
    let layers = sequences.iter().flat_map(|sequence| &sequence.layers);
    for rows in layers.map(LayerState::rows) {
        bytes += match rows.blocks() {
            Some(blocks) => {
                let new = blocks.block_ids().filter(|id| seen.insert(*id)).count();
                new * blocks.bytes_per_block()
            }
            None => rows.len() * rows.bytes_per_position(),
        };
    }
    bytes
}
