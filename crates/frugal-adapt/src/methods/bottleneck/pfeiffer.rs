//! # Pfeiffer adapters: one small network per block, behind the feed-forward
//!
//! ## What it does
//! Puts a small network with a bottleneck at the end of every block, where attention and
//! feed-forward have both done their work. Everything in the model stays frozen.
//!
//! ## Update rule
//! With the residual stream `x`, the feed-forward's output `m` and
//! `a(h) = f(h W_dᵀ + b_d) W_uᵀ + b_u`: encoders with norms behind the sum compute
//! `norm(x + m + a(norm(x + m)))`, decoders with norms in front compute `x + m + a(x + m)`.
//!
//! ## When to use, when not
//! As `houlsby`, for half its parameters and extra compute and nearly its quality. Where the
//! adapter shall vanish into the weights, use LoRA.
//!
//! ## Cost
//! Trainable: `2 · bottleneck_dim · d_model + bottleneck_dim + d_model` per block. Extra compute:
//! `2 · bottleneck_dim · d_model` multiply-adds per token and block, and in encoders a second norm,
//! also after training; it cannot be merged.
//!
//! ## Defaults and where they come from
//! A bottleneck of 64 with ReLU; the paper divides the width of its models by 16 (48 of 768). `W_d`
//! is uniform within `±1/sqrt(d_model)`, everything else zero.
//!
//! ## Departures from the paper
//! The layer up starts at zero, so that nothing changes before training. The placement is that of the
//! released implementation (AdapterHub): the network reads the normed sum and its output is added
//! before the same norm.
//!
//! ## References
//! - Pfeiffer, Kamath, Rücklé, Cho, Gurevych: AdapterFusion: Non-Destructive Task Composition for
//!   Transfer Learning, 2020, arXiv 2005.00247.

use burn::prelude::*;
use frugal_nn::{AdaptError, Adapter, BuildContext, Linear, Mode, Parameter, Pass, SubLayer};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::method::{Family, Method, MethodConfig};
use crate::support::bottleneck::{
    BehindPass, BlockNetworks, Bottleneck, NonLinearity, PerSubLayer, not_linear,
};
use crate::support::own_files;
use crate::target::Layers;

const NAME: &str = "pfeiffer";

/// Registry entry.
pub const METHOD: Method = Method::of::<PfeifferConfig>(
    Family::Bottleneck,
    "One small network per block, behind the feed-forward",
    include_str!("pfeiffer.rs"),
)
.aliases(&["pfeiffer-adapter"])
.without_merge();

/// Settings.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PfeifferConfig {
    /// Width of the bottleneck.
    pub bottleneck_dim: usize,
    /// What stands between its layers.
    pub non_linearity: NonLinearity,
    /// Only these blocks.
    pub layers_to_transform: Option<Layers>,
}

impl Default for PfeifferConfig {
    fn default() -> Self {
        Self {
            bottleneck_dim: 64,
            non_linearity: NonLinearity::Relu,
            layers_to_transform: None,
        }
    }
}

impl MethodConfig for PfeifferConfig {
    const NAME: &'static str = NAME;
    const PEFT_TYPE: &'static str = "PFEIFFER";

    fn validate(&self) -> Result<(), AdaptError> {
        if self.bottleneck_dim == 0 {
            return Err(AdaptError::Config {
                method: NAME,
                field: "bottleneck_dim",
                reason: "must be at least 1".into(),
            });
        }
        Ok(())
    }

    fn build(self, context: &BuildContext<'_>) -> Result<Box<dyn Adapter>, AdaptError> {
        Ok(Box::new(Pfeiffer::new(self, context)?))
    }
}

/// Pfeiffer adapters.
pub struct Pfeiffer {
    config: PfeifferConfig,
    networks: PerSubLayer<Bottleneck>,
}

impl Pfeiffer {
    /// Builds the networks.
    ///
    /// # Errors
    /// Bad settings, blocks that the model lacks.
    pub fn new(config: PfeifferConfig, context: &BuildContext<'_>) -> Result<Self, AdaptError> {
        config.validate()?;
        let make = |name: &str| {
            Bottleneck::new(name, config.bottleneck_dim, config.non_linearity, context)
        };
        let networks = PerSubLayer::new(
            NAME,
            config.layers_to_transform.as_ref(),
            &[SubLayer::Mlp],
            context,
            make,
        )?;
        Ok(Self { config, networks })
    }
}

impl BlockNetworks for Pfeiffer {
    fn has(&self, layer: usize) -> bool {
        self.networks.has(layer)
    }

    fn added(&self, layer: usize, x: Tensor<2>, mode: Mode) -> Option<Tensor<2>> {
        Some(self.networks.get(layer, SubLayer::Mlp)?.forward(x, mode))
    }
}

impl Adapter for Pfeiffer {
    fn method(&self) -> &'static str {
        NAME
    }

    fn parameters(&self) -> Vec<&Parameter> {
        self.networks
            .iter()
            .flat_map(Bottleneck::parameters)
            .collect()
    }

    fn parameters_mut(&mut self) -> Vec<&mut Parameter> {
        self.networks
            .iter_mut()
            .flat_map(Bottleneck::parameters_mut)
            .collect()
    }

    fn pass(&self, mode: Mode) -> Box<dyn Pass + '_> {
        Box::new(BehindPass::new(self, mode))
    }

    fn peft_config(&self) -> Map<String, Value> {
        own_files::all_to_file("PFEIFFER", &self.config)
    }

    fn weight_delta(&self, _base: &Linear) -> Result<Option<Tensor<2>>, AdaptError> {
        Err(not_linear(NAME))
    }

    fn supports_mixed_batch(&self) -> bool {
        true
    }
}
