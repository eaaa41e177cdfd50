//! GoLore: GaLore whose directions are random from some point of the training on, where the
//! gradient is mostly noise and its leading directions say nothing.
//!
//! He, Li, Hu, Chen, Yuan: Subspace Optimization for Large Language Models with Convergence
//! Guarantees, 2024, arXiv 2410.11289. Random directions are the orthonormal factor of a normal
//! matrix; the formula of `Memory_Efficient_Pretraining` has no inverse where that matrix is wide.

use burn::prelude::*;
use serde::{Deserialize, Serialize};

use super::Optimizer;
use super::adamw::Betas;
use super::projected::{Directions, Projected, ProjectedOptimizer, ProjectionConfig, Rule};
use crate::config::TrainConfig;

/// Settings of GoLore.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct GoLoreConfig {
    /// Directions that are kept.
    pub rank: usize,
    /// Updates after which the directions are chosen anew.
    pub update_proj_gap: u64,
    /// Matrices with one of these in their name are projected.
    pub target_modules: Vec<String>,
    /// Factor on the update.
    pub scale: f64,
    /// Updates with singular directions before those with random ones.
    pub svd_steps: u64,
}

impl Default for GoLoreConfig {
    fn default() -> Self {
        let usual = ProjectionConfig::default();
        Self {
            rank: usual.rank,
            update_proj_gap: usual.update_proj_gap,
            target_modules: usual.target_modules,
            scale: 0.25,
            svd_steps: 0,
        }
    }
}

struct GoLore {
    projection: ProjectionConfig,
    scale: f64,
    svd_steps: u64,
}

impl Rule for GoLore {
    const NAME: &'static str = "golore";

    fn projection(&self) -> &ProjectionConfig {
        &self.projection
    }

    fn directions(&self, step: u64) -> Directions {
        if step < self.svd_steps {
            Directions::Svd
        } else {
            Directions::Orthonormal
        }
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
    config: GoLoreConfig,
    train: &TrainConfig,
) -> Result<Box<dyn Optimizer>, String> {
    let scale = config.scale;
    let projection = ProjectionConfig {
        rank: config.rank,
        update_proj_gap: config.update_proj_gap,
        target_modules: config.target_modules,
    };
    projection.check(GoLore::NAME, scale)?;
    let rule = GoLore {
        projection,
        scale,
        svd_steps: config.svd_steps,
    };
    let made = ProjectedOptimizer::new(rule, Betas::new(train), train.seed);
    Ok(Box::new(made))
}
