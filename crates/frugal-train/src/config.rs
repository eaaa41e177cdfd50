//! Settings of a training run, with Hugging Face's names.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::decay_mixture::MixturePart;
use crate::named::Named;
use crate::optim::ParamGroup;

/// Shape of the learning rate over the run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Scheduler {
    /// Warm-up, then the full rate.
    #[serde(alias = "constant_with_warmup")]
    Constant,
    /// Warm-up, then a straight line down.
    #[default]
    Linear,
    /// Warm-up, then half a cosine down.
    Cosine,
    /// Warm-up, the full rate, then down over the last part in the shape of `decay_type`.
    #[serde(alias = "wsd")]
    WarmupStableDecay,
}

impl Scheduler {
    /// Its name in configurations.
    pub fn name(self) -> &'static str {
        match self {
            Self::Constant => "constant",
            Self::Linear => "linear",
            Self::Cosine => "cosine",
            Self::WarmupStableDecay => "warmup_stable_decay",
        }
    }
}

/// Share of the peak that the rate of pre-training ends at unless something else is said
/// (`min_lr_ratio`).
pub const PRETRAINED_TO: f64 = 0.05;

/// Shape of the decay of `warmup_stable_decay`; `x` is its progress from 0 to 1, `m` the share of the
/// peak that it ends at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DecayType {
    /// `m + (1 − m) (1 + cos πx) / 2`.
    #[default]
    Cosine,
    /// `m + (1 − m) (1 − x)`.
    Linear,
    /// `m + (1 − m) (1 − √x)`.
    #[serde(rename = "1-sqrt", alias = "one_minus_sqrt")]
    OneMinusSqrt,
    /// `mˣ`, or half of it every `decay_half_life` steps (MiniCPM, arXiv 2404.06395).
    #[serde(alias = "exponential")]
    Exp,
}

/// How much a training step keeps between its forward and its backward pass. The result is the
/// same, bit for bit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Memory {
    /// The residual stream and the outputs of attention; everything else is computed a second time,
    /// block by block.
    Low,
    /// Also the outputs of linear layers; norms and activations are computed a second time.
    #[default]
    Balanced,
    /// Everything.
    Fast,
}

impl From<Memory> for frugal_kernels::SavePolicy {
    fn from(memory: Memory) -> Self {
        match memory {
            Memory::Low => Self::Low,
            Memory::Balanced => Self::Balanced,
            Memory::Fast => Self::Fast,
        }
    }
}

/// Settings of a training run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TrainConfig {
    /// Peak learning rate; 0, in files `auto`, where a run is to take the method's own.
    #[serde(alias = "learning_rate", with = "crate::rate")]
    pub lr: f64,
    /// Passes over the data; a fraction ends within a pass.
    #[serde(alias = "num_train_epochs")]
    pub epochs: f64,
    /// Optimiser steps; 0 lets `epochs` decide, anything else wins over it.
    pub max_steps: u64,
    /// Examples of a micro-batch; with `packing` it only sets the span of `group_by_length`.
    #[serde(alias = "per_device_train_batch_size")]
    pub batch_size: usize,
    /// Fill micro-batches up to `max_tokens` instead of counting examples.
    pub packing: bool,
    /// Tokens of a packed micro-batch and of an evaluation batch. A longer example is a batch of
    /// its own.
    pub max_tokens: usize,
    /// What is kept for the backward pass and what is computed again.
    pub memory: Memory,
    /// Micro-batches of an optimiser step.
    pub gradient_accumulation_steps: usize,
    /// Put examples of similar length together.
    pub group_by_length: bool,
    /// Which optimizer, by its name in [`OPTIMIZERS`](crate::optim::OPTIMIZERS), with settings of
    /// its own.
    pub optim: Named,
    /// Steps between two resets of all that the optimizer remembers, its counts included; 0 for
    /// none. A method whose factors become others at the same steps needs it (arXiv 2505.22922).
    #[serde(skip_serializing_if = "is_none")]
    pub moment_reset_steps: u64,
    /// Steps after a reset over which the learning rate comes back to what the schedule says, from
    /// a thousandth of it; 0 for none. No effect without resets.
    #[serde(skip_serializing_if = "is_usual_recovery")]
    pub reset_recovery_steps: u64,
    /// Gradients are scaled down to this global norm; 0 for no clipping.
    pub max_grad_norm: f64,
    /// Decoupled weight decay; not applied to biases and vectors.
    pub weight_decay: f64,
    /// Decay of the first moment.
    pub adam_beta1: f64,
    /// Decay of the second moment.
    pub adam_beta2: f64,
    /// Added to the denominator.
    pub adam_epsilon: f64,
    /// Shape of the learning rate.
    pub lr_scheduler_type: Scheduler,
    /// Share of the steps spent on warm-up.
    pub warmup_ratio: f64,
    /// Steps of warm-up; wins over `warmup_ratio` unless 0.
    pub warmup_steps: u64,
    /// Share of the steps spent on the decay of `warmup_stable_decay`.
    pub decay_ratio: f64,
    /// Steps of that decay; wins over `decay_ratio` unless 0.
    #[serde(skip_serializing_if = "is_no_steps")]
    pub decay_steps: u64,
    /// Its shape.
    #[serde(skip_serializing_if = "is_usual_decay")]
    pub decay_type: DecayType,
    /// Steps in which an `exp` decay halves the rate, whatever it ends at; 0 lets `min_lr_ratio` or
    /// `min_lr` say where it ends.
    #[serde(skip_serializing_if = "is_zero")]
    pub decay_half_life: f64,
    /// Which parts of the training examples are learnt from during the decay, and how much of each;
    /// before it only the first part is. Nothing for all examples throughout.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub decay_mixture: Vec<MixturePart>,
    /// Share of the peak that the decay ends at; no effect on `constant`.
    pub min_lr_ratio: f64,
    /// Learning rate that the decay ends at, whatever the peak is; wins over `min_lr_ratio` unless
    /// 0.
    pub min_lr: f64,
    /// Decides order, dropout and every other random choice.
    pub seed: u64,
    /// Steps between log entries.
    pub logging_steps: u64,
    /// Steps between evaluations; 0 for once per epoch. The end of the run is always evaluated.
    pub eval_steps: u64,
    /// Steps between checkpoints; 0 for once per epoch. The best step and the end are always saved.
    pub save_steps: u64,
    /// Checkpoints kept beside the best one; 0 keeps all.
    pub save_total_limit: usize,
    /// End with the weights of the best evaluation instead of the last.
    pub load_best_model_at_end: bool,
    /// Metric that decides which evaluation is best; smaller wins for losses and errors, larger for
    /// the rest.
    pub metric_for_best_model: String,
    /// Evaluations without improvement after which the run stops; 0 for never.
    pub early_stopping_patience: u32,
    /// Share of the target probability spread evenly over all classes or the vocabulary.
    #[serde(alias = "label_smoothing_factor")]
    pub label_smoothing: f64,
    /// Noise on the input embeddings while training (NEFTune, arXiv 2310.05914): uniform within
    /// ±α/√(L·d), for a sequence of L tokens of width d; 0 for none.
    #[serde(skip_serializing_if = "is_zero")]
    pub neftune_noise_alpha: f64,
    /// What is minimised, where it is not what the task says; with settings of its own.
    #[serde(skip_serializing_if = "Named::is_unset")]
    pub objective: Named,
    /// Parameters with a learning rate and a weight decay of their own; the first pattern that
    /// matches a name counts.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub param_groups: Vec<ParamGroup>,
}

/// As in `Memory_Efficient_Pretraining`.
const RECOVERY_STEPS: u64 = 10;

fn is_none(steps: &u64) -> bool {
    *steps == 0
}

fn is_usual_recovery(steps: &u64) -> bool {
    *steps == RECOVERY_STEPS
}

fn is_no_steps(steps: &u64) -> bool {
    *steps == 0
}

fn is_usual_decay(decay: &DecayType) -> bool {
    *decay == DecayType::default()
}

fn is_zero(value: &f64) -> bool {
    *value == 0.0
}

impl Default for TrainConfig {
    fn default() -> Self {
        Self {
            lr: 2e-4,
            epochs: 3.0,
            max_steps: 0,
            batch_size: 8,
            packing: false,
            max_tokens: 2048,
            memory: Memory::default(),
            gradient_accumulation_steps: 1,
            group_by_length: false,
            optim: "adamw".into(),
            moment_reset_steps: 0,
            reset_recovery_steps: RECOVERY_STEPS,
            max_grad_norm: 1.0,
            weight_decay: 0.0,
            adam_beta1: 0.9,
            adam_beta2: 0.999,
            adam_epsilon: 1e-8,
            lr_scheduler_type: Scheduler::Linear,
            warmup_ratio: 0.03,
            warmup_steps: 0,
            decay_ratio: 0.1,
            decay_steps: 0,
            decay_type: DecayType::default(),
            decay_half_life: 0.0,
            decay_mixture: Vec::new(),
            min_lr_ratio: 0.0,
            min_lr: 0.0,
            seed: 42,
            logging_steps: 10,
            eval_steps: 0,
            save_steps: 0,
            save_total_limit: 2,
            load_best_model_at_end: true,
            metric_for_best_model: "loss".into(),
            early_stopping_patience: 0,
            label_smoothing: 0.0,
            neftune_noise_alpha: 0.0,
            objective: Named::default(),
            param_groups: Vec::new(),
        }
    }
}

/// A setting that is out of range.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigProblem {
    /// Name of the setting.
    pub field: &'static str,
    /// What is wrong and what would work.
    pub reason: String,
}

impl fmt::Display for ConfigProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}`: {}", self.field, self.reason)
    }
}

impl TrainConfig {
    /// The metric's name as evaluations spell it: Hugging Face's `eval_` in front is optional.
    pub fn best_metric(&self) -> &str {
        self.metric_for_best_model
            .strip_prefix("eval_")
            .unwrap_or(&self.metric_for_best_model)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hugging_face_spellings_are_read() {
        let text = r#"{"learning_rate": 0.5, "num_train_epochs": 1.5, "lr_scheduler_type": "warmup_stable_decay", "label_smoothing_factor": 0.1}"#;
        let config: TrainConfig = serde_json::from_str(text).unwrap();
        assert_eq!(
            (config.lr, config.epochs, config.label_smoothing),
            (0.5, 1.5, 0.1)
        );
        assert_eq!(config.lr_scheduler_type, Scheduler::WarmupStableDecay);
        assert_eq!(config.batch_size, TrainConfig::default().batch_size);
        let unknown = serde_json::from_str::<TrainConfig>(r#"{"lr_rate": 1.0}"#)
            .unwrap_err()
            .to_string();
        assert!(
            unknown.contains("lr_rate") && unknown.contains("warmup_ratio"),
            "{unknown}"
        );
    }

    #[test]
    fn a_rate_of_0_is_refused_where_it_is_written() {
        let rate = |text: &str| {
            serde_json::from_str::<TrainConfig>(&format!(r#"{{"lr": {text}}}"#))
                .map(|c| c.lr)
                .map_err(|e| e.to_string())
        };
        for zero in ["0", "0.0", "-0.0"] {
            let error = rate(zero).unwrap_err();
            assert!(
                error.starts_with("0 given, but it must be a positive number"),
                "{zero}: {error}"
            );
        }
        assert_eq!(
            [rate("2"), rate("0.5"), rate("-1")],
            [Ok(2.0), Ok(0.5), Ok(-1.0)]
        );
        let error = rate(r#""fast""#).unwrap_err();
        assert!(
            error.contains("\"fast\", expected a number or `auto`"),
            "{error}"
        );
        // Without a rate, as it is written and read again.
        let unset = TrainConfig {
            lr: 0.0,
            ..TrainConfig::default()
        };
        let text = serde_json::to_string(&unset).unwrap();
        assert!(text.contains(r#""lr":"auto""#), "{text}");
        assert_eq!(serde_json::from_str::<TrainConfig>(&text).unwrap(), unset);
    }

    #[test]
    fn all_problems_are_reported_at_once() {
        TrainConfig::default().validate().unwrap();
        let bad = TrainConfig {
            lr: f64::NAN,
            batch_size: 0,
            adam_beta2: 1.0,
            label_smoothing: 1.0,
            ..TrainConfig::default()
        };
        let problems = bad.validate().unwrap_err();
        let fields: Vec<_> = problems.iter().map(|p| p.field).collect();
        assert_eq!(
            fields,
            ["lr", "batch_size", "adam_beta2", "label_smoothing"]
        );
        assert_eq!(
            problems[1].to_string(),
            "`batch_size`: 0 given, but it must be at least 1"
        );
        let floor = TrainConfig {
            lr: 1e-3,
            min_lr: 2e-3,
            ..TrainConfig::default()
        }
        .validate()
        .unwrap_err();
        assert_eq!(
            floor[0].to_string(),
            "`min_lr`: 0.002 given, but it must be 0, or a rate up to `lr`"
        );
    }
}
