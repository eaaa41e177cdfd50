//! What is wrong with an ONNX file, and where.

use thiserror::Error;

/// An ONNX file whose weights cannot be read.
#[derive(Debug, Error, PartialEq)]
#[error("{file}: {problem}")]
pub struct OnnxError {
    /// The file, as the caller named it.
    pub file: String,
    /// What is wrong.
    pub problem: OnnxProblem,
}

/// The kinds of [`OnnxError`].
#[derive(Debug, Error, PartialEq)]
#[non_exhaustive]
pub enum OnnxProblem {
    /// A message of another format, or one of this format without a graph.
    #[error("not an ONNX model: it has no graph")]
    NoGraph,
    /// The file ends, or a length in it points, beyond its end.
    #[error(
        "byte {at}: a field says that {needed} bytes follow, {left} do; the file is cut off or damaged, fetch it again, or it is no ONNX model"
    )]
    Truncated {
        /// Position in the file.
        at: usize,
        /// Bytes that the field says follow.
        needed: u64,
        /// Bytes that do follow.
        left: usize,
    },
    /// Bytes that are no protocol buffer, or a known field of another kind.
    #[error("byte {at}: {why}; the file is damaged, or it is no ONNX model")]
    Malformed {
        /// Position in the file.
        at: usize,
        /// The rule that is broken.
        why: String,
    },
    /// More parts than a model has.
    #[error("more than {most} {what}, which no model has")]
    TooMany {
        /// What there are too many of.
        what: &'static str,
        /// How many are read.
        most: usize,
    },
    /// A tensor that cannot be read.
    #[error("tensor {name}: {why}")]
    Tensor {
        /// The tensor.
        name: String,
        /// What is wrong with it.
        why: String,
    },
    /// A node whose weights cannot be read.
    #[error("node {name} ({operator}): {why}")]
    Node {
        /// The node, or its first output where it has no name.
        name: String,
        /// What it computes.
        operator: String,
        /// What is wrong with it.
        why: String,
    },
    /// Two weights of one name.
    #[error("two weights are called {0}")]
    Duplicate(String),
    /// No weight at all.
    #[error("no weights in it")]
    NoWeights,
}

impl OnnxProblem {
    /// Names the file.
    pub(super) fn of(self, file: &str) -> OnnxError {
        OnnxError {
            file: file.into(),
            problem: self,
        }
    }
}
