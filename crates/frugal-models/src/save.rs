//! Writing safetensors files and Hugging Face folders.

use std::borrow::Cow;
use std::cell::RefCell;
use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::rc::Rc;

use frugal_core::fs::{FileError, Temporary};
use frugal_media::PROCESSOR_FILE;
use safetensors::tensor::{Dtype, SafeTensorError, View, serialize_to_file};
use serde::{Deserialize, Serialize};

use crate::architecture::ModelConfig;
use crate::source::MemorySource;
use crate::vision::pixels::PREPROCESSOR;

/// Number format of stored weights.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum StoredType {
    /// 32-bit.
    #[default]
    F32,
    /// 16-bit IEEE.
    F16,
    /// 16-bit with the exponent of f32.
    Bf16,
}

impl StoredType {
    /// Hugging Face's spelling in `config.json`.
    pub fn torch_name(self) -> &'static str {
        match self {
            Self::F32 => "float32",
            Self::F16 => "float16",
            Self::Bf16 => "bfloat16",
        }
    }

    /// A value as it is read again.
    fn rounded(self, value: f32) -> f32 {
        match self {
            Self::F32 => value,
            Self::F16 => half::f16::from_f32(value).to_f32(),
            Self::Bf16 => half::bf16::from_f32(value).to_f32(),
        }
    }

    /// Values as a file holds them.
    fn bytes(self, values: &[f32]) -> Vec<u8> {
        let values = values.iter();
        match self {
            Self::F32 => values.flat_map(|v| v.to_le_bytes()).collect(),
            Self::F16 => values
                .flat_map(|v| half::f16::from_f32(*v).to_le_bytes())
                .collect(),
            Self::Bf16 => values
                .flat_map(|v| half::bf16::from_f32(*v).to_le_bytes())
                .collect(),
        }
    }

    /// Bytes of one element.
    pub fn size(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
        }
    }
}

enum Content<'a> {
    Floats(StoredType, Box<dyn Fn() -> Vec<f32> + 'a>),
    Ids(Vec<u32>),
    WholeNumbers(Dtype, Vec<i32>),
}

/// One tensor to write; float values are made when its turn comes.
pub struct Stored<'a> {
    shape: Vec<usize>,
    content: Content<'a>,
}

impl<'a> Stored<'a> {
    /// `values` must give as many elements as `shape` has, in row-major order.
    pub fn new(
        shape: &[usize],
        stored_type: StoredType,
        values: impl Fn() -> Vec<f32> + 'a,
    ) -> Self {
        Self {
            shape: shape.to_vec(),
            content: Content::Floats(stored_type, Box::new(values)),
        }
    }

    /// Token ids `[tokens]`, stored as 64-bit whole numbers.
    pub fn ids(ids: &[u32]) -> Self {
        Self {
            shape: vec![ids.len()],
            content: Content::Ids(ids.to_vec()),
        }
    }
}

impl Stored<'_> {
    /// Indices, stored as 32-bit whole numbers; as many as `shape` has elements.
    pub fn whole_numbers(shape: &[usize], values: Vec<i32>) -> Self {
        Self {
            shape: shape.to_vec(),
            content: Content::WholeNumbers(Dtype::I32, values),
        }
    }

    /// Indices below a limit, stored in as few bytes as `torch.uint8` and the signed types need for
    /// it.
    pub fn indices(shape: &[usize], values: Vec<i32>, below: usize) -> Self {
        let dtype = match below {
            ..256 => Dtype::U8,
            256..32_768 => Dtype::I16,
            _ => Dtype::I32,
        };
        Self {
            shape: shape.to_vec(),
            content: Content::WholeNumbers(dtype, values),
        }
    }
}

impl View for Stored<'_> {
    fn dtype(&self) -> Dtype {
        match self.content {
            Content::Floats(StoredType::F32, _) => Dtype::F32,
            Content::Floats(StoredType::F16, _) => Dtype::F16,
            Content::Floats(StoredType::Bf16, _) => Dtype::BF16,
            Content::Ids(_) => Dtype::I64,
            Content::WholeNumbers(dtype, _) => dtype,
        }
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        Cow::Owned(match &self.content {
            Content::Floats(stored_type, values) => stored_type.bytes(&values()),
            Content::WholeNumbers(Dtype::U8, values) => values.iter().map(|v| *v as u8).collect(),
            Content::WholeNumbers(Dtype::I16, values) => values
                .iter()
                .flat_map(|v| (*v as i16).to_le_bytes())
                .collect(),
            Content::WholeNumbers(_, values) => {
                values.iter().flat_map(|v| v.to_le_bytes()).collect()
            }
            Content::Ids(ids) => ids
                .iter()
                .flat_map(|id| i64::from(*id).to_le_bytes())
                .collect(),
        })
    }

    fn data_len(&self) -> usize {
        let size = match &self.content {
            Content::Floats(stored_type, _) => stored_type.size(),
            Content::WholeNumbers(Dtype::U8, _) => size_of::<u8>(),
            Content::WholeNumbers(Dtype::I16, _) => size_of::<i16>(),
            Content::WholeNumbers(..) => size_of::<i32>(),
            Content::Ids(_) => size_of::<i64>(),
        };
        self.shape.iter().product::<usize>() * size
    }
}

/// A tensor under its name, which tells of the first value that its type cannot hold.
struct Named<'a> {
    name: String,
    tensor: Stored<'a>,
    too_large: Rc<RefCell<Option<String>>>,
}

impl View for Named<'_> {
    fn dtype(&self) -> Dtype {
        self.tensor.dtype()
    }

    fn shape(&self) -> &[usize] {
        self.tensor.shape()
    }

    fn data(&self) -> Cow<'_, [u8]> {
        let Content::Floats(stored_type, values) = &self.tensor.content else {
            return self.tensor.data();
        };
        let values = values();
        let is_lost = |v: &&f32| v.is_finite() && !stored_type.rounded(**v).is_finite();
        if let Some(value) = values.iter().find(is_lost) {
            let kind = stored_type.torch_name();
            self.too_large.borrow_mut().get_or_insert_with(|| {
                format!("`{}`: {value:e} is too large for {kind}", self.name)
            });
        }
        Cow::Owned(stored_type.bytes(&values))
    }

    fn data_len(&self) -> usize {
        self.tensor.data_len()
    }
}

/// Writes a safetensors file under a temporary name, flushes it to disk and renames it.
///
/// # Errors
/// [`FileError`] naming the path; an older file is then untouched. Two tensors of one name are an
/// error too, and a finite value that its type would make infinite, with the tensor's name.
pub fn write_safetensors(path: &Path, tensors: Vec<(String, Stored<'_>)>) -> Result<(), FileError> {
    let folder = path
        .parent()
        .filter(|p| !p.as_os_str().is_empty())
        .unwrap_or(Path::new("."));
    frugal_core::fs::create_dir(folder)?;
    let mut names = HashSet::new();
    for (name, _) in &tensors {
        if !names.insert(name) {
            let twice = std::io::Error::other(format!("there are two tensors called `{name}`"));
            return Err(FileError::at(path, "cannot write")(twice));
        }
    }
    let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    let write = || -> std::io::Result<()> {
        let temporary = Temporary::for_file(path)?;
        let too_large = Rc::new(RefCell::new(None));
        let named = tensors.into_iter().map(|(name, tensor)| {
            let too_large = Rc::clone(&too_large);
            (
                name.clone(),
                Named {
                    name,
                    tensor,
                    too_large,
                },
            )
        });
        serialize_to_file(named, Some(metadata), temporary.path()).map_err(|e| match e {
            SafeTensorError::IoError(e) => e,
            other => std::io::Error::other(other),
        })?;
        match too_large.take() {
            Some(reason) => Err(std::io::Error::other(reason)),
            None => temporary.persist(),
        }
    };
    write().map_err(FileError::at(path, "cannot write"))
}

/// Writes `config.json` and `model.safetensors`, of a model that reads images also
/// `preprocessor_config.json`; the configuration last, so that a folder with one
/// is complete.
///
/// # Errors
/// [`FileError`] naming the path.
pub fn write_model(
    folder: &Path,
    config: &ModelConfig,
    tensors: &MemorySource,
    stored_type: StoredType,
) -> Result<(), FileError> {
    write_model_with(folder, config, tensors, Vec::new(), stored_type)
}

/// The same with further tensors, which are no part of the backbone.
///
/// # Errors
/// [`FileError`] naming the path.
pub fn write_model_with(
    folder: &Path,
    config: &ModelConfig,
    tensors: &MemorySource,
    further: Vec<(String, Stored<'_>)>,
    stored_type: StoredType,
) -> Result<(), FileError> {
    let all = tensors
        .iter()
        .map(|(name, shape, values)| (name, Stored::new(&shape, stored_type, values)))
        .chain(further)
        .collect();
    write_safetensors(&folder.join("model.safetensors"), all)?;
    let mut raw = config.raw.clone();
    if let Some(map) = raw.as_object_mut() {
        // It has a file of its own.
        if let Some(keys) = map.remove(PREPROCESSOR) {
            write_json(&folder.join(PROCESSOR_FILE), &keys)?;
        }
        map.remove("torch_dtype");
        map.insert("dtype".into(), stored_type.torch_name().into());
    }
    write_json(&folder.join("config.json"), &raw)
}

fn write_json(path: &Path, value: &serde_json::Value) -> Result<(), FileError> {
    let text = serde_json::to_string_pretty(value)
        .map_err(|e| FileError::at(path, "cannot write")(e.into()))?;
    frugal_core::fs::write_atomic(path, (text + "\n").as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 65519.996 is the largest that rounds to 65504, the largest of float16; `torch.tensor(65520.).half()`
    /// is infinite. Of bfloat16 the largest is 3.3895e38, and 3.4e38 rounds to infinity.
    #[test]
    fn a_weight_that_16_bits_would_make_infinite_is_refused_by_name_and_nothing_is_written() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.safetensors");
        let write = |stored_type, value: f32| {
            let tensors = ["good", "wide"].map(|name| {
                let value = if name == "wide" { value } else { 1.0 };
                let stored = Stored::new(&[2], stored_type, move || vec![0.5, value]);
                (name.to_owned(), stored)
            });
            write_safetensors(&path, tensors.into())
        };
        for (stored_type, value, name) in [
            (StoredType::F16, 65_520.0, "float16"),
            (StoredType::F16, -1e5, "float16"),
            (StoredType::Bf16, 3.4e38, "bfloat16"),
        ] {
            let error = write(stored_type, value).unwrap_err();
            let error = format!("{error} {:?}", std::error::Error::source(&error));
            assert!(error.contains("`wide`") && error.contains(name), "{error}");
            assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
        }
        // What was infinite before is another matter.
        for (stored_type, value) in [
            (StoredType::F16, 65_519.99),
            (StoredType::F16, f32::INFINITY),
            (StoredType::Bf16, 3.389e38),
            (StoredType::F32, f32::MAX),
        ] {
            write(stored_type, value).unwrap();
        }
    }
}
