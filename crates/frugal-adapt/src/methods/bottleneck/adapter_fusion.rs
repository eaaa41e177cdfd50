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

use crate::method::{Capabilities, Family, Method};
use crate::methods::bottleneck::pfeiffer::{self, PfeifferConfig};
use crate::support::bottleneck::{BehindPass, BlockNetworks, Bottleneck, PerSubLayer, not_linear};
use crate::support::dense::Dense;
use crate::support::own_files;
use crate::{peft, settings};

const NAME: &str = "adapter-fusion";
const PEFT_TYPE: &str = "ADAPTER_FUSION";

/// Registry entry.
pub const METHOD: Method = Method {
    name: NAME,
    aliases: &["fusion"],
    family: Family::Bottleneck,
    summary: "Attention over the outputs of several trained adapters",
    default_lr: 5e-5,
    peft_type: PEFT_TYPE,
    peft_variant: None,
    load_rule: None,
    capabilities: Capabilities {
        merge: false,
        identity_at_init: false,
        mixed_batch: true,
    },
    source: include_str!("adapter_fusion.rs"),
    defaults: settings::defaults::<AdapterFusionConfig>,
    check: |settings| settings::parse::<AdapterFusionConfig>(NAME, settings)?.validate(),
    build: |settings, context| {
        Ok(Box::new(AdapterFusion::new(
            settings::parse(NAME, settings)?,
            context,
        )?))
    },
    from_peft: |config| Ok(own_files::from_file::<AdapterFusionConfig>(config)),
};

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

impl AdapterFusionConfig {
    /// Checks ranges.
    ///
    /// # Errors
    /// [`AdaptError::Config`] naming the field.
    pub fn validate(&self) -> Result<(), AdaptError> {
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
        let mut blocks = PerSubLayer::new(None, &[SubLayer::Mlp], context, |name| {
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
    let (entry, _) = peft::load(path, context, false)?;
    if entry.adapter.method() != pfeiffer::METHOD.name {
        let reason = format!(
            "holds a `{}` adapter; only those of `{}` can be fused",
            entry.adapter.method(),
            pfeiffer::METHOD.name
        );
        return Err(AdaptError::Folder {
            path: path.into(),
            reason,
        });
    }
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
mod tests {
    use serde_json::json;

    use super::*;
    use frugal_models::ModelConfig;
    use frugal_nn::BackboneInfo;
    use frugal_nn::SiteTable;
    use frugal_nn::{LoadedAdapter, to_vec};

    fn model() -> (BackboneInfo, SiteTable) {
        let config = json!({"model_type": "llama", "hidden_size": 6, "intermediate_size": 8, "num_hidden_layers": 2,
            "num_attention_heads": 3, "num_key_value_heads": 3, "vocab_size": 16});
        let config = ModelConfig::from_json(config, "test").unwrap();
        let sites = config.sites();
        (config.info(), sites)
    }

    fn context<'a>((info, sites): &'a (BackboneInfo, SiteTable), seed: u64) -> BuildContext<'a> {
        BuildContext {
            info,
            sites,
            backbone: None,
            device: Device::flex(),
            seed,
            tokenize: None,
        }
    }

    fn fusion(settings: Value, context: &BuildContext<'_>) -> Result<AdapterFusion, AdaptError> {
        AdapterFusion::new(
            settings::parse(NAME, settings.as_object().unwrap())?,
            context,
        )
    }

    /// A folder with an adapter whose values are a wave.
    fn trained(folder: &Path, model: &(BackboneInfo, SiteTable), dim: usize, phase: f32) {
        let mut adapter = (pfeiffer::METHOD.build)(
            json!({"bottleneck_dim": dim}).as_object().unwrap(),
            &context(model, 0),
        )
        .unwrap();
        for (i, parameter) in adapter.parameters_mut().into_iter().enumerate() {
            parameter.set(
                (0..parameter.len())
                    .map(|j| (phase + i as f32 + 0.7 * j as f32).sin())
                    .collect(),
            );
        }
        peft::save(
            folder,
            &LoadedAdapter {
                adapter,
                head: None,
            },
            &model.0,
            "test",
        )
        .unwrap();
    }

    #[test]
    fn it_is_the_attention_of_the_formula_over_the_adapters_of_the_folders() {
        let (model, folder) = (model(), tempfile::tempdir().unwrap());
        let paths = ["a", "b", "c"].map(|name| folder.path().join(name));
        for (path, dim, phase) in [
            (&paths[0], 2, 0.1),
            (&paths[1], 3, 1.1),
            (&paths[2], 2, 2.3),
        ] {
            trained(path, &model, dim, phase);
        }
        let fused = fusion(json!({"adapters": paths}), &context(&model, 5)).unwrap();
        let (d, rows) = (6, 4);
        let x: Vec<f32> = (0..rows * d).map(|i| (1.9 * i as f32).cos()).collect();
        let found = fused
            .added(
                1,
                Tensor::from_data(TensorData::new(x.clone(), [rows, d]), &Device::flex()),
                Mode::Eval,
            )
            .unwrap();

        let by_name = |name: &str| {
            fused
                .parameters()
                .into_iter()
                .find(|p| p.name().ends_with(name))
                .unwrap()
                .to_vec()
        };
        let block = "layers.1.mlp_adapter";
        // x Wᵀ of one row.
        let map = |x: &[f32], w: &[f32]| {
            w.chunks(x.len())
                .map(|w| w.iter().zip(x).map(|(w, x)| w * x).sum())
                .collect::<Vec<f32>>()
        };
        let weights = |name: &str| by_name(&format!("{block}.fusion_{name}.weight"));
        let mut expected = Vec::new();
        for x in x.chunks(d) {
            let output = |path: &std::path::PathBuf| {
                let (entry, _) = peft::load(path, &context(&model, 0), false).unwrap();
                let of = |name: &str| {
                    let name = format!("{block}.{name}");
                    entry
                        .adapter
                        .parameters()
                        .into_iter()
                        .find(|p| p.name().ends_with(&name))
                        .unwrap()
                        .to_vec()
                };
                let plus = |y: Vec<f32>, b: Vec<f32>| {
                    y.iter().zip(b).map(|(y, b)| y + b).collect::<Vec<f32>>()
                };
                let hidden: Vec<f32> = plus(map(x, &of("down.weight")), of("down.bias"))
                    .iter()
                    .map(|v| v.max(0.0))
                    .collect();
                plus(map(&hidden, &of("up.weight")), of("up.bias"))
            };
            let outputs: Vec<Vec<f32>> = paths.iter().map(output).collect();
            let query = map(x, &weights("query"));
            let score = |z: &Vec<f32>| {
                map(z, &weights("key"))
                    .iter()
                    .zip(&query)
                    .map(|(k, q)| k * q)
                    .sum::<f32>()
                    .exp()
            };
            let scores: Vec<f32> = outputs.iter().map(score).collect();
            let total: f32 = scores.iter().sum();
            let mixed: Vec<f32> = (0..d)
                .map(|i| {
                    outputs
                        .iter()
                        .zip(&scores)
                        .map(|(z, s)| z[i] * s / total)
                        .sum()
                })
                .collect();
            expected.extend(map(&mixed, &weights("value")));
        }
        for (found, expected) in to_vec(found).iter().zip(&expected) {
            assert!(
                (found - expected).abs() < 1e-5,
                "{found} instead of {expected}"
            );
        }
        // 3 d² + d in each of two blocks.
        assert_eq!(fused.num_trainable(), 2 * (3 * d * d + d));
    }

    #[test]
    fn the_penalty_is_the_distance_of_the_values_from_the_identity() {
        let model = model();
        let mut fused = fusion(
            json!({"members": [{}, {}], "regularization": 0.5}),
            &context(&model, 5),
        )
        .unwrap();
        for parameter in fused
            .parameters_mut()
            .into_iter()
            .filter(|p| p.name().contains("fusion_value"))
        {
            // 2 on the diagonal, 0.5 beside it.
            parameter.set(
                (0..36)
                    .map(|i| if i / 6 == i % 6 { 2.0 } else { 0.5 })
                    .collect(),
            );
        }
        let loss: f32 = BlockNetworks::auxiliary_loss(&fused, Mode::Train { seed: 0 })
            .unwrap()
            .into_scalar();
        assert!(
            (loss - 0.5 * 2.0 * (6.0 + 30.0 * 0.25)).abs() < 1e-4,
            "{loss}"
        );
    }

    #[test]
    fn other_adapters_and_lonely_ones_are_refused() {
        let (model, folder) = (model(), tempfile::tempdir().unwrap());
        let adapter = (crate::methods::low_rank::lora::METHOD.build)(
            json!({"r": 2}).as_object().unwrap(),
            &context(&model, 0),
        )
        .unwrap();
        peft::save(
            folder.path(),
            &LoadedAdapter {
                adapter,
                head: None,
            },
            &model.0,
            "test",
        )
        .unwrap();
        let message = fusion(
            json!({"adapters": [folder.path(), folder.path()]}),
            &context(&model, 5),
        )
        .err()
        .unwrap()
        .to_string();
        assert!(message.contains("holds a `lora` adapter"), "{message}");
        let message = fusion(json!({"adapters": ["one"]}), &context(&model, 5))
            .err()
            .unwrap()
            .to_string();
        assert!(message.contains("at least two"), "{message}");
    }
}
