//! # AdapterDrop: bottleneck adapters of which the first can be left out
//!
//! ## What it does
//! Trains Pfeiffer adapters with those of the first few blocks left out, as many as each step draws;
//! afterwards any number of the first blocks can do without theirs, which makes answers faster.
//!
//! ## Update rule
//! That of `pfeiffer` in the blocks from `n` on, where `n` is drawn uniformly from 0 to `max_dropped` at each step;
//! outside of training `n = dropped`.
//!
//! ## When to use, when not
//! Where several tasks run over one model at once: the blocks below the first adapter are computed once
//! for all. With one task the gain in time is small.
//!
//! ## Cost
//! As `pfeiffer`; less by the share of blocks that are dropped.
//!
//! ## Defaults and where they come from
//! The networks are those of `pfeiffer`. `max_dropped` is all blocks but the last if not given, as in the
//! paper's robust training; `dropped = 0`.
//!
//! ## Departures from the paper
//! The base's blocks below the first adapter are computed for each adapter by itself. The specialised
//! variant, with a fixed number of blocks, is `pfeiffer` with `layers_to_transform`.
//!
//! ## References
//! - Rücklé, Geigle, Glockner, Beck, Pfeiffer, Reimers, Gurevych: AdapterDrop: On the Efficiency of
//!   Adapters in Transformers, 2020, arXiv 2010.11918.

use burn::prelude::*;
use frugal_nn::{
    AdaptError, Adapter, BuildContext, Linear, Mode, Parameter, Pass, SubLayer, named_rng,
};
use rand::Rng;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::method::{Family, Method, MethodConfig};
use crate::support::bottleneck::{
    BehindPass, BlockNetworks, Bottleneck, NonLinearity, PerSubLayer, not_linear,
};
use crate::support::own_files;
use crate::support::per_linear::bad;

const NAME: &str = "adapter-drop";

/// Registry entry.
pub const METHOD: Method = Method::of::<AdapterDropConfig>(
    Family::Bottleneck,
    "Small networks behind the feed-forward, of which the first can be left out",
    include_str!("adapter_drop.rs"),
)
.aliases(&["adapterdrop"])
.without_merge();

/// Settings.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AdapterDropConfig {
    /// Width of the bottleneck.
    pub bottleneck_dim: usize,
    /// What stands between its layers.
    pub non_linearity: NonLinearity,
    /// Most blocks that a step leaves out; all but the last if not given.
    pub max_dropped: Option<usize>,
    /// Blocks left out outside of training.
    pub dropped: usize,
}

impl Default for AdapterDropConfig {
    fn default() -> Self {
        Self {
            bottleneck_dim: 64,
            non_linearity: NonLinearity::Relu,
            max_dropped: None,
            dropped: 0,
        }
    }
}

impl MethodConfig for AdapterDropConfig {
    const NAME: &'static str = NAME;
    const PEFT_TYPE: &'static str = "ADAPTER_DROP";

    fn validate(&self) -> Result<(), AdaptError> {
        if self.bottleneck_dim == 0 {
            return bad(NAME, "bottleneck_dim", "must be at least 1");
        }
        Ok(())
    }

    fn build(self, context: &BuildContext<'_>) -> Result<Box<dyn Adapter>, AdaptError> {
        self.validate()?;
        let last = context.info.num_hidden_layers.saturating_sub(1);
        for (field, number) in [
            ("max_dropped", self.max_dropped),
            ("dropped", Some(self.dropped)),
        ] {
            if number.is_some_and(|number| number > last) {
                return bad(
                    NAME,
                    field,
                    format!("at most {last} of this model's blocks"),
                );
            }
        }
        let make =
            |name: &str| Bottleneck::new(name, self.bottleneck_dim, self.non_linearity, context);
        let networks = PerSubLayer::new(NAME, None, &[SubLayer::Mlp], context, make)?;
        Ok(Box::new(AdapterDrop {
            most: self.max_dropped.unwrap_or(last),
            config: self,
            networks,
        }))
    }
}

/// The adapter.
struct AdapterDrop {
    config: AdapterDropConfig,
    networks: PerSubLayer<Bottleneck>,
    /// Most blocks that a step leaves out.
    most: usize,
}

impl AdapterDrop {
    fn first(&self, mode: Mode) -> usize {
        match mode {
            Mode::Train { seed } => named_rng(seed, NAME).random_range(0..=self.most),
            Mode::Eval => self.config.dropped,
        }
    }
}

impl BlockNetworks for AdapterDrop {
    fn has(&self, layer: usize) -> bool {
        self.networks.has(layer)
    }

    fn added(&self, layer: usize, x: Tensor<2>, mode: Mode) -> Option<Tensor<2>> {
        let network = self.networks.get(layer, SubLayer::Mlp)?;
        (layer >= self.first(mode)).then(|| network.forward(x, mode))
    }
}

impl Adapter for AdapterDrop {
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
        own_files::all_to_file("ADAPTER_DROP", &self.config)
    }

    fn weight_delta(&self, _base: &Linear) -> Result<Option<Tensor<2>>, AdaptError> {
        Err(not_linear(NAME))
    }

    fn supports_mixed_batch(&self) -> bool {
        true
    }
}
