//! What can go wrong with corpora and indexes.

use std::path::{Path, PathBuf};

use frugal_core::data::DataError;
use frugal_core::fs::FileError;
use frugal_core::lock::LockError;
use thiserror::Error;

use crate::vector::VectorError;

/// A corpus, an index or a query that cannot be used.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum IndexError {
    /// A data file that cannot be read.
    #[error(transparent)]
    Data(#[from] DataError),
    /// A file that cannot be read or written.
    #[error(transparent)]
    File(#[from] FileError),
    /// Another process writes to the index.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// Vectors that cannot be stored or searched.
    #[error(transparent)]
    Vector(#[from] VectorError),
    /// A folder that is not an index.
    #[error("{}: not an index: there is no `{manifest}` in it; make one with `frugal index`", folder.display())]
    NotAnIndex {
        /// The folder.
        folder: PathBuf,
        /// The file that is missing.
        manifest: &'static str,
    },
    /// A folder that is not empty.
    #[error("{}: there is something in this folder already; open the index in it, or choose another folder", folder.display())]
    Exists {
        /// The folder.
        folder: PathBuf,
    },
    /// A file of the index that was changed or cut.
    #[error("{}: damaged: {problem}; make the index again from its documents, or take the file from a copy", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// An index of a later program.
    #[error("{}: format version {found}, but this program reads version {known}; use a newer program", path.display())]
    Version {
        /// The manifest.
        path: PathBuf,
        /// Version of the file.
        found: u64,
        /// Version that is read.
        known: u64,
    },
    /// The text index failed.
    #[error("{}: {problem}", folder.display())]
    Text {
        /// The index.
        folder: PathBuf,
        /// What it said.
        problem: String,
    },
    /// A document that is there already.
    #[error(
        "the document `{id}` is in the index already; update it instead, or give it another identifier"
    )]
    DuplicateDocument {
        /// Its identifier.
        id: String,
    },
    /// The same identifier twice in a corpus.
    #[error("{}:{line}: the identifier `{id}` was used before, in {first}", path.display())]
    DuplicateId {
        /// The file.
        path: PathBuf,
        /// Line, from 1.
        line: usize,
        /// The identifier.
        id: String,
        /// Where it was used first.
        first: String,
    },
    /// A record that is not a document.
    #[error("{}:{line}: {problem}", path.display())]
    Record {
        /// The file.
        path: PathBuf,
        /// Line, from 1.
        line: usize,
        /// What is wrong.
        problem: String,
    },
    /// A corpus without documents.
    #[error("{}: {problem}", path.display())]
    Corpus {
        /// The file or folder.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// A document that cannot be found.
    #[error("the document has an empty identifier")]
    EmptyId,
    /// A document without text.
    #[error("the document `{id}` has neither a title nor a text")]
    EmptyText {
        /// Its identifier.
        id: String,
    },
    /// A vector where there can be none, or none where there must be one.
    #[error("{0}")]
    NeedsVector(String),
    /// The index was made with another encoder.
    #[error(
        "{}: the index was made with {made}, not with {asked}; search it with its own encoder, or make another index", folder.display()
    )]
    OtherEncoder {
        /// The index.
        folder: PathBuf,
        /// Its encoder.
        made: String,
        /// The encoder asked for.
        asked: String,
    },
    /// A filter that cannot be read or used.
    #[error("the filter `{filter}`: {problem}")]
    Filter {
        /// The filter.
        filter: String,
        /// What is wrong.
        problem: String,
    },
    /// A query that cannot be answered.
    #[error("{0}")]
    Query(String),
    /// Constants of BM25 outside their range.
    #[error("BM25 needs k1 of at least 0 and b from 0 to 1, not k1 {k1} and b {b}")]
    Constants {
        /// k1.
        k1: f64,
        /// b.
        b: f64,
    },
    /// A name that no analyzer, metric or encoding has.
    #[error("no {kind} is named `{name}`; there is {known}")]
    Name {
        /// What was asked for.
        kind: &'static str,
        /// The name.
        name: String,
        /// The names there are.
        known: String,
    },
}

impl IndexError {
    pub(crate) fn damaged(path: &Path, problem: impl Into<String>) -> Self {
        Self::Damaged {
            path: path.into(),
            problem: problem.into(),
        }
    }

    pub(crate) fn record(path: &Path, line: usize, problem: impl Into<String>) -> Self {
        Self::Record {
            path: path.into(),
            line,
            problem: problem.into(),
        }
    }
}
