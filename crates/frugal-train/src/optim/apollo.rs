//! APOLLO: plain gradients, scaled by channel as Adam would scale a random projection of them.
//!
//! Zhu et al.: APOLLO: SGD-like Memory, AdamW-level Performance, 2024, arXiv 2412.05270; follows
//! `apollo-torch` 1.0.3. With `s = ‖N‖ / ‖R‖` by row or column, or of the whole matrix, the weights
//! change by `√scale G s`, whose norm grows by at most one percent a step. APOLLO-Mini is `rank` 1,
//! `scale_type` "tensor", `scale` 128. Random projections are our own, drawn from the run's seed.

use burn::prelude::*;
use frugal_nn::to_vec;
use serde::Deserialize;

use super::projected::{Directions, Projected, Rule};

/// What shares a factor.
#[derive(Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
enum ScaleType {
    /// Each row or column has its own.
    #[default]
    Channel,
    /// The whole matrix has one.
    Tensor,
}

/// The settings that APOLLO has beside GaLore's.
#[derive(Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Apollo {
    /// What shares a factor.
    scale_type: ScaleType,
    /// Where the directions come from.
    proj: Directions,
}

impl Default for Apollo {
    fn default() -> Self {
        Self {
            scale_type: ScaleType::Channel,
            proj: Directions::Random,
        }
    }
}

impl Rule for Apollo {
    const NAME: &'static str = "apollo";
    const LIMITS: bool = true;
    const SCALE: f64 = 1.0;

    fn directions(&self, _: u64) -> Directions {
        self.proj
    }

    fn change(&self, mut projected: Projected<'_>, scale: f64) -> Tensor<2> {
        let scaled = match self.scale_type {
            ScaleType::Channel => {
                let of = |low: &Tensor<2>| projected.projection.norms(low);
                projected.gradient.clone()
                    * (of(&projected.direction) / (of(&projected.low) + 1e-8))
            }
            ScaleType::Tensor => {
                let of = |low: &Tensor<2>| {
                    f64::from(to_vec((low.clone() * low.clone()).sum())[0]).sqrt()
                };
                projected.gradient.clone()
                    * (of(&projected.direction) / (of(&projected.low) + 1e-8))
            }
        };
        projected.limited(scaled) * scale.sqrt()
    }
}
