//! From an ONNX file to safetensors.

use std::borrow::Cow;
use std::collections::HashMap;
use std::path::Path;

use frugal_core::fs::{FileError, Temporary};
use safetensors::tensor::{Dtype, View};
use thiserror::Error;

use super::error::OnnxError;
use super::file::{Onnx, read};
use super::weights::Weight;
use crate::safetensors::write_tensors;

/// Why weights could not be converted.
#[derive(Debug, Error)]
pub enum ConvertError {
    /// The ONNX file.
    #[error(transparent)]
    Onnx(#[from] OnnxError),
    /// A file that cannot be read or written.
    #[error(transparent)]
    File(#[from] FileError),
}

/// What was converted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Converted {
    /// Weights written.
    pub weights: usize,
    /// Of these, those that were whole numbers with a scale.
    pub dequantized: usize,
    /// Constants without a name of a module, which were left out.
    pub left_out: Vec<String>,
}

/// A weight whose numbers are in memory while they are written.
struct Lazy<'a, 'b> {
    onnx: &'b Onnx<'a>,
    weight: &'b Weight,
}

impl Lazy<'_, '_> {
    fn bytes(&self) -> Vec<u8> {
        let values = self.onnx.values(self.weight).unwrap_or_default();
        values
            .iter()
            .flat_map(|value| value.to_le_bytes())
            .collect()
    }
}

impl View for Lazy<'_, '_> {
    fn dtype(&self) -> Dtype {
        Dtype::F32
    }

    fn shape(&self) -> &[usize] {
        &self.weight.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        Cow::Owned(self.bytes())
    }

    fn data_len(&self) -> usize {
        self.weight.shape.iter().product::<usize>() * size_of::<f32>()
    }
}

/// Writes the weights of `onnx` as f32 into the safetensors file `out`, which appears whole or not
/// at all.
///
/// # Errors
/// [`ConvertError`]; every number is read before anything is written.
pub fn to_safetensors(onnx: &Path, out: &Path) -> Result<Converted, ConvertError> {
    let bytes = read(onnx)?;
    let onnx = Onnx::parse(&bytes, &onnx.display().to_string())?;
    // The writer has no place for what is wrong with a tensor, so that is found before.
    for weight in onnx.weights() {
        onnx.values(weight)?;
    }
    let tensors = onnx.weights().map(|weight| {
        let lazy = Lazy {
            onnx: &onnx,
            weight,
        };
        (weight.name.clone(), lazy)
    });
    let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    let write = || -> std::io::Result<()> {
        let mut temporary = Temporary::for_file(out)?;
        write_tensors(temporary.file(), tensors, Some(metadata))?;
        temporary.persist()
    };
    write().map_err(FileError::at(out, "cannot write"))?;
    Ok(Converted {
        weights: onnx.weights().len(),
        dequantized: onnx.weights().filter(|weight| weight.is_quantized).count(),
        left_out: onnx.left_out().to_vec(),
    })
}
