//! MiniCPM: Llama whose embeddings, residual branches and logits are scaled by width and depth, so
//! that the best learning rate of a small model is that of a large one.
//!
//! Hu et al., *MiniCPM: Unveiling the Potential of Small Language Models with Scalable Training
//! Strategies*, arXiv 2404.06395, table 7; configuration keys and names of tensors are those of the
//! modelling code beside the published checkpoints (`openbmb/MiniCPM-2B-sft-bf16`, `openbmb/MiniCPM-1B-sft-bf16`,
//! `openbmb/MiniCPM-MoE-8x2B`). With width `d`, base width `d₀` (`dim_model_base`) and `n` blocks:
//!
//! 1. embeddings are multiplied by `scale_emb`;
//! 2. what attention and feed-forward layer give is multiplied by `scale_depth / √n` before it is
//!    added to the residual stream;
//! 3. matrices of blocks begin as N(0, σ² d₀ / d) with σ = `initializer_range`, the embedding as
//!    N(0, σ²), gains as 1;
//! 4. matrices of blocks are pre-trained at `d₀ / d` times the learning rate, the embedding and the
//!    gains at the rate itself;
//! 5. logits are divided by `d / d₀`: the head reads `h / (d / d₀)`.
//!
//! The paper does not say to which group the embedding belongs; as an input of constant width it has
//! the rate and the spread that do not depend on `d`. A head of its own is a matrix like those of
//! blocks. With `num_experts` above 0 each feed-forward layer is a mixture of that many, whose weights
//! of a token's experts sum to 1. Configurations of later models under the same `model_type` that turn
//! rules off or attend sparsely are refused by name.

use std::sync::Arc;

use frugal_nn::site::SiteKind;
use frugal_nn::{
    Backbone, HeadLayout, ModelError, SiteInfo, SiteTable, UsualTargets, named_rng, standard_normal,
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::activation::Activation;
use crate::architecture::{Architecture, Cost, Family, FirstValues, KeyTable, ModelConfig};
use crate::blocks::decoder::{Decoder, DecoderSpec};
use crate::blocks::gated_mlp::GatedMlp;
use crate::blocks::gqa::{GqaSpec, GroupedQueryAttention};
use crate::blocks::router::LinearRouter;
use crate::blocks::sparse_moe::{Experts, MoeSpec, SparseMoe};
use crate::fresh::{Fresh, FreshSizes, Own};
use crate::keys::{self, Size, TokenId, bad};
use crate::rope::RopeReader;
use crate::weights::WeightLoader;

/// MiniCPM.
pub static MINICPM: Family = Family {
    model_type: "minicpm",
    class: "MiniCPMForCausalLM",
    classifier_class: "MiniCPMForSequenceClassification",
    base_prefix: "model.",
    is_encoder: false,
    // Its code comes with the checkpoints.
    in_transformers: false,
    head: HeadLayout::Score,
    usual_targets: UsualTargets {
        ia3: &["k_proj", "v_proj", "down_proj"],
        ia3_feedforward: "down_proj",
    },
    read,
    fresh: Some(Fresh {
        about: "Llama whose best learning rate does not depend on width and depth",
        config: fresh,
    }),
    keys: KeyTable {
        honored: keys::names::<MiniCpmConfig>,
        refused: &[
            ("pretraining_tp", "1"),
            ("use_mup", "true"),
            ("use_qk_norm", "false"),
            ("sparse_config", "null"),
        ],
        without_effect: &["attention_dropout"],
    },
};

/// The base width of the published models.
const DIM_MODEL_BASE: usize = 256;

/// Keys of `MiniCPMConfig`, with its defaults.
#[derive(Debug, Serialize, Deserialize)]
#[serde(default)]
struct MiniCpmConfig {
    vocab_size: Size,
    hidden_size: Size,
    intermediate_size: Size,
    num_hidden_layers: Size,
    num_attention_heads: Size,
    num_key_value_heads: Option<Size>,
    /// The heads share the width.
    head_dim: Option<Size>,
    hidden_act: Activation,
    max_position_embeddings: Size,
    rms_norm_eps: f64,
    tie_word_embeddings: bool,
    attention_bias: bool,
    pad_token_id: TokenId,
    scale_emb: f64,
    dim_model_base: Size,
    scale_depth: f64,
    /// Of a mixture; 0 for none.
    num_experts: usize,
    num_experts_per_tok: Size,
    /// Weight of the loss that keeps the load even.
    router_aux_loss_coef: f64,
}

impl Default for MiniCpmConfig {
    fn default() -> Self {
        Self {
            vocab_size: Size(32_000),
            hidden_size: Size(4096),
            intermediate_size: Size(11_008),
            num_hidden_layers: Size(32),
            num_attention_heads: Size(32),
            num_key_value_heads: None,
            head_dim: None,
            hidden_act: Activation::Silu,
            max_position_embeddings: Size(2048),
            rms_norm_eps: 1e-6,
            tie_word_embeddings: true,
            attention_bias: false,
            pad_token_id: TokenId(None),
            scale_emb: 1.0,
            dim_model_base: Size(1),
            scale_depth: 1.0,
            num_experts: 0,
            num_experts_per_tok: Size(2),
            router_aux_loss_coef: 0.01,
        }
    }
}

/// What differs between models of this type.
#[derive(Debug)]
struct MiniCpm {
    spec: DecoderSpec,
    attention: GqaSpec,
    scale_emb: f64,
    dim_model_base: usize,
    scale_depth: f64,
    experts: Option<MoeSpec>,
}

/// The published constants. A model narrower than the base width is its own base, as its matrices
/// would otherwise begin above `initializer_range` and learn above the rate.
fn fresh(sizes: &FreshSizes, own: &Own<'_>) -> Result<Value, ModelError> {
    let mut keys = sizes.decoder(own)?;
    for key in ["head_dim", "mlp_bias"] {
        keys.remove(key);
    }
    let base = own.size("dim_model_base", DIM_MODEL_BASE.min(sizes.hidden_size))?;
    for (key, value) in [
        ("scale_emb", json!(12)),
        ("scale_depth", json!(1.4)),
        ("dim_model_base", json!(base)),
        ("initializer_range", json!(0.1)),
    ] {
        keys.insert(key.into(), value);
    }
    if own.or("num_experts", 0_usize)? > 0 {
        keys.insert("num_experts_per_tok".into(), json!(2));
        keys.insert("router_aux_loss_coef".into(), json!(0.01));
    }
    Ok(Value::Object(keys))
}

fn read(raw: &Value, source: &str) -> Result<ModelConfig, ModelError> {
    let k: MiniCpmConfig = keys::read(raw, source, keys::DECODER_SIZES)?;
    let (width, heads) = (k.hidden_size.0, k.num_attention_heads.0);
    let head_dim = keys::shared_head_dim(width, heads, "num_attention_heads", source)?;
    if let Some(given) = k.head_dim.filter(|given| given.0 != head_dim) {
        let reason = format!(
            "{} given, but the heads share the width: {head_dim}",
            given.0
        );
        return Err(bad(source, "head_dim", reason));
    }
    for (key, scale) in [("scale_emb", k.scale_emb), ("scale_depth", k.scale_depth)] {
        if !(scale.is_finite() && scale > 0.0) {
            let reason = format!(
                "{} given, but it must be a positive number",
                keys::shown(scale)
            );
            return Err(bad(source, key, reason));
        }
    }
    if !(k.router_aux_loss_coef.is_finite() && k.router_aux_loss_coef >= 0.0) {
        let reason = format!("{} given, but it must be 0 or more", k.router_aux_loss_coef);
        return Err(bad(source, "router_aux_loss_coef", reason));
    }
    let rope = RopeReader {
        raw,
        source,
        default_theta: 10_000.0,
        max_positions: k.max_position_embeddings.0,
        rotated: head_dim,
    };
    let num_hidden_layers = keys::layers("num_hidden_layers", k.num_hidden_layers, source)?;
    let experts = match k.num_experts {
        0 => None,
        count => {
            let spec = MoeSpec::new([count, k.num_experts_per_tok.0], k.router_aux_loss_coef);
            let named = |error| match error {
                ModelError::Config { key, reason, .. } if key == "num_local_experts" => {
                    bad(source, "num_experts", reason)
                }
                other => other,
            };
            Some(spec.check(num_hidden_layers, source).map_err(named)?)
        }
    };
    let spec = DecoderSpec {
        embed_scale: Some(k.scale_emb as f32),
        residual_scale: Some(residual_scale(k.scale_depth, num_hidden_layers) as f32),
        ..DecoderSpec::new([head_dim, num_hidden_layers], rope.uniform()?)
    };
    let architecture = MiniCpm {
        spec: spec.check("hidden_size", source)?,
        attention: GqaSpec {
            qkv_bias: k.attention_bias,
            output_bias: k.attention_bias,
            qk_norm: false,
        },
        scale_emb: k.scale_emb,
        dim_model_base: k.dim_model_base.0,
        scale_depth: k.scale_depth,
        experts,
    };
    Ok(ModelConfig {
        family: &MINICPM,
        hidden_size: width,
        intermediate_size: k.intermediate_size.0,
        num_hidden_layers,
        num_attention_heads: heads,
        num_key_value_heads: k.num_key_value_heads.unwrap_or(k.num_attention_heads).0,
        head_dim,
        vocab_size: k.vocab_size.0,
        max_position_embeddings: k.max_position_embeddings.0,
        norm_eps: k.rms_norm_eps,
        activation: k.hidden_act,
        tie_word_embeddings: k.tie_word_embeddings,
        pad_token_id: k.pad_token_id.0,
        architecture: Arc::new(architecture),
        raw: raw.clone(),
        source: source.into(),
    })
}

/// `scale_depth / √n`.
fn residual_scale(scale_depth: f64, layers: usize) -> f64 {
    scale_depth / (layers as f64).sqrt()
}

impl MiniCpm {
    /// `d / d₀`.
    fn width_ratio(&self, config: &ModelConfig) -> f64 {
        config.hidden_size as f64 / self.dim_model_base as f64
    }
}

impl Architecture for MiniCpm {
    fn arithmetic(&self, config: &ModelConfig) -> Value {
        let scales = json!({
            "scale_emb": self.scale_emb,
            "dim_model_base": self.dim_model_base,
            "scale_depth": self.scale_depth,
            "num_experts": self.experts.map_or(0, |experts| experts.num_local_experts),
        });
        let experts = self.experts.map_or(Value::Null, |experts| json!(experts));
        self.spec
            .arithmetic(config, &[json!(self.attention), scales, experts])
    }

    fn sites(&self, c: &ModelConfig) -> Vec<SiteInfo> {
        self.spec.sites(
            c,
            |sites, l, path| GroupedQueryAttention::sites(sites, c, self.attention, l, path),
            |sites, l, path| {
                let (path, d) = (format!("{path}.mlp"), c.hidden_size);
                match self.experts {
                    None => GatedMlp::sites(sites, c, false, l, &path),
                    Some(MoeSpec {
                        num_local_experts: count,
                        ..
                    }) => {
                        LinearRouter::sites(sites, [d, count], l, &path);
                        Experts::sites(sites, [d, c.intermediate_size], count, l, &path);
                    }
                }
            },
        )
    }

    fn cost(&self, config: &ModelConfig) -> Cost {
        let dense = Cost::of_decoder(config);
        match self.experts {
            None => dense,
            Some(experts) => Cost {
                experts: experts.num_local_experts,
                active_experts: experts.num_experts_per_tok,
                ..dense
            },
        }
    }

    fn logit_scale(&self, config: &ModelConfig) -> Option<f64> {
        Some(1.0 / self.width_ratio(config))
    }

    fn lr_scale(&self, config: &ModelConfig, site: &SiteInfo) -> f64 {
        match is_hidden_matrix(site) {
            true => 1.0 / self.width_ratio(config),
            false => 1.0,
        }
    }

    fn max_sequence(&self, config: &ModelConfig) -> usize {
        self.spec.max_sequence(config)
    }

    /// Matrices by rule 3, without the smaller spread that other architectures have in front of the
    /// residual stream.
    fn first_values(
        &self,
        config: &ModelConfig,
        site: &SiteInfo,
        tensor: FirstValues,
        seed: u64,
    ) -> Option<Vec<f32>> {
        if !is_hidden_matrix(site) || tensor != FirstValues::Weight {
            return None;
        }
        let given = config.raw.get("initializer_range").and_then(Value::as_f64);
        let std = (given.unwrap_or(0.02) / self.width_ratio(config).sqrt()) as f32;
        let mut rng = named_rng(seed, &site.weight_name());
        let draw = |_| std * standard_normal(&mut rng);
        Some((0..site.d_in * site.d_out).map(draw).collect())
    }

    fn build(
        &self,
        config: &ModelConfig,
        sites: Arc<SiteTable>,
        loader: &mut WeightLoader<'_>,
    ) -> Result<Arc<dyn Backbone>, ModelError> {
        Decoder::load(
            config,
            &self.spec,
            sites,
            loader,
            |loader, path| {
                let attention = GroupedQueryAttention::load(config, self.attention, loader, path)?;
                Ok(Box::new(attention))
            },
            |loader, path| {
                let path = format!("{path}.mlp");
                let Some(spec) = self.experts else {
                    return Ok(Box::new(GatedMlp::load(config.activation, loader, &path)?));
                };
                let router = Box::new(LinearRouter::load(loader, &path)?);
                let experts = Experts::load(spec.num_local_experts, loader, &path)?;
                Ok(Box::new(SparseMoe::new(
                    spec,
                    config.activation,
                    router,
                    experts.into(),
                )))
            },
        )
    }
}

/// Whether both sides of a matrix grow with the width: not the embedding, whose rows are tokens.
fn is_hidden_matrix(site: &SiteInfo) -> bool {
    matches!(site.kind, SiteKind::Linear | SiteKind::LmHead) && !site.tied
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use burn::prelude::Device;
    use frugal_nn::{Input, NoAdapter, Rows, to_vec};

    use super::*;
    use crate::build::build;
    use crate::init::random_weights;
    use crate::rope::{RopeConfig, RopeScaling, inverse_frequencies};

    /// A published size: width, feed-forward width, heads, key and value heads, blocks.
    fn config([d, ff, heads, groups, layers]: [usize; 5]) -> ModelConfig {
        let raw = json!({"model_type": "minicpm", "vocab_size": 16, "hidden_size": d, "intermediate_size": ff,
            "num_hidden_layers": layers, "num_attention_heads": heads, "num_key_value_heads": groups,
            "scale_emb": 12, "scale_depth": 1.4, "dim_model_base": 256, "initializer_range": 0.1});
        ModelConfig::from_json(raw, "config.json").unwrap()
    }

    const LARGE: [usize; 5] = [2304, 5760, 36, 36, 40];
    const SMALL: [usize; 5] = [1536, 3840, 24, 8, 52];

    /// As printed in the paper (2.4B and 1.2B), and by the formula L (2 d d_q + 2 d d_kv + 3 d d_ff + 2 d) + d.
    #[test]
    fn parameters_outside_the_vocabulary_are_those_of_the_paper() {
        for (size, expected) in [
            (LARGE, 2_442_057_984_usize),
            (SMALL, 1_247_442_432),
            ([512, 1280, 8, 8, 12], 36_188_672),
            ([768, 1920, 12, 12, 16], 108_552_960),
            ([1344, 3360, 21, 21, 24], 498_614_592),
        ] {
            let sites = config(size).sites();
            let own = sites
                .iter()
                .filter(|(_, s)| !s.tied && s.kind != SiteKind::Embedding);
            let found: usize = own
                .map(|(_, s)| s.stored_shape().iter().product::<usize>())
                .sum();
            assert_eq!(found, expected, "{size:?}");
        }
    }

    fn close(found: f64, expected: f64) {
        assert!(
            (found / expected - 1.0).abs() < 1e-5,
            "{found} instead of {expected}"
        );
    }

    #[test]
    fn scales_are_those_of_the_published_sizes() {
        close(residual_scale(1.4, 40), 0.221_359_4);
        close(residual_scale(1.4, 52), 0.194_145_1);
        for (size, ratio, rate, std) in [
            (LARGE, 9.0, 0.001_111_111, 0.033_333_33),
            (SMALL, 6.0, 0.001_666_667, 0.040_824_83),
        ] {
            let config = config(size);
            let (sites, of) = (config.sites(), config.architecture.as_ref());
            close(of.logit_scale(&config).unwrap(), 1.0 / ratio);
            let mut rates = BTreeSet::new();
            for (_, site) in sites.iter().filter(|(_, site)| !site.tied) {
                let scale = of.lr_scale(&config, site);
                let matrix = site.path.contains("_proj");
                close(0.01 * scale, if matrix { rate } else { 0.01 });
                rates.insert(matrix);
            }
            assert_eq!(rates.len(), 2);
            let site = sites
                .iter()
                .find(|(_, s)| s.path.ends_with("0.self_attn.o_proj"));
            let (_, site) = site.unwrap();
            let drawn = of
                .first_values(&config, site, FirstValues::Weight, 0)
                .unwrap();
            let mean = drawn.iter().map(|v| f64::from(v * v)).sum::<f64>() / drawn.len() as f64;
            assert!((mean.sqrt() / std - 1.0).abs() < 3e-3, "{}", mean.sqrt());
        }
    }

    fn logits(raw: Value, from: Option<&ModelConfig>) -> Vec<f32> {
        let config = ModelConfig::from_json(raw, "config.json").unwrap();
        let device = Device::flex();
        let weights = random_weights(from.unwrap_or(&config), 4, &device);
        let model = build(config, &weights, &device).unwrap();
        let ids: Vec<u32> = (0..19).map(|i| (i * i + 3) % 64).collect();
        let hidden = model.forward(&Input::new(&ids, &[ids.len()]), &mut NoAdapter, None);
        to_vec(
            model
                .logits(hidden.unwrap(), Rows::Tokens, &mut NoAdapter)
                .unwrap(),
        )
    }

    #[test]
    fn at_the_base_width_and_without_scales_it_is_a_llama() {
        let sizes = |more: Value| {
            let mut raw = json!({"hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 3,
                "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 64, "tie_word_embeddings": true,
                "initializer_range": 0.3});
            for (key, value) in more.as_object().into_iter().flatten() {
                raw[key] = value.clone();
            }
            raw
        };
        let llama = sizes(json!({"model_type": "llama"}));
        let from = ModelConfig::from_json(llama.clone(), "config.json").unwrap();
        let neutral = json!({"model_type": "minicpm", "scale_emb": 1, "scale_depth": 3f64.sqrt(), "dim_model_base": 32});
        let expected = logits(llama, None);
        assert_eq!(logits(sizes(neutral.clone()), Some(&from)), expected);
        for (key, value) in [
            ("scale_emb", 1.5),
            ("scale_depth", 1.0),
            ("dim_model_base", 16.0),
        ] {
            let mut other = neutral.clone();
            other[key] = if key == "dim_model_base" {
                json!(16)
            } else {
                json!(value)
            };
            assert_ne!(logits(sizes(other), Some(&from)), expected, "{key}");
        }
    }

    #[test]
    fn settings_that_are_not_supported_are_refused_by_name() {
        for (key, value) in [
            ("scale_emb", json!(0.0)),
            ("scale_depth", json!(-1.4)),
            ("dim_model_base", json!(0)),
            ("head_dim", json!(24)),
            ("num_attention_heads", json!(5)),
            ("use_mup", json!(false)),
            ("sparse_config", json!({"kernel_size": 32})),
            ("use_qk_norm", json!(true)),
            ("num_experts_per_tok", json!(9)),
            ("router_aux_loss_coef", json!(-1.0)),
        ] {
            let mut raw = config([32, 40, 4, 2, 2]).raw;
            raw["num_experts"] = 8.into();
            assert!(ModelConfig::from_json(raw.clone(), "config.json").is_ok());
            raw[key] = value;
            let error = ModelConfig::from_json(raw, "config.json").unwrap_err();
            assert!(error.to_string().contains(&format!("`{key}`")), "{error}");
        }
        let mut raw = config([32, 40, 4, 2, 2]).raw;
        raw["num_experts"] = (1 << 20).into();
        let error = ModelConfig::from_json(raw, "config.json").unwrap_err();
        assert!(error.to_string().contains("`num_experts`"), "{error}");
    }

    /// A new model narrower than the published base width is its own base.
    #[test]
    fn new_models_have_the_published_scales() {
        let fresh = |hidden_size, own: Value| {
            let sizes = FreshSizes {
                vocab_size: 300,
                hidden_size,
                intermediate_size: 64,
                num_hidden_layers: 2,
                num_attention_heads: 4,
                num_key_value_heads: 2,
                max_position_embeddings: 32,
            };
            let own = own.as_object().cloned().unwrap_or_default();
            MINICPM.fresh_config(&sizes, &own, Some(0), "shape")
        };
        for (width, own, base) in [
            (64, json!({}), 64),
            (512, json!({}), 256),
            (64, json!({"dim_model_base": 32}), 32),
        ] {
            let raw = fresh(width, own).unwrap();
            assert_eq!(
                [
                    &raw["scale_emb"],
                    &raw["scale_depth"],
                    &raw["initializer_range"]
                ],
                [&json!(12), &json!(1.4), &json!(0.1)]
            );
            assert_eq!(raw["dim_model_base"], base);
            ModelConfig::from_json(raw, "shape").unwrap();
        }
        let mixture = fresh(64, json!({"num_experts": 4})).unwrap();
        let mixture = ModelConfig::from_json(mixture, "shape").unwrap();
        assert_eq!(
            [mixture.cost().experts, mixture.cost().active_experts],
            [4, 2]
        );
    }

    /// Where the context has grown eightfold the base is 10000 · 8^(64 / 62).
    #[test]
    fn a_longer_context_raises_the_rotary_base_as_ntk_does() {
        let rope = RopeConfig {
            theta: 10_000.0,
            scaling: RopeScaling::Dynamic { factor: 1.0 },
        };
        let (frequencies, _) = inverse_frequencies(&rope, 64, 4096, 8 * 4096);
        let base = f64::from(frequencies[1]).powf(-32.0);
        assert!((base / 85_550.4 - 1.0).abs() < 1e-4, "{base}");
    }
}
