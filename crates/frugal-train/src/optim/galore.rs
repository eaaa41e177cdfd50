//! GaLore: Adam in the leading singular directions of the gradient.
//!
//! Zhao et al.: GaLore: Memory-Efficient LLM Training by Gradient Low-Rank Projection, 2024, arXiv
//! 2403.03507; follows `galore-torch` 1.0 with `proj_type` "std". The update `N` in the subspace
//! changes the weights by `scale` times `N P` or `P N`.

use burn::prelude::*;
use serde::{Deserialize, Serialize};

use super::Optimizer;
use super::adamw::Betas;
use super::projected::{Directions, Projected, ProjectedOptimizer, ProjectionConfig, Rule};
use crate::config::TrainConfig;

/// Settings of GaLore.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct GaLoreConfig {
    /// Directions that are kept.
    pub rank: usize,
    /// Updates after which the directions are chosen anew.
    pub update_proj_gap: u64,
    /// Matrices with one of these in their name are projected.
    pub target_modules: Vec<String>,
    /// Factor on the update.
    pub scale: f64,
}

impl Default for GaLoreConfig {
    fn default() -> Self {
        let usual = ProjectionConfig::default();
        Self {
            rank: usual.rank,
            update_proj_gap: usual.update_proj_gap,
            target_modules: usual.target_modules,
            scale: 0.25,
        }
    }
}

struct GaLore {
    projection: ProjectionConfig,
    scale: f64,
}

impl Rule for GaLore {
    const NAME: &'static str = "galore";

    fn projection(&self) -> &ProjectionConfig {
        &self.projection
    }

    fn directions(&self, _: u64) -> Directions {
        Directions::Svd
    }

    fn change(&self, projected: Projected<'_>) -> Tensor<2> {
        projected.projection.back(projected.direction) * self.scale
    }
}

/// The optimizer.
///
/// # Errors
/// Settings out of range.
pub(super) fn make(
    config: GaLoreConfig,
    train: &TrainConfig,
) -> Result<Box<dyn Optimizer>, String> {
    let scale = config.scale;
    let projection = ProjectionConfig {
        rank: config.rank,
        update_proj_gap: config.update_proj_gap,
        target_modules: config.target_modules,
    };
    projection.check(GaLore::NAME, scale)?;
    let rule = GaLore { projection, scale };
    let made = ProjectedOptimizer::new(rule, Betas::new(train), train.seed);
    Ok(Box::new(made))
}
