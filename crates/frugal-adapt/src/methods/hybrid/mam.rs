//! # MAM adapter: a prefix in attention, a parallel network beside the feed-forward
//!
//! ## What it does
//! Combines prefix tuning with scaled parallel adapters, each where it is strongest: a small prefix
//! in attention, a larger network beside the feed-forward.
//!
//! ## Update rule
//! Block `l` attends over `[P_K; K]` and `[P_V; V]` as in `prefix-tuning`, and its feed-forward
//! computes `ffn(x) + s · (f(x W_dᵀ + b_d) W_uᵀ + b_u)` as in `parallel-adapter`.
//!
//! ## When to use, when not
//! When quality counts more than size and the adapter need not be merged. For the same number of
//! parameters the parallel adapter alone is nearly as good and simpler.
//!
//! ## Cost
//! Trainable: `num_virtual_tokens * layers * 2 * kv_heads * head_dim` and
//! `2 · bottleneck_dim · d_model + bottleneck_dim + d_model` per block. Extra compute: attention
//! over the prefix and the networks, also after training; it cannot be merged.
//!
//! ## Defaults and where they come from
//! 30 positions and `scaling = 4`, as in the paper; a bottleneck of 64, where the paper takes 512
//! for large models.
//!
//! ## Departures from the paper
//! The prefix is trained directly, from the keys and values of a text as in `prefix-tuning`;
//! `init_text = ""` starts from random keys and zero values, which add nothing but take their share
//! of the attention. `prefix_projection` trains it through two layers as the paper does. The networks change nothing before training.
//!
//! ## References
//! - He, Zhou, Ma, Berg-Kirkpatrick, Neubig: Towards a Unified View of Parameter-Efficient Transfer
//!   Learning, 2021, arXiv 2110.04366.

use burn::prelude::*;
use frugal_nn::{
    AdaptError, Adapter, BuildContext, KeyValue, Linear, Mode, Parameter, Pass, SubLayer,
    SubLayerIo,
};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::method::{Family, Method, MethodConfig};
use crate::methods::prompt::prefix_tuning::{Prefix, PrefixTuningConfig, Start};
use crate::support::bottleneck::{Bottleneck, NonLinearity, PerSubLayer, not_linear};
use crate::support::own_files;
use crate::support::text_start::DEFAULT_TEXT;

const NAME: &str = "mam";

/// Registry entry.
pub const METHOD: Method = Method::of::<MamConfig>(
    Family::Hybrid,
    "A prefix in attention and a parallel network beside the feed-forward",
    include_str!("mam.rs"),
)
.aliases(&["mam-adapter", "mix-and-match"])
.without_merge()
.without_identity()
.without_mixed_batch();

/// Settings.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MamConfig {
    /// Positions of the prefix; 0 for none.
    pub num_virtual_tokens: usize,
    /// Train the prefix through two linear layers.
    pub prefix_projection: bool,
    /// Width between these layers; by default that of the keys.
    pub encoder_hidden_size: Option<usize>,
    /// Width of the bottleneck.
    pub bottleneck_dim: usize,
    /// What stands between its layers.
    pub non_linearity: NonLinearity,
    /// Factor on the network's output.
    pub scaling: f64,
    /// Text whose keys and values the prefix starts from; empty for random keys and zero values.
    pub init_text: String,
    /// Hold the finished prefix only, as files do.
    pub inference_mode: bool,
}

impl Default for MamConfig {
    fn default() -> Self {
        Self {
            num_virtual_tokens: 30,
            prefix_projection: false,
            encoder_hidden_size: None,
            bottleneck_dim: 64,
            non_linearity: NonLinearity::Relu,
            scaling: 4.0,
            init_text: DEFAULT_TEXT.into(),
            inference_mode: false,
        }
    }
}

impl MethodConfig for MamConfig {
    const NAME: &'static str = NAME;
    const PEFT_TYPE: &'static str = "MAM";

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
        if self.encoder_hidden_size == Some(0) {
            return bad("encoder_hidden_size", "must be at least 1");
        }
        if !(self.scaling.is_finite() && self.scaling != 0.0) {
            return bad("scaling", "must be a number other than zero");
        }
        Ok(())
    }

    fn build(self, context: &BuildContext<'_>) -> Result<Box<dyn Adapter>, AdaptError> {
        Ok(Box::new(Mam::new(self, context)?))
    }
}

impl MamConfig {
    fn prefix(&self) -> PrefixTuningConfig {
        PrefixTuningConfig {
            num_virtual_tokens: self.num_virtual_tokens,
            prefix_projection: self.prefix_projection,
            encoder_hidden_size: self.encoder_hidden_size,
            init_weights: None,
            init_text: self.init_text.clone(),
            inference_mode: self.inference_mode,
        }
    }
}

/// A MAM adapter.
pub struct Mam {
    config: MamConfig,
    prefix: Option<Prefix>,
    networks: PerSubLayer<Bottleneck>,
}

impl Mam {
    /// Builds prefix and networks.
    ///
    /// # Errors
    /// Bad settings.
    pub fn new(config: MamConfig, context: &BuildContext<'_>) -> Result<Self, AdaptError> {
        config.validate()?;
        let make = |name: &str| {
            Bottleneck::new(name, config.bottleneck_dim, config.non_linearity, context)
        };
        Ok(Self {
            prefix: (config.num_virtual_tokens > 0)
                .then(|| Prefix::new(NAME, &config.prefix(), Start::ZeroValues, context))
                .transpose()?,
            networks: PerSubLayer::new(NAME, None, &[SubLayer::Mlp], context, make)?,
            config,
        })
    }
}

struct MamPass<'a> {
    adapter: &'a Mam,
    mode: Mode,
    /// All blocks' prefixes.
    table: Option<Tensor<2>>,
}

impl Pass for MamPass<'_> {
    fn key_value(&mut self, layer: usize) -> Option<KeyValue> {
        Some(
            self.adapter
                .prefix
                .as_ref()?
                .key_value(self.table.as_ref()?, layer),
        )
    }

    fn prefix_length(&self) -> usize {
        self.adapter.prefix.as_ref().map_or(0, Prefix::rows)
    }

    fn sub_layer(&mut self, io: SubLayerIo<'_>) -> Tensor<2> {
        let Self { adapter, mode, .. } = self;
        adapter.networks.beside(io, adapter.config.scaling, *mode)
    }
}

impl Adapter for Mam {
    fn method(&self) -> &'static str {
        NAME
    }

    fn parameters(&self) -> Vec<&Parameter> {
        let prefix = self.prefix.iter().flat_map(Prefix::parameters);
        prefix
            .chain(self.networks.iter().flat_map(Bottleneck::parameters))
            .collect()
    }

    fn parameters_mut(&mut self) -> Vec<&mut Parameter> {
        let prefix = self.prefix.iter_mut().flat_map(Prefix::parameters_mut);
        prefix
            .chain(
                self.networks
                    .iter_mut()
                    .flat_map(Bottleneck::parameters_mut),
            )
            .collect()
    }

    fn pass(&self, mode: Mode) -> Box<dyn Pass + '_> {
        Box::new(MamPass {
            adapter: self,
            mode,
            table: self.prefix.as_ref().map(|prefix| prefix.table(mode)),
        })
    }

    fn to_inference(&self) -> Option<Box<dyn Adapter>> {
        let prefix = self.prefix.as_ref()?.to_inference()?;
        let config = MamConfig {
            inference_mode: true,
            ..self.config.clone()
        };
        Some(Box::new(Self {
            config,
            prefix: Some(prefix),
            networks: self.networks.copy(Bottleneck::copy),
        }))
    }

    fn peft_config(&self) -> Map<String, Value> {
        let mut config = own_files::all_to_file("MAM", &self.config);
        config.insert("inference_mode".into(), true.into());
        // It says how values begin; the file has them.
        config.remove("init_text");
        config
    }

    fn weight_delta(&self, _base: &Linear) -> Result<Option<Tensor<2>>, AdaptError> {
        Err(not_linear(NAME))
    }

    fn supports_mixed_batch(&self) -> bool {
        false
    }
}
