//! APOLLO: plain gradients, scaled by channel as Adam would scale a random projection of them.
//!
//! Zhu et al.: APOLLO: SGD-like Memory, AdamW-level Performance, 2024, arXiv 2412.05270; follows
//! `apollo-torch` 1.0.3. With `s = ‖N‖ / ‖R‖` by row or column, or of the whole matrix, the weights
//! change by `√scale G s`, whose norm grows by at most one percent a step. APOLLO-Mini is `rank` 1,
//! `scale_type` "tensor", `scale` 128. Random projections are our own, drawn from the run's seed.

use burn::prelude::*;
use frugal_nn::to_vec;
use serde::{Deserialize, Serialize};

use super::Optimizer;
use super::adamw::Betas;
use super::projected::{Directions, Projected, ProjectedOptimizer, ProjectionConfig, Rule};
use crate::config::TrainConfig;

/// What shares a factor.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ScaleType {
    /// Each row or column has its own.
    #[default]
    Channel,
    /// The whole matrix has one.
    Tensor,
}

/// Settings of APOLLO.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ApolloConfig {
    /// Directions that are kept.
    pub rank: usize,
    /// Updates after which the directions are chosen anew.
    pub update_proj_gap: u64,
    /// Matrices with one of these in their name are projected.
    pub target_modules: Vec<String>,
    /// Square of the factor on the update.
    pub scale: f64,
    /// What shares a factor.
    pub scale_type: ScaleType,
    /// Where the directions come from: `random`, `svd` or `orthonormal`.
    pub proj: Directions,
}

impl Default for ApolloConfig {
    fn default() -> Self {
        let usual = ProjectionConfig::default();
        Self {
            rank: usual.rank,
            update_proj_gap: usual.update_proj_gap,
            target_modules: usual.target_modules,
            scale: 1.0,
            scale_type: ScaleType::Channel,
            proj: Directions::Random,
        }
    }
}

struct Apollo {
    projection: ProjectionConfig,
    scale: f64,
    scale_type: ScaleType,
    proj: Directions,
}

impl Rule for Apollo {
    const NAME: &'static str = "apollo";

    fn projection(&self) -> &ProjectionConfig {
        &self.projection
    }

    fn directions(&self, _: u64) -> Directions {
        self.proj
    }

    fn change(&self, mut projected: Projected<'_>) -> Tensor<2> {
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
        projected.limited(scaled) * self.scale.sqrt()
    }
}

/// The optimizer.
///
/// # Errors
/// Settings out of range.
pub(super) fn make(
    config: ApolloConfig,
    train: &TrainConfig,
) -> Result<Box<dyn Optimizer>, String> {
    let scale = config.scale;
    let projection = ProjectionConfig {
        rank: config.rank,
        update_proj_gap: config.update_proj_gap,
        target_modules: config.target_modules,
    };
    projection.check(Apollo::NAME, scale)?;
    let rule = Apollo {
        projection,
        scale,
        scale_type: config.scale_type,
        proj: config.proj,
    };
    let made = ProjectedOptimizer::new(rule, Betas::new(train), train.seed);
    Ok(Box::new(made))
}
