//! What can go wrong with a state.

use thiserror::Error;

/// What can go wrong with a state.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum StateError {
    /// Going back to more than there is.
    #[error("a sequence of {past} positions cannot be cut to {length}")]
    Beyond {
        /// Positions asked for.
        length: usize,
        /// Positions there are.
        past: usize,
    },
    /// Going back to where a sliding window shows what is gone.
    #[error(
        "a sequence of {past} positions cannot be cut to {length}: layers with a sliding window have let go of what the next \
         token would see; keep a snapshot from before, allow for it with `rewindable`, or compute the sequence anew"
    )]
    OutsideWindow {
        /// Positions asked for.
        length: usize,
        /// Positions there are.
        past: usize,
    },
    /// Going back where a recurrence has made one state of all tokens.
    #[error(
        "a sequence of {past} positions cannot be cut to {length}: recurrent layers keep one state of all tokens; keep a \
         snapshot from before, or compute the sequence anew"
    )]
    Recurrent {
        /// Positions asked for.
        length: usize,
        /// Positions there are.
        past: usize,
    },
    /// A pass over other sequences than those that are remembered.
    #[error(
        "the pass is over sequences of which {given:?} positions are remembered, the state's are of {past:?}"
    )]
    OtherSequences {
        /// What the pass's layout says.
        given: Vec<usize>,
        /// What there is.
        past: Vec<usize>,
    },
    /// A sequence's state of another model.
    #[error(
        "the state belongs to another model: its layers are not of the kinds that this one has"
    )]
    OtherModel,
    /// Latent attention under an adapter that it was not begun with.
    #[error(
        "layer {layer}: the sequences of one pass do not agree on how keys and values are made of the narrow vectors that are \
         remembered: go on with the adapter that a sequence was begun with, and give each adapter a pass of its own"
    )]
    OtherAdapter {
        /// Block number.
        layer: usize,
    },
}
