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
    /// An outer loss that is infinite or not a number.
    #[error("the loss of the answers is not finite in step {step}: lower the learning rates")]
    NotFinite {
        /// The step of meta-training, from 1.
        step: u64,
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

impl From<UnrollError<ModelError>> for PerkError {
    fn from(error: UnrollError<ModelError>) -> Self {
        match error {
            UnrollError::Loss(error) => Self::Model(error),
            other => Self::Steps(other.to_string()),
        }
    }
}
