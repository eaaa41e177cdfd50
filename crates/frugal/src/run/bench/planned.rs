//! A run of a suite with its settings resolved.

use std::path::Path;

use frugal_core::config::{self, ConfigErrors};
use frugal_eval::suite::{Job, Work};
use serde_json::Value;

use super::BenchError;
use super::score::ScoreConfig;
use crate::run::{PretrainConfig, TuneConfig};

/// A run with its settings resolved.
#[derive(Clone, Debug)]
pub struct PlannedRun {
    /// The job of the suite.
    pub job: Job,
    /// Its settings.
    pub settings: BenchSettings,
}

/// The configuration of a run's command.
#[derive(Clone, Debug)]
pub enum BenchSettings {
    /// Of `frugal tune`.
    Tune(Box<TuneConfig>),
    /// Of `frugal pretrain`.
    Pretrain(Box<PretrainConfig>),
    /// Of an evaluation of a model as it is.
    Score(ScoreConfig),
}

impl BenchSettings {
    /// As the file that the run's command reads.
    ///
    /// # Errors
    /// Values that have no TOML form.
    pub fn to_toml(&self) -> Result<String, ConfigErrors> {
        match self {
            Self::Tune(config) => config::to_toml(config),
            Self::Pretrain(config) => config::to_toml(config),
            Self::Score(config) => config::to_toml(config),
        }
    }

    /// As the run's record keeps them.
    ///
    /// # Errors
    /// Values that have no JSON form.
    pub fn to_json(&self) -> Result<Value, serde_json::Error> {
        match self {
            Self::Tune(config) => serde_json::to_value(config),
            Self::Pretrain(config) => serde_json::to_value(config),
            Self::Score(config) => serde_json::to_value(config),
        }
    }

    /// Data files.
    fn files(&self) -> Vec<&str> {
        match self {
            Self::Tune(c) => [
                Some(&c.data.train),
                c.data.validation.as_ref(),
                c.data.test.as_ref(),
            ]
            .into_iter()
            .flatten()
            .flat_map(|names| names.lines())
            .collect(),
            Self::Pretrain(c) => vec![&c.data],
            Self::Score(c) => vec![&c.data],
        }
    }

    /// What a list of runs says about this one.
    pub fn summary(&self) -> String {
        match self {
            Self::Tune(c) => format!("{} on {}, lr {:e}", c.method.name, c.model, c.train.lr),
            Self::Pretrain(c) => format!("pretrain, lr {:e}", c.train.lr),
            Self::Score(c) => format!("{} held as {}", c.model, c.quantize_name()),
        }
    }
}

/// A job with its settings resolved, its data files there and its folder named.
pub(super) fn planned_run(
    job: Job,
    overrides: &[String],
    data_dir: &Path,
    out: &Path,
) -> Result<PlannedRun, BenchError> {
    let mut settings = check(&job, overrides).map_err(|source| BenchError::Settings {
        run: job.name.clone(),
        source,
    })?;
    for file in settings.files() {
        let is_file = Path::new(file).exists() && !Path::new(file).is_dir();
        if !is_file && frugal_core::data::builtin(file).is_err() {
            return Err(BenchError::NoData {
                file: file.to_owned(),
                folder: data_dir.to_owned(),
            });
        }
    }
    let folder = out.join(job.folder());
    match &mut settings {
        BenchSettings::Tune(config) => config.out = folder,
        BenchSettings::Pretrain(config) => config.out = folder,
        BenchSettings::Score(_) => {}
    }
    Ok(PlannedRun { job, settings })
}

/// A run's configuration; its output folder is not known yet.
pub(super) fn check(job: &Job, overrides: &[String]) -> Result<BenchSettings, ConfigErrors> {
    match job.work {
        Work::Tune => {
            let mut config = config::load_with::<TuneConfig>(
                None,
                &job.settings,
                overrides,
                TuneConfig::problems,
            )?;
            config.resolve();
            Ok(BenchSettings::Tune(Box::new(config)))
        }
        Work::Pretrain => {
            // No setting of a suite, but a run without one would be refused.
            let mut table = job.settings.clone();
            table.insert("out".into(), "runs".into());
            let mut config = config::load_with::<PretrainConfig>(
                None,
                &table,
                overrides,
                PretrainConfig::problems,
            )?;
            config.resolve();
            Ok(BenchSettings::Pretrain(Box::new(config)))
        }
        Work::Eval => Ok(BenchSettings::Score(config::load_with(
            None,
            &job.settings,
            overrides,
            ScoreConfig::problems,
        )?)),
    }
}
