//! # Parallel adapters: small networks beside the feed-forward
//!
//! ## What it does
//! Adds to the output of a half of a block that of a small network which reads the same input.
//! Everything in the model stays frozen.
//!
//! ## Update rule
//! `half(x) + s · (f(x W_dᵀ + b_d) W_uᵀ + b_u)` with `W_d [bottleneck_dim, d_model]`,
//! `W_u [d_model, bottleneck_dim]`, a non-linearity `f` and `s = scaling`.
//!
//! ## When to use, when not
//! The strongest of the bottleneck adapters in the paper's comparison when it stands beside the
//! feed-forward. Where the adapter shall vanish into the weights, use LoRA, which is its linear
//! case for a single layer.
//!
//! ## Cost
//! Trainable: `2 · bottleneck_dim · d_model + bottleneck_dim + d_model` per half. Extra compute:
//! `2 · bottleneck_dim · d_model` multiply-adds per token and half, also after training; it cannot
//! be merged.
//!
//! ## Defaults and where they come from
//! Beside the feed-forward with `scaling = 4` and ReLU, as the paper recommends; a bottleneck of 64
//! (the paper uses 512 for its best results). `W_d` is uniform within `±1/sqrt(d_model)`,
//! everything else zero.
//!
//! ## Departures from the paper
//! None in the update; the paper's `W_d` is drawn as LoRA's, which is the same distribution.
//!
//! ## References
//! - He, Zhou, Ma, Berg-Kirkpatrick, Neubig: Towards a Unified View of Parameter-Efficient Transfer
//!   Learning, 2021, arXiv 2110.04366.

use burn::prelude::*;
use frugal_nn::{
    AdaptError, Adapter, BuildContext, Linear, Mode, Parameter, Pass, SubLayer, SubLayerIo,
};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::method::{Family, Method, MethodConfig};
use crate::support::bottleneck::{Bottleneck, NonLinearity, PerSubLayer, not_linear};
use crate::support::own_files;
use crate::target::Layers;

const NAME: &str = "parallel-adapter";

/// Registry entry.
pub const METHOD: Method = Method::of::<ParallelConfig>(
    Family::Bottleneck,
    "Small networks beside the feed-forward of every block",
    include_str!("parallel_adapter.rs"),
)
.aliases(&["parallel"])
.without_merge();

/// What a network stands beside.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Beside {
    /// Feed-forward.
    #[default]
    Mlp,
    /// Attention.
    Attention,
    /// One network beside each.
    Both,
}

/// Settings.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ParallelConfig {
    /// Width of the bottleneck.
    pub bottleneck_dim: usize,
    /// What stands between its layers.
    pub non_linearity: NonLinearity,
    /// Factor on the network's output.
    pub scaling: f64,
    /// What the network stands beside.
    pub beside: Beside,
    /// Only these blocks.
    pub layers_to_transform: Option<Layers>,
}

impl Default for ParallelConfig {
    fn default() -> Self {
        Self {
            bottleneck_dim: 64,
            non_linearity: NonLinearity::Relu,
            scaling: 4.0,
            beside: Beside::Mlp,
            layers_to_transform: None,
        }
    }
}

impl MethodConfig for ParallelConfig {
    const NAME: &'static str = NAME;
    const PEFT_TYPE: &'static str = "PARALLEL_ADAPTER";

    fn validate(&self) -> Result<(), AdaptError> {
        let bad = |field, reason: &str| {
            Err(AdaptError::Config {
                method: NAME,
                field,
                reason: reason.into(),
            })
        };
        if self.bottleneck_dim == 0 {
            return bad("bottleneck_dim", "must be at least 1");
        }
        if !(self.scaling.is_finite() && self.scaling != 0.0) {
            return bad("scaling", "must be a number other than zero");
        }
        Ok(())
    }

    fn build(self, context: &BuildContext<'_>) -> Result<Box<dyn Adapter>, AdaptError> {
        Ok(Box::new(ParallelAdapter::new(self, context)?))
    }
}

impl ParallelConfig {
    fn halves(&self) -> &'static [SubLayer] {
        match self.beside {
            Beside::Mlp => &[SubLayer::Mlp],
            Beside::Attention => &[SubLayer::Attention],
            Beside::Both => &[SubLayer::Attention, SubLayer::Mlp],
        }
    }
}

/// Parallel adapters.
pub struct ParallelAdapter {
    config: ParallelConfig,
    networks: PerSubLayer<Bottleneck>,
}

impl ParallelAdapter {
    /// Builds the networks.
    ///
    /// # Errors
    /// Bad settings, blocks that the model lacks.
    pub fn new(config: ParallelConfig, context: &BuildContext<'_>) -> Result<Self, AdaptError> {
        config.validate()?;
        let make = |name: &str| {
            Bottleneck::new(name, config.bottleneck_dim, config.non_linearity, context)
        };
        let networks = PerSubLayer::new(
            NAME,
            config.layers_to_transform.as_ref(),
            config.halves(),
            context,
            make,
        )?;
        Ok(Self { config, networks })
    }
}

struct ParallelPass<'a> {
    adapter: &'a ParallelAdapter,
    mode: Mode,
}

impl Pass for ParallelPass<'_> {
    fn sub_layer(&mut self, io: SubLayerIo<'_>) -> Tensor<2> {
        let Self { adapter, mode, .. } = self;
        adapter.networks.beside(io, adapter.config.scaling, *mode)
    }
}

impl Adapter for ParallelAdapter {
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
        Box::new(ParallelPass {
            adapter: self,
            mode,
        })
    }

    fn peft_config(&self) -> Map<String, Value> {
        own_files::all_to_file("PARALLEL_ADAPTER", &self.config)
    }

    fn weight_delta(&self, _base: &Linear) -> Result<Option<Tensor<2>>, AdaptError> {
        Err(not_linear(NAME))
    }

    fn supports_mixed_batch(&self) -> bool {
        true
    }
}
