//! A model as it is: its perplexity on a text, and how fast it generates in how much memory.

use std::path::Path;

use frugal_eval::efficiency::GENERATION_FILE;
use frugal_eval::measurement::{self, MEASUREMENTS_FILE, sha256};
use frugal_eval::report::{
    DatasetInfo, Evaluation, MetaInfo, ModelInfo, RunInfo, RunRecord, Status, SystemInfo, TrainInfo,
};
use frugal_models::Quantize;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::BenchError;
use crate::run::RESULTS_FILE;

/// What is scored and timed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ScoreConfig {
    /// Model.
    pub model: String,
    /// How its weights are held.
    pub quantize: Quantize,
    /// Text, one document a line.
    pub data: String,
    /// Documents of it; 0 for all.
    pub limit: usize,
}

impl Default for ScoreConfig {
    fn default() -> Self {
        Self {
            model: String::new(),
            quantize: Quantize::None,
            data: String::new(),
            limit: 0,
        }
    }
}

impl ScoreConfig {
    /// Checks values, not files: (key, what is wrong).
    pub fn problems(&self) -> Vec<(String, String)> {
        let empty = [
            ("model", self.model.is_empty()),
            ("data", self.data.is_empty()),
        ]
        .into_iter()
        .filter(|(_, empty)| *empty);
        empty
            .map(|(key, _)| (key.to_owned(), "is needed".to_owned()))
            .collect()
    }

    /// As the flag `--quantize` spells it.
    pub fn quantize_name(&self) -> String {
        serde_json::to_value(self.quantize)
            .ok()
            .and_then(|v| v.as_str().map(str::to_owned))
            .unwrap_or_default()
    }
}

/// The record of a model that was scored and timed: `results` is the folder of the evaluation by
/// tasks, `folder` that of the run, in which [`GENERATION_FILE`] is.
///
/// # Errors
/// Results that are not there, or without a perplexity.
pub fn score_record(
    config: &ScoreConfig,
    folder: &Path,
    results: &Path,
    seconds: f64,
) -> Result<RunRecord, BenchError> {
    let scores = read_json(&results.join(RESULTS_FILE))?;
    let task = scores["results"]
        .as_object()
        .and_then(|tasks| tasks.values().next())
        .cloned()
        .unwrap_or_default();
    let score = |name: &str| task[format!("{name},none")].as_f64();
    let perplexity = score("token_perplexity").ok_or_else(|| BenchError::NoScore {
        folder: results.to_owned(),
    })?;
    let adapted = [
        ("perplexity", Some(perplexity)),
        ("loss", Some(perplexity.ln())),
        ("bits_per_byte", score("bits_per_byte")),
    ];
    let generation = read_json(&folder.join(GENERATION_FILE))?;
    let measured = measurement::read(&results.join(MEASUREMENTS_FILE))?
        .into_iter()
        .next()
        .map(|m| m.model);
    let data = Path::new(&config.data);
    Ok(RunRecord {
        run_info: RunInfo {
            total_time: seconds,
            experiment_name: folder
                .file_name()
                .map_or_else(String::new, |n| n.to_string_lossy().into_owned()),
            train_config: serde_json::to_value(config)?,
            ..RunInfo::default()
        },
        train_info: TrainInfo {
            file_size: generation["footprint"]["weight_bytes"]
                .as_u64()
                .unwrap_or(0),
            status: Status::Success,
            ..TrainInfo::default()
        },
        evaluation: vec![Evaluation {
            split: "test".into(),
            examples: config.limit,
            adapted: adapted
                .into_iter()
                .filter_map(|(name, value)| Some((name.to_owned(), value?)))
                .collect(),
            ..Evaluation::default()
        }],
        forgetting: None,
        meta_info: MetaInfo {
            model_info: measured.unwrap_or_else(|| ModelInfo {
                name: config.model.clone(),
                ..ModelInfo::default()
            }),
            dataset_info: vec![DatasetInfo {
                split: "test".into(),
                source: data.display().to_string(),
                examples: config.limit,
                sha256: sha256(&frugal_core::fs::read_data(data)?),
            }],
            package_info: [("frugal".to_owned(), env!("CARGO_PKG_VERSION").to_owned())].into(),
            system_info: SystemInfo::detect("cpu"),
        },
    })
}

fn read_json(path: &Path) -> Result<Value, BenchError> {
    let text = frugal_core::fs::read(path)?;
    serde_json::from_slice(&text).map_err(|source| BenchError::NotJson {
        path: path.to_owned(),
        source,
    })
}
