//! Fira: GaLore that keeps what the subspace leaves out, scaled as Adam scales what is in it.
//!
//! Chen et al.: Fira: Can We Achieve Full-rank Training of LLMs Under Low-rank Constraint?, 2024,
//! arXiv 2410.01623; follows `fira` 1.0.2. With `φ = ‖N‖ / ‖R‖` by row or column of the subspace
//! the weights change by `scale` times `N P`, and by `(G - scale R P) φ`, whose norm grows by at
//! most one percent a step.

use burn::prelude::*;
use serde::{Deserialize, Serialize};

use super::Optimizer;
use super::adamw::Betas;
use super::projected::{Directions, Projected, ProjectedOptimizer, ProjectionConfig, Rule};
use crate::config::TrainConfig;

/// Settings of Fira.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FiraConfig {
    /// Directions that are kept.
    pub rank: usize,
    /// Updates after which the directions are chosen anew.
    pub update_proj_gap: u64,
    /// Matrices with one of these in their name are projected.
    pub target_modules: Vec<String>,
    /// Factor on the update.
    pub scale: f64,
}

impl Default for FiraConfig {
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

struct Fira {
    projection: ProjectionConfig,
    scale: f64,
}

impl Rule for Fira {
    const NAME: &'static str = "fira";

    fn projection(&self) -> &ProjectionConfig {
        &self.projection
    }

    fn directions(&self, _: u64) -> Directions {
        Directions::Svd
    }

    fn change(&self, mut projected: Projected<'_>) -> Tensor<2> {
        let projection = projected.projection;
        let (direction, low) = (projected.direction.clone(), projected.low.clone());
        let factor = projection.norms(&direction) / (projection.norms(&low) + 1e-8);
        let inside = projection.back(low) * self.scale;
        let outside = (projected.gradient.clone() - inside) * factor;
        projection.back(direction) * self.scale + projected.limited(outside)
    }
}

/// The optimizer.
///
/// # Errors
/// Settings out of range.
pub(super) fn make(config: FiraConfig, train: &TrainConfig) -> Result<Box<dyn Optimizer>, String> {
    let scale = config.scale;
    let projection = ProjectionConfig {
        rank: config.rank,
        update_proj_gap: config.update_proj_gap,
        target_modules: config.target_modules,
    };
    projection.check(Fira::NAME, scale)?;
    let rule = Fira { projection, scale };
    let made = ProjectedOptimizer::new(rule, Betas::new(train), train.seed);
    Ok(Box::new(made))
}
