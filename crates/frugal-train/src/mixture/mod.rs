//! Mixtures of objectives: which arm each example is made for, fixed or driven by reward.
//!
//! Blouir et al., *Birdie: Advancing State Space Models with Reward-Driven Objectives and Curricula*,
//! EMNLP 2024, arXiv 2411.01030; official code `samblouir/birdie`.

mod controller;
mod reward;
mod reward_model;
mod schedule;
mod settings;
mod source;
mod state;

#[cfg(test)]
mod tests;

pub use controller::{Controller, class_weights, normalized};
pub use reward::{class_totals, reward};
pub use reward_model::{Evaluated, RewardModel};
pub use schedule::Schedule as EvaluationSchedule;
pub use settings::{ControllerConfig, MIXTURES, MixtureConfig, MixtureKind};
pub use source::{Mixture, MixtureText};
