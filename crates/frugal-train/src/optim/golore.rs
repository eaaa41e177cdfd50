//! GoLore: GaLore whose directions are random from some point of the training on, where the
//! gradient is mostly noise and its leading directions say nothing.
//!
//! He, Li, Hu, Chen, Yuan: Subspace Optimization for Large Language Models with Convergence
//! Guarantees, 2024, arXiv 2410.11289. Random directions are the orthonormal factor of a normal
//! matrix; the formula of `Memory_Efficient_Pretraining` has no inverse where that matrix is wide.

use burn::prelude::*;
use serde::Deserialize;

use super::projected::{Directions, Projected, Rule};

/// The settings that GoLore has beside GaLore's.
#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct GoLore {
    /// Updates with singular directions before those with random ones.
    svd_steps: u64,
}

impl Rule for GoLore {
    const NAME: &'static str = "golore";

    fn directions(&self, step: u64) -> Directions {
        if step < self.svd_steps {
            Directions::Svd
        } else {
            Directions::Orthonormal
        }
    }

    fn change(&self, projected: Projected<'_>, scale: f64) -> Tensor<2> {
        projected.projection.back(projected.direction) * scale
    }
}
