//! Fira: GaLore that keeps what the subspace leaves out, scaled as Adam scales what is in it.
//!
//! Chen et al.: Fira: Can We Achieve Full-rank Training of LLMs Under Low-rank Constraint?, 2024,
//! arXiv 2410.01623; follows `fira` 1.0.2. With `φ = ‖N‖ / ‖R‖` by row or column of the subspace
//! the weights change by `scale` times `N P`, and by `(G - scale R P) φ`, whose norm grows by at
//! most one percent a step.

use burn::prelude::*;
use serde::Deserialize;

use super::projected::{Directions, Projected, Rule};

/// Fira has no settings of its own.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Fira {}

impl Rule for Fira {
    const NAME: &'static str = "fira";
    const LIMITS: bool = true;

    fn directions(&self, _: u64) -> Directions {
        Directions::Svd
    }

    fn change(&self, mut projected: Projected<'_>, scale: f64) -> Tensor<2> {
        let projection = projected.projection;
        let (direction, low) = (projected.direction.clone(), projected.low.clone());
        let factor = projection.norms(&direction) / (projection.norms(&low) + 1e-8);
        let inside = projection.back(low) * scale;
        let outside = (projected.gradient.clone() - inside) * factor;
        projection.back(direction) * scale + projected.limited(outside)
    }
}
