//! Adafactor: second moments of a matrix by the means of its rows and columns, no first moments.
//!
//! Shazeer, Stern: Adafactor: Adaptive Learning Rates with Sublinear Memory Cost, 2018, arXiv
//! 1804.04235; follows `torch.optim.Adafactor` of PyTorch 2.15, in which the rate is an upper bound
//! of `1 / √step`, relative to the size of the values.

use burn::prelude::*;
use frugal_nn::{Gradient, Parameter, to_vec};
use serde::{Deserialize, Serialize};

use super::remembered::Remembered;
use super::state::StateTensor;
use super::{Optimizer, SavedState, Update};

/// Settings of [`Adafactor`].
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AdafactorConfig {
    /// Exponent by which the share of the newest squares falls with the steps.
    pub beta2_decay: f64,
    /// Least second moment, as its root.
    pub eps1: f64,
    /// Least size of the values to which the rate is relative.
    pub eps2: f64,
    /// Root mean square above which updates are cut.
    pub d: f64,
}

impl Default for AdafactorConfig {
    fn default() -> Self {
        Self {
            beta2_decay: -0.8,
            eps1: f64::from(f32::EPSILON),
            eps2: 1e-3,
            d: 1.0,
        }
    }
}

/// The optimizer.
#[derive(Debug)]
pub struct Adafactor {
    config: AdafactorConfig,
    moments: Remembered,
}

impl Adafactor {
    /// One that remembers nothing.
    ///
    /// # Errors
    /// Settings out of range.
    pub fn new(config: AdafactorConfig) -> Result<Self, String> {
        let AdafactorConfig {
            beta2_decay,
            eps1,
            eps2,
            d,
        } = config;
        if !(beta2_decay.is_finite() && beta2_decay <= 0.0) {
            return Err(format!(
                "`adafactor`: `beta2_decay` {beta2_decay} given, but it must not be positive"
            ));
        }
        if !(eps1 > 0.0 && eps2 >= 0.0 && d >= 1.0 && (eps1 + eps2 + d).is_finite()) {
            return Err(format!(
                "`adafactor`: `eps1` {eps1}, `eps2` {eps2} and `d` {d} given, but they must be positive, not negative, and at least 1"
            ));
        }
        Ok(Self {
            config,
            moments: Remembered::default(),
        })
    }
}

fn root_mean_square(tensor: &Tensor<1>) -> f64 {
    f64::from(to_vec((tensor.clone() * tensor.clone()).mean())[0]).sqrt()
}

impl Optimizer for Adafactor {
    fn name(&self) -> &'static str {
        "adafactor"
    }

    fn update(&mut self, parameter: &mut Parameter, gradient: &Gradient, update: &Update) {
        let c = self.config;
        let value = parameter.value();
        let device = value.device();
        let gradient = gradient.tensor(&device) * update.grad_scale;
        let len = parameter.len();
        let slots = self.moments.next(parameter.name());
        let step = slots.step as f64;
        let newest = step.powf(c.beta2_decay);
        let rate = update.lr.min(1.0 / step.sqrt()) * root_mean_square(&value).max(c.eps2);
        let mix = |before: Tensor<1>, now: Tensor<1>| before.clone() + (now - before) * newest;
        let square = gradient.clone() * gradient.clone();
        let estimate = match *parameter.shape() {
            // The last two sides are factored; of a vector nothing is.
            [.., rows, cols] if rows * cols == len => {
                let square = square.reshape([rows, cols]);
                let of_rows = mix(
                    slots.get("row_var", rows, &device),
                    square.clone().mean_dim(1).reshape([rows]),
                );
                let of_cols = mix(
                    slots.get("col_var", cols, &device),
                    square.mean_dim(0).reshape([cols]),
                );
                slots.set("row_var", of_rows.clone());
                slots.set("col_var", of_cols.clone());
                let mean = of_rows.clone().mean().clamp_min(c.eps1).reshape([1, 1]);
                let product = of_rows
                    .reshape([rows, 1])
                    .matmul(of_cols.reshape([1, cols]));
                (product / mean).reshape([len])
            }
            _ => {
                let variance = mix(slots.get("variance", len, &device), square);
                slots.set("variance", variance.clone());
                variance
            }
        };
        let change = gradient / estimate.clamp_min(c.eps1 * c.eps1).sqrt();
        let too_large = (root_mean_square(&change) / c.d).max(1.0);
        let kept = value * (1.0 - update.lr * update.weight_decay);
        parameter.set_value(kept - change * (rate / too_large));
    }

    fn state_bytes(&self, _: &str, shape: &[usize]) -> u64 {
        super::bytes_of(match *shape {
            [.., rows, cols] if (rows * cols) as u64 == super::numel(shape) => (rows + cols) as u64,
            _ => super::numel(shape),
        })
    }

    fn state(&self) -> Vec<(String, StateTensor<'_>)> {
        self.moments.state()
    }

    fn restore(&mut self, state: SavedState) -> Result<(), String> {
        self.moments = Remembered::restored(state, &["row_var", "col_var", "variance"])?;
        Ok(())
    }
}
