//! What a run tells while it goes on.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::Serialize;

/// Something that happened in a run. Steps are optimiser steps, counted from 1; epochs count from 0
/// with fractions.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
#[non_exhaustive]
pub enum Event {
    /// Work begins.
    Started {
        /// Optimiser steps of the whole run.
        total_steps: u64,
        /// Examples of an epoch.
        examples: usize,
        /// Examples left out because nothing in them is to be predicted.
        skipped: usize,
        /// Trained elements.
        trainable_parameters: usize,
    },
    /// A damaged checkpoint was passed over.
    CheckpointSkipped {
        /// Its folder and what is wrong with it.
        reason: String,
    },
    /// A resume changed the length of the run, now or earlier.
    LengthChanged {
        /// What it was, and what that means.
        change: String,
    },
    /// The run continues from a checkpoint.
    Resumed {
        /// Steps done.
        step: u64,
        /// Epochs done.
        epoch: f64,
        /// The checkpoint.
        path: PathBuf,
        /// Time spent before it.
        seconds: f64,
    },
    /// A micro-batch went forward and backward. For progress; nothing of it is logged.
    MicroBatch {
        /// Steps done before this one.
        step: u64,
        /// Steps of the run.
        total_steps: u64,
        /// Micro-batches of this step that are done.
        done: usize,
        /// Micro-batches of this step.
        of: usize,
    },
    /// A batch of the validation set was evaluated. For progress; nothing of it is logged.
    Evaluating {
        /// Examples done.
        done: usize,
        /// Examples of the set.
        of: usize,
    },
    /// An optimiser step that is logged.
    Step {
        /// Steps done.
        step: u64,
        /// Steps of the run.
        total_steps: u64,
        /// Epochs done.
        epoch: f64,
        /// Mean loss of the steps since the last entry.
        loss: f64,
        /// Learning rate of this step.
        lr: f64,
        /// Global norm of this step's gradient before clipping.
        grad_norm: f64,
        /// Tokens read since the start of the run.
        tokens: u64,
        /// Tokens per second of training since the last entry.
        tokens_per_second: f64,
        /// Largest memory of the process so far, where the system tells.
        peak_memory_bytes: Option<u64>,
    },
    /// The validation set was evaluated.
    Evaluated {
        /// Steps done.
        step: u64,
        /// Epochs done.
        epoch: f64,
        /// Metrics by name.
        metrics: BTreeMap<String, f64>,
        /// Time it took.
        seconds: f64,
    },
    /// The arms of a mixture were measured.
    Measured {
        /// Steps done.
        step: u64,
        /// Epochs done.
        epoch: f64,
        /// Shares, losses and rewards by name.
        metrics: BTreeMap<String, f64>,
    },
    /// The evaluation beat all earlier ones.
    NewBest {
        /// Steps done.
        step: u64,
        /// The metric that decides.
        metric: String,
        /// Its value.
        value: f64,
    },
    /// A checkpoint was written.
    Saved {
        /// Steps done.
        step: u64,
        /// Its folder.
        path: PathBuf,
    },
    /// The run ends because evaluations stopped improving.
    EarlyStop {
        /// Steps done.
        step: u64,
        /// Evaluations since the best one.
        evaluations: u32,
    },
    /// The run ends because it was asked to.
    Interrupted {
        /// Steps done.
        step: u64,
        /// Where it can be resumed from.
        path: Option<PathBuf>,
    },
}

/// Receives the events of a run.
pub trait Observer {
    /// Called in order, on the training thread.
    fn on_event(&mut self, event: &Event);
}

impl<F: FnMut(&Event)> Observer for F {
    fn on_event(&mut self, event: &Event) {
        self(event);
    }
}
