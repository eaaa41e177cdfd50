//! What a run needs, and what it comes to.

use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use frugal_nn::{Adapter, Backbone, Head};

use crate::Tokenized;
use crate::checkpoint::{Best, Cost};
use crate::config::TrainConfig;
use crate::event::Observer;
use crate::objective::{Evaluation, ModelParts};

/// Everything that a run needs.
pub struct TrainRun<'a> {
    /// The frozen model.
    pub backbone: &'a dyn Backbone,
    /// What is trained.
    pub adapter: &'a mut dyn Adapter,
    /// Head that is trained with it; turns the run into classification.
    pub head: Option<&'a mut Head>,
    /// Examples to learn from.
    pub train: &'a [Tokenized],
    /// Examples to measure on.
    pub validation: Option<&'a [Tokenized]>,
    /// Settings.
    pub config: &'a TrainConfig,
    /// Where checkpoints go; without it nothing is written.
    pub folder: Option<&'a Path>,
    /// Continue from the folder's newest valid checkpoint, if there is one.
    pub resume: bool,
    /// When set, the run stops after the current micro-batch, with a checkpoint.
    pub stop: &'a AtomicBool,
    /// Receives the events.
    pub observer: &'a mut dyn Observer,
}

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopReason {
    /// All steps were taken.
    Finished,
    /// Evaluations stopped improving.
    EarlyStopped,
    /// It was asked to stop.
    Interrupted,
}

/// What a run came to.
#[derive(Clone, Debug, PartialEq)]
pub struct TrainSummary {
    /// How it ended.
    pub ending: StopReason,
    /// Optimiser steps done.
    pub step: u64,
    /// Optimiser steps planned.
    pub total_steps: u64,
    /// Epochs done.
    pub epoch: f64,
    /// Tokens read.
    pub tokens: u64,
    /// The best evaluation.
    pub best: Option<Best>,
    /// Whether the weights are those of the best evaluation rather than the last ones.
    pub restored_best: bool,
    /// The last evaluation of this call.
    pub evaluation: Option<Evaluation>,
    /// The newest checkpoint.
    pub checkpoint: Option<PathBuf>,
    /// What it cost, with the processes that it resumes.
    pub cost: Cost,
    /// What resumes changed of the length of the run; without any it is what a run without a break
    /// comes to.
    pub changes: Vec<String>,
}

impl TrainRun<'_> {
    /// The model with its head.
    pub(super) fn model(&self) -> ModelParts<'_> {
        ModelParts::new(self.backbone, self.head.as_deref())
    }
}
