//! # Serial adapters: small networks behind attention and feed-forward
//!
//! ## What it does
//! Puts a small network with a bottleneck behind both halves of every block. The model stays
//! frozen, but for its norms.
//!
//! ## Update rule
//! What a half adds to the residual stream becomes `h + f(h W_dᵀ + b_d) W_uᵀ + b_u` with
//! `W_d [bottleneck_dim, d_model]`, `W_u [d_model, bottleneck_dim]` and a non-linearity `f`.
//!
//! ## When to use, when not
//! When the task needs more than a low-rank change of weights can give, and a few per cent more
//! time per token are acceptable. Where the adapter shall vanish into the weights, use LoRA; for
//! half the parameters, `pfeiffer`.
//!
//! ## Cost
//! Trainable: `2 · bottleneck_dim · d_model + bottleneck_dim + d_model` per half, and the norms of
//! the blocks. Extra compute: `2 · bottleneck_dim · d_model` multiply-adds per token and half, also
//! after training; it cannot be merged.
//!
//! ## Defaults and where they come from
//! A bottleneck of 64, the size that the paper found robust, with ReLU; norms are trained as in the
//! paper (`train_layer_norm`). `W_d` is uniform within `±1/sqrt(d_model)`, everything else zero.
//!
//! ## Departures from the paper
//! The layer up starts at zero, where the paper draws it near zero, so that nothing changes before
//! training. Only the norms of the blocks are trained, not those at the two ends of the model.
//!
//! ## References
//! - Houlsby, Giurgiu, Jastrzebski, Morrone, de Laroussilhe, Gesmundo, Attariyan, Gelly:
//!   Parameter-Efficient Transfer Learning for NLP, 2019, arXiv 1902.00751.

use burn::prelude::*;
use frugal_nn::{
    AdaptError, Adapter, BuildContext, Linear, Mode, Norm, NormChange, Parameter, Pass, SubLayer,
    SubLayerIo,
};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::method::{Family, Method, MethodConfig};
use crate::support::bottleneck::{Bottleneck, NonLinearity, PerSubLayer, TrainedNorms, not_linear};
use crate::support::own_files;
use crate::target::Layers;

const NAME: &str = "houlsby";

/// Registry entry.
pub const METHOD: Method = Method::of::<HoulsbyConfig>(
    Family::Bottleneck,
    "Small networks behind attention and feed-forward of every block",
    include_str!("houlsby.rs"),
)
.aliases(&["serial-adapter", "bottleneck-adapter"])
.without_merge();

/// Settings.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct HoulsbyConfig {
    /// Width of the bottleneck.
    pub bottleneck_dim: usize,
    /// What stands between its layers.
    pub non_linearity: NonLinearity,
    /// Train the norms of the blocks too.
    pub train_layer_norm: bool,
    /// Only these blocks.
    pub layers_to_transform: Option<Layers>,
}

impl Default for HoulsbyConfig {
    fn default() -> Self {
        Self {
            bottleneck_dim: 64,
            non_linearity: NonLinearity::Relu,
            train_layer_norm: true,
            layers_to_transform: None,
        }
    }
}

impl MethodConfig for HoulsbyConfig {
    const NAME: &'static str = NAME;
    const PEFT_TYPE: &'static str = "HOULSBY";

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
        Ok(Box::new(Houlsby::new(self, context)?))
    }
}

/// Serial adapters.
pub struct Houlsby {
    config: HoulsbyConfig,
    networks: PerSubLayer<Bottleneck>,
    norms: TrainedNorms,
}

impl Houlsby {
    /// Builds the networks.
    ///
    /// # Errors
    /// Bad settings, blocks that the model lacks.
    pub fn new(config: HoulsbyConfig, context: &BuildContext<'_>) -> Result<Self, AdaptError> {
        config.validate()?;
        let halves = [SubLayer::Attention, SubLayer::Mlp];
        let make = |name: &str| {
            Bottleneck::new(name, config.bottleneck_dim, config.non_linearity, context)
        };
        let networks = PerSubLayer::new(
            NAME,
            config.layers_to_transform.as_ref(),
            &halves,
            context,
            make,
        )?;
        let norms = if config.train_layer_norm {
            TrainedNorms::new(context, |layer| networks.has(layer))
        } else {
            TrainedNorms::default()
        };
        Ok(Self {
            config,
            networks,
            norms,
        })
    }
}

struct HoulsbyPass<'a> {
    adapter: &'a Houlsby,
    mode: Mode,
}

impl Pass for HoulsbyPass<'_> {
    fn sub_layer(&mut self, io: SubLayerIo<'_>) -> Tensor<2> {
        let SubLayerIo {
            layer,
            kind,
            output,
            ..
        } = io;
        match self.adapter.networks.get(layer, kind) {
            Some(network) => output.clone() + network.forward(output, self.mode),
            None => output,
        }
    }

    fn norm_change(&mut self, base: &Norm) -> NormChange {
        self.adapter.norms.change(base, self.mode)
    }
}

impl Adapter for Houlsby {
    fn method(&self) -> &'static str {
        NAME
    }

    fn parameters(&self) -> Vec<&Parameter> {
        self.networks
            .iter()
            .flat_map(Bottleneck::parameters)
            .chain(self.norms.parameters())
            .collect()
    }

    fn parameters_mut(&mut self) -> Vec<&mut Parameter> {
        self.networks
            .iter_mut()
            .flat_map(Bottleneck::parameters_mut)
            .chain(self.norms.parameters_mut())
            .collect()
    }

    fn pass(&self, mode: Mode) -> Box<dyn Pass + '_> {
        Box::new(HoulsbyPass {
            adapter: self,
            mode,
        })
    }

    fn peft_config(&self) -> Map<String, Value> {
        own_files::all_to_file("HOULSBY", &self.config)
    }

    fn weight_delta(&self, _base: &Linear) -> Result<Option<Tensor<2>>, AdaptError> {
        Err(not_linear(NAME))
    }

    fn supports_mixed_batch(&self) -> bool {
        true
    }
}
