//! What a run cost and gained, in one object.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use thiserror::Error;

use frugal_core::events::{self, Scalars};
use frugal_core::fs::{self, FileError};

/// Name of the record in a run folder.
pub const RECORD_FILE: &str = "record.json";

/// A run in one object, written to `record.json`.
///
/// Parts and field names are those of the result files of Hugging Face peft's method comparison
/// where it has them; `evaluation`, `command` and the fields about several data files are
/// additions.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct RunRecord {
    /// What was run.
    pub run_info: RunInfo,
    /// What training cost.
    pub train_info: TrainInfo,
    /// Quality before and after, one entry for each part of the data.
    pub evaluation: Vec<Evaluation>,
    /// What the model lost elsewhere, where it was measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub forgetting: Option<Forgetting>,
    /// Model, data, software and machine.
    pub meta_info: MetaInfo,
}

/// What was run.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct RunInfo {
    /// Start of the run, ISO 8601 in UTC.
    pub created_at: String,
    /// From start to end, loading and evaluation included, in seconds.
    pub total_time: f64,
    /// Name of the run.
    pub experiment_name: String,
    /// The command line as typed, program first.
    pub command: Vec<String>,
    /// The resolved configuration.
    pub train_config: Value,
    /// The `adapter_config.json`; null when the whole model was trained.
    pub peft_config: Value,
    /// Why the run failed, or empty.
    pub error_msg: String,
    /// What a reader has to know beside the settings, as that a resume changed the length of the
    /// run.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
}

/// What training cost.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct TrainInfo {
    /// Most resident memory of the process, in bytes, where the system says.
    pub peak_memory: Option<u64>,
    /// Training with its own evaluations and checkpoints, without loading and scoring, over all
    /// processes of a resumed run, in seconds.
    pub train_time: f64,
    /// Tokens that training processed.
    pub train_tokens: u64,
    /// Size of what is saved for the adapted model, in bytes.
    pub file_size: u64,
    /// Parameters that are trained.
    pub num_trainable_params: u64,
    /// All parameters, trained and frozen.
    pub num_total_params: u64,
    /// How the run ended.
    pub status: Status,
    /// Numbers at the steps where the model was evaluated.
    pub metrics: Vec<Scalars>,
}

impl TrainInfo {
    /// Tokens for each second of training; `None` before there are any.
    pub fn tokens_per_second(&self) -> Option<f64> {
        (self.train_time > 0.0 && self.train_tokens > 0)
            .then(|| self.train_tokens as f64 / self.train_time)
    }
}

/// How a run ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// Not yet.
    #[default]
    Running,
    /// As planned.
    Success,
    /// By an error.
    Failed,
    /// By the user.
    Cancelled,
}

/// Quality on one part of the data; metrics by name, such as `accuracy` or `macro_f1`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Evaluation {
    /// Part of the data, such as `test`.
    pub split: String,
    /// Number of examples.
    pub examples: usize,
    /// The model as it was before training.
    #[serde(with = "events::numbers")]
    pub base: BTreeMap<String, f64>,
    /// The model after training.
    #[serde(with = "events::numbers")]
    pub adapted: BTreeMap<String, f64>,
    /// What needs no model, by name, such as `majority class` and `chance`: metrics by name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub baselines: BTreeMap<String, BTreeMap<String, f64>>,
    /// For a classifier, how often each class was taken for each.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub confusion: Option<Confusion>,
}

/// How often each class was taken for each after training.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Confusion {
    /// Names of the classes.
    pub labels: Vec<String>,
    /// `counts[gold][predicted]`, in examples.
    pub counts: Vec<Vec<usize>>,
}

/// A measure on text that has nothing to do with the task, before and after training.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Forgetting {
    /// `perplexity` (lower is better) or `probe_accuracy` (higher is better).
    pub measure: String,
    /// What it was measured on.
    pub data: String,
    /// The model as it was before training.
    #[serde(with = "events::number")]
    pub base: f64,
    /// The model after training.
    #[serde(with = "events::number")]
    pub adapted: f64,
}

/// Model, data, software and machine.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct MetaInfo {
    /// The base model.
    pub model_info: ModelInfo,
    /// The data files.
    pub dataset_info: Vec<DatasetInfo>,
    /// Program and library versions, by name.
    pub package_info: BTreeMap<String, String>,
    /// The machine.
    pub system_info: SystemInfo,
}

/// The base model.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ModelInfo {
    /// Name or path, as given.
    pub name: String,
    /// `model_type` of its configuration, such as `llama`.
    pub model_type: String,
    /// Size of its weight files, in bytes.
    pub file_size: u64,
    /// SHA-256 of its weight files in hexadecimal, where it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sha256: Option<String>,
    /// SHA-256 over the tokens of its tokenizer, where it is known: what is counted for each token
    /// can be compared between models that share it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vocabulary: Option<String>,
}

/// One data file.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct DatasetInfo {
    /// Part of the data, such as `train`.
    pub split: String,
    /// Name or path, as given.
    pub source: String,
    /// Number of examples used.
    pub examples: usize,
    /// SHA-256 of the file in hexadecimal.
    pub sha256: String,
}

/// The machine.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SystemInfo {
    /// Operating system, such as `linux`.
    pub system: String,
    /// Its kernel release, where it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub release: Option<String>,
    /// Instruction set, such as `x86_64`.
    pub machine: String,
    /// Processor model, where it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub processor: Option<String>,
    /// Threads that may run at once.
    pub threads: usize,
    /// Installed memory in bytes, where it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<u64>,
    /// Device that trained, such as `cpu`.
    pub accelerator: String,
}

impl SystemInfo {
    /// This machine; `accelerator` names the device that trains.
    pub fn detect(accelerator: &str) -> Self {
        let read = |path: &str| std::fs::read_to_string(path).ok();
        let field = |text: String, name: &str| {
            text.lines().find_map(|line| {
                Some(
                    line.strip_prefix(name)?
                        .trim_matches([' ', '\t', ':'])
                        .to_owned(),
                )
            })
        };
        let memory = read("/proc/meminfo").and_then(|text| field(text, "MemTotal"));
        Self {
            system: std::env::consts::OS.into(),
            release: read("/proc/sys/kernel/osrelease").map(|text| text.trim().to_owned()),
            machine: std::env::consts::ARCH.into(),
            processor: read("/proc/cpuinfo").and_then(|text| field(text, "model name")),
            threads: std::thread::available_parallelism().map_or(1, usize::from),
            memory: memory.and_then(|text| {
                text.strip_suffix("kB")?
                    .trim()
                    .parse::<u64>()
                    .ok()?
                    .checked_mul(1024)
            }),
            accelerator: accelerator.into(),
        }
    }
}

/// A record that cannot be read or written.
#[derive(Debug, Error)]
pub enum RecordError {
    /// The file.
    #[error(transparent)]
    File(#[from] FileError),
    /// Its content.
    #[error("{}: not a run record: {source}", path.display())]
    Json {
        /// The file.
        path: std::path::PathBuf,
        /// serde's reason, with line and column.
        source: serde_json::Error,
    },
    /// A number that no run can have.
    #[error("{}: `{key}`: {value} seconds, which no run took", path.display())]
    Seconds {
        /// The file.
        path: std::path::PathBuf,
        /// Where in it.
        key: &'static str,
        /// The number.
        value: f64,
    },
}

/// More seconds than this, some three million years, no run takes.
const MOST_SECONDS: f64 = 1e14;

impl RunRecord {
    /// Writes the record as indented JSON.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn write(&self, path: &Path) -> Result<(), RecordError> {
        let mut text = serde_json::to_string_pretty(self).map_err(|source| RecordError::Json {
            path: path.to_owned(),
            source,
        })?;
        text.push('\n');
        Ok(fs::write_atomic(path, text.as_bytes())?)
    }

    /// Reads a record.
    ///
    /// # Errors
    /// If the file cannot be read or is not a record.
    pub fn read(path: &Path) -> Result<Self, RecordError> {
        let record: Self =
            serde_json::from_slice(&fs::read(path)?).map_err(|source| RecordError::Json {
                path: path.to_owned(),
                source,
            })?;
        let times = [
            ("run_info.total_time", record.run_info.total_time),
            ("train_info.train_time", record.train_info.train_time),
        ];
        match times
            .into_iter()
            .find(|(_, t)| !(0.0..=MOST_SECONDS).contains(t))
        {
            Some((key, value)) => Err(RecordError::Seconds {
                path: path.to_owned(),
                key,
                value,
            }),
            None => Ok(record),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_that_no_run_took_is_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(RECORD_FILE);
        for seconds in [1e308, -1.0] {
            let mut record = crate::report::sample::report().record;
            record.train_info.train_time = seconds;
            record.write(&path).unwrap();
            let said = RunRecord::read(&path).unwrap_err().to_string();
            assert!(said.contains("train_info.train_time"), "{said}");
        }
    }

    #[test]
    fn a_record_has_the_names_that_comparison_tools_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(RECORD_FILE);
        let mut record = crate::report::sample::report().record;
        record.train_info.metrics = vec![Scalars::new(50).with("eval_loss", f64::NAN)];
        record.write(&path).unwrap();
        let json: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        // The fields that the comparison's own processing script reads.
        for field in [
            "/run_info/created_at",
            "/run_info/total_time",
            "/run_info/experiment_name",
            "/run_info/train_config",
        ] {
            assert!(json.pointer(field).is_some(), "{field}");
        }
        for field in [
            "train_time",
            "file_size",
            "num_trainable_params",
            "num_total_params",
            "metrics",
        ] {
            assert!(json["train_info"].get(field).is_some(), "{field}");
        }
        assert_eq!(json["run_info"]["peft_config"]["peft_type"], "LORA");
        assert_eq!(json["train_info"]["status"], "success");
        assert_eq!(json["train_info"]["metrics"][0]["eval_loss"], "NaN");

        record.train_info.metrics[0].values[0].1 = 0.5;
        record.write(&path).unwrap();
        assert_eq!(RunRecord::read(&path).unwrap(), record);
        std::fs::write(&path, "{\n\"run_info\": 3}").unwrap();
        let error = RunRecord::read(&path).unwrap_err().to_string();
        assert!(
            error.contains("record.json: not a run record") && error.contains("line 2"),
            "{error}"
        );
    }

    #[test]
    fn numbers_that_json_lacks_come_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(RECORD_FILE);
        let mut record = crate::report::sample::report().record;
        record.evaluation[0].adapted = [("perplexity".to_owned(), f64::INFINITY)].into();
        record.forgetting = Some(Forgetting {
            base: 3.5,
            adapted: f64::INFINITY,
            ..Forgetting::default()
        });
        record.write(&path).unwrap();
        assert_eq!(RunRecord::read(&path).unwrap(), record);
        // Records of earlier versions hold null for them.
        let text = std::fs::read_to_string(&path).unwrap();
        std::fs::write(&path, text.replace("\"Infinity\"", "null")).unwrap();
        let read = RunRecord::read(&path).unwrap();
        assert!(
            read.evaluation[0].adapted["perplexity"].is_nan()
                && read.forgetting.unwrap().adapted.is_nan()
        );
        std::fs::write(&path, text.replace("\"Infinity\"", "\"much\"")).unwrap();
        let error = RunRecord::read(&path).unwrap_err().to_string();
        assert!(
            error.contains("expected a number, found \"much\""),
            "{error}"
        );
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn the_machine_is_described() {
        let system = SystemInfo::detect("cpu");
        assert_eq!(
            (system.system.as_str(), system.accelerator.as_str()),
            ("linux", "cpu")
        );
        assert!(
            system.threads >= 1
                && system.memory.unwrap() > 1 << 26
                && !system.release.unwrap().contains('\n')
        );
    }
}
