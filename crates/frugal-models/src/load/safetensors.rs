//! Reading tensors from one safetensors file or from shards with an index, memory-mapped.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use burn::tensor::{AllocationProperty, Bytes as TensorBytes, DType, TensorData};
use bytes::Bytes;
use frugal_nn::{LoadError, ModelError};
use safetensors::tensor::{Dtype, Metadata, SafeTensors, TensorInfo, serialize};

use crate::save::Stored;
use crate::source::{Loaded, WeightSource};

/// How the text begins that git keeps in the place of a large file.
pub(super) const LFS_POINTER: &[u8] = b"version https://git-lfs";

/// A checked, mapped file.
pub struct SafetensorsFile {
    path: PathBuf,
    bytes: Bytes,
    /// Where the tensors' bytes begin.
    data_start: usize,
    metadata: Metadata,
}

impl SafetensorsFile {
    /// Maps a file and checks its header against its size.
    ///
    /// # Errors
    /// When the file cannot be read, or its header is malformed or does not match the file.
    pub fn open(path: &Path) -> Result<Self, LoadError> {
        let bytes = frugal_kernels::map_file(path).map_err(|source| LoadError::Read {
            path: path.into(),
            source,
        })?;
        Self::from_bytes(bytes, path)
    }

    /// The same for bytes in memory; `path` names them in errors.
    ///
    /// # Errors
    /// When the header is malformed or does not match the length.
    pub fn from_bytes(bytes: Bytes, path: &Path) -> Result<Self, LoadError> {
        let bad = |reason: String| LoadError::Safetensors {
            path: path.into(),
            reason,
        };
        if bytes.starts_with(LFS_POINTER) {
            return Err(bad(
                "it is a git-lfs pointer, not the weights: run `git lfs pull` in the repository, or fetch the file itself".into(),
            ));
        }
        let header = SafeTensors::read_metadata(&bytes).map_err(|e| {
            bad(format!(
                "{e}: it is cut off, damaged or no safetensors file, fetch it again"
            ))
        })?;
        let (header_len, metadata) = header;
        let data_start = 8 + header_len;
        let described = data_start.checked_add(metadata.data_len());
        if described != Some(bytes.len()) {
            return Err(bad(format!(
                "the header describes {} bytes of tensors, the file has {}: it is truncated or damaged, fetch it again",
                metadata.data_len(),
                bytes.len().saturating_sub(data_start)
            )));
        }
        Ok(Self {
            path: path.into(),
            bytes,
            data_start,
            metadata,
        })
    }

    /// A file of these tensors, in memory only; `path` names it in errors.
    ///
    /// # Errors
    /// A name that occurs twice.
    pub fn of(tensors: Vec<(String, Stored<'_>)>, path: &Path) -> Result<Self, LoadError> {
        let bytes = serialize(tensors, None).map_err(|e| LoadError::Safetensors {
            path: path.into(),
            reason: e.to_string(),
        })?;
        Self::from_bytes(bytes.into(), path)
    }

    /// Names of all tensors, sorted.
    pub fn names(&self) -> Vec<String> {
        let mut names: Vec<String> = self.metadata.tensors().into_keys().collect();
        names.sort_unstable();
        names
    }

    /// Text entries of the header.
    pub fn header_metadata(&self) -> &Option<HashMap<String, String>> {
        self.metadata.metadata()
    }

    /// Shape of a tensor.
    pub fn shape(&self, name: &str) -> Option<Vec<usize>> {
        self.metadata.info(name).map(|info| info.shape.clone())
    }

    fn slice(&self, info: &TensorInfo) -> Bytes {
        let (start, end) = info.data_offsets;
        self.bytes
            .slice(self.data_start + start..self.data_start + end)
    }

    /// A tensor in f32: f32 data is shared with the mapping, f16 and bf16 are converted.
    ///
    /// # Errors
    /// When there is no such tensor or it has another type.
    pub fn tensor(&self, name: &str) -> Result<TensorData, ModelError> {
        let info = self
            .metadata
            .info(name)
            .ok_or_else(|| ModelError::MissingTensor {
                source_name: self.path.display().to_string(),
                name: name.into(),
            })?;
        let (bytes, shape) = (self.slice(info), info.shape.clone());
        let values = match info.dtype {
            Dtype::F32 if bytes.as_ptr().align_offset(align_of::<f32>()) == 0 => {
                let shared = TensorBytes::from_shared(bytes, AllocationProperty::Other);
                return Ok(TensorData::from_bytes(shared, shape, DType::F32));
            }
            Dtype::F32 => bytes
                .as_chunks::<4>()
                .0
                .iter()
                .map(|b| f32::from_le_bytes(*b))
                .collect::<Vec<f32>>(),
            Dtype::F16 => bytes
                .as_chunks::<2>()
                .0
                .iter()
                .map(|b| half::f16::from_le_bytes(*b).to_f32())
                .collect(),
            Dtype::BF16 => bytes
                .as_chunks::<2>()
                .0
                .iter()
                .map(|b| half::bf16::from_le_bytes(*b).to_f32())
                .collect(),
            Dtype::F64 => bytes
                .as_chunks::<8>()
                .0
                .iter()
                .map(|b| f64::from_le_bytes(*b) as f32)
                .collect(),
            // Indices of sparse adapters.
            Dtype::I64 => bytes
                .as_chunks::<8>()
                .0
                .iter()
                .map(|b| i64::from_le_bytes(*b) as f32)
                .collect(),
            Dtype::I32 => bytes
                .as_chunks::<4>()
                .0
                .iter()
                .map(|b| i32::from_le_bytes(*b) as f32)
                .collect(),
            Dtype::I16 => bytes
                .as_chunks::<2>()
                .0
                .iter()
                .map(|b| f32::from(i16::from_le_bytes(*b)))
                .collect(),
            Dtype::U8 => bytes.iter().map(|b| f32::from(*b)).collect(),
            other => {
                return Err(LoadError::Safetensors {
                    path: self.path.clone(),
                    reason: format!(
                        "tensor `{name}` is of type {other:?}; F64, F32, F16, BF16, I64, I32, I16 and U8 can be read"
                    ),
                }
                .into());
            }
        };
        Ok(TensorData::new(values, shape))
    }
}

/// A file of this folder that is one part of several.
fn part(folder: &Path) -> Option<String> {
    let names = std::fs::read_dir(folder).ok()?.flatten();
    let mut parts: Vec<String> = names
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| {
            let rest = name.strip_prefix("model-");
            rest.and_then(|rest| rest.strip_suffix(".safetensors"))
                .is_some_and(|rest| rest.contains("-of-"))
        })
        .collect();
    parts.sort_unstable();
    parts.into_iter().next()
}

/// The tensors of a Hugging Face folder: `model.safetensors`, or the shards that
/// `model.safetensors.index.json` lists.
pub struct SafetensorsSource {
    folder: PathBuf,
    files: Vec<SafetensorsFile>,
    /// Tensor name to index in `files`.
    by_name: HashMap<String, usize>,
}

impl SafetensorsSource {
    /// The bytes of each file.
    pub(super) fn contents(&self) -> impl Iterator<Item = &[u8]> {
        self.files.iter().map(|file| &file.bytes[..])
    }

    /// Opens a folder.
    ///
    /// # Errors
    /// When there are no weights, or a file is unreadable or damaged.
    pub fn open(folder: &Path) -> Result<Self, LoadError> {
        let index = folder.join("model.safetensors.index.json");
        let single = folder.join("model.safetensors");
        let paths = if single.exists() {
            vec![single]
        } else if index.exists() {
            shards(&index)?
                .into_iter()
                .map(|name| folder.join(name))
                .collect()
        } else {
            let folder = folder.to_owned();
            return Err(match part(&folder) {
                Some(shard) => LoadError::NoIndex { folder, shard },
                None => LoadError::NoWeights { folder },
            });
        };
        let files = paths
            .iter()
            .map(|p| SafetensorsFile::open(p))
            .collect::<Result<Vec<_>, _>>()?;
        Ok(Self::of_files(folder, files))
    }

    pub(super) fn of_files(folder: &Path, files: Vec<SafetensorsFile>) -> Self {
        let mut by_name = HashMap::new();
        for (i, file) in files.iter().enumerate() {
            by_name.extend(file.names().into_iter().map(|name| (name, i)));
        }
        Self {
            folder: folder.into(),
            files,
            by_name,
        }
    }

    fn dtypes(&self) -> impl Iterator<Item = Dtype> {
        self.files.iter().flat_map(|f| {
            f.metadata
                .tensors()
                .into_values()
                .map(|t| t.dtype)
                .collect::<Vec<_>>()
        })
    }

    /// Whether no weight has to be converted. Buffers of whole numbers, such as position ids, are
    /// not weights.
    pub fn is_f32(&self) -> bool {
        self.dtypes()
            .all(|t| !matches!(t, Dtype::F16 | Dtype::BF16 | Dtype::F64))
    }

    /// Number formats with how many tensors have them.
    pub fn stored_types(&self) -> Vec<(String, usize)> {
        crate::load::count(self.dtypes().map(|t| format!("{t:?}")))
    }

    /// Bytes of all files.
    pub fn bytes(&self) -> u64 {
        self.files.iter().map(|f| f.bytes.len() as u64).sum()
    }
}

/// File names of an index, each once, in order.
pub(super) fn shards(index: &Path) -> Result<Vec<String>, LoadError> {
    let value = crate::load::read_json(index)?;
    let bad = |reason: &str| LoadError::Json {
        path: index.into(),
        reason: reason.into(),
    };
    let map = value
        .get("weight_map")
        .and_then(|m| m.as_object())
        .ok_or_else(|| bad("the object `weight_map` is missing"))?;
    let mut names: Vec<String> = Vec::new();
    for file in map.values() {
        let name = file
            .as_str()
            .ok_or_else(|| bad("`weight_map` must map tensor names to file names"))?;
        // A file name only: an index must not lead outside its folder.
        if Path::new(name).file_name().is_none_or(|f| f != name) {
            return Err(bad(&format!("`{name}` is not a plain file name")));
        }
        names.push(name.into());
    }
    names.sort_unstable();
    names.dedup();
    if names.is_empty() {
        Err(bad("`weight_map` is empty"))
    } else {
        Ok(names)
    }
}

impl WeightSource for SafetensorsSource {
    fn describe(&self) -> String {
        self.folder.display().to_string()
    }

    fn shape(&self, name: &str) -> Option<Vec<usize>> {
        self.files[*self.by_name.get(name)?].shape(name)
    }

    fn names(&self) -> Vec<String> {
        self.by_name.keys().cloned().collect()
    }

    fn load(&self, name: &str) -> Result<Loaded, ModelError> {
        let missing = || ModelError::MissingTensor {
            source_name: self.describe(),
            name: name.into(),
        };
        let file = self.by_name.get(name).ok_or_else(missing)?;
        self.files[*file].tensor(name).map(Loaded::Data)
    }
}
