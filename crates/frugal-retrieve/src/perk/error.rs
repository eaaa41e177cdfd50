//! What writing into an adapter refuses.

use std::path::PathBuf;

use frugal_core::fs::FileError;
use frugal_core::stage::StageError;
use frugal_core::tokenizer::TokenizerError;
use frugal_nn::{AdaptError, ModelError};
use thiserror::Error;

use super::unroll::UnrollError;

/// A context that cannot be written, a state that cannot be learnt or read.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum PerkError {
    /// A setting that cannot be.
    #[error("`{key}`: {reason}")]
    Config {
        /// The setting.
        key: &'static str,
        /// Why not.
        reason: String,
    },
    /// Texts that make no batch.
    #[error("{0}")]
    Text(String),
    /// A file of a state.
    #[error("{}: {reason}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// Inner steps that cannot be taken.
    #[error("{0}")]
    Steps(String),
    /// A loss of a context or its gradient that is infinite or not a number.
    #[error("writing: the loss of the context or its gradient is not finite in inner step {inner}{}", because(*inner))]
    Writing {
        /// The inner step, from 1.
        inner: usize,
    },
    /// A loss, a gradient or a value of the state that is infinite or not a number.
    #[error("step {step}: {what} is not finite: {advice}")]
    NotFinite {
        /// The step of meta-training, from 1.
        step: u64,
        /// What is not.
        what: String,
        /// What would work.
        advice: &'static str,
    },
    /// It was asked to stop.
    #[error("stopped")]
    Stopped,
    /// The model.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// The adapter.
    #[error(transparent)]
    Adapt(#[from] AdaptError),
    /// The tokenizer.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    /// A file that cannot be read or written.
    #[error(transparent)]
    Access(#[from] FileError),
    /// A folder that cannot be written.
    #[error(transparent)]
    Stage(#[from] StageError),
}

/// Before the first inner step nothing was written, and the rates of writing are not to blame.
fn because(inner: usize) -> &'static str {
    match inner {
        0 | 1 => "",
        _ => ": the learning rates of writing are too high for it",
    }
}

impl From<UnrollError<ModelError>> for PerkError {
    fn from(error: UnrollError<ModelError>) -> Self {
        match error {
            UnrollError::Loss(error) => Self::Model(error),
            UnrollError::NotFinite { step } => Self::Writing { inner: step },
            other => Self::Steps(other.to_string()),
        }
    }
}
