//! A model as it is: its perplexity on a text, and how fast it generates in how much memory.

use std::path::Path;
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result};
use frugal::model::Quantize;
use frugal_eval::efficiency::GENERATION_FILE;
use frugal_eval::measurement::{self, MEASUREMENTS_FILE};
use frugal_eval::report::{
    Evaluation, MetaInfo, ModelInfo, RECORD_FILE, RunInfo, RunRecord, Status, SystemInfo, TrainInfo,
};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::jobs::{Ended, run as process, this_program};
use crate::folder::RESULTS_FILE;
use crate::measured::dataset;

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

/// Scores and times, and leaves a record of it.
pub(super) fn run(config: &ScoreConfig, folder: &Path) -> Result<Ended> {
    let begin = Instant::now();
    let quantize = config.quantize_name();
    let results = folder.join("eval");
    let mut command = this_program()?;
    command.args([
        "eval",
        "--quiet",
        "--json",
        "--model",
        &config.model,
        "--quantize",
        &quantize,
    ]);
    command
        .args([
            "--tasks",
            &format!("perplexity:{}", config.data),
            "--limit",
            &config.limit.to_string(),
            "--out",
        ])
        .arg(&results);
    let scored = process(command, None)?;
    if !scored.status.success() {
        return Ok(scored);
    }
    let timed = process(
        generation(&config.model, Some(&quantize), folder)?,
        Some(folder),
    )?;
    if timed.status.success() {
        record(config, folder, &results, begin.elapsed().as_secs_f64())?
            .write(&folder.join(RECORD_FILE))?;
    }
    Ok(timed)
}

/// The command that times a model at generating 33 tokens after prompts of 32 and keeps what it
/// found in the folder.
pub(super) fn generation(model: &str, quantize: Option<&str>, folder: &Path) -> Result<Command> {
    let mut command = this_program()?;
    command.args([
        "measure",
        "runtime",
        "--quiet",
        "--json",
        "--model",
        model,
        "--quantize",
        quantize.unwrap_or("none"),
    ]);
    command
        .args([
            "--prompts",
            "32",
            "--outputs",
            "1,33",
            "--held-out",
            "17",
            "--trials",
            "3",
            "--save",
        ])
        .arg(folder.join(GENERATION_FILE));
    Ok(command)
}

fn record(config: &ScoreConfig, folder: &Path, results: &Path, seconds: f64) -> Result<RunRecord> {
    let read = |path: &Path| -> Result<Value> {
        serde_json::from_slice(&frugal_core::fs::read(path)?)
            .with_context(|| format!("{}: not JSON", path.display()))
    };
    let scores = read(&results.join(RESULTS_FILE))?;
    let task = scores["results"]
        .as_object()
        .and_then(|tasks| tasks.values().next())
        .cloned()
        .unwrap_or_default();
    let score = |name: &str| task[format!("{name},none")].as_f64();
    let perplexity = score("token_perplexity").context("the evaluation found no perplexity")?;
    let adapted = [
        ("perplexity", Some(perplexity)),
        ("loss", Some(perplexity.ln())),
        ("bits_per_byte", score("bits_per_byte")),
    ];
    let generation = read(&folder.join(GENERATION_FILE))?;
    let measured = measurement::read(&results.join(MEASUREMENTS_FILE))?
        .into_iter()
        .next()
        .map(|m| m.model);
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
            dataset_info: vec![dataset(
                Path::new(&config.data),
                &frugal_core::fs::read(Path::new(&config.data))?,
                config.limit,
            )],
            package_info: [("frugal".to_owned(), env!("CARGO_PKG_VERSION").to_owned())].into(),
            system_info: SystemInfo::detect("cpu"),
        },
    })
}
