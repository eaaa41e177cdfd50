//! GaLore: Adam in the leading singular directions of the gradient.
//!
//! Zhao et al.: GaLore: Memory-Efficient LLM Training by Gradient Low-Rank Projection, 2024, arXiv
//! 2403.03507; follows `galore-torch` 1.0 with `proj_type` "std". The update `N` in the subspace
//! changes the weights by `scale` times `N P` or `P N`.

use burn::prelude::*;
use serde::Deserialize;

use super::projected::{Directions, Projected, Rule};

/// GaLore has no settings of its own.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct GaLore {}

impl Rule for GaLore {
    const NAME: &'static str = "galore";

    fn directions(&self, _: u64) -> Directions {
        Directions::Svd
    }

    fn change(&self, projected: Projected<'_>, scale: f64) -> Tensor<2> {
        projected.projection.back(projected.direction) * scale
    }
}
