//! Norms over the residual stream, with and without parameters.

use burn::prelude::*;
use frugal_nn::{Frozen, ModelError, Norm, Pass};
use serde::{Deserialize, Serialize};

use crate::blocks::sites::Sites;
use crate::weights::WeightLoader;

/// How the residual stream is normalised.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum NormKind {
    /// By the root of the mean square, with a gain.
    #[default]
    #[serde(rename = "rmsnorm")]
    Rms,
    /// Layer norm with gain and bias.
    #[serde(rename = "layernorm")]
    Layer,
    /// Layer norm without parameters.
    #[serde(rename = "layernorm_nonparam")]
    Plain,
}

impl NormKind {
    /// The site of a norm of this kind, where it has parameters.
    pub fn site(self, sites: &mut Sites, path: String, layer: Option<usize>, width: usize) {
        match self {
            Self::Rms => sites.norm(path, layer, width),
            Self::Layer => sites.layer_norm(path, layer, width),
            Self::Plain => {}
        }
    }
}

/// A norm over the residual stream.
pub enum StreamNorm {
    /// With parameters, which methods may change.
    Parametric(Norm),
    /// Layer norm without.
    Plain {
        /// What its operation multiplies with, `[d]`.
        ones: Tensor<1>,
        /// Added to the variance.
        eps: f64,
    },
}

impl StreamNorm {
    /// A norm of this kind and width; `offset` is what files subtract from the gains of
    /// root-mean-square norms.
    ///
    /// # Errors
    /// Whatever reading a tensor gives.
    pub fn load(
        kind: NormKind,
        loader: &mut WeightLoader<'_>,
        path: &str,
        width: usize,
        [eps, offset]: [f64; 2],
    ) -> Result<Self, ModelError> {
        Ok(match kind {
            NormKind::Rms => Self::Parametric(loader.rms_norm(path, eps, offset as f32)?),
            NormKind::Layer => Self::Parametric(loader.layer_norm(path, eps)?),
            NormKind::Plain => Self::Plain {
                ones: Tensor::ones([width], loader.device()),
                eps,
            },
        })
    }

    /// `[tokens, d]` to the same.
    pub fn forward(&self, x: Tensor<2>, pass: &mut dyn Pass) -> Tensor<2> {
        match self {
            Self::Parametric(norm) => pass.norm(norm, x),
            Self::Plain { ones, eps } => frugal_kernels::layer_norm(x, ones.clone(), None, *eps),
        }
    }

    /// `x + y`, and its normalisation.
    pub fn of_sum(&self, x: Tensor<2>, y: Tensor<2>, pass: &mut dyn Pass) -> [Tensor<2>; 2] {
        match self {
            Self::Parametric(norm) => pass.add_norm(norm, x, y),
            Self::Plain { ones, eps } => {
                frugal_kernels::add_layer_norm(x, y, ones.clone(), None, *eps)
            }
        }
    }

    /// Shows its parameters.
    pub fn visit_weights(&self, visit: &mut dyn FnMut(Frozen<'_>)) {
        if let Self::Parametric(norm) = self {
            visit(Frozen::Norm(norm));
        }
    }
}
