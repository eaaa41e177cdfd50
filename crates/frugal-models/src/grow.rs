//! Growing a TokenFormer: more key and value tokens in every layer, at the same width and depth.
//!
//! Wang et al., arXiv 2410.23168, section 3.3 and equation 30. A new key of zeros has a score of 0 with
//! every input, which adds nothing to the norm of the scores and has a weight of GELU(0) = 0: the
//! outputs are those of before if and only if the scale stays that of the old number of tokens. They
//! are so bit by bit where the products with the values are summed in the same order, which on AVX2
//! and AVX-512 they are from old numbers that are multiples of 64 to new ones of up to 512, and to
//! rounding elsewhere (1e-6 of logits around 1). The official GPU code scales by the root of the current number, which multiplies the
//! normalised scores by `sqrt(new / old)`; its TPU code can keep the old one (`zoom_dim`). New values
//! are drawn as in a new model: with values of zeros too, neither would ever get a gradient.

use std::str::FromStr;

use burn::prelude::Device;
use frugal_nn::{ModelError, SiteInfo, named_rng, standard_normal};
use serde::{Deserialize, Serialize};

use crate::architecture::{FirstValues, ModelConfig};
use crate::blocks::pattention::{KEYS, ParamNorm};
use crate::init::insert;
use crate::keys::{bad, initializer_range};
use crate::merge::Weights;
use crate::source::{MemorySource, read_values};
use crate::text::tokenformer::{MODEL_TYPE, SCALE_KEYS, TOKEN_KEYS};

/// Most tokens of a layer.
const MAX_TOKENS: usize = 1 << 20;

/// How many tokens there are to be.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum TokenCounts {
    /// `2x`: so many times as many everywhere.
    Times(f64),
    /// `96`: so many of queries, keys and values, and the others in proportion.
    Queries(usize),
    /// `96,96,384`: of queries, keys and values each, of what the heads give, of the feed-forward
    /// layer.
    Each([usize; 3]),
}

impl FromStr for TokenCounts {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || {
            format!("`{text}` is neither a factor (2x), nor a number (96), nor three (96,96,384)")
        };
        if let Some(factor) = text.strip_suffix('x') {
            return factor.parse().map(Self::Times).map_err(|_| wrong());
        }
        let counts: Result<Vec<usize>, _> = text.split(',').map(|n| n.trim().parse()).collect();
        match counts.as_deref() {
            Ok(&[count]) => Ok(Self::Queries(count)),
            Ok(&[qkv, proj, ffn]) => Ok(Self::Each([qkv, proj, ffn])),
            _ => Err(wrong()),
        }
    }
}

impl TokenCounts {
    /// The new numbers in place of the old.
    fn of(self, old: [usize; 3], source: &str) -> Result<[usize; 3], ModelError> {
        let mut new = [0; 3];
        for (i, (key, old_count)) in TOKEN_KEYS.into_iter().zip(old).enumerate() {
            let wanted = match self {
                Self::Times(factor) => factor * old_count as f64,
                Self::Queries(count) => count as f64 / old[0] as f64 * old_count as f64,
                Self::Each(counts) => counts[i] as f64,
            };
            let whole = (wanted - wanted.round()).abs() < 1e-6;
            let refused = if !wanted.is_finite() || wanted > MAX_TOKENS as f64 {
                format!("at most {MAX_TOKENS} tokens of a layer are made")
            } else if !whole {
                "that is no whole number: give three numbers".to_owned()
            } else if (wanted.round() as usize) < old_count {
                "a model only grows".to_owned()
            } else {
                new[i] = wanted.round() as usize;
                continue;
            };
            let reason = format!("{old_count} cannot become {wanted}: {refused}");
            return Err(bad(source, key, reason));
        }
        if new == old {
            let reason = format!("{} cannot become {}: nothing would grow", old[0], new[0]);
            return Err(bad(source, TOKEN_KEYS[0], reason));
        }
        Ok(new)
    }
}

/// What new keys are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NewKeys {
    /// Zeros: the outputs stay.
    #[default]
    Zero,
    /// Drawn as in a new model, as in the paper's own runs: the outputs change.
    Normal,
}

/// What the scale of a layer is made for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Scale {
    /// The number that it was made for: the outputs stay.
    #[default]
    Keep,
    /// The new number of tokens, as in the official GPU code: the outputs change.
    Renew,
}

/// How a model grows.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Growth {
    /// How many tokens there are to be.
    pub tokens: TokenCounts,
    /// What new keys are.
    pub keys: NewKeys,
    /// What scales are made for.
    pub scale: Scale,
    /// Decides what is drawn.
    pub seed: u64,
}

impl Growth {
    /// Growth that changes no output.
    pub fn new(tokens: TokenCounts) -> Self {
        Self {
            tokens,
            keys: NewKeys::Zero,
            scale: Scale::Keep,
            seed: 0,
        }
    }

    /// Whether outputs stay.
    pub fn keeps_outputs(&self) -> bool {
        self.keys == NewKeys::Zero && self.scale == Scale::Keep
    }
}

/// Numbers of tokens: of queries, keys and values each, of what the heads give, of the feed-forward
/// layer.
///
/// # Errors
/// A model of another architecture.
pub fn token_counts(config: &ModelConfig) -> Result<[usize; 3], ModelError> {
    numbers(config, TOKEN_KEYS)
}

fn numbers(config: &ModelConfig, keys: [&str; 3]) -> Result<[usize; 3], ModelError> {
    let found = config.model_type();
    if found != MODEL_TYPE {
        let reason = format!("`{found}` models have no tokens to add to, only `{MODEL_TYPE}` has");
        return Err(bad(&config.source, "model_type", reason));
    }
    // The configuration was read: all of them are there.
    let all = config.arithmetic();
    Ok(keys.map(|key| all[key].as_u64().unwrap_or_default() as usize))
}

/// The configuration of the grown model.
///
/// # Errors
/// A model of another architecture, fewer tokens than there are or no more, a normalisation under
/// which keys of zeros have a weight where outputs are to stay.
pub fn grown_config(config: &ModelConfig, growth: &Growth) -> Result<ModelConfig, ModelError> {
    let (old, scales) = (token_counts(config)?, numbers(config, SCALE_KEYS)?);
    let new = growth.tokens.of(old, &config.source)?;
    let kind = config.arithmetic()["norm_activation_type"].clone();
    let norm: ParamNorm = serde_json::from_value(kind.clone()).unwrap_or_default();
    if growth.keys == NewKeys::Zero && !norm.ignores_zero_keys() {
        let reason = format!(
            "under {kind} a key of zeros has a weight like any other: outputs would change, which new keys must be drawn for"
        );
        return Err(bad(&config.source, "norm_activation_type", reason));
    }
    if growth.keys == NewKeys::Normal {
        initializer_range(&config.raw, &config.source)?;
    }
    let mut raw = config.raw.clone();
    for (i, key) in TOKEN_KEYS.into_iter().enumerate() {
        raw[key] = new[i].into();
        raw[SCALE_KEYS[i]] = match growth.scale {
            Scale::Keep => scales[i],
            Scale::Renew => new[i],
        }
        .into();
    }
    ModelConfig::from_json(raw, &config.source)
}

/// The grown model: the old tokens first, then the new ones; every other tensor as it was.
///
/// # Errors
/// Those of [`grown_config`].
pub fn grow(weights: &Weights, growth: &Growth, device: &Device) -> Result<Weights, ModelError> {
    let config = grown_config(&weights.config, growth)?;
    let (old_sites, sites) = (weights.config.sites(), config.sites());
    let mut tensors = MemorySource::default();
    for ((_, old), (_, site)) in old_sites.iter().zip(sites.iter()) {
        if site.tied {
            continue;
        }
        let (name, shape) = (site.weight_name(), site.stored_shape());
        let old_shape = old.stored_shape();
        let mut values = read_values(&weights.tensors, &name, &old_shape)?;
        if old_shape != shape {
            // Tokens are the rows of both tensors.
            values.extend(new_rows(&config, site, growth, values.len())?);
        }
        insert(&mut tensors, name, values, shape, device);
        if site.has_bias {
            let name = format!("{}.bias", site.path);
            let mut values = read_values(&weights.tensors, &name, &[old.d_out])?;
            // Of new scores: they stay zeros.
            values.resize(site.d_out, 0.0);
            insert(&mut tensors, name, values, vec![site.d_out], device);
        }
    }
    Ok(Weights { config, tensors })
}

/// What is drawn for a whole tensor of the grown model, behind the first `kept` values.
fn new_rows(
    config: &ModelConfig,
    site: &SiteInfo,
    growth: &Growth,
    kept: usize,
) -> Result<Vec<f32>, ModelError> {
    let all = site.d_in * site.d_out;
    if site.name() == KEYS {
        return Ok(match growth.keys {
            NewKeys::Zero => vec![0.0; all - kept],
            NewKeys::Normal => {
                let std = initializer_range(&config.raw, &config.source)?;
                let mut rng = named_rng(growth.seed, &site.weight_name());
                let drawn = (0..all).map(|_| std * standard_normal(&mut rng));
                drawn.skip(kept).collect()
            }
        });
    }
    let drawn = config
        .architecture
        .first_values(config, site, FirstValues::Weight, growth.seed);
    Ok(drawn.map_or_else(|| vec![0.0; all - kept], |values| values[kept..].to_vec()))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::build::build;
    use crate::init::random_weights;
    use crate::source::WeightSource;
    use frugal_nn::{Input, NoAdapter, Rows, to_vec};

    fn config(more: Value) -> ModelConfig {
        let mut raw = json!({"model_type": "tokenformer", "hidden_size": 32, "num_hidden_layers": 2,
            "num_attention_heads": 4, "vocab_size": 64, "qkv_slot_num": 12, "proj_slot_num": 20,
            "ffn_slot_num": 44, "partial_rotary_factor": 0.5, "final_norm": "layernorm"});
        for (key, value) in more.as_object().into_iter().flatten() {
            raw[key] = value.clone();
        }
        ModelConfig::from_json(raw, "config.json").unwrap()
    }

    fn fresh(config: ModelConfig) -> Weights {
        let tensors = random_weights(&config, 5, &Device::flex());
        Weights { config, tensors }
    }

    /// Bits of the logits of one sequence of this length.
    fn logits(weights: &Weights, length: u32) -> Vec<f32> {
        let backbone = build(weights.config.clone(), &weights.tensors, &Device::flex()).unwrap();
        let ids: Vec<u32> = (0..length).map(|i| (i * i + 3) % 64).collect();
        let input = Input::new(&ids, &[ids.len()]);
        let hidden = backbone.forward(&input, &mut NoAdapter, None).unwrap();
        to_vec(
            backbone
                .logits(hidden, Rows::Tokens, &mut NoAdapter)
                .unwrap(),
        )
    }

    fn bits(values: &[f32]) -> Vec<u32> {
        values.iter().map(|v| v.to_bits()).collect()
    }

    /// Largest difference of the logits, and whether all bits are the same.
    fn compare(old: &Weights, new: &Weights, length: u32) -> (f32, bool) {
        let (a, b) = (logits(old, length), logits(new, length));
        let differences = a.iter().zip(&b).map(|(a, b)| (a - b).abs());
        (differences.fold(0.0, f32::max), bits(&a) == bits(&b))
    }

    fn by(tokens: &str) -> Growth {
        Growth::new(tokens.parse().unwrap())
    }

    #[test]
    fn more_tokens_change_no_bit_where_sums_keep_their_order() {
        let sizes = json!({"qkv_slot_num": 64, "proj_slot_num": 64, "ffn_slot_num": 128});
        for norm in ["l2_norm_gelu", "gelu_l2_norm"] {
            let mut more = sizes.clone();
            more["norm_activation_type"] = norm.into();
            let old = fresh(config(more));
            for tokens in ["2x", "65,80,129", "64,64,512", "4x"] {
                let new = grow(&old, &by(tokens), &Device::flex()).unwrap();
                for length in [1, 2, 5, 9, 33] {
                    let (worst, same) = compare(&old, &new, length);
                    assert!(same, "{norm}, {tokens}, {length} tokens: {worst:e}");
                }
            }
            // And once more.
            let new = grow(&old, &by("2x"), &Device::flex()).unwrap();
            let again = grow(&new, &by("1.5x"), &Device::flex()).unwrap();
            assert!(compare(&old, &again, 9).1, "{norm}");
        }
    }

    #[test]
    fn more_tokens_change_no_more_than_rounding_elsewhere() {
        let old = fresh(config(json!({})));
        for tokens in ["2x", "15", "13,20,44", "300,21,1100"] {
            let new = grow(&old, &by(tokens), &Device::flex()).unwrap();
            for length in [1, 5, 33] {
                let (worst, _) = compare(&old, &new, length);
                assert!(worst < 3e-6, "{tokens}, {length} tokens: {worst:e}");
            }
        }
    }

    #[test]
    fn biases_of_scores_grow_with_them() {
        let mut old = fresh(config(json!({"attention_bias": true, "mlp_bias": true})));
        let biases: Vec<(String, usize)> = old
            .config
            .sites()
            .iter()
            .filter(|(_, site)| site.has_bias && site.path.ends_with("_param_tokens"))
            .map(|(_, site)| (format!("{}.bias", site.path), site.d_out))
            .collect();
        assert_eq!(biases.len(), 20);
        for (i, (name, count)) in biases.into_iter().enumerate() {
            let values = (0..count).map(|j| 0.1 * ((i + j) as f32).sin()).collect();
            insert(&mut old.tensors, name, values, vec![count], &Device::flex());
        }
        let plain = fresh(config(json!({})));
        assert!(compare(&old, &plain, 9).0 > 1e-2);
        let new = grow(&old, &by("2x"), &Device::flex()).unwrap();
        let (worst, _) = compare(&old, &new, 9);
        assert!(worst < 3e-6, "{worst:e}");
    }

    #[test]
    fn another_scale_or_drawn_keys_change_the_logits() {
        let old = fresh(config(json!({})));
        let plain = by("2x");
        let renewed = Growth {
            scale: Scale::Renew,
            ..plain
        };
        let drawn = Growth {
            keys: NewKeys::Normal,
            ..plain
        };
        for growth in [renewed, drawn] {
            assert!(!growth.keeps_outputs());
            let new = grow(&old, &growth, &Device::flex()).unwrap();
            let (worst, _) = compare(&old, &new, 9);
            assert!(worst > 1e-3, "{growth:?}: {worst:e}");
        }
    }

    #[test]
    fn scales_stay_with_the_model_and_old_tokens_come_first() {
        let old = fresh(config(json!({"ffn_zoom_dim": 9})));
        let new = grow(&old, &by("2x"), &Device::flex()).unwrap();
        let raw = &new.config.raw;
        let read = |keys: [&str; 3]| keys.map(|key| raw[key].as_u64().unwrap());
        assert_eq!(read(TOKEN_KEYS), [24, 40, 88]);
        assert_eq!(read(SCALE_KEYS), [12, 20, 9]);
        let tensor = |weights: &Weights, name: &str| {
            let shape = weights.tensors.shape(name).unwrap();
            (
                shape.clone(),
                read_values(&weights.tensors, name, &shape).unwrap(),
            )
        };
        for (path, count) in [("self_attn.value", 12), ("self_attn.proj", 20), ("mlp", 44)] {
            let name = |kind: &str| format!("model.layers.1.{path}.{kind}_param_tokens.weight");
            for kind in ["key", "value"] {
                let (_, before) = tensor(&old, &name(kind));
                let (shape, after) = tensor(&new, &name(kind));
                assert_eq!(shape, [2 * count, 32]);
                assert_eq!(after[..count * 32], before);
                let zeros = after[count * 32..].iter().all(|v| *v == 0.0);
                assert_eq!(zeros, kind == "key", "{path} {kind}");
            }
        }
    }

    #[test]
    fn what_does_not_grow_is_refused_with_its_key() {
        let llama = ModelConfig::from_json(
            json!({"model_type": "llama", "hidden_size": 32, "intermediate_size": 48,
                "num_hidden_layers": 1, "num_attention_heads": 4, "vocab_size": 64}),
            "config.json",
        );
        let softmax = config(json!({"norm_activation_type": "softmax"}));
        let plain = || config(json!({}));
        for (config, tokens, said) in [
            (llama.unwrap(), "2x", ["model_type", "llama"]),
            (softmax, "2x", ["norm_activation_type", "softmax"]),
            (plain(), "0.5x", ["qkv_slot_num", "only grows"]),
            (plain(), "24,10,88", ["proj_slot_num", "only grows"]),
            (plain(), "12", ["qkv_slot_num", "nothing"]),
            (plain(), "13", ["proj_slot_num", "whole"]),
            (plain(), "1e9x", ["qkv_slot_num", "at most"]),
            (plain(), "NaNx", ["qkv_slot_num", "at most"]),
        ] {
            let growth = by(tokens);
            let error = grown_config(&config, &growth).unwrap_err().to_string();
            assert!(said.iter().all(|part| error.contains(part)), "{error}");
        }
        for text in ["", "x", "2x2", "1,2", "-4", "1,2,3,4"] {
            assert!(text.parse::<TokenCounts>().is_err(), "{text}");
        }
    }
    #[test]
    fn drawn_keys_of_a_deviation_that_is_none_are_refused_and_not_infinite_or_turned_round() {
        let drawn = Growth {
            keys: NewKeys::Normal,
            ..by("2x")
        };
        for bad in [
            json!(1e308),
            json!(1e-60),
            json!(-1),
            json!("abc"),
            json!(0),
        ] {
            let config = config(json!({"initializer_range": bad}));
            let error = grown_config(&config, &drawn).unwrap_err().to_string();
            assert!(error.contains("`initializer_range`"), "{error}");
            // Keys of zeros are not drawn.
            grown_config(&config, &by("2x")).unwrap();
        }
        let wide = fresh(config(json!({"initializer_range": 3.0})));
        let new = grow(&wide, &drawn, &Device::flex()).unwrap();
        let name = "model.layers.1.mlp.key_param_tokens.weight";
        let values = read_values(&new.tensors, name, &[88, 32]).unwrap();
        let square = |v: &f32| f64::from(*v).powi(2);
        let deviation = (values[44 * 32..].iter().map(square).sum::<f64>() / 1408.0).sqrt();
        assert!((deviation / 3.0 - 1.0).abs() < 0.1, "{deviation}");
    }
}
