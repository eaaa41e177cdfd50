//! What can be wrong with vectors and their files.

use std::path::PathBuf;

use frugal_core::fs::FileError;
use thiserror::Error;

/// Vectors that cannot be stored or searched.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum VectorError {
    /// A file that cannot be read or written.
    #[error(transparent)]
    File(#[from] FileError),
    /// Not a file of vectors, or a changed or cut one.
    #[error("{}: damaged: {problem}; make it again from its documents, or take it from a copy", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// A vector of another length.
    #[error("{what} has {found} numbers, but the index holds vectors of {expected}")]
    Dimension {
        /// Which vector.
        what: String,
        /// Its length.
        found: usize,
        /// The index's.
        expected: usize,
    },
    /// A dimension that no vector has.
    #[error("vectors must have from 1 to {most} numbers, not {found}")]
    BadDimension {
        /// What was asked for.
        found: usize,
        /// The most there can be.
        most: usize,
    },
    /// A number that nothing can be compared with.
    #[error("{what}: number {place} is {value}, which is not finite")]
    NotFinite {
        /// Which vector.
        what: String,
        /// Position, from 0.
        place: usize,
        /// The number.
        value: f32,
    },
    /// Numbers whose products do not fit into 32 bits, or that do not fit into 16.
    #[error("{what} holds numbers that are too large for {kind}")]
    TooLarge {
        /// Which vector.
        what: String,
        /// What they have to fit into.
        kind: &'static str,
    },
    /// A vector without direction.
    #[error("{what} is all zeros, which has no cosine with anything")]
    Zero {
        /// Which vector.
        what: String,
    },
    /// Keys that are not in ascending order.
    #[error("the key {found} comes after {before}; keys must ascend")]
    KeyOrder {
        /// The key before.
        before: u64,
        /// The key.
        found: u64,
    },
    /// An encoding that cannot serve a metric.
    #[error(
        "vectors as `{encoding}` cannot be searched by `{metric}`: single bits keep the direction only; use `int8`"
    )]
    Unsuited {
        /// The encoding.
        encoding: &'static str,
        /// The metric.
        metric: &'static str,
    },
    /// A graph that cannot be made.
    #[error("{0}")]
    Graph(String),
    /// Vectors of two kinds in one file.
    #[error("vectors of {found} cannot be added to vectors of {expected}")]
    OtherKind {
        /// What was to be added.
        found: String,
        /// What there is.
        expected: String,
    },
}

impl VectorError {
    /// The same of a vector that has a better name.
    pub(crate) fn of(mut self, name: &str) -> Self {
        if let Self::Dimension { what, .. }
        | Self::NotFinite { what, .. }
        | Self::TooLarge { what, .. }
        | Self::Zero { what } = &mut self
        {
            *what = name.into();
        }
        self
    }
}
