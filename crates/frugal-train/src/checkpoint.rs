//! Checkpoints of a run: `checkpoints/step-N/` in its folder.
//!
//! A checkpoint is written under another name, flushed to disk and renamed; its `manifest.json`,
//! written last, lists size and SHA-256 of every file. A folder that does not match its manifest
//! does not count.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use burn::tensor::Tensor;
use frugal_core::fs::FileError;
use frugal_formats::safetensors::LoadReport;
use frugal_models::save;
use frugal_nn::{Parameter, to_vec};
use safetensors::{Dtype, SafeTensors, View};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use thiserror::Error;

use crate::config::TrainConfig;
use crate::optim::{Optimizer, SavedState, SavedTensor, StateTensor};

/// Folder of the checkpoints in a run folder.
pub const FOLDER: &str = "checkpoints";
const MANIFEST: &str = "manifest.json";
pub(super) const PARAMETERS: &str = "parameters.safetensors";
pub(super) const OPTIMIZER: &str = "optimizer.safetensors";
pub(super) const ADAPTER: &str = "adapter_state.safetensors";
pub(super) const STATE: &str = "trainer_state.json";
pub(super) const COST: &str = "cost.json";
const FILES: [&str; 5] = [PARAMETERS, OPTIMIZER, ADAPTER, STATE, COST];
/// Version of the layout; a reader refuses others.
const VERSION: u32 = 3;

/// A checkpoint that cannot be written or read.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum CheckpointError {
    /// A file cannot be read or written.
    #[error(transparent)]
    File(#[from] FileError),
    /// A checkpoint that is torn, damaged or of another version.
    #[error("{}: {reason}", path.display())]
    Invalid {
        /// Its folder.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The parameters are not those of this adapter.
    #[error("{}: the checkpoint does not fit this adapter\n{report}", path.display())]
    Tensors {
        /// Its folder.
        path: PathBuf,
        /// Lists of tensors.
        report: Box<LoadReport>,
    },
}

/// The best evaluation so far.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Best {
    /// Steps done then.
    pub step: u64,
    /// The metric that decides.
    pub metric: String,
    /// Its value.
    #[serde(with = "exact")]
    pub value: f64,
}

/// Where a run stands; all randomness follows from the seed and the step.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainerState {
    /// Optimiser steps done.
    pub step: u64,
    /// Whole epochs done.
    pub epoch: u64,
    /// Optimiser steps done within the current epoch.
    pub step_in_epoch: u64,
    /// Tokens read.
    pub tokens: u64,
    /// Loss summed over the steps since the last log entry.
    #[serde(with = "exact")]
    pub logged_loss: f64,
    /// Number of these steps.
    pub logged_steps: u64,
    /// Step of the last evaluation.
    pub last_evaluation: Option<u64>,
    /// Best evaluation.
    pub best: Option<Best>,
    /// Evaluations since the best one.
    pub evaluations_without_improvement: u32,
    /// Settings of the run.
    pub config: TrainConfig,
    /// SHA-256 of the training examples.
    pub data_hash: String,
    /// SHA-256 of the validation examples; empty without them, and in checkpoints from before it
    /// was kept.
    #[serde(default)]
    pub validation_hash: String,
    /// What a resume changed of the length of the run, so that it is not one that went through.
    #[serde(default)]
    pub changes: Vec<String>,
}

impl TrainerState {
    /// Before the first step.
    pub(super) fn start(config: TrainConfig, [data_hash, validation_hash]: [String; 2]) -> Self {
        Self {
            step: 0,
            epoch: 0,
            step_in_epoch: 0,
            tokens: 0,
            logged_loss: 0.0,
            logged_steps: 0,
            last_evaluation: None,
            best: None,
            evaluations_without_improvement: 0,
            config,
            data_hash,
            validation_hash,
            changes: Vec::new(),
        }
    }
}

/// What a run has cost, over all the processes that took part in it; apart from its state, which is
/// the same in every repetition.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Cost {
    /// Time spent training and evaluating.
    pub seconds: f64,
    /// The most memory a process held, in bytes; 0 where it is not known.
    pub peak_memory_bytes: u64,
}

/// Numbers as text: JSON readers may round the last digit.
mod exact {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub(super) fn serialize<S: Serializer>(value: &f64, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&format_args!("{value:?}"))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(D::Error::custom)
    }
}

#[derive(Serialize, Deserialize)]
struct Manifest {
    version: u32,
    files: BTreeMap<String, FileEntry>,
}

#[derive(PartialEq, Serialize, Deserialize)]
struct FileEntry {
    bytes: u64,
    sha256: String,
}

/// A checkpoint whose files match its manifest.
#[derive(Clone, Debug)]
pub struct Checkpoint {
    /// Its folder.
    pub path: PathBuf,
    /// Where the run stood.
    pub state: TrainerState,
    /// What it had cost.
    pub cost: Cost,
}

/// Steps and folders of all checkpoints of a run, valid or not, by rising step.
pub fn list(run: &Path) -> Vec<(u64, PathBuf)> {
    let step = |path: &Path| {
        path.file_name()?
            .to_str()?
            .strip_prefix("step-")?
            .parse()
            .ok()
    };
    let entries = std::fs::read_dir(run.join(FOLDER))
        .into_iter()
        .flatten()
        .flatten();
    let mut found: Vec<_> = entries
        .filter_map(|entry| Some((step(&entry.path())?, entry.path())))
        .collect();
    found.sort();
    found
}

/// The newest valid checkpoint of a run, and what is wrong with the newer ones.
pub fn latest(run: &Path) -> (Option<Checkpoint>, Vec<CheckpointError>) {
    let mut skipped = Vec::new();
    for (_, path) in list(run).into_iter().rev() {
        match Checkpoint::open(&path) {
            Ok(checkpoint) => return (Some(checkpoint), skipped),
            Err(error) => skipped.push(error),
        }
    }
    (None, skipped)
}

impl Checkpoint {
    /// Reads where the run stood, after checking every file against the manifest.
    ///
    /// # Errors
    /// A missing, torn or changed file, or another version.
    pub fn open(path: &Path) -> Result<Self, CheckpointError> {
        let invalid = |reason: String| CheckpointError::Invalid {
            path: path.to_owned(),
            reason,
        };
        let manifest =
            frugal_core::fs::read(&path.join(MANIFEST)).map_err(|e| invalid(e.to_string()))?;
        let manifest: Manifest =
            serde_json::from_slice(&manifest).map_err(|e| invalid(format!("{MANIFEST}: {e}")))?;
        if manifest.version != VERSION {
            return Err(invalid(format!(
                "layout version {} instead of {VERSION}: written by another version of this program",
                manifest.version
            )));
        }
        for name in FILES {
            let expected = manifest
                .files
                .get(name)
                .ok_or_else(|| invalid(format!("{MANIFEST} does not list `{name}`")))?;
            if file_entry(&path.join(name)).map_err(|e| invalid(e.to_string()))? != *expected {
                return Err(invalid(format!("`{name}` is not as it was written")));
            }
        }
        let json = |name: &str| frugal_core::fs::read(&path.join(name));
        let state =
            serde_json::from_slice(&json(STATE)?).map_err(|e| invalid(format!("{STATE}: {e}")))?;
        let cost =
            serde_json::from_slice(&json(COST)?).map_err(|e| invalid(format!("{COST}: {e}")))?;
        Ok(Self {
            path: path.to_owned(),
            state,
            cost,
        })
    }

    /// Sets the values of all parameters.
    ///
    /// # Errors
    /// Names or shapes that differ from those in the checkpoint; no parameter has changed then.
    pub fn load_parameters(&self, parameters: Vec<&mut Parameter>) -> Result<(), CheckpointError> {
        self.read(PARAMETERS, |tensors| {
            let mut report = LoadReport::default();
            for parameter in &parameters {
                let name = parameter.name().to_owned();
                report.expected.push(name.clone());
                match tensors.tensor(&name) {
                    Err(_) => report.missing.push(name),
                    Ok(t) if t.shape() == parameter.shape() => {}
                    Ok(t) => report.mis_shaped.push((
                        name,
                        parameter.shape().to_vec(),
                        t.shape().to_vec(),
                    )),
                }
            }
            report.unexpected = tensors
                .names()
                .into_iter()
                .filter(|n| !report.expected.iter().any(|e| e == n))
                .map(Into::into)
                .collect();
            report.unexpected.sort();
            if !report.is_exact() {
                return Err(CheckpointError::Tensors {
                    path: self.path.clone(),
                    report: Box::new(report),
                });
            }
            for parameter in parameters {
                let values = self.values(tensors, parameter.name())?;
                parameter.set(values);
            }
            Ok(())
        })
    }

    /// Sets what the optimizer remembers.
    pub(super) fn load_optimizer(
        &self,
        optimizer: &mut dyn Optimizer,
    ) -> Result<(), CheckpointError> {
        let state = self.read(OPTIMIZER, |tensors| {
            let mut state = SavedState::new();
            for name in tensors.names() {
                state.insert(name.to_owned(), self.saved(tensors, name)?);
            }
            Ok(state)
        })?;
        optimizer
            .restore(state)
            .map_err(|reason| self.invalid(format!("{OPTIMIZER}: {reason}")))
    }

    fn saved(&self, tensors: &SafeTensors<'_>, name: &str) -> Result<SavedTensor, CheckpointError> {
        let tensor = tensors
            .tensor(name)
            .map_err(|e| self.invalid(e.to_string()))?;
        match tensor.dtype() {
            Dtype::U64 => match tensor.data().try_into() {
                Ok(bytes) => Ok(SavedTensor::Count(u64::from_le_bytes(bytes))),
                Err(_) => Err(self.invalid(format!("{OPTIMIZER}: `{name}` is not one number"))),
            },
            Dtype::U8 => Ok(SavedTensor::Codes(tensor.data().to_vec())),
            _ => self.values(tensors, name).map(SavedTensor::Values),
        }
    }

    /// What the method keeps besides its parameters.
    pub(super) fn adapter_state(&self) -> Result<BTreeMap<String, Vec<f32>>, CheckpointError> {
        self.read(ADAPTER, |tensors| {
            let names = tensors.names().into_iter();
            names
                .map(|name| Ok((name.to_owned(), self.values(tensors, name)?)))
                .collect()
        })
    }

    fn read<T>(
        &self,
        name: &str,
        use_it: impl FnOnce(&SafeTensors<'_>) -> Result<T, CheckpointError>,
    ) -> Result<T, CheckpointError> {
        let bytes = frugal_core::fs::read_data(&self.path.join(name))?;
        let tensors =
            SafeTensors::deserialize(&bytes).map_err(|e| self.invalid(format!("{name}: {e}")))?;
        use_it(&tensors)
    }

    fn values(&self, tensors: &SafeTensors<'_>, name: &str) -> Result<Vec<f32>, CheckpointError> {
        let tensor = tensors
            .tensor(name)
            .map_err(|e| self.invalid(e.to_string()))?;
        if tensor.dtype() != Dtype::F32 {
            return Err(self.invalid(format!("`{name}` is {:?} instead of F32", tensor.dtype())));
        }
        Ok(tensor
            .data()
            .chunks_exact(4)
            .map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]))
            .collect())
    }

    pub(super) fn invalid(&self, reason: String) -> CheckpointError {
        CheckpointError::Invalid {
            path: self.path.clone(),
            reason,
        }
    }
}

/// Where the checkpoint of a step is.
pub(super) fn folder_of(run: &Path, step: u64) -> PathBuf {
    run.join(FOLDER).join(format!("step-{step}"))
}

/// Where it is while it is written.
pub(super) fn temporary_of(run: &Path, step: u64) -> PathBuf {
    run.join(FOLDER).join(format!(".step-{step}.tmp"))
}

/// Writes a checkpoint, replacing one of the same step; returns its folder.
pub(super) fn save(
    run: &Path,
    state: &TrainerState,
    cost: Cost,
    parameters: &[&Parameter],
    optimizer: Vec<(String, StateTensor<'_>)>,
    adapter_state: &BTreeMap<String, Vec<f32>>,
) -> Result<PathBuf, CheckpointError> {
    let folder = run.join(FOLDER);
    let path = folder_of(run, state.step);
    let temporary = temporary_of(run, state.step);
    // It is there from before the first step: one that somebody removed is not made again.
    if !run.is_dir() {
        let gone = std::io::Error::from(std::io::ErrorKind::NotFound);
        return Err(FileError::at(run, "the folder of the run is gone")(gone).into());
    }
    remove(&temporary)?;
    frugal_core::fs::create_dir(&temporary)?;

    let stored = parameters
        .iter()
        .map(|p| (p.name().to_owned(), Stored::Parameter(p)));
    write_tensors(&temporary.join(PARAMETERS), stored)?;
    let stored = optimizer
        .into_iter()
        .map(|(name, tensor)| (name, Stored::of(tensor)));
    write_tensors(&temporary.join(OPTIMIZER), stored)?;
    let stored = adapter_state
        .iter()
        .map(|(name, values)| (name.clone(), Stored::Values(values, [values.len()])));
    write_tensors(&temporary.join(ADAPTER), stored)?;
    write_json(&temporary.join(STATE), state)?;
    write_json(&temporary.join(COST), &cost)?;
    put_in_place(&temporary, &folder, &path)?;
    Ok(path)
}

/// Gives a folder of all files its manifest, and its name.
pub(super) fn put_in_place(
    temporary: &Path,
    folder: &Path,
    path: &Path,
) -> Result<(), CheckpointError> {
    let mut files = BTreeMap::new();
    for name in FILES {
        files.insert(name.to_owned(), file_entry(&temporary.join(name))?);
    }
    write_json(
        &temporary.join(MANIFEST),
        &Manifest {
            version: VERSION,
            files,
        },
    )?;
    remove(path)?;
    std::fs::rename(temporary, path).map_err(FileError::at(path, "cannot write"))?;
    sync_folder(folder)?;
    Ok(())
}

/// Deletes checkpoints older than `newest` until `limit` are left, counting `newest` but not the
/// best one.
pub(super) fn prune(
    run: &Path,
    limit: usize,
    newest: u64,
    best: Option<u64>,
) -> Result<(), CheckpointError> {
    if limit == 0 {
        return Ok(());
    }
    let older: Vec<_> = list(run)
        .into_iter()
        .filter(|(step, _)| *step < newest && Some(*step) != best)
        .collect();
    for (_, path) in older.iter().take(older.len().saturating_sub(limit - 1)) {
        remove(path)?;
    }
    Ok(())
}

pub(super) fn remove(folder: &Path) -> Result<(), FileError> {
    match std::fs::remove_dir_all(folder) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            Err(FileError::at(folder, "cannot remove")(e))
        }
        _ => Ok(()),
    }
}

pub(super) fn write_json(path: &Path, value: &impl Serialize) -> Result<(), FileError> {
    let mut text = serde_json::to_vec_pretty(value)
        .map_err(|e| FileError::at(path, "cannot write")(e.into()))?;
    text.push(b'\n');
    frugal_core::fs::write_atomic(path, &text)
}

/// A tensor on its way to a file.
enum Stored<'a> {
    Parameter(&'a Parameter),
    Values(&'a [f32], [usize; 1]),
    Device(&'a Tensor<1>, [usize; 1]),
    Codes(&'a [u8], [usize; 1]),
    Count(u64),
}

impl<'a> Stored<'a> {
    fn of(tensor: StateTensor<'a>) -> Self {
        match tensor {
            StateTensor::Values(values) => Self::Values(values, [values.len()]),
            StateTensor::Device(tensor) => Self::Device(tensor, tensor.dims()),
            StateTensor::Codes(codes) => Self::Codes(codes, [codes.len()]),
            StateTensor::Count(count) => Self::Count(count),
        }
    }
}

impl View for Stored<'_> {
    fn dtype(&self) -> Dtype {
        match self {
            Self::Count(_) => Dtype::U64,
            Self::Codes(..) => Dtype::U8,
            _ => Dtype::F32,
        }
    }

    fn shape(&self) -> &[usize] {
        match self {
            Self::Parameter(parameter) => parameter.shape(),
            Self::Values(_, shape) | Self::Device(_, shape) | Self::Codes(_, shape) => shape,
            Self::Count(_) => &[],
        }
    }

    fn data(&self) -> Cow<'_, [u8]> {
        let bytes = |values: &[f32]| {
            values
                .iter()
                .flat_map(|x| x.to_le_bytes())
                .collect::<Vec<u8>>()
        };
        Cow::Owned(match self {
            Self::Parameter(parameter) => bytes(&parameter.to_vec()),
            Self::Values(values, _) => bytes(values),
            Self::Device(tensor, _) => bytes(&to_vec((*tensor).clone())),
            Self::Codes(codes, _) => codes.to_vec(),
            Self::Count(count) => count.to_le_bytes().to_vec(),
        })
    }

    fn data_len(&self) -> usize {
        match self {
            Self::Parameter(parameter) => parameter.len() * size_of::<f32>(),
            Self::Values(values, _) => size_of_val(*values),
            Self::Device(_, [len]) => len * size_of::<f32>(),
            Self::Codes(codes, _) => codes.len(),
            Self::Count(_) => size_of::<u64>(),
        }
    }
}

/// Writes one tensor after the other, so that memory holds a copy of one at a time.
fn write_tensors<'a>(
    path: &Path,
    tensors: impl Iterator<Item = (String, Stored<'a>)>,
) -> Result<(), FileError> {
    let write = || -> std::io::Result<()> {
        let mut file = File::create(path)?;
        save::write_tensors(&mut file, tensors, None)?;
        file.sync_all()
    };
    write().map_err(FileError::at(path, "cannot write"))
}

fn file_entry(path: &Path) -> Result<FileEntry, FileError> {
    let hash = || -> std::io::Result<FileEntry> {
        let (mut file, mut buffer) = (File::open(path)?, vec![0; 1 << 16]);
        let (mut hash, mut bytes) = (Sha256::new(), 0);
        loop {
            let n = file.read(&mut buffer)?;
            if n == 0 {
                return Ok(FileEntry {
                    bytes,
                    sha256: hex(&hash.finalize()),
                });
            }
            hash.update(&buffer[..n]);
            bytes += n as u64;
        }
    };
    hash().map_err(FileError::at(path, "cannot read"))
}

pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

fn sync_folder(folder: &Path) -> Result<(), FileError> {
    #[cfg(unix)]
    File::open(folder)
        .and_then(|f| f.sync_all())
        .map_err(FileError::at(folder, "cannot flush"))?;
    Ok(())
}
