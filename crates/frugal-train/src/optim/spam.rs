//! SPAM: Adam whose moments begin anew every so often, and whose gradients are clipped where they
//! are far above what their second moment has seen.
//!
//! Huang et al.: SPAM: Spike-Aware Adam with Momentum Reset for Stable LLM Training, 2025, arXiv
//! 2501.06842; follows `TianjinYellow/SPAM-Optimizer`, with all entries trained (`density` 1). Every
//! `delta_t` updates the moments become zero, and the update grows from a hundredth to its whole size
//! over `warmup_steps`, by half a cosine; the correction of bias counts on. Where `g² > threshold v`
//! the gradient becomes `sign(g) √(threshold v)`, but for the first `clip_after` updates of each
//! period, in which `v` is not to be relied on. As there epsilon is added before the correction of
//! bias, and weights decay after the update.

use std::f64::consts::PI;

use frugal_nn::{Gradient, Parameter};
use serde::{Deserialize, Serialize};

use super::adamw::Betas;
use super::remembered::Remembered;
use super::state::StateTensor;
use super::{Optimizer, SavedState, Update};
use crate::config::TrainConfig;

/// Share of the update that the warm-up takes away at its start.
const HELD_BACK: f64 = 0.99;

/// Settings of [`Spam`].
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SpamConfig {
    /// Updates between two resets of the moments; 0 for none.
    pub delta_t: u64,
    /// Updates over which the step grows after a reset.
    pub warmup_steps: u64,
    /// Multiple of the second moment above which a squared gradient is a spike; 0 for no clipping.
    pub threshold: f64,
    /// Updates at the start and after a reset that are not clipped.
    pub clip_after: u64,
}

impl Default for SpamConfig {
    fn default() -> Self {
        Self {
            delta_t: 500,
            warmup_steps: 150,
            threshold: 5000.0,
            clip_after: 20,
        }
    }
}

impl SpamConfig {
    /// Whether the moments begin anew with this update, counted from 1.
    fn resets(&self, step: u64) -> bool {
        self.delta_t > 0 && step.is_multiple_of(self.delta_t)
    }

    /// Factor on this update.
    fn scale(&self, step: u64) -> f64 {
        if self.delta_t == 0 || step < self.delta_t {
            return 1.0;
        }
        let since = step % self.delta_t;
        if since >= self.warmup_steps {
            return 1.0;
        }
        let progress = since as f64 / (self.warmup_steps + 1) as f64;
        1.0 - HELD_BACK * 0.5 * (1.0 + (PI * progress).cos())
    }

    /// Whether spikes of this update are clipped.
    fn clips(&self, step: u64) -> bool {
        let since = if self.delta_t > 0 {
            step % self.delta_t
        } else {
            step
        };
        self.threshold > 0.0 && since >= self.clip_after
    }
}

/// The optimizer.
#[derive(Debug)]
pub struct Spam {
    config: SpamConfig,
    betas: Betas,
    moments: Remembered,
}

impl Spam {
    /// One that remembers nothing.
    ///
    /// # Errors
    /// Settings out of range.
    pub fn new(config: SpamConfig, train: &TrainConfig) -> Result<Self, String> {
        let threshold = config.threshold;
        if !(threshold.is_finite() && threshold >= 0.0) {
            return Err(format!(
                "`spam`: `threshold` {threshold} given, but it must be 0 (no clipping) or a positive number"
            ));
        }
        Ok(Self {
            config,
            betas: Betas::new(train),
            moments: Remembered::default(),
        })
    }
}

impl Optimizer for Spam {
    fn name(&self) -> &'static str {
        "spam"
    }

    fn update(&mut self, parameter: &mut Parameter, gradient: &Gradient, update: &Update) {
        let (config, len) = (self.config, parameter.len());
        let value = parameter.value();
        let device = value.device();
        let mut gradient = gradient.tensor(&device) * update.grad_scale;
        let slots = self.moments.next(parameter.name());
        let step = slots.step;
        if config.resets(step) {
            slots.forget();
        }
        let h = self.betas.step(update, step);
        let exp_avg_sq = slots.get("exp_avg_sq", len, &device);
        if config.clips(step) {
            let limit = exp_avg_sq.clone() * config.threshold;
            let is_spike = (gradient.clone() * gradient.clone()).greater(limit.clone());
            let clipped = gradient.clone().sign() * limit.sqrt();
            gradient = gradient.mask_where(is_spike, clipped);
        }
        let exp_avg =
            slots.get("exp_avg", len, &device) * h.beta1 + gradient.clone() * (1.0 - h.beta1);
        let exp_avg_sq = exp_avg_sq * h.beta2 + gradient.clone() * gradient * (1.0 - h.beta2);
        slots.set("exp_avg", exp_avg.clone());
        slots.set("exp_avg_sq", exp_avg_sq.clone());
        let bias1 = 1.0 - h.beta1.powf(step as f64);
        let bias2 = 1.0 - h.beta2.powf(step as f64);
        let rate = h.lr * bias2.sqrt() / bias1 * config.scale(step);
        let moved = value - exp_avg / (exp_avg_sq.sqrt() + h.eps) * rate;
        parameter.set_value(moved * (1.0 - h.lr * h.weight_decay));
    }

    fn state_bytes(&self, _: &str, shape: &[usize]) -> u64 {
        super::bytes_of(2 * super::numel(shape))
    }

    fn state(&self) -> Vec<(String, StateTensor<'_>)> {
        self.moments.state()
    }

    fn restore(&mut self, state: SavedState) -> Result<(), String> {
        self.moments = Remembered::restored(state, &["exp_avg", "exp_avg_sq"])?;
        Ok(())
    }
}
