//! # IAA: small networks inside the model, joined by a path beside it
//!
//! ## What it does
//! Puts a small network behind both halves of every block, and others beside the frozen parts: beside
//! each half (`sub_layer`, IAA-S), each block (`layer`, IAA-L) or all blocks at once (`model`, IAA-M).
//! What is trained then forms one connected path from the embeddings to the output, instead of
//! islands between frozen layers.
//!
//! ## Update rule
//! With `b(x) = f(x W_dᵀ) W_uᵀ`, what a half adds to the residual stream becomes `h + b_inside(h)`,
//! and the stream behind a frozen part becomes `part(x) + b_aside(x)`, where `x` is the stream in front
//! of the part. In encoders the part ends with its norm, so `b_aside(x)` is not normalised:
//! `u = norm(x + h + b_inside(h)) + b_aside(x)`.
//!
//! ## When to use, when not
//! For encoders that retrieve or rank, where gradients have to pass many frozen blocks with norms
//! behind the sum. In decoders with norms in front the residual stream connects the networks already,
//! and `houlsby` does nearly the same for less time. It cannot be merged; where the adapter shall
//! vanish into the weights, use LoRA.
//!
//! ## Cost
//! Trainable: `4 · blocks · d_model · inside_dim`, and for the path `4 · blocks · d_model · aside_dim`
//! (`sub_layer`), `2 · blocks · d_model · aside_dim` (`layer`) or `2 · d_model · aside_dim` (`model`).
//! Extra compute: as many multiply-adds per token, also after training.
//!
//! ## Defaults and where they come from
//! `layer` with 12 inside and 8 beside, the paper's best variant at half a per cent of BERT-base
//! (589 824 parameters, as many as adapters of 16 alone); ReLU. For the same number: `sub_layer` with
//! 8 and 8, `model` with 15 and 24. With `aside_dim = 0` the scattered adapters remain that the paper
//! compares with, and with `inside_dim = 0` the path alone.
//!
//! ## Departures from the paper
//! Known to us are its tables and figure, not its text. The count of its tables has no biases, so there
//! are none; initial values, non-linearity and frozen norms are our choice: `W_d` is uniform within
//! `±1/sqrt(d_model)`, `W_u` zero, so that nothing changes before training. The table prints 12 and 12
//! for `layer`, which is more than its budget; 12 and 8 meet it. The second network of `sub_layer` reads
//! the stream in front of the feed-forward, and the one of `model` the output of the embedding layer.
//! Decoders add `model`'s in front of their last norm.
//!
//! ## References
//! - Ma, Guo, Zhang, Fan, Cheng: Scattered or Connected? An Optimized Parameter-efficient Tuning
//!   Approach for Information Retrieval, 2022, arXiv 2208.09847.

use burn::prelude::*;
use frugal_nn::{
    AdaptError, Adapter, BuildContext, Linear, Mode, ModelError, Norm, NormChange, Parameter, Pass,
    SiteId, SubLayer, SubLayerIo,
};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::method::{Family, Method, MethodConfig};
use crate::support::bottleneck::{Bottleneck, NonLinearity, PerSubLayer, not_linear};
use crate::support::own_files;
use crate::target::Layers;

const NAME: &str = "iaa";

/// Registry entry.
pub const METHOD: Method = Method::of::<IaaConfig>(
    Family::Bottleneck,
    "Small networks inside every block, joined by a trained path beside it",
    include_str!("iaa.rs"),
)
.aliases(&["inside-aside-adapter"])
.without_merge();

/// What the networks of the path stand beside.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Aside {
    /// Attention, and the feed-forward: IAA-S.
    #[serde(alias = "s", alias = "S")]
    SubLayer,
    /// A block: IAA-L.
    #[default]
    #[serde(alias = "l", alias = "L")]
    Layer,
    /// All blocks: IAA-M.
    #[serde(alias = "m", alias = "M")]
    Model,
}

/// Settings.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct IaaConfig {
    /// What the networks of the path stand beside.
    pub aside: Aside,
    /// Width of the networks behind the halves of a block; 0 for none.
    pub inside_dim: usize,
    /// Width of the networks of the path; 0 for none.
    pub aside_dim: usize,
    /// What stands between their layers.
    pub non_linearity: NonLinearity,
    /// Give the layers of the networks biases.
    pub bias: bool,
}

impl Default for IaaConfig {
    fn default() -> Self {
        Self {
            aside: Aside::Layer,
            inside_dim: 12,
            aside_dim: 8,
            non_linearity: NonLinearity::Relu,
            bias: false,
        }
    }
}

impl MethodConfig for IaaConfig {
    const NAME: &'static str = NAME;
    const PEFT_TYPE: &'static str = "IAA";

    fn validate(&self) -> Result<(), AdaptError> {
        if self.inside_dim == 0 && self.aside_dim == 0 {
            return Err(AdaptError::Config {
                method: NAME,
                field: "inside_dim",
                reason: "and `aside_dim` are both 0, so nothing would be trained".into(),
            });
        }
        Ok(())
    }

    fn build(self, context: &BuildContext<'_>) -> Result<Box<dyn Adapter>, AdaptError> {
        Ok(Box::new(Iaa::new(self, context)?))
    }
}

impl IaaConfig {
    fn networks(
        &self,
        dim: usize,
        suffix: &str,
        layers: Option<&Layers>,
        halves: &[SubLayer],
        context: &BuildContext<'_>,
    ) -> Result<PerSubLayer<Bottleneck>, AdaptError> {
        let make = |name: &str| {
            let name = name.replace("adapter", suffix);
            let network = Bottleneck::new(&name, dim, self.non_linearity, context);
            match self.bias {
                true => network,
                false => network.without_bias(),
            }
        };
        let halves = if dim == 0 { &[] } else { halves };
        PerSubLayer::new(NAME, layers, halves, context, make)
    }

    /// The path's networks, each at the half behind which its output is added.
    fn path(&self, context: &BuildContext<'_>) -> Result<PerSubLayer<Bottleneck>, AdaptError> {
        let last = context.info.num_hidden_layers.saturating_sub(1);
        let (layers, halves): (_, &[SubLayer]) = match self.aside {
            Aside::SubLayer => (None, &[SubLayer::Attention, SubLayer::Mlp]),
            Aside::Layer => (None, &[SubLayer::Mlp]),
            Aside::Model => (Some(Layers::One(last)), &[SubLayer::Mlp]),
        };
        self.networks(self.aside_dim, "aside", layers.as_ref(), halves, context)
    }
}

/// Networks inside the blocks and beside them.
pub struct Iaa {
    config: IaaConfig,
    inside: PerSubLayer<Bottleneck>,
    path: PerSubLayer<Bottleneck>,
}

impl Iaa {
    /// Builds the networks.
    ///
    /// # Errors
    /// Bad settings.
    pub fn new(config: IaaConfig, context: &BuildContext<'_>) -> Result<Self, AdaptError> {
        config.validate()?;
        let halves = [SubLayer::Attention, SubLayer::Mlp];
        let inside = config.networks(config.inside_dim, "adapter", None, &halves, context)?;
        let path = config.path(context)?;
        Ok(Self {
            config,
            inside,
            path,
        })
    }

    /// Whether the part that a network stands beside begins with this half.
    fn begins(&self, layer: usize, half: SubLayer) -> bool {
        match self.config.aside {
            Aside::SubLayer => true,
            Aside::Layer => half == SubLayer::Attention,
            Aside::Model => layer == 0 && half == SubLayer::Attention,
        }
    }
}

struct IaaPass<'a> {
    adapter: &'a Iaa,
    mode: Mode,
    /// The stream in front of the part that is being computed.
    in_front: Option<Tensor<2>>,
    /// What is added behind the norm that comes next.
    pending: Option<(SiteId, Tensor<2>)>,
    error: Option<ModelError>,
}

impl IaaPass<'_> {
    fn beside(&mut self, network: &Bottleneck) -> Option<Tensor<2>> {
        let Some(x) = self.in_front.clone() else {
            self.error = Some(ModelError::Content {
                model_type: "iaa",
                reason: "the path beside all blocks begins at block 0, which this pass has not run"
                    .into(),
            });
            return None;
        };
        Some(network.forward(x, self.mode))
    }
}

impl Pass for IaaPass<'_> {
    fn sub_layer(&mut self, io: SubLayerIo<'_>) -> Tensor<2> {
        let (adapter, layer, kind) = (self.adapter, io.layer, io.kind);
        let output = match adapter.inside.get(layer, kind) {
            Some(network) => io.output.clone() + network.forward(io.output, self.mode),
            None => io.output,
        };
        if adapter.begins(layer, kind) {
            self.in_front = Some(io.residual.clone());
        }
        let network = adapter.path.get(layer, kind);
        let Some(added) = network.and_then(|network| self.beside(network)) else {
            return output;
        };
        match io.norm_behind {
            Some(norm) => {
                self.pending = Some((norm.site, added));
                output
            }
            None => output + added,
        }
    }

    fn norm_change(&mut self, base: &Norm) -> NormChange {
        match self.pending {
            Some((site, _)) if site == base.site => NormChange::Opaque,
            _ => NormChange::None,
        }
    }

    fn norm(&mut self, base: &Norm, x: Tensor<2>) -> Tensor<2> {
        let (weight, bias) = base.values();
        let normed = base.apply(x, weight, bias);
        match self.pending.take_if(|(site, _)| *site == base.site) {
            Some((_, added)) => normed + added,
            None => normed,
        }
    }

    fn take_error(&mut self) -> Option<ModelError> {
        self.error.take()
    }
}

impl Adapter for Iaa {
    fn method(&self) -> &'static str {
        NAME
    }

    fn parameters(&self) -> Vec<&Parameter> {
        let networks = self.inside.iter().chain(self.path.iter());
        networks.flat_map(Bottleneck::parameters).collect()
    }

    fn parameters_mut(&mut self) -> Vec<&mut Parameter> {
        let networks = self.inside.iter_mut().chain(self.path.iter_mut());
        networks.flat_map(Bottleneck::parameters_mut).collect()
    }

    fn pass(&self, mode: Mode) -> Box<dyn Pass + '_> {
        Box::new(IaaPass {
            adapter: self,
            mode,
            in_front: None,
            pending: None,
            error: None,
        })
    }

    fn peft_config(&self) -> Map<String, Value> {
        own_files::all_to_file("IAA", &self.config)
    }

    fn weight_delta(&self, _base: &Linear) -> Result<Option<Tensor<2>>, AdaptError> {
        Err(not_linear(NAME))
    }

    fn supports_mixed_batch(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests;
