//! What can be wrong with a data set.

use std::path::{Path, PathBuf};

use thiserror::Error;

use crate::fs::FileError;

/// A data set that cannot be read or used.
#[derive(Debug, Error)]
pub enum DataError {
    /// A file that cannot be read.
    #[error(transparent)]
    File(#[from] FileError),
    /// A file whose name does not say what it holds.
    #[error("{}: expected a file ending in .jsonl, .ndjson, .json, .csv, .tsv, .txt or .parquet, perhaps with .gz or .zst behind it", path.display())]
    Extension {
        /// The file.
        path: PathBuf,
    },
    /// A line that is not what was expected.
    #[error("{}:{line}: {problem}", path.display())]
    Line {
        /// The file.
        path: PathBuf,
        /// Line number, from 1.
        line: usize,
        /// What was found and what was expected.
        problem: String,
    },
    /// A file without a record.
    #[error("{}: the data set is empty", path.display())]
    Empty {
        /// The file.
        path: PathBuf,
    },
    /// Load options that contradict themselves or the file.
    #[error("{}: {problem}", path.display())]
    Options {
        /// The file.
        path: PathBuf,
        /// What is wrong and what to give instead.
        problem: String,
    },
    /// Fractions that do not divide a data set.
    #[error(
        "cannot split {rows} rows into {fractions:?}: the fractions must be above 0 and add up to at most 1, and no part may be empty"
    )]
    Split {
        /// The fractions asked for.
        fractions: Vec<f64>,
        /// Rows of the data set.
        rows: usize,
    },
    /// A name that no built-in data set has.
    #[error("no built-in data set is named {name:?}; there is: {known}")]
    Builtin {
        /// The name asked for.
        name: String,
        /// The names that exist.
        known: String,
    },
}

impl DataError {
    pub(super) fn line(path: &Path, line: usize, problem: impl Into<String>) -> Self {
        Self::Line {
            path: path.to_owned(),
            line,
            problem: problem.into(),
        }
    }

    pub(super) fn options(path: &Path, problem: impl Into<String>) -> Self {
        Self::Options {
            path: path.to_owned(),
            problem: problem.into(),
        }
    }
}
