//! What can go wrong in a training run.

use std::fmt;
use std::path::PathBuf;

use frugal_nn::ModelError;
use thiserror::Error;

use crate::checkpoint::CheckpointError;
use crate::config::ConfigProblem;
use crate::parallel::ParallelError;

/// A part of the data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Set {
    /// What is trained on.
    Train,
    /// What is evaluated on.
    Evaluation,
}

impl fmt::Display for Set {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Train => "training",
            Self::Evaluation => "evaluation",
        })
    }
}

/// What can go wrong in a training run.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum TrainError {
    /// Settings out of range.
    #[error("training settings: {}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    Config(Vec<ConfigProblem>),
    /// Settings, model and data that do not go together.
    #[error("{0}")]
    Setup(String),
    /// An example that does not fit the task or the model.
    #[error("{set} example {row}: {reason}")]
    Example {
        /// Part of the data.
        set: Set,
        /// Index in it, from 0.
        row: usize,
        /// What is wrong with it.
        reason: String,
    },
    /// Nothing to learn from, or to measure.
    #[error(
        "the {set} data has no example with anything to predict: check the column mapping and whether truncation removed the answers"
    )]
    Empty {
        /// Part of the data.
        set: Set,
    },
    /// A loss or gradient that is infinite or not a number. Nothing of this step was applied or
    /// saved.
    #[error(
        "{what} is not finite at step {step} (epoch {epoch:.2}); training examples of the batch: {}; {}; lower `lr`, add warm-up, or look at these examples",
        rows_text(rows),
        checkpoint_text(checkpoint)
    )]
    NonFinite {
        /// What became infinite or not a number.
        what: String,
        /// The step that was being taken, from 1.
        step: u64,
        /// Epochs done.
        epoch: f64,
        /// Examples of the batch, as indices of the training data.
        rows: Vec<u32>,
        /// The newest checkpoint of the run.
        checkpoint: Option<PathBuf>,
    },
    /// A weight that became infinite or not a number. It was not saved.
    #[error(
        "parameter `{name}` is not finite after step {step}; {}; lower `lr` or add warm-up",
        checkpoint_text(checkpoint)
    )]
    Diverged {
        /// The parameter.
        name: String,
        /// Steps done.
        step: u64,
        /// The newest checkpoint of the run.
        checkpoint: Option<PathBuf>,
    },
    /// The backbone refused a batch.
    #[error("{set} examples {}: {source}", rows_text(rows))]
    Forward {
        /// Part of the data.
        set: Set,
        /// Examples of the batch.
        rows: Vec<u32>,
        /// Why.
        source: ModelError,
    },
    /// The metric that decides the best evaluation is not among those measured.
    #[error("`metric_for_best_model`: no metric `{name}`; measured: {known}")]
    Metric {
        /// What was asked for.
        name: String,
        /// What there is.
        known: String,
    },
    /// A new run in the folder of another.
    #[error("{} holds checkpoints of an earlier run: resume it or choose another folder", folder.display())]
    FolderInUse {
        /// The folder.
        folder: PathBuf,
    },
    /// A run to continue whose checkpoints are all damaged.
    #[error(
        "{}: no checkpoint can be used, so there is nothing to continue from: {}; start again in another folder",
        folder.display(),
        found.join("; ")
    )]
    NoCheckpoint {
        /// The folder.
        folder: PathBuf,
        /// Each checkpoint and what is wrong with it.
        found: Vec<String>,
    },
    /// A checkpoint of a run with other settings or data.
    #[error(
        "{} cannot be resumed, its run differs: {}; restore these or start in another folder",
        path.display(),
        differences.join("; ")
    )]
    Resume {
        /// The checkpoint.
        path: PathBuf,
        /// Each difference.
        differences: Vec<String>,
    },
    /// A resumed run that would end before what is done already.
    #[error(
        "{}: `{setting}` can be raised, not lowered below the {done} steps done: as it is now, the run has {planned}",
        path.display()
    )]
    Shortened {
        /// The checkpoint.
        path: PathBuf,
        /// The setting that decides how long the run is.
        setting: &'static str,
        /// Steps done.
        done: u64,
        /// Steps that the run would have.
        planned: u64,
    },
    /// A checkpoint from within a decay that was to be trained on from at the full rate.
    #[error(
        "{}: the learning rate has been falling since step {start}, so that step {done} is no checkpoint of the stable stage: go on from one of step {start} or before",
        path.display()
    )]
    Decayed {
        /// The checkpoint.
        path: PathBuf,
        /// Steps done.
        done: u64,
        /// Steps done when the decay began.
        start: u64,
    },
    /// A checkpoint of a run that has no stage at the full rate to fork from.
    #[error("{}: cannot be forked: {reason}", path.display())]
    Fork {
        /// The checkpoint.
        path: PathBuf,
        /// Why not.
        reason: String,
    },
    /// A checkpoint that cannot be written or read.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// Something went wrong between the processes of a run.
    #[error("{source}; {}", checkpoint_text(checkpoint))]
    Parallel {
        /// What.
        source: ParallelError,
        /// The newest checkpoint of the run, from which any number of processes goes on.
        checkpoint: Option<PathBuf>,
    },
}

impl From<ParallelError> for TrainError {
    fn from(source: ParallelError) -> Self {
        Self::Parallel {
            source,
            checkpoint: None,
        }
    }
}

/// Rows named in a message before the rest is counted.
const SHOWN: usize = 16;

fn rows_text(rows: &[u32]) -> String {
    let shown: Vec<String> = rows.iter().take(SHOWN).map(ToString::to_string).collect();
    let more = rows.len().saturating_sub(SHOWN);
    if more > 0 {
        format!("{} and {more} more", shown.join(", "))
    } else {
        shown.join(", ")
    }
}

fn checkpoint_text(checkpoint: &Option<PathBuf>) -> String {
    checkpoint
        .as_ref()
        .map_or("no checkpoint was written yet".into(), |path| {
            format!("the last good checkpoint is {}", path.display())
        })
}
