//! What can go wrong while generating.

use frugal_nn::{AdaptError, ModelError};
use thiserror::Error;

use crate::id::SequenceId;

/// What can go wrong while generating.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum DecodeError {
    /// A sampling setting is out of range.
    #[error("`{field}`: {reason}")]
    Config {
        /// Field at fault.
        field: &'static str,
        /// What is wrong and what would work.
        reason: String,
    },
    /// The model has no output head.
    #[error("{why}: it cannot generate text or score it")]
    NoHead {
        /// What the model is, or what is missing.
        why: String,
    },
    /// Nothing to continue.
    #[error(
        "prompt {index} has no tokens: give a text, or a model whose tokenizer adds a start token"
    )]
    EmptyPrompt {
        /// Number of the prompt, from 0.
        index: usize,
    },
    /// A sequence that is not there, or has left.
    #[error("there is no sequence {id} here: it has left, or belongs to another session")]
    UnknownSequence {
        /// What was asked for.
        id: SequenceId,
    },
    /// A sequence that was named twice in one call.
    #[error("sequence {id} is named twice: append all of its tokens at once")]
    NamedTwice {
        /// The sequence.
        id: SequenceId,
    },
    /// No token for a sequence.
    #[error("sequence {id}: no tokens to append: leave it out of the call, or give at least one")]
    NothingToAppend {
        /// The sequence.
        id: SequenceId,
    },
    /// A snapshot of elsewhere.
    #[error("the snapshot was taken of another session: its model and adapters may be others")]
    OtherSession,
    /// A snapshot of a sequence with other adapters.
    #[error("sequence {id}: the snapshot was computed with other adapters")]
    OtherAdapters {
        /// The sequence.
        id: SequenceId,
    },
    /// Forward pass.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// Which adapters act.
    #[error(transparent)]
    Adapt(#[from] AdaptError),
}
