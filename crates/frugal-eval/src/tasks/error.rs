//! What can go wrong in an evaluation.

use std::error::Error;
use std::path::PathBuf;

use thiserror::Error as ThisError;

use crate::sandbox::SandboxError;
use frugal_core::data::DataError;
use frugal_core::fs::FileError;

/// What the model could not do.
pub type ModelFailure = Box<dyn Error + Send + Sync>;

/// What can go wrong in an evaluation.
#[derive(Debug, ThisError)]
#[non_exhaustive]
pub enum EvalError {
    /// A file.
    #[error(transparent)]
    File(#[from] FileError),
    /// The data.
    #[error(transparent)]
    Data(#[from] DataError),
    /// A task that contradicts itself or the run.
    #[error("task `{task}`: {reason}")]
    Task {
        /// Name or file.
        task: String,
        /// What is wrong.
        reason: String,
    },
    /// A name that is no task.
    #[error("no task `{name}`{}: give one of {known}, or a task file ending in .toml", suggestion.as_ref().map_or(String::new(), |s| format!(" (did you mean `{s}`?)")))]
    UnknownTask {
        /// The name.
        name: String,
        /// Nearest task.
        suggestion: Option<String>,
        /// All tasks.
        known: String,
    },
    /// Data that is not there.
    #[error(
        "{file}: no such file beside the task, in the data folder (`--data-dir`, FRUGAL_DATA) or here"
    )]
    NoData {
        /// What was looked for.
        file: String,
    },
    /// A text that is none.
    #[error("{}: not UTF-8 text after byte {byte}", path.display())]
    Text {
        /// File.
        path: PathBuf,
        /// Bytes that are text.
        byte: usize,
    },
    /// A template that a record does not fit.
    #[error("task `{task}`, record {row}: {reason}; the record has: {fields}")]
    Template {
        /// Task.
        task: String,
        /// Record, from 0.
        row: usize,
        /// What the template engine says.
        reason: String,
        /// Fields of the record.
        fields: String,
    },
    /// A record that the task cannot use.
    #[error("task `{task}`, record {row}: {reason}")]
    Record {
        /// Task.
        task: String,
        /// Record, from 0.
        row: usize,
        /// What is wrong.
        reason: String,
    },
    /// The sandbox that answers run in.
    #[error(transparent)]
    Sandbox(#[from] SandboxError),
    /// A task that runs what the model writes, without leave to do so.
    #[error(
        "task `{task}` runs programs that the model writes: give `--allow-code-execution` if you mean it"
    )]
    NoExecution {
        /// Task.
        task: String,
    },
    /// The model.
    #[error("{0}")]
    Model(#[source] ModelFailure),
}
