//! # AdapterFusion: attention over trained adapters
//!
//! ## What it does
//! Takes several trained `pfeiffer` adapters, leaves them as they are, and learns in each block
//! which of them to listen to at each token.
//!
//! ## Update rule
//! With the adapters' outputs `zₙ = aₙ(h)` for their input `h`:
//! `pₙ = softmaxₙ((h W_qᵀ + b_q) · (zₙ W_kᵀ))`, and `Σₙ pₙ zₙ W_vᵀ` is added where each adapter
//! would add its own. The loss gets `regularization · Σ ‖W_v − I‖²` over all blocks.
//!
//! ## When to use, when not
//! When there are adapters for related tasks and little data for a new one. With enough data a
//! single adapter is as good and far smaller; to average adapters without training use
//! `frugal adapters combine`.
//!
//! ## Cost
//! Trainable: `3 d_model² + d_model` per block. Extra compute: all adapters, and `3 d_model²`
//! multiply-adds per token and block, also after training; it cannot be merged. Files hold the
//! adapters too.
//!
//! ## Defaults and where they come from
//! `W_v` starts as the identity with 1e-6 beside the diagonal, `W_q` and `W_k` normal with
//! deviation 0.02, `b_q` zero, `regularization = 0.01`, rate 5e-5: the released implementation
//! (AdapterHub) and the paper. `adapters` are the folders of the trained adapters; each may have
//! its own bottleneck.
//!
//! ## Departures from the paper
//! The keys have no bias: it would add the same to all scores of a token, which the softmax does
//! not see. No dropout on the scores. A new task head is trained; those of the adapters stay
//! unused.
//!
//! ## References
//! - Pfeiffer, Kamath, Rücklé, Cho, Gurevych: AdapterFusion: Non-Destructive Task Composition for
//!   Transfer Learning, 2020, arXiv 2005.00247.

use std::path::Path;

use burn::prelude::*;
use burn::tensor::activation::softmax;
use frugal_nn::{
    AdaptError, Adapter, BuildContext, Linear, Mode, Parameter, Pass, SubLayer, named_rng,
    standard_normal,
};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::method::{Family, Method, MethodConfig};
use crate::methods::bottleneck::pfeiffer::{self, PfeifferConfig};
use crate::peft::folder::Files;
use crate::settings;
use crate::support::bottleneck::{BehindPass, BlockNetworks, Bottleneck, PerSubLayer, not_linear};
use crate::support::dense::Dense;
use crate::support::own_files;

const NAME: &str = "adapter-fusion";
const PEFT_TYPE: &str = "ADAPTER_FUSION";

/// Registry entry.
pub const METHOD: Method = Method::of::<AdapterFusionConfig>(
    Family::Bottleneck,
    "Attention over the outputs of several trained adapters",
    include_str!("adapter_fusion.rs"),
)
.aliases(&["fusion"])
.default_lr(5e-5)
.without_merge()
.without_identity();

/// Settings.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AdapterFusionConfig {
    /// Folders of trained `pfeiffer` adapters for this model.
    pub adapters: Vec<String>,
    /// Weight of the distance of `W_v` from the identity in the loss.
    pub regularization: f64,
    /// Settings of the adapters, set in files, which hold the adapters themselves; then `adapters`
    /// is only a record.
    pub members: Option<Vec<PfeifferConfig>>,
}

impl Default for AdapterFusionConfig {
    fn default() -> Self {
        Self {
            adapters: Vec::new(),
            regularization: 0.01,
            members: None,
        }
    }
}

impl MethodConfig for AdapterFusionConfig {
    const NAME: &'static str = NAME;
    const PEFT_TYPE: &'static str = PEFT_TYPE;

    fn validate(&self) -> Result<(), AdaptError> {
        let bad = |field, reason: String| {
            Err(AdaptError::Config {
                method: NAME,
                field,
                reason,
            })
        };
        if self.members.as_ref().map_or(self.adapters.len(), Vec::len) < 2 {
            return bad(
                "adapters",
                "give the folders of at least two adapters that `pfeiffer` trained on this model"
                    .into(),
            );
        }
        for member in self.members.iter().flatten() {
            member.validate()?;
            if member.layers_to_transform.is_some() {
                return bad(
                    "adapters",
                    "an adapter in some blocks only cannot be fused".into(),
                );
            }
        }
        match self.regularization {
            weight if weight.is_finite() && weight >= 0.0 => Ok(()),
            weight => bad(
                "regularization",
                format!("{weight} is not a weight of at least 0"),
            ),
        }
    }

    fn build(self, context: &BuildContext<'_>) -> Result<Box<dyn Adapter>, AdaptError> {
        Ok(Box::new(AdapterFusion::new(self, context)?))
    }
}

/// The networks of a block and the attention over them.
struct Fused {
    networks: Vec<Bottleneck>,
    query: Dense,
    /// `[d_model, d_model]`.
    key: Parameter,
    /// `[d_model, d_model]`.
    value: Parameter,
}

/// The values of one adapter's tensors by name.
type Tensors = std::collections::HashMap<String, Vec<f32>>;

impl Fused {
    fn new(name: &str, members: &[PfeifferConfig], context: &BuildContext<'_>) -> Self {
        let (d, device) = (context.info.hidden_size, &context.device);
        let mut rng = named_rng(context.seed, &format!("{name} fusion"));
        let mut draw = || {
            (0..d * d)
                .map(|_| 0.02 * standard_normal(&mut rng))
                .collect::<Vec<f32>>()
        };
        let (query, key) = (draw(), draw());
        let network = |(n, member): (usize, &PfeifferConfig)| {
            let name = format!("{name}.{n}");
            let mut network =
                Bottleneck::new(&name, member.bottleneck_dim, member.non_linearity, context);
            let mut rng = named_rng(context.seed, &name);
            for parameter in network.parameters_mut() {
                // Until a folder or a file gives the values.
                parameter.set(
                    (0..parameter.len())
                        .map(|_| 0.1 * standard_normal(&mut rng))
                        .collect(),
                );
                *parameter = parameter.clone().freeze();
            }
            network
        };
        let matrix = |what: &str, values| {
            Parameter::new(
                format!("{name}.fusion_{what}.weight"),
                &[d, d],
                values,
                device,
            )
        };
        Self {
            networks: members.iter().enumerate().map(network).collect(),
            query: Dense {
                weight: matrix("query", query),
                bias: Some(Parameter::new(
                    format!("{name}.fusion_query.bias"),
                    &[d],
                    vec![0.0; d],
                    device,
                )),
            },
            key: matrix("key", key),
            value: matrix(
                "value",
                (0..d * d)
                    .map(|i| if i / d == i % d { 1.0 } else { 1e-6 })
                    .collect(),
            ),
        }
    }

    /// What is added for the adapters' input `[tokens, d_model]`.
    fn forward(&self, x: Tensor<2>, mode: Mode) -> Tensor<2> {
        let outputs: Vec<Tensor<2>> = self
            .networks
            .iter()
            .map(|network| network.forward(x.clone(), mode))
            .collect();
        // (x W_q) · (z W_k) = (x W_q W_kᵀ) · z, so the keys need not be formed.
        let wanted = self.query.forward(x, mode).matmul(self.key.get::<2>(mode));
        let scores = outputs
            .iter()
            .map(|z| (wanted.clone() * z.clone()).sum_dim(1))
            .collect();
        let shares = softmax(Tensor::cat(scores, 1), 1);
        let weighted = outputs
            .into_iter()
            .enumerate()
            .map(|(n, z)| z * shares.clone().slice([0..shares.dims()[0], n..n + 1]));
        let mixed = weighted
            .reduce(|sum, z| sum + z)
            .expect("at least two adapters, as validated");
        frugal_kernels::linear(mixed, self.value.get::<2>(mode), None)
    }

    fn parameters(&self) -> impl Iterator<Item = &Parameter> {
        let networks = self.networks.iter().flat_map(Bottleneck::parameters);
        networks
            .chain(self.query.parameters())
            .chain([&self.key, &self.value])
    }

    fn parameters_mut(&mut self) -> impl Iterator<Item = &mut Parameter> {
        let networks = self
            .networks
            .iter_mut()
            .flat_map(Bottleneck::parameters_mut);
        networks
            .chain(self.query.parameters_mut())
            .chain([&mut self.key, &mut self.value])
    }
}

/// Trained adapters and the attention over them.
pub struct AdapterFusion {
    config: AdapterFusionConfig,
    blocks: PerSubLayer<Fused>,
}

impl AdapterFusion {
    /// Reads the adapters and builds the attention.
    ///
    /// # Errors
    /// Bad settings, folders that hold no `pfeiffer` adapter of this model.
    pub fn new(
        mut config: AdapterFusionConfig,
        context: &BuildContext<'_>,
    ) -> Result<Self, AdaptError> {
        config.validate()?;
        let read = match &config.members {
            Some(_) => Vec::new(),
            None => config
                .adapters
                .iter()
                .map(|folder| member(folder, context))
                .collect::<Result<_, AdaptError>>()?,
        };
        let members = config
            .members
            .get_or_insert_with(|| read.iter().map(|(member, _)| member.clone()).collect())
            .clone();
        config.validate()?;
        let mut blocks = PerSubLayer::new(NAME, None, &[SubLayer::Mlp], context, |name| {
            Fused::new(name, &members, context)
        })?;
        for (n, (_, tensors)) in read.iter().enumerate() {
            for parameter in blocks
                .iter_mut()
                .flat_map(|block| block.networks[n].parameters_mut())
            {
                let name = parameter
                    .name()
                    .replacen(&format!("_adapter.{n}."), "_adapter.", 1);
                if let Some(values) = tensors.get(&name) {
                    parameter.set(values.clone());
                }
            }
        }
        Ok(Self { config, blocks })
    }
}

/// Settings and tensors of a trained adapter.
fn member(
    folder: &str,
    context: &BuildContext<'_>,
) -> Result<(PfeifferConfig, Tensors), AdaptError> {
    let path = Path::new(folder);
    let files = Files::read(path)?;
    let method = match &files.extra {
        Some(extra) => &extra.method,
        None => &files.peft_type,
    };
    if method != pfeiffer::METHOD.name {
        let reason = format!(
            "holds a `{method}` adapter; only those of `{}` can be fused",
            pfeiffer::METHOD.name
        );
        return Err(AdaptError::Folder {
            path: path.into(),
            reason,
        });
    }
    let (entry, _) = files.load(path, &pfeiffer::METHOD, context, false)?;
    let settings = (pfeiffer::METHOD.from_peft)(&entry.adapter.peft_config())?;
    let tensors = entry
        .adapter
        .parameters()
        .into_iter()
        .map(|p| (p.name().to_owned(), p.to_vec()))
        .collect();
    Ok((settings::parse(pfeiffer::METHOD.name, &settings)?, tensors))
}

impl BlockNetworks for AdapterFusion {
    fn has(&self, layer: usize) -> bool {
        self.blocks.has(layer)
    }

    fn added(&self, layer: usize, x: Tensor<2>, mode: Mode) -> Option<Tensor<2>> {
        Some(self.blocks.get(layer, SubLayer::Mlp)?.forward(x, mode))
    }

    fn auxiliary_loss(&self, mode: Mode) -> Option<Tensor<1>> {
        if !mode.is_train() || self.config.regularization == 0.0 {
            return None;
        }
        let distance = |block: &Fused| {
            let value = block.value.get::<2>(mode);
            let identity = Tensor::<2>::eye(value.dims()[0], &value.device().inner());
            (value - Tensor::from_inner(identity)).powi_scalar(2).sum()
        };
        self.blocks
            .iter()
            .map(distance)
            .reduce(|sum, term| sum + term)
            .map(|sum| sum * self.config.regularization)
    }
}

impl Adapter for AdapterFusion {
    fn method(&self) -> &'static str {
        NAME
    }

    fn parameters(&self) -> Vec<&Parameter> {
        self.blocks.iter().flat_map(Fused::parameters).collect()
    }

    fn parameters_mut(&mut self) -> Vec<&mut Parameter> {
        self.blocks
            .iter_mut()
            .flat_map(Fused::parameters_mut)
            .collect()
    }

    fn pass(&self, mode: Mode) -> Box<dyn Pass + '_> {
        Box::new(BehindPass::new(self, mode))
    }

    fn peft_config(&self) -> Map<String, Value> {
        own_files::all_to_file(PEFT_TYPE, &self.config)
    }

    fn weight_delta(&self, _base: &Linear) -> Result<Option<Tensor<2>>, AdaptError> {
        Err(not_linear(NAME))
    }

    fn needs_trainer(&self) -> bool {
        true
    }

    fn supports_mixed_batch(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests;
