//! What concept retrieval refuses.

use std::path::PathBuf;

use frugal_core::fs::FileError;
use frugal_index::IndexError;
use thiserror::Error;

use crate::RetrieveError;

/// A knowledge base that cannot be read, or a search that cannot be made.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum CramfError {
    /// A line of a knowledge base.
    #[error("{}:{line}: {reason}", path.display())]
    Line {
        /// The file.
        path: PathBuf,
        /// Its line, from 1.
        line: usize,
        /// What is wrong with it.
        reason: String,
    },
    /// A definition without a name, a signature or a description.
    #[error("definition {index} ({name:?}) has no {field}")]
    Incomplete {
        /// Its position, from 0.
        index: usize,
        /// Its name.
        name: String,
        /// What it lacks.
        field: &'static str,
    },
    /// Nothing to search in.
    #[error("the knowledge base has no definitions")]
    Empty,
    /// A knowledge base of another version of the library than the checker's.
    #[error(
        "the knowledge base is of version {knowledge:?} of the library, the checker of {checker:?}: build it anew from that version"
    )]
    Version {
        /// The knowledge base's.
        knowledge: String,
        /// The checker's.
        checker: String,
    },
    /// Vectors that do not fit the definitions.
    #[error("there are {vectors} vectors of {dimension} dimensions for {definitions} definitions")]
    Vectors {
        /// Vectors.
        vectors: usize,
        /// Their width.
        dimension: usize,
        /// Definitions.
        definitions: usize,
    },
    /// A reranker that gave another number of scores than it was given texts.
    #[error("the reranker gave {scores} scores for {texts} texts, or some that are not numbers")]
    Scores {
        /// Scores.
        scores: usize,
        /// Texts.
        texts: usize,
    },
    /// A pattern over names.
    #[error("{pattern:?} is no regular expression: {reason}")]
    Pattern {
        /// The pattern.
        pattern: String,
        /// Why.
        reason: String,
    },
    /// Words or ranks.
    #[error(transparent)]
    Index(#[from] IndexError),
    /// Encoder.
    #[error(transparent)]
    Retrieve(#[from] RetrieveError),
    /// Another part: a reranker, a language model.
    #[error("{0}")]
    Other(Box<dyn std::error::Error + Send + Sync>),
    /// Files.
    #[error(transparent)]
    File(#[from] FileError),
}
