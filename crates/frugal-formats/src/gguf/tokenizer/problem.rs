//! The metadata keys of tokenizers, and what is wrong with their values.

use crate::gguf::GgufProblem;

/// The metadata key of a name.
pub(super) fn key(name: &str) -> String {
    format!("tokenizer.ggml.{name}")
}

/// A value that cannot be used.
pub(super) fn wrong(name: &str, why: impl Into<String>) -> GgufProblem {
    GgufProblem::metadata(&key(name), why)
}

/// An error of the `tokenizers` library.
pub(super) fn library(error: tokenizers::Error) -> GgufProblem {
    GgufProblem::Unsupported(format!("tokenizer: {error}"))
}
