//! What can go wrong with a study.

use std::path::PathBuf;

use thiserror::Error;

use crate::run::ResultsError;

/// A study that cannot be run.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum StudyError {
    /// No study of this name.
    #[error("there is no study `{name}`; there are: {known}")]
    Unknown {
        /// The name.
        name: String,
        /// Those that there are.
        known: String,
    },
    /// A study of another command.
    #[error("`{name}` is an experiment of `frugal bench {command}`")]
    Kind {
        /// The name.
        name: String,
        /// The command that runs it.
        command: &'static str,
    },
    /// A file of the data folder that is missing or wrong.
    #[error("{}: {reason}", path.display())]
    Data {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// It was asked to stop.
    #[error("the study was stopped before its end; nothing was written")]
    Stopped,
    /// The folder of results.
    #[error(transparent)]
    Results(#[from] ResultsError),
    /// A results file that cannot be written.
    #[error(transparent)]
    Write(#[from] frugal_core::fs::FileError),
    /// One of its parts.
    #[error("{arm}: {source}")]
    Arm {
        /// The arm that failed.
        arm: String,
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

impl StudyError {
    /// An error of one arm.
    pub fn arm(
        arm: impl Into<String>,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        Self::Arm {
            arm: arm.into(),
            source: source.into(),
        }
    }
}
