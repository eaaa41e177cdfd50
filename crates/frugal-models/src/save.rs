//! Writing safetensors files and Hugging Face folders.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use frugal_core::fs::{FileError, Temporary};
pub use frugal_formats::safetensors::write_tensors;
use frugal_media::PROCESSOR_FILE;
use safetensors::tensor::{Dtype, View};
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

    /// Values as they stand in a file.
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

    /// The nearest number of the format, which is infinite beyond its largest.
    fn rounded(self, value: f32) -> f32 {
        match self {
            Self::F32 => value,
            Self::F16 => half::f16::from_f32(value).to_f32(),
            Self::Bf16 => half::bf16::from_f32(value).to_f32(),
        }
    }

    /// That values drawn from a normal distribution of this deviation can be stored: none infinite,
    /// and not all of them zeros.
    ///
    /// # Errors
    /// What is wrong with the deviation.
    pub fn check_deviation(self, deviation: f64) -> Result<(), String> {
        if deviation.is_nan() {
            return Err("NaN given, but a standard deviation is a number".into());
        }
        // More deviations than this from 0 are never drawn of a uniform number of 53 bits.
        let farthest = self.rounded((16.0 * deviation) as f32);
        let wrong = if !farthest.is_finite() {
            "too large"
        } else if self.rounded(deviation as f32) <= 0.0 {
            "too small"
        } else {
            return Ok(());
        };
        Err(format!(
            "{deviation:e} is {wrong} a standard deviation for weights that are stored in {}",
            self.torch_name()
        ))
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

/// A tensor that says of a number that its format cannot hold.
struct Watched<'a, 'b> {
    name: String,
    stored: Stored<'a>,
    beyond: &'b Mutex<Option<String>>,
}

impl View for Watched<'_, '_> {
    fn dtype(&self) -> Dtype {
        self.stored.dtype()
    }

    fn shape(&self) -> &[usize] {
        self.stored.shape()
    }

    fn data(&self) -> Cow<'_, [u8]> {
        let Content::Floats(stored_type, values) = &self.stored.content else {
            return self.stored.data();
        };
        let values = values();
        let is_beyond = |v: &&f32| v.is_finite() && !stored_type.rounded(**v).is_finite();
        if let Some(value) = values.iter().find(is_beyond) {
            let mut beyond = self.beyond.lock().unwrap_or_else(PoisonError::into_inner);
            beyond.get_or_insert_with(|| {
                format!(
                    "`{}`: {value:e} is beyond the numbers of {}, and would be infinite: take f32 or bf16",
                    self.name,
                    stored_type.torch_name()
                )
            });
        }
        Cow::Owned(stored_type.bytes(&values))
    }

    fn data_len(&self) -> usize {
        self.stored.data_len()
    }
}

/// Writes a safetensors file under a temporary name, flushes it to disk and renames it.
///
/// # Errors
/// [`FileError`] naming the path; an older file is then untouched. Two tensors of one name are an
/// error too, and so is a finite value that its format has no finite number for.
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
    let beyond = Mutex::new(None);
    let watch = |(name, stored)| {
        let watched = Watched {
            name: String::clone(&name),
            stored,
            beyond: &beyond,
        };
        (name, watched)
    };
    let tensors: Vec<_> = tensors.into_iter().map(watch).collect();
    let write = || -> std::io::Result<()> {
        let mut temporary = Temporary::for_file(path)?;
        write_tensors(temporary.file(), tensors, Some(metadata))?;
        if let Some(reason) = beyond.lock().unwrap_or_else(PoisonError::into_inner).take() {
            return Err(std::io::Error::other(reason));
        }
        temporary.persist()
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

    /// The largest numbers of the formats (IEEE 754, and its single precision cut to 16 bits): 65504 and
    /// 3.38953139e38. What lies half a step behind is rounded to infinity.
    #[test]
    fn finite_values_became_infinite_in_16_bits() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("w.safetensors");
        let write = |stored_type, value: f32| {
            let stored = Stored::new(&[2], stored_type, move || vec![1.0, value]);
            write_safetensors(&path, vec![("a.weight".to_owned(), stored)])
        };
        for (stored_type, most, beyond) in [
            (StoredType::F16, 65504.0, 65520.0),
            (StoredType::Bf16, 3.389_531_4e38, 3.4e38),
        ] {
            let name = stored_type.torch_name();
            for sign in [1.0, -1.0] {
                write(stored_type, sign * most).unwrap();
                let before = std::fs::read(&path).unwrap();
                let error = write(stored_type, sign * beyond).unwrap_err();
                let said = format!("{error}: {}", std::error::Error::source(&error).unwrap());
                for word in ["w.safetensors", "`a.weight`", name] {
                    assert!(said.contains(word), "{said}");
                }
                assert_eq!(
                    std::fs::read(&path).unwrap(),
                    before,
                    "the file is as it was"
                );
            }
            // What is not finite is as it was, which is no fault of the format.
            write(stored_type, f32::INFINITY).unwrap();
        }
        write(StoredType::F32, f32::MAX).unwrap();
    }

    #[test]
    fn deviations_that_give_no_weights_are_refused() {
        let refused = |stored_type: StoredType, deviation: f64| {
            let reason = stored_type.check_deviation(deviation).unwrap_err();
            assert!(reason.contains(stored_type.torch_name()), "{reason}");
        };
        for stored_type in [StoredType::F32, StoredType::F16, StoredType::Bf16] {
            let reason = stored_type.check_deviation(f64::NAN).unwrap_err();
            assert!(
                reason.contains("a standard deviation is a number"),
                "{reason}"
            );
            for deviation in [f64::INFINITY, 1e300, -0.1, 0.0, 1e-300] {
                refused(stored_type, deviation);
            }
            for deviation in [1e-4, 0.02, 1.0, 1000.0] {
                stored_type.check_deviation(deviation).unwrap();
            }
        }
        refused(StoredType::F16, 1e30);
        refused(StoredType::F16, 1e-9);
        StoredType::Bf16.check_deviation(1e30).unwrap();
    }

    #[test]
    fn weights_are_written_as_safetensors_does_but_for_the_mode_of_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let [ours, theirs] = ["ours", "theirs"].map(|name| folder.path().join(name));
        let values: Vec<f32> = (0..12).map(|i| i as f32 / 7.0).collect();
        let tensors = || {
            let of = |name: &str, shape: &[usize], kind| {
                let len: usize = shape.iter().product();
                let values = values.clone();
                (
                    name.to_owned(),
                    Stored::new(shape, kind, move || values[..len].to_vec()),
                )
            };
            vec![
                of("b", &[2, 3], StoredType::F16),
                of("a", &[3, 4], StoredType::F32),
                of("c", &[], StoredType::F32),
                of("none", &[0], StoredType::Bf16),
            ]
        };
        write_safetensors(&ours, tensors()).unwrap();
        let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
        safetensors::serialize_to_file(tensors(), Some(metadata), &theirs).unwrap();
        let read = |path| std::fs::read(path).unwrap();
        assert_eq!(read(&ours), read(&theirs));
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            let usual = folder.path().join("usual");
            std::fs::write(&usual, "").unwrap();
            let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode();
            assert_eq!(mode(&ours), mode(&usual));
            std::fs::set_permissions(&ours, std::fs::Permissions::from_mode(0o640)).unwrap();
            write_safetensors(&ours, tensors()).unwrap();
            assert_eq!(mode(&ours) & 0o777, 0o640);
        }
    }
}
