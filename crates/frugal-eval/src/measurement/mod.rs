//! What a measured result stands on: one record for every result of `eval`, `measure` and `select`.
//!
//! A number means something together with the model, the adapter, the precision, the data, the
//! settings and the machine that it comes from, and a quality means more beside its cost. All
//! results carry these in one form, so that `frugal report` can put any of them side by side and
//! can tell which of them may be ranked together.

mod cost;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};
use thiserror::Error;

pub use cost::{Cost, Energy, Meter, PowerSource};
use frugal_core::events;
use frugal_core::fs::{self, FileError};

use crate::report::{DatasetInfo, ModelInfo, SystemInfo};

/// Name of the file in a folder of results that holds its measurements.
pub const MEASUREMENTS_FILE: &str = "measurements.json";

/// What was measured.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// Metrics on a data file, by `frugal eval --data`.
    #[default]
    Evaluation,
    /// Scores on tasks, by `frugal eval --tasks`.
    Tasks,
    /// Information capacity.
    Capacity,
    /// Matrix nuclear-norm and matrix entropy.
    Spectrum,
    /// Idealized runtime.
    Runtime,
    /// Conformal selection (OptCS).
    Selection,
    /// Efficiency of generated code (ENAMEL).
    Code,
}

impl Kind {
    /// What people call it.
    pub fn title(self) -> &'static str {
        match self {
            Self::Evaluation => "Evaluation",
            Self::Tasks => "Tasks",
            Self::Capacity => "Information capacity",
            Self::Spectrum => "Matrix nuclear-norm",
            Self::Runtime => "Idealized runtime",
            Self::Selection => "Conformal selection (OptCS)",
            Self::Code => "Generated code (ENAMEL)",
        }
    }
}

/// One measured result.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Measurement {
    /// What was measured.
    pub kind: Kind,
    /// When it began, ISO 8601 in UTC.
    pub created_at: String,
    /// The command line as typed, program first.
    pub command: Vec<String>,
    /// Version of the program.
    pub version: String,
    /// The model; its name is empty where none took part.
    pub model: ModelInfo,
    /// Folder of the adapter.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub adapter: Option<String>,
    /// What computations and weights were held in, such as `f32` or `q4_0`.
    pub precision: String,
    /// What it was measured on.
    pub data: Vec<DatasetInfo>,
    /// Settings that decide the numbers, such as the length of samples: measurements that differ in
    /// them cannot be ranked.
    #[serde(default)]
    pub settings: Map<String, Value>,
    /// The machine.
    pub system: SystemInfo,
    /// Threads that computations were shared among.
    pub threads: usize,
    /// Time, memory and energy.
    pub cost: Cost,
    /// The numbers, by name.
    #[serde(with = "events::numbers")]
    pub values: BTreeMap<String, f64>,
    /// What else belongs to the result, such as the cells of a fit.
    #[serde(default, skip_serializing_if = "Value::is_null")]
    pub details: Value,
}

/// What measurements must share to be ranked: the kind, the data and the settings.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Basis {
    kind: Kind,
    data: Vec<(String, usize)>,
    settings: String,
}

impl Measurement {
    /// What it must share with others to be ranked with them. Data are told apart by content where
    /// their hash is known, else by name.
    pub fn basis(&self) -> Basis {
        let content = |d: &DatasetInfo| {
            let id = if d.sha256.is_empty() {
                &d.source
            } else {
                &d.sha256
            };
            (id.clone(), d.examples)
        };
        let mut data: Vec<(String, usize)> = self.data.iter().map(content).collect();
        data.sort();
        Basis {
            kind: self.kind,
            data,
            settings: Value::Object(self.settings.clone()).to_string(),
        }
    }

    /// The data and settings in words.
    pub fn basis_label(&self) -> String {
        let data = self.data.iter().map(|d| match d.examples {
            0 => d.source.clone(),
            n => format!("{} ({n})", d.source),
        });
        let settings = self.settings.iter().map(|(name, value)| {
            let value = value
                .as_str()
                .map_or_else(|| value.to_string(), str::to_owned);
            format!("{} {value}", name.replace('_', " "))
        });
        data.chain(settings).collect::<Vec<_>>().join(", ")
    }

    /// The model with what distinguishes this measurement of it.
    pub fn name(&self) -> String {
        let mut name = self.model.name.clone();
        if let Some(adapter) = &self.adapter {
            let adapter = Path::new(adapter)
                .file_name()
                .map_or_else(|| adapter.clone(), |n| n.to_string_lossy().into_owned());
            name = if name.is_empty() {
                adapter
            } else {
                format!("{name} + {adapter}")
            };
        }
        if name.is_empty() {
            self.data
                .first()
                .map_or_else(|| self.kind.title().to_owned(), |d| d.source.clone())
        } else {
            name
        }
    }
}

/// A file with measurements that cannot be read or written.
#[derive(Debug, Error)]
pub enum MeasurementError {
    /// The file.
    #[error(transparent)]
    File(#[from] FileError),
    /// Its content.
    #[error("{}: not measurements of this program: {source}", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// serde's reason, with line and column.
        source: serde_json::Error,
    },
}

#[derive(Serialize, Deserialize)]
struct Held {
    measurements: Vec<Measurement>,
}

/// Writes measurements as indented JSON.
///
/// # Errors
/// If the file cannot be written.
pub fn write(path: &Path, measurements: &[Measurement]) -> Result<(), MeasurementError> {
    let held = Held {
        measurements: measurements.to_vec(),
    };
    let text = serde_json::to_string_pretty(&held).map_err(|source| MeasurementError::Json {
        path: path.to_owned(),
        source,
    })?;
    Ok(fs::write_atomic(path, (text + "\n").as_bytes())?)
}

/// Reads what [`write()`] wrote.
///
/// # Errors
/// If the file cannot be read or holds something else.
pub fn read(path: &Path) -> Result<Vec<Measurement>, MeasurementError> {
    serde_json::from_slice::<Held>(&fs::read(path)?)
        .map(|held| held.measurements)
        .map_err(|source| MeasurementError::Json {
            path: path.to_owned(),
            source,
        })
}

/// SHA-256 in hexadecimal, by which data are told apart.
pub fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn measured(source: &str, sha256: &str, examples: usize) -> Measurement {
        Measurement {
            kind: Kind::Capacity,
            model: ModelInfo {
                name: "m".into(),
                ..ModelInfo::default()
            },
            data: vec![DatasetInfo {
                split: "test".into(),
                source: source.into(),
                examples,
                sha256: sha256.into(),
            }],
            ..Measurement::default()
        }
    }

    #[test]
    fn data_are_told_apart_by_content_size_and_settings() {
        let one = measured("a.txt", "11", 8);
        assert_eq!(one.basis(), measured("copy.txt", "11", 8).basis());
        assert_ne!(one.basis(), measured("a.txt", "22", 8).basis());
        assert_ne!(one.basis(), measured("a.txt", "11", 9).basis());
        // Without a hash the name has to do.
        assert_ne!(measured("a", "", 8).basis(), measured("b", "", 8).basis());
        let mut longer = one.clone();
        longer.settings.insert("length".into(), 1024.into());
        assert_ne!(one.basis(), longer.basis());
        assert_eq!(longer.basis_label(), "a.txt (8), length 1024");
    }

    #[test]
    fn a_measurement_comes_back_as_it_was_written() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(MEASUREMENTS_FILE);
        let mut one = measured("a.txt", "11", 8);
        one.adapter = Some("runs/x".into());
        one.values = [("perplexity".to_owned(), f64::INFINITY)].into();
        one.cost = Meter::start().stop();
        write(&path, std::slice::from_ref(&one)).unwrap();
        assert_eq!(read(&path).unwrap(), [one.clone()]);
        assert_eq!(one.name(), "m + x");
        std::fs::write(&path, "[]").unwrap();
        let error = read(&path).unwrap_err().to_string();
        assert!(
            error.contains("measurements.json: not measurements"),
            "{error}"
        );
    }
}
