//! Settings: what belongs to a state, and how it is learnt.

use serde::{Deserialize, Serialize};

use super::error::PerkError;
use super::unroll::{InnerOptimizer, Unroll};

/// What belongs to a meta-learned state: shapes, and how contexts are written.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PerkConfig {
    /// Rank of the adapter.
    pub r: usize,
    /// Scale numerator; the scale is `lora_alpha / sqrt(r)`.
    pub lora_alpha: f64,
    /// Endings of the paths of adapted layers; empty for every linear layer but the head.
    pub target_modules: Vec<String>,
    /// Gradient steps on a context, `N`.
    pub inner_steps: usize,
    /// Learning rate of these steps, where it is not learnt, and where it begins.
    pub inner_lr: f64,
    /// Weight decay of these steps.
    pub inner_weight_decay: f64,
    /// Whether each tensor has a learnt rate for each step.
    pub learned_rates: bool,
    /// Whether each token of a context has a learnt weight in the loss.
    pub token_weights: bool,
}

impl Default for PerkConfig {
    /// Rank 256, scale 1, four steps at 5e-5: those of eric11eca/perk.
    fn default() -> Self {
        Self {
            r: 256,
            lora_alpha: 16.0,
            target_modules: Vec::new(),
            inner_steps: 4,
            inner_lr: 5e-5,
            inner_weight_decay: 0.01,
            learned_rates: true,
            token_weights: true,
        }
    }
}

fn bad<T>(key: &'static str, reason: impl Into<String>) -> Result<T, PerkError> {
    let reason = reason.into();
    Err(PerkError::Config { key, reason })
}

impl PerkConfig {
    /// Refuses values that cannot be.
    ///
    /// # Errors
    /// [`PerkError::Config`] that names the setting.
    pub fn validate(&self) -> Result<(), PerkError> {
        let positive = |value: f64| value > 0.0 && value.is_finite();
        if self.r == 0 {
            return bad("r", "the rank must be at least 1");
        }
        if !positive(self.lora_alpha) {
            return bad("lora_alpha", "must be a positive number");
        }
        if !(1..=64).contains(&self.inner_steps) {
            return bad("inner_steps", "must be from 1 to 64");
        }
        // 0 is allowed: then nothing is written, which serves as a control.
        if !(self.inner_lr >= 0.0 && self.inner_lr.is_finite()) {
            return bad("inner_lr", "must be a number from 0");
        }
        if !(0.0..1.0).contains(&self.inner_weight_decay) {
            return bad("inner_weight_decay", "must be from 0 to below 1");
        }
        Ok(())
    }

    /// The inner steps, of which the last `retained` are differentiated.
    #[must_use]
    pub fn unroll(&self, retained: usize) -> Unroll {
        Unroll {
            optimizer: InnerOptimizer::AdamW {
                beta1: 0.9,
                beta2: 0.95,
                eps: 1e-8,
                weight_decay: self.inner_weight_decay,
            },
            steps: self.inner_steps,
            retained,
        }
    }
}

/// How a state is learnt.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MetaTrainConfig {
    /// Inner steps at the end through which gradients go, `T`; 0 is first-order.
    pub retained_steps: usize,
    /// Peak learning rate.
    pub lr: f64,
    /// Peak rate of the learnt learning rates; `lr` where absent.
    pub rates_lr: Option<f64>,
    /// Weight decay of adapter and token weights; learning rates have none.
    pub weight_decay: f64,
    /// Bound on the length of the whole gradient.
    pub max_grad_norm: f64,
    /// Share of the steps in which the rate rises; it falls by half a cosine afterwards.
    pub warmup_ratio: f64,
    /// Passes over the data.
    pub epochs: f64,
    /// Steps in place of `epochs`; 0 for none.
    pub max_steps: u64,
    /// Steps between two searches for the distance of the central differences.
    pub difference_every: u64,
    /// Decides order, numbers of documents and initial values.
    pub seed: u64,
}

impl Default for MetaTrainConfig {
    /// Those of eric11eca/perk.
    fn default() -> Self {
        Self {
            retained_steps: 2,
            lr: 1e-5,
            rates_lr: None,
            weight_decay: 0.01,
            max_grad_norm: 1.0,
            warmup_ratio: 0.03,
            epochs: 2.0,
            max_steps: 0,
            difference_every: 100,
            seed: 0,
        }
    }
}

impl MetaTrainConfig {
    /// Refuses values that cannot be.
    ///
    /// # Errors
    /// [`PerkError::Config`] that names the setting.
    pub fn validate(&self, state: &PerkConfig) -> Result<(), PerkError> {
        if self.retained_steps > state.inner_steps {
            return bad(
                "retained_steps",
                format!("there are {} inner steps", state.inner_steps),
            );
        }
        if !(self.lr > 0.0 && self.lr.is_finite()) {
            return bad("lr", "must be a positive number");
        }
        if self
            .rates_lr
            .is_some_and(|lr| !(lr >= 0.0 && lr.is_finite()))
        {
            return bad("rates_lr", "must be a number from 0");
        }
        if !(0.0..1.0).contains(&self.weight_decay) {
            return bad("weight_decay", "must be from 0 to below 1");
        }
        if !(self.max_grad_norm > 0.0 && self.max_grad_norm.is_finite()) {
            return bad("max_grad_norm", "must be a positive number");
        }
        if !(0.0..=1.0).contains(&self.warmup_ratio) {
            return bad("warmup_ratio", "must be from 0 to 1");
        }
        if !(self.epochs > 0.0 && self.epochs <= 1e4) {
            return bad("epochs", "must be above 0 and at most 10000");
        }
        if self.difference_every == 0 {
            return bad("difference_every", "must be at least 1");
        }
        Ok(())
    }
}
