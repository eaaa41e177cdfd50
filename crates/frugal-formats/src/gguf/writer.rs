//! Writing GGUF files, version 3, tensor by tensor.

use std::collections::HashSet;
use std::io;
use std::path::Path;

use super::{Array, DEFAULT_ALIGNMENT, GgmlType, GgufProblem, Value};
use frugal_core::fs::{self, FileError};

/// What a tensor will be, before its data is there.
#[derive(Clone, Debug, PartialEq)]
pub struct TensorSpec {
    /// Its name.
    pub name: String,
    /// Its shape in row-major order; the last dimension is contiguous.
    pub shape: Vec<usize>,
    /// How its elements are stored.
    pub ggml_type: GgmlType,
}

impl TensorSpec {
    fn checked_bytes(&self) -> Result<u64, GgufProblem> {
        let wrong = |why: &str| {
            let dims = self.shape.iter().rev().map(|&dim| dim as u64).collect();
            GgufProblem::Dims {
                name: self.name.clone(),
                dims,
                why: why.to_owned(),
            }
        };
        if self.shape.is_empty() || self.shape.len() > 4 || self.shape.contains(&0) {
            return Err(wrong("one to four, none zero, can be written"));
        }
        let block = self.ggml_type.block_len();
        if !self.shape[self.shape.len() - 1].is_multiple_of(block) {
            return Err(wrong(&format!(
                "the first must be a multiple of {block} for {}",
                self.ggml_type
            )));
        }
        let elements = self
            .shape
            .iter()
            .try_fold(1_u64, |product, &dim| product.checked_mul(dim as u64));
        elements
            .and_then(|n| (n / block as u64).checked_mul(self.ggml_type.block_bytes() as u64))
            .ok_or_else(|| wrong("too large"))
    }
}

/// Why a GGUF file could not be written.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// What was to be written breaks a rule of the format.
    #[error(transparent)]
    Format(#[from] GgufProblem),
    /// The file itself.
    #[error(transparent)]
    File(#[from] FileError),
}

/// Writes `path`: `metadata` and `tensors`, in this order, each tensor's values as `values(index)`
/// gives them.
///
/// One tensor is in memory at a time. The file appears whole or not at all.
///
/// # Errors
/// [`WriteError`] for a duplicate name, an impossible shape, values that do not fill a shape, or
/// the file system; an error of `values` comes back as [`WriteError::File`].
pub fn write(
    path: &Path,
    metadata: &[(String, Value)],
    tensors: &[TensorSpec],
    mut values: impl FnMut(usize) -> io::Result<Vec<f32>>,
) -> Result<(), WriteError> {
    let header = header(metadata, tensors)?;
    fs::write_atomic_with(path, |file| {
        file.write_all(&header)?;
        for (index, tensor) in tensors.iter().enumerate() {
            let values = values(index)?;
            let bytes = super::quantize(tensor.ggml_type, &values).map_err(io::Error::other)?;
            let expected: usize = tensor.shape.iter().product();
            if values.len() != expected {
                let text = format!(
                    "tensor {}: {} values for shape {:?}",
                    tensor.name,
                    values.len(),
                    tensor.shape
                );
                return Err(io::Error::new(io::ErrorKind::InvalidData, text));
            }
            file.write_all(&bytes)?;
            file.write_all(&vec![0; padding(bytes.len() as u64)])?;
        }
        Ok(())
    })?;
    Ok(())
}

/// The metadata of a LoRA adapter file; its tensors are `NAME.lora_a` `[rank, in]` and
/// `NAME.lora_b` `[out, rank]` for each adapted `NAME` such as `blk.0.attn_q.weight`.
///
/// `lora_b` has its rows in the base file's order ([`super::rows_to_gguf`]);
/// `token_embd.weight.lora_a` is transposed.
pub fn lora_metadata(
    architecture: super::Architecture,
    name: &str,
    alpha: f32,
) -> Vec<(String, Value)> {
    let pairs: [(&str, Value); 5] = [
        ("general.architecture", architecture.gguf_name().into()),
        ("general.type", "adapter".into()),
        ("adapter.type", "lora".into()),
        ("general.name", name.into()),
        ("adapter.lora.alpha", alpha.into()),
    ];
    pairs.map(|(key, value)| (key.to_owned(), value)).into()
}

fn padding(len: u64) -> usize {
    (len.next_multiple_of(DEFAULT_ALIGNMENT) - len) as usize
}

/// Everything before the data, padded.
fn header(metadata: &[(String, Value)], tensors: &[TensorSpec]) -> Result<Vec<u8>, GgufProblem> {
    let mut names = HashSet::new();
    let mut out = b"GGUF".to_vec();
    out.extend(3_u32.to_le_bytes());
    out.extend((tensors.len() as u64).to_le_bytes());
    out.extend((metadata.len() as u64).to_le_bytes());
    for (key, value) in metadata {
        if !names.insert(key) {
            return Err(GgufProblem::Duplicate {
                what: "metadata key",
                name: key.clone(),
            });
        }
        if key == "general.alignment" && value.as_u64() != Some(DEFAULT_ALIGNMENT) {
            return Err(GgufProblem::metadata(
                key,
                format!("files are written with an alignment of {DEFAULT_ALIGNMENT}"),
            ));
        }
        string(&mut out, key);
        out.extend(value.type_code().to_le_bytes());
        push_value(&mut out, value);
    }
    names.clear();
    let mut offset = 0_u64;
    for tensor in tensors {
        if !names.insert(&tensor.name) {
            return Err(GgufProblem::Duplicate {
                what: "tensor",
                name: tensor.name.clone(),
            });
        }
        let bytes = tensor.checked_bytes()?;
        string(&mut out, &tensor.name);
        out.extend((tensor.shape.len() as u32).to_le_bytes());
        tensor
            .shape
            .iter()
            .rev()
            .for_each(|&dim| out.extend((dim as u64).to_le_bytes()));
        out.extend(tensor.ggml_type.code().to_le_bytes());
        out.extend(offset.to_le_bytes());
        let padded = bytes.checked_next_multiple_of(DEFAULT_ALIGNMENT);
        offset = padded
            .and_then(|bytes| offset.checked_add(bytes))
            .ok_or_else(|| GgufProblem::Unsupported("the file is too large".into()))?;
    }
    out.resize(out.len() + padding(out.len() as u64), 0);
    Ok(out)
}

fn string(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

fn push_value(out: &mut Vec<u8>, value: &Value) {
    match value {
        Value::U8(v) => out.push(*v),
        Value::I8(v) => out.extend(v.to_le_bytes()),
        Value::U16(v) => out.extend(v.to_le_bytes()),
        Value::I16(v) => out.extend(v.to_le_bytes()),
        Value::U32(v) => out.extend(v.to_le_bytes()),
        Value::I32(v) => out.extend(v.to_le_bytes()),
        Value::F32(v) => out.extend(v.to_le_bytes()),
        Value::Bool(v) => out.push((*v).into()),
        Value::String(v) => string(out, v),
        Value::Array(v) => push_array(out, v),
        Value::U64(v) => out.extend(v.to_le_bytes()),
        Value::I64(v) => out.extend(v.to_le_bytes()),
        Value::F64(v) => out.extend(v.to_le_bytes()),
    }
}

fn push_array(out: &mut Vec<u8>, array: &Array) {
    out.extend(array.type_code().to_le_bytes());
    out.extend((array.len() as u64).to_le_bytes());
    match array {
        Array::U8(v) => out.extend(v),
        Array::I8(v) => v.iter().for_each(|x| out.extend(x.to_le_bytes())),
        Array::U16(v) => v.iter().for_each(|x| out.extend(x.to_le_bytes())),
        Array::I16(v) => v.iter().for_each(|x| out.extend(x.to_le_bytes())),
        Array::U32(v) => v.iter().for_each(|x| out.extend(x.to_le_bytes())),
        Array::I32(v) => v.iter().for_each(|x| out.extend(x.to_le_bytes())),
        Array::F32(v) => v.iter().for_each(|x| out.extend(x.to_le_bytes())),
        Array::Bool(v) => out.extend(v.iter().map(|&x| u8::from(x))),
        Array::String(v) => v.iter().for_each(|x| string(out, x)),
        Array::Array(v) => v.iter().for_each(|x| push_array(out, x)),
        Array::U64(v) => v.iter().for_each(|x| out.extend(x.to_le_bytes())),
        Array::I64(v) => v.iter().for_each(|x| out.extend(x.to_le_bytes())),
        Array::F64(v) => v.iter().for_each(|x| out.extend(x.to_le_bytes())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gguf::Gguf;

    fn spec(name: &str, shape: &[usize], ggml_type: GgmlType) -> TensorSpec {
        TensorSpec {
            name: name.into(),
            shape: shape.into(),
            ggml_type,
        }
    }

    /// The Python package wrote the fixture; rewriting what was read from it gives the same bytes.
    #[test]
    fn a_rewritten_file_is_the_same_file() {
        let path = format!(
            "{}/../../fixtures/gguf/quantize.gguf",
            env!("CARGO_MANIFEST_DIR")
        );
        let bytes = std::fs::read(path).unwrap();
        let gguf = Gguf::parse(&bytes, "quantize.gguf").unwrap();
        let values = gguf.tensor_f32(&bytes, "values").unwrap();
        let specs: Vec<_> = gguf
            .tensors()
            .iter()
            .map(|t| spec(&t.name, &t.shape(), t.ggml_type))
            .collect();
        let dir = tempfile::tempdir().unwrap();
        let copy = dir.path().join("copy.gguf");
        write(&copy, gguf.metadata(), &specs, |_| Ok(values.clone())).unwrap();
        assert_eq!(std::fs::read(&copy).unwrap(), bytes);
    }

    #[test]
    fn every_value_type_is_written_as_it_was_read() {
        let path = format!(
            "{}/../../fixtures/gguf/blocks.gguf",
            env!("CARGO_MANIFEST_DIR")
        );
        let bytes = std::fs::read(path).unwrap();
        let gguf = Gguf::parse(&bytes, "blocks.gguf").unwrap();
        let again = header(gguf.metadata(), &[]).unwrap();
        assert_eq!(
            Gguf::parse(&again, "again").unwrap().metadata(),
            gguf.metadata()
        );
        let metadata = 24..again.len() - 64;
        assert_eq!(again[metadata.clone()], bytes[metadata]);
    }

    #[test]
    fn what_cannot_be_written_leaves_no_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.gguf");
        let ok = spec("a", &[2, 32], GgmlType::Q8_0);
        let key = |name: &str| (name.to_owned(), Value::U32(1));
        type Case<'a> = (&'a [(String, Value)], &'a [TensorSpec], &'a str);
        let cases: [Case<'_>; 6] = [
            (&[key("k"), key("k")], &[], "\"k\" occurs twice"),
            (&[key("general.alignment")], &[], "alignment of 32"),
            (&[], &[ok.clone(), ok.clone()], "\"a\" occurs twice"),
            (
                &[],
                &[spec("a", &[2, 33], GgmlType::Q8_0)],
                "multiple of 32",
            ),
            (&[], &[spec("a", &[0], GgmlType::F32)], "none zero"),
            (
                &[],
                &[spec("a", &[usize::MAX, 32], GgmlType::F16)],
                "too large",
            ),
        ];
        for (metadata, tensors, says) in cases {
            let error = write(&path, metadata, tensors, |_| Ok(vec![0.0; 64]))
                .unwrap_err()
                .to_string();
            assert!(error.contains(says), "{error}");
        }
        let error = write(&path, &[], std::slice::from_ref(&ok), |_| Ok(vec![0.0; 32]))
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("tensor a: 32 values for shape [2, 32]"),
            "{error}"
        );
        assert!(write(&path, &[], &[ok], |_| Err(io::Error::other("no data"))).is_err());
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
