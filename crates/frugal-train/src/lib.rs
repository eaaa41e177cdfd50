//! Training: batches, objectives, optimiser, schedule, evaluation, checkpoints and the loop that
//! joins them.
//!
//! A run is a pure function of its configuration, its data and the starting weights: interrupting
//! it anywhere and resuming gives the same bits as never stopping.
#![forbid(unsafe_code)]

mod batch;
mod checkpoint;
mod config;
mod decay_mixture;
mod error;
mod evaluate;
mod event;
mod fork;
pub mod mixture;
mod named;
mod neftune;
pub mod objective;
pub mod optim;
pub mod parallel;
mod rate;
mod schedule;
mod source;
mod trainer;
mod unreached;
mod validate;

#[cfg(test)]
mod tests;

pub use batch::{Batches, Epoch};
pub use checkpoint::FOLDER as CHECKPOINTS;
pub use checkpoint::{Best, Checkpoint, CheckpointError, Cost, TrainerState, latest, list};
pub use config::{ConfigProblem, DecayType, Memory, PRETRAINED_TO, Scheduler, TrainConfig};
pub use decay_mixture::MixturePart;
pub use error::{Set, TrainError};
pub use evaluate::{evaluate, evaluate_observed, head_logits};
pub use event::{Event, Observer};
pub use fork::fork;
pub use named::Named;
pub use objective::{CausalLm, Classification, Evaluation, ModelParts, Objective};
pub use optim::{Optimizer, ParamGroup};
pub use schedule::Schedule;
pub use source::ExampleSource;
pub use trainer::{
    StopReason, TrainRun, TrainSummary, check_settings, train, train_from, train_parallel,
    train_with,
};
pub use unreached::Unreached;

pub use frugal_core::encode::{Target, Tokenized};
