//! Adam-mini: one second moment for each row of a matrix, each head of queries and keys, each
//! vector.
//!
//! Zhang et al.: Adam-mini: Use Fewer Learning Rates To Gain More, 2024, arXiv 2406.16793; follows
//! `adam-mini` 1.1.1, in which biases are Adam's own.

use frugal_nn::{Gradient, Parameter};
use serde::{Deserialize, Serialize};

use super::adamw::Betas;
use super::remembered::Remembered;
use super::state::StateTensor;
use super::{Optimizer, SavedState, Update};
use crate::config::TrainConfig;

/// Settings of [`AdamMini`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AdamMiniConfig {
    /// Rows of queries and keys that belong to one head: `head_dim` of the model.
    pub head_dim: usize,
}

/// The optimizer.
#[derive(Debug)]
pub struct AdamMini {
    head_dim: usize,
    betas: Betas,
    moments: Remembered,
}

impl AdamMini {
    /// One that remembers nothing.
    ///
    /// # Errors
    /// No size of heads.
    pub fn new(config: AdamMiniConfig, train: &TrainConfig) -> Result<Self, String> {
        if config.head_dim == 0 {
            return Err(
                "`adam_mini` shares moments within each head of queries and keys: give their rows as `optim.head_dim` (hidden_size / num_attention_heads, unless `config.json` has `head_dim`)"
                    .into(),
            );
        }
        Ok(Self {
            head_dim: config.head_dim,
            betas: Betas::new(train),
            moments: Remembered::default(),
        })
    }

    /// Parts that share a moment, and elements of each.
    fn parts(&self, name: &str, shape: &[usize]) -> (usize, usize) {
        let len = shape.iter().product();
        if name.ends_with("bias") {
            return (len, 1);
        }
        let &[rows, cols] = shape else {
            return (1, len);
        };
        if is_of_heads(name) && rows.is_multiple_of(self.head_dim) {
            (rows / self.head_dim, self.head_dim * cols)
        } else {
            (rows, cols)
        }
    }
}

fn is_of_heads(name: &str) -> bool {
    let parts = ["q_proj", "k_proj", "query", "key"];
    !name.ends_with("bias") && parts.iter().any(|part| name.contains(part))
}

impl Optimizer for AdamMini {
    fn name(&self) -> &'static str {
        "adam_mini"
    }

    fn check(&self, parameters: &[&Parameter]) -> Result<(), String> {
        let is_matrix = |p: &&&Parameter| p.shape().len() == 2 && is_of_heads(p.name());
        let mut rows = parameters.iter().filter(is_matrix).map(|p| p.shape()[0]);
        let Some(first) = rows.next() else {
            return Ok(());
        };
        let head_dim = self.head_dim;
        if first.is_multiple_of(head_dim) || rows.any(|rows| rows.is_multiple_of(head_dim)) {
            return Ok(());
        }
        Err(format!(
            "`adam_mini`: `optim.head_dim` {head_dim} has no effect, as no trained matrix of queries or keys has a multiple of so many rows (one has {first})"
        ))
    }

    fn update(&mut self, parameter: &mut Parameter, gradient: &Gradient, update: &Update) {
        let (parts, each) = self.parts(parameter.name(), parameter.shape());
        let value = parameter.value();
        let device = value.device();
        let gradient = gradient.tensor(&device) * update.grad_scale;
        let slots = self.moments.next(parameter.name());
        let h = self.betas.step(update, slots.step);
        let exp_avg = slots.get("exp_avg", parts * each, &device);
        let exp_avg = exp_avg.clone() + (gradient.clone() - exp_avg) * (1.0 - h.beta1);
        let square = (gradient.clone() * gradient)
            .reshape([parts, each])
            .mean_dim(1);
        let mean = slots.get("exp_avg_sq", parts, &device) * h.beta2
            + square.reshape([parts]) * (1.0 - h.beta2);
        slots.set("exp_avg", exp_avg.clone());
        slots.set("exp_avg_sq", mean.clone());
        let bias1 = 1.0 - h.beta1.powf(h.step as f64);
        let bias2 = 1.0 - h.beta2.powf(h.step as f64);
        let denominator = mean.sqrt() / bias2.sqrt() + h.eps;
        let change = exp_avg.reshape([parts, each]) / denominator.reshape([parts, 1]);
        let kept = value * (1.0 - h.lr * h.weight_decay);
        parameter.set_value(kept - change.reshape([parts * each]) * (h.lr / bias1));
    }

    fn state_bytes(&self, name: &str, shape: &[usize]) -> u64 {
        let (parts, each) = self.parts(name, shape);
        super::bytes_of((parts * each + parts) as u64)
    }

    fn state(&self) -> Vec<(String, StateTensor<'_>)> {
        self.moments.state()
    }

    fn restore(&mut self, state: SavedState) -> Result<(), String> {
        self.moments = Remembered::restored(state, &["exp_avg", "exp_avg_sq"])?;
        Ok(())
    }
}
