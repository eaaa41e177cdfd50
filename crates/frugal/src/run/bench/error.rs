//! What can go wrong with a suite of runs.

use std::path::PathBuf;

use thiserror::Error;

/// A suite that cannot be planned, run or compared.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum BenchError {
    /// The suite's file.
    #[error(transparent)]
    Suite(#[from] frugal_eval::suite::SuiteError),
    /// A name that is neither a file nor a built-in suite.
    #[error("`{name}` is neither a file nor a built-in suite; built in: {known}")]
    UnknownSuite {
        /// The name.
        name: String,
        /// Names of the built-in suites.
        known: String,
    },
    /// A run that this comparison cannot take.
    #[error(
        "run `{run}` is one of `frugal {command}`, which this comparison does not take; `frugal bench efficiency` takes all kinds"
    )]
    OtherCommand {
        /// The run.
        run: String,
        /// Its command.
        command: &'static str,
    },
    /// A name or pattern that fits none of the runs.
    #[error("the suite has no run `{name}`; it has: {known}")]
    UnknownRun {
        /// The name.
        name: String,
        /// The names that there are.
        known: String,
    },
    /// Nothing is left to do.
    #[error("no run is left: the suite's seeds are {seeds:?}")]
    NoRuns {
        /// The seeds.
        seeds: Vec<u64>,
    },
    /// A grid where there is none.
    #[error(
        "{title}: this suite has no `[grid]` of shapes, tokens, rates and batches; `frugal bench efficiency` compares listed runs"
    )]
    NoGrid {
        /// The suite.
        title: String,
    },
    /// Runs whose measures have different units.
    #[error(
        "group `{group}`: its runs are of several commands, whose measures cannot be compared: give each a group"
    )]
    MixedGroup {
        /// The group.
        group: String,
    },
    /// A data file of a run.
    #[error("{file}: no such file in {}: say where the suite's data are with `--data-dir`", folder.display())]
    NoData {
        /// As the suite names it.
        file: String,
        /// Where it was looked for.
        folder: PathBuf,
    },
    /// A run's settings.
    #[error("run `{run}`")]
    Settings {
        /// The run.
        run: String,
        /// What is wrong with them.
        source: frugal_core::config::ConfigErrors,
    },
    /// A run that was found wrong before the first one started.
    #[error("run `{run}`: {reason}")]
    Refused {
        /// The run.
        run: String,
        /// Why.
        reason: String,
    },
    /// A sweep that cannot be made.
    #[error("{0}")]
    Sweep(String),
    /// A finished run with other settings.
    #[error("{}: this run was made with other settings: give another `--out`, or remove the folder", folder.display())]
    OtherSettings {
        /// Its folder.
        folder: PathBuf,
    },
    /// Results of something else in the output folder.
    #[error(transparent)]
    Results(#[from] crate::run::ResultsError),
    /// Another process writes to the folder of a run.
    #[error(transparent)]
    Lock(#[from] frugal_core::lock::LockError),
    /// A file.
    #[error(transparent)]
    File(#[from] frugal_core::fs::FileError),
    /// The record of a run.
    #[error(transparent)]
    Record(#[from] frugal_eval::report::RecordError),
    /// What an evaluation kept.
    #[error(transparent)]
    Measurement(#[from] frugal_eval::measurement::MeasurementError),
    /// A file of results that is damaged.
    #[error("{}: not JSON", path.display())]
    NotJson {
        /// The file.
        path: PathBuf,
        /// The reader's reason.
        source: serde_json::Error,
    },
    /// Settings or results that have no text form.
    #[error(transparent)]
    Json(#[from] serde_json::Error),
    /// A plot.
    #[error(transparent)]
    Chart(#[from] frugal_eval::report::ChartError),
    /// An evaluation that left no score.
    #[error("{}: the evaluation found no perplexity", folder.display())]
    NoScore {
        /// Its folder.
        folder: PathBuf,
    },
    /// A run that this runner cannot do.
    #[error("run `{run}`: {reason}")]
    Unsupported {
        /// The run.
        run: String,
        /// Why, and what can do it.
        reason: &'static str,
    },
    /// The runner itself, not the run.
    #[error(transparent)]
    Runner(Box<dyn std::error::Error + Send + Sync>),
}
