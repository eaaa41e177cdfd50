//! Stable-SPAM: Adam behind two adaptive clippings, one of single entries and one of the norm, with
//! moments that begin anew every so often.
//!
//! Huang et al.: Stable-SPAM: How to Train in 4-Bit More Stably than 16-Bit Adam, 2025, arXiv
//! 2502.17055; follows `StableSPAM_optimizer` of `Memory_Efficient_Pretraining`. Entries above
//! `m̂`, the running mean of the largest one, become `g / max|g| m̂` (AdaClip); then the norm of the
//! gradient becomes `m̂_norm / (√v̂_norm + ε)` (AdaGN). With `total_t` updates planned, `beta1` and
//! `gamma1` fall to `eta_min` times what they were, by half a cosine.
//!
//! There the count of the corrections of bias of all means starts again with the moments, though
//! the means of the clippings go on, and the update at a reset still has the old moments. Here the
//! clippings count all updates, the moments those since their reset, and nothing old is left.

use std::f64::consts::PI;

use burn::prelude::*;
use frugal_nn::{Gradient, Parameter, to_vec};
use serde::{Deserialize, Serialize};

use super::adamw::Betas;
use super::remembered::Remembered;
use super::state::StateTensor;
use super::{Optimizer, SavedState, Update};
use crate::config::TrainConfig;

/// Settings of [`StableSpam`].
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct StableSpamConfig {
    /// Share of the mean norm that is kept at each update.
    pub gamma1: f64,
    /// The same of its square.
    pub gamma2: f64,
    /// The same of the largest entry.
    pub gamma3: f64,
    /// Updates over which `beta1` and `gamma1` fall; 0 leaves them as they are.
    pub total_t: u64,
    /// What they fall to, as a share.
    pub eta_min: f64,
    /// Updates between two resets of the moments; 0 for none.
    pub update_proj_gap: u64,
}

impl Default for StableSpamConfig {
    fn default() -> Self {
        Self {
            gamma1: 0.7,
            gamma2: 0.9,
            gamma3: 0.999,
            total_t: 0,
            eta_min: 0.5,
            update_proj_gap: 1000,
        }
    }
}

impl StableSpamConfig {
    /// Factor on `beta1` and `gamma1` at this update, counted from 1.
    fn scale(&self, step: u64) -> f64 {
        if self.total_t == 0 {
            return 1.0;
        }
        let progress = (step as f64 / (self.total_t + 1) as f64).min(1.0);
        self.eta_min + (1.0 - self.eta_min) * 0.5 * (1.0 + (PI * progress).cos())
    }

    /// Updates since the moments began, this one included.
    fn since_reset(&self, step: u64) -> u64 {
        match self.update_proj_gap {
            0 => step,
            gap if step < gap => step,
            gap => step % gap + 1,
        }
    }
}

/// The optimizer.
#[derive(Debug)]
pub struct StableSpam {
    config: StableSpamConfig,
    betas: Betas,
    moments: Remembered,
}

impl StableSpam {
    /// One that remembers nothing.
    ///
    /// # Errors
    /// Settings out of range.
    pub fn new(config: StableSpamConfig, train: &TrainConfig) -> Result<Self, String> {
        let share = |x: f64| (0.0..1.0).contains(&x);
        let StableSpamConfig {
            gamma1,
            gamma2,
            gamma3,
            eta_min,
            ..
        } = config;
        if !(share(gamma1) && share(gamma2) && share(gamma3) && (0.0..=1.0).contains(&eta_min)) {
            return Err(format!(
                "`stable_spam`: `gamma1` {gamma1}, `gamma2` {gamma2}, `gamma3` {gamma3} and `eta_min` {eta_min} given, but all must be within 0 and 1, and the gammas below 1"
            ));
        }
        Ok(Self {
            config,
            betas: Betas::new(train),
            moments: Remembered::default(),
        })
    }
}

fn number(tensor: Tensor<1>) -> f64 {
    f64::from(to_vec(tensor)[0])
}

impl Optimizer for StableSpam {
    fn name(&self) -> &'static str {
        "stable_spam"
    }

    fn update(&mut self, parameter: &mut Parameter, gradient: &Gradient, update: &Update) {
        let (config, len) = (self.config, parameter.len());
        let value = parameter.value();
        let device = value.device();
        let mut gradient = gradient.tensor(&device) * update.grad_scale;
        let slots = self.moments.next(parameter.name());
        let step = slots.step;
        let scale = config.scale(step);
        let h = self.betas.step(update, step);
        let mean = |key: &str, kept: f64, now: f64| {
            let before = number(slots.get(key, 1, &device));
            kept * before + (1.0 - kept) * now
        };
        let unbiased = |mean: f64, kept: f64| mean / (1.0 - kept.powf(step as f64));

        let largest = number(gradient.clone().abs().max());
        let m_max = mean("m_max", config.gamma3, largest);
        let limit = unbiased(m_max, config.gamma3);
        if largest > limit {
            let above = gradient.clone().abs().greater_elem(limit);
            let cut = gradient.clone() * (limit / largest);
            gradient = gradient.mask_where(above, cut);
        }
        let norm = number((gradient.clone() * gradient.clone()).sum()).sqrt();
        let gamma1 = config.gamma1 * scale;
        let m_norm = mean("m_norm", gamma1, norm);
        let v_norm = mean("v_norm", config.gamma2, norm * norm);
        if norm > 0.0 {
            let wanted =
                unbiased(m_norm, gamma1) / (unbiased(v_norm, config.gamma2).sqrt() + h.eps);
            gradient = gradient * (wanted / norm);
        }
        for (key, mean) in [("m_max", m_max), ("m_norm", m_norm), ("v_norm", v_norm)] {
            slots.set(key, Tensor::from_floats([mean as f32], &device));
        }

        let since = config.since_reset(step);
        let moment = |key: &str| match since {
            1 => gradient.zeros_like(),
            _ => slots.get(key, len, &device),
        };
        let beta1 = h.beta1 * scale;
        let exp_avg = moment("exp_avg") * beta1 + gradient.clone() * (1.0 - beta1);
        let exp_avg_sq =
            moment("exp_avg_sq") * h.beta2 + gradient.clone() * gradient.clone() * (1.0 - h.beta2);
        slots.set("exp_avg", exp_avg.clone());
        slots.set("exp_avg_sq", exp_avg_sq.clone());
        let bias1 = 1.0 - beta1.powf(since as f64);
        let bias2 = 1.0 - h.beta2.powf(since as f64);
        let denominator = exp_avg_sq.sqrt() / bias2.sqrt() + h.eps;
        let kept = value * (1.0 - h.lr * h.weight_decay);
        parameter.set_value(kept - exp_avg / denominator * (h.lr / bias1));
    }

    fn state_bytes(&self, _: &str, shape: &[usize]) -> u64 {
        super::bytes_of(2 * super::numel(shape) + 3)
    }

    fn state(&self) -> Vec<(String, StateTensor<'_>)> {
        self.moments.state()
    }

    fn restore(&mut self, state: SavedState) -> Result<(), String> {
        let keys = ["exp_avg", "exp_avg_sq", "m_max", "m_norm", "v_norm"];
        self.moments = Remembered::restored(state, &keys)?;
        Ok(())
    }
}
