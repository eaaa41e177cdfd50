//! An ONNX file in memory.

use std::path::Path;

use frugal_core::fs::{FileError, open};

use super::error::{OnnxError, OnnxProblem};
use super::graph::Graph;
use super::weights::{self, Weight, Weights};

/// Protocol buffers, and so ONNX files without external data, have at most 2 GiB.
const LIMIT: u64 = 2 << 30;

/// A model whose weights are found.
#[derive(Debug)]
pub struct Onnx<'a> {
    file: String,
    weights: Weights<'a>,
}

/// All bytes of an ONNX file.
pub(super) fn read(path: &Path) -> Result<Vec<u8>, FileError> {
    use std::io::Read;
    let mut bytes = Vec::new();
    let read = open(path)?.take(LIMIT + 1).read_to_end(&mut bytes);
    match read.map_err(FileError::at(path, "cannot read"))? as u64 > LIMIT {
        true => Err(FileError::at(path, "cannot read")(std::io::Error::new(
            std::io::ErrorKind::FileTooLarge,
            "it has more than 2 GiB, which no ONNX file can have",
        ))),
        false => Ok(bytes),
    }
}

impl<'a> Onnx<'a> {
    /// Finds the weights in the bytes of a file, which `file` names in messages.
    ///
    /// # Errors
    /// [`OnnxError`] for what is damaged, or is not read here.
    pub fn parse(bytes: &'a [u8], file: &str) -> Result<Self, OnnxError> {
        let weights = Graph::parse(bytes).and_then(|graph| weights::find(graph, bytes.len()));
        let weights = weights.map_err(|problem| OnnxProblem::of(problem, file))?;
        Ok(Self {
            file: file.into(),
            weights,
        })
    }

    /// The weights, sorted by name.
    pub fn weights(&self) -> impl ExactSizeIterator<Item = &Weight> {
        self.weights.iter()
    }

    /// Constants of several numbers that no name of a module could be found for, by the file's own.
    pub fn left_out(&self) -> &[String] {
        self.weights.left_out()
    }

    /// The numbers of one of the weights in row-major order, as many as its shape says.
    ///
    /// # Errors
    /// [`OnnxError`] where the file has fewer or more numbers, or of a type that is not read.
    pub fn values(&self, weight: &Weight) -> Result<Vec<f32>, OnnxError> {
        let values = self.weights.values(weight);
        values.map_err(|problem| problem.of(&self.file))
    }
}
