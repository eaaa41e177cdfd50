//! What can go wrong with stores.

use thiserror::Error;

use crate::error::IndexError;
use crate::vector::VectorError;

/// A store that cannot be used.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum StoreError {
    /// An address that names no store.
    #[error("the store `{text}`: {problem}")]
    Address {
        /// What was given.
        text: String,
        /// What is wrong.
        problem: String,
    },
    /// A store that this program was built without.
    #[error(
        "the store `{text}`: this program was built without it; build it with `--features {feature}`"
    )]
    NotBuilt {
        /// What was given.
        text: String,
        /// The feature.
        feature: &'static str,
    },
    /// Nobody answers.
    #[error(
        "{place}: cannot be reached: {problem}; is it running? Nothing was changed by this call"
    )]
    Unreachable {
        /// The store.
        place: String,
        /// What happened.
        problem: String,
    },
    /// An answer that does not come.
    #[error(
        "{place}: no answer within {seconds} s; the call may or may not have been carried out, and can be repeated"
    )]
    Timeout {
        /// The store.
        place: String,
        /// How long was waited.
        seconds: f64,
    },
    /// The store says no.
    #[error("{place}: {problem}")]
    Refused {
        /// The store.
        place: String,
        /// What it said.
        problem: String,
    },
    /// An answer that is none.
    #[error("{place}: an answer that cannot be read: {problem}")]
    Answer {
        /// The store.
        place: String,
        /// What is wrong.
        problem: String,
    },
    /// No such collection.
    #[error("{place}: there is nothing of this name; make it with `frugal index --store`")]
    Absent {
        /// The store.
        place: String,
    },
    /// Something of this name that another program made.
    #[error(
        "{place}: there is something of this name that was not made by `frugal index`; choose another name behind `#`"
    )]
    Foreign {
        /// The store.
        place: String,
    },
    /// Vectors of another model.
    #[error(
        "{place}: it was made with {made}, not with {asked}; use its own encoder, or another name behind `#`"
    )]
    OtherEncoder {
        /// The store.
        place: String,
        /// Its encoder.
        made: String,
        /// The encoder asked for.
        asked: String,
    },
    /// The same identifier twice in one call.
    #[error("the identifier `{id}` is there twice; nothing was stored")]
    DuplicateId {
        /// The identifier.
        id: String,
    },
    /// A document or a filter.
    #[error(transparent)]
    Index(#[from] IndexError),
    /// A vector.
    #[error(transparent)]
    Vector(#[from] VectorError),
}
