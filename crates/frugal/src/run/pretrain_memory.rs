//! What a pre-training run trains instead of plain weights, and what it keeps for that.

use frugal_adapt::methods::full::{Full, FullConfig};
use frugal_adapt::pretraining;
use frugal_nn::{Adapter, BuildContext};
use frugal_train::{Named, TrainConfig, TrainError, optim};
use serde::Serialize;
use serde_json::json;

use super::RunError;

/// Bytes of what is trained, counted from names and shapes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct TrainedMemory {
    /// Weights in single precision, with those that are not trained, and places of sparse ones.
    pub weights: u64,
    /// Gradients of one step.
    pub gradients: u64,
    /// The tensors that the optimizer keeps.
    pub states: u64,
}

impl TrainedMemory {
    /// Of an adapter under the optimizer of a run.
    ///
    /// # Errors
    /// Settings of the optimizer that are out of range.
    pub fn of(adapter: &Full, train: &TrainConfig) -> Result<Self, RunError> {
        let optimizer = optim::made(train).map_err(TrainError::Setup)?;
        let all = adapter.parameters();
        let trained = || all.iter().filter(|p| p.is_trainable());
        Ok(Self {
            weights: all.iter().map(|p| 4 * p.len() as u64).sum::<u64>() + adapter.other_bytes(),
            gradients: trained().map(|p| 4 * p.len() as u64).sum(),
            states: trained()
                .map(|p| optimizer.state_bytes(p.name(), p.shape()))
                .sum(),
        })
    }

    /// The sum.
    pub fn total(&self) -> u64 {
        self.weights + self.gradients + self.states
    }
}

/// Every weight as it is, or what stands in the place of those in the blocks.
///
/// # Errors
/// A name that is none, settings out of range, a rank that no layer is wider than.
pub fn trained_as(reparam: &Named, context: &BuildContext<'_>) -> Result<Full, RunError> {
    if reparam.name.is_empty() {
        return Ok(Full::new(FullConfig {}, context)?);
    }
    let found = pretraining::find(&reparam.name)?;
    Ok((found.make)(&reparam.settings, context)?)
}

/// Fills in what other settings decide: moments begin anew where the factors do, and Adam-mini knows
/// the width of a head.
pub(super) fn resolve(train: &mut TrainConfig, reparam: &Named, head_dim: usize) {
    if train.moment_reset_steps == 0 {
        train.moment_reset_steps = restart_steps(reparam).unwrap_or(0);
    }
    let is_mini = optim::find(&train.optim.name).is_ok_and(|entry| entry.name == "adam_mini");
    if is_mini && !train.optim.settings.contains_key("head_dim") {
        let settings = &mut train.optim.settings;
        settings.insert("head_dim".to_owned(), json!(head_dim));
    }
}

fn restart_steps(reparam: &Named) -> Option<u64> {
    let found = pretraining::find(&reparam.name).ok()?;
    (found.restart_steps)(&reparam.settings).ok()
}

/// What is wrong with a reparameterisation beside the optimizer: (dotted key, reason).
pub(super) fn problems(reparam: &Named, train: &TrainConfig) -> Vec<(String, String)> {
    let mut found = Vec::new();
    if reparam.is_unset() {
        return found;
    }
    let mut add = |key: &str, reason: String| found.push((key.to_owned(), reason));
    if reparam.name.is_empty() {
        add(
            "reparam",
            "settings without a name: give `--reparam NAME`".into(),
        );
        return found;
    }
    match pretraining::find(&reparam.name) {
        Err(error) => add("reparam.name", error.to_string()),
        Ok(entry) => match (entry.restart_steps)(&reparam.settings) {
            Err(error) => add("reparam", error.to_string()),
            Ok(steps) if steps > 0 && ![0, steps].contains(&train.moment_reset_steps) => add(
                "train.moment_reset_steps",
                format!(
                    "{} given, but the factors begin anew every {steps} steps (`reparam.restart_steps`), and what the optimizer remembers is of the old ones: leave it out",
                    train.moment_reset_steps
                ),
            ),
            Ok(_) => {}
        },
    }
    found
}
