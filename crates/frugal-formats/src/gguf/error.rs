//! What is wrong with a GGUF file, and where.

use thiserror::Error;

/// A GGUF file that cannot be read or written.
#[derive(Debug, Error, PartialEq)]
#[error("{file}: {problem}")]
pub struct GgufError {
    /// The file, as the caller named it.
    pub file: String,
    /// What is wrong.
    pub problem: GgufProblem,
}

/// The kinds of [`GgufError`].
#[derive(Debug, Error, PartialEq)]
pub enum GgufProblem {
    /// The first four bytes are not `GGUF`.
    #[error("not a GGUF file: it starts with {0:02x?}, not with \"GGUF\"")]
    Magic(Vec<u8>),
    /// A version this reader does not know.
    #[error(
        "GGUF version {0} is not supported (2 and 3 are, little endian); convert the model again with a current llama.cpp"
    )]
    Version(u32),
    /// A file of another byte order.
    #[error(
        "the file is big-endian (version {0} read so); convert the model again for little-endian machines, or `gguf-convert-endian FILE little`"
    )]
    BigEndian(u32),
    /// The file ends, or a length in it points, beyond its end.
    #[error(
        "byte {at}: {what} needs {needed} bytes, the file has {left} left; it is cut off or damaged, fetch it again"
    )]
    Truncated {
        /// Position in the file.
        at: u64,
        /// What was being read.
        what: String,
        /// Bytes that the file says follow.
        needed: u64,
        /// Bytes that do follow.
        left: u64,
    },
    /// Text that is not UTF-8.
    #[error("byte {at}: {what} is not UTF-8")]
    NotUtf8 {
        /// Position in the file.
        at: u64,
        /// What was being read.
        what: String,
    },
    /// A value type code outside 0 to 12.
    #[error("byte {at}: {what} has the unknown value type {code}")]
    ValueType {
        /// Position in the file.
        at: u64,
        /// What was being read.
        what: String,
        /// The code found.
        code: u32,
    },
    /// A tensor type that this reader cannot dequantise.
    #[error("tensor {name}: type {code} ({}) is not supported; re-quantise the model to one of {}", .known.unwrap_or("unknown"), super::GgmlType::names())]
    TensorType {
        /// The tensor.
        name: String,
        /// The code found.
        code: u32,
        /// GGML's name of the code, if it has one.
        known: Option<&'static str>,
    },
    /// A key or tensor name that occurs twice.
    #[error("{what} {name:?} occurs twice")]
    Duplicate {
        /// `metadata key` or `tensor`.
        what: &'static str,
        /// The name.
        name: String,
    },
    /// `general.alignment` is not a power of two.
    #[error("general.alignment is {0}; it must be a power of two")]
    Alignment(String),
    /// Dimensions that no tensor can have.
    #[error("tensor {name}: dimensions {dims:?}: {why}")]
    Dims {
        /// The tensor.
        name: String,
        /// The dimensions in the file's order.
        dims: Vec<u64>,
        /// The rule they break.
        why: String,
    },
    /// Tensor data that is misplaced.
    #[error("tensor {name}: data offset {offset}: {why}")]
    Offset {
        /// The tensor.
        name: String,
        /// The offset in the data section.
        offset: u64,
        /// The rule it breaks.
        why: String,
    },
    /// A metadata value that is absent, of another type or out of range.
    #[error("metadata key {key}: {why}")]
    Metadata {
        /// The key.
        key: String,
        /// What is wrong.
        why: String,
    },
    /// Parts of a split model that are missing, or that contradict each other.
    #[error("{0}")]
    Split(String),
    /// A tensor that is asked for and not there.
    #[error("no tensor named {0:?}")]
    NoTensor(String),
    /// A model that this reader cannot turn into, or make from, Hugging Face terms.
    #[error("{0}")]
    Unsupported(String),
}

impl GgufProblem {
    /// Names the file.
    pub fn in_file(self, file: &str) -> GgufError {
        GgufError {
            file: file.to_owned(),
            problem: self,
        }
    }

    pub(crate) fn metadata(key: &str, why: impl Into<String>) -> Self {
        Self::Metadata {
            key: key.to_owned(),
            why: why.into(),
        }
    }
}
