//! Sparse upcycling: a dense model whose feed-forward layers become mixtures of copies of themselves.
//!
//! Komatsuzaki et al., *Sparse Upcycling*, arXiv 2212.05055, as Hu et al., *MiniCPM*, arXiv 2404.06395,
//! section 6.3 use it: each feed-forward layer is copied to every expert, and a router is drawn from
//! N(0, 0.01). The shares of a token's experts sum to 1, so that the new model computes what the
//! dense one does, to rounding, whatever its routers choose; training moves the copies apart.

use burn::prelude::Device;
use frugal_nn::{ModelError, SiteInfo, named_rng, standard_normal};
use serde_json::{Value, json};

use crate::architecture::ModelConfig;
use crate::init::insert;
use crate::keys::bad;
use crate::merge::Weights;
use crate::source::{MemorySource, read_values};

/// How a dense model becomes a mixture.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Upcycling {
    /// Copies of each feed-forward layer.
    pub experts: usize,
    /// How many of them a token goes through.
    pub experts_per_token: usize,
    /// Standard deviation of the routers.
    pub router_std: f64,
    /// Weight of the loss that keeps the load even.
    pub router_aux_loss_coef: f64,
    /// Decides the routers.
    pub seed: u64,
}

impl Default for Upcycling {
    /// The paper's: 8 experts of which 2 are taken, a variance of 0.01, a weight of 0.01.
    fn default() -> Self {
        Self {
            experts: 8,
            experts_per_token: 2,
            router_std: 0.1,
            router_aux_loss_coef: 0.01,
            seed: 0,
        }
    }
}

/// Layers of an expert, and what they are in a dense model.
const EXPERT_LAYERS: [(&str, &str); 3] =
    [("w1", "gate_proj"), ("w3", "up_proj"), ("w2", "down_proj")];

/// The configuration of the mixture: of a `minicpm` model one of the same type, of `llama` and
/// `mistral` models a `mixtral`.
///
/// # Errors
/// A model of another architecture or one that is a mixture already, one expert, a mixture that
/// would compute something else around its feed-forward layers, a spread that is none.
pub fn upcycled_config(
    config: &ModelConfig,
    upcycling: &Upcycling,
) -> Result<ModelConfig, ModelError> {
    let refused = |key: &str, reason: String| Err(bad(&config.source, key, reason));
    let Upcycling {
        experts,
        experts_per_token: chosen,
        router_std,
        router_aux_loss_coef,
        ..
    } = *upcycling;
    if experts < 2 || chosen == 0 || chosen > experts {
        let reason = format!(
            "{chosen} of {experts} experts given: at least 2, of which 1 or more are taken"
        );
        return refused("num_experts", reason);
    }
    if !(router_std.is_finite() && router_std > 0.0) {
        let reason = format!("a router of spread {router_std:e} has no way to tell experts apart");
        return refused("router_std", reason);
    }
    if config.cost().experts > 1 {
        let reason = "the model is a mixture of experts already";
        return refused("model_type", reason.into());
    }
    let mut raw = config.raw.clone();
    match config.model_type() {
        "minicpm" => raw["num_experts"] = experts.into(),
        "llama" | "mistral" => {
            raw["model_type"] = "mixtral".into();
            raw["architectures"] = json!(["MixtralForCausalLM"]);
            raw["num_local_experts"] = experts.into();
            // What the classes have different defaults for.
            raw["head_dim"] = config.head_dim.into();
            raw["num_key_value_heads"] = config.num_key_value_heads.into();
            raw["rms_norm_eps"] = config.norm_eps.into();
            raw["max_position_embeddings"] = config.max_position_embeddings.into();
            if ["rope_theta", "rope_parameters"]
                .iter()
                .all(|key| raw[key].is_null())
            {
                raw["rope_theta"] = 10_000.0.into();
            }
            if config.model_type() == "mistral" && raw.get("sliding_window").is_none() {
                raw["sliding_window"] = 4096.into();
            }
        }
        other => {
            let reason = format!(
                "of `{other}` models no mixtures are made, only of `minicpm`, `llama` and `mistral`"
            );
            return refused("model_type", reason);
        }
    }
    raw["num_experts_per_tok"] = chosen.into();
    raw["router_aux_loss_coef"] = router_aux_loss_coef.into();
    let new = ModelConfig::from_json(raw, &config.source)?;
    let (before, after) = (config.arithmetic(), new.arithmetic());
    for (key, value) in before.as_object().into_iter().flatten() {
        // A key that the mixture does not have must be one at which it does nothing.
        let kept = after.get(key).unwrap_or(&Value::Bool(false));
        if key != "num_experts" && value != kept {
            let reason = format!("{value} cannot be kept in a `{}` model", new.model_type());
            return refused(key, reason);
        }
    }
    Ok(new)
}

/// The mixture: every expert a copy of the feed-forward layer, routers drawn, every other tensor as it
/// was.
///
/// # Errors
/// Those of [`upcycled_config`].
pub fn upcycle(
    weights: &Weights,
    upcycling: &Upcycling,
    device: &Device,
) -> Result<Weights, ModelError> {
    let config = upcycled_config(&weights.config, upcycling)?;
    let mut tensors = MemorySource::default();
    for (_, site) in config.sites().iter().filter(|(_, site)| !site.tied) {
        let (name, shape) = (site.weight_name(), site.stored_shape());
        let values = match source_of(site) {
            Source::Router => {
                let mut rng = named_rng(upcycling.seed, &name);
                let std = upcycling.router_std as f32;
                let count = shape.iter().product::<usize>();
                (0..count)
                    .map(|_| std * standard_normal(&mut rng))
                    .collect()
            }
            Source::Weight(from) => read_values(&weights.tensors, &from, &shape)?,
        };
        insert(&mut tensors, name, values, shape, device);
        if site.has_bias {
            let name = format!("{}.bias", site.path);
            let values = read_values(&weights.tensors, &name, &[site.d_out])?;
            insert(&mut tensors, name, values, vec![site.d_out], device);
        }
    }
    Ok(Weights { config, tensors })
}

/// Where the values of a tensor come from.
enum Source {
    Router,
    /// The tensor of this name in the dense model.
    Weight(String),
}

fn source_of(site: &SiteInfo) -> Source {
    let path = &site.path;
    let Some((block, rest)) = path
        .split_once(".mlp.")
        .or(path.split_once(".block_sparse_moe."))
    else {
        return Source::Weight(site.weight_name());
    };
    if rest == "gate" {
        return Source::Router;
    }
    let layer = rest.rsplit('.').next().unwrap_or(rest);
    let dense = EXPERT_LAYERS.iter().find(|(expert, _)| *expert == layer);
    match dense.filter(|_| rest.starts_with("experts.")) {
        Some((_, dense)) => Source::Weight(format!("{block}.mlp.{dense}.weight")),
        None => Source::Weight(site.weight_name()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::build::build;
    use crate::init::random_weights;
    use frugal_nn::{Input, NoAdapter, Rows, to_vec};

    fn dense(mut raw: Value, seed: u64) -> Weights {
        let sizes = json!({"hidden_size": 32, "intermediate_size": 24, "num_hidden_layers": 3,
            "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 64, "initializer_range": 0.3});
        for (key, value) in sizes.as_object().into_iter().flatten() {
            raw[key] = value.clone();
        }
        let config = ModelConfig::from_json(raw, "config.json").unwrap();
        let tensors = random_weights(&config, seed, &Device::flex());
        Weights { config, tensors }
    }

    fn logits(weights: &Weights) -> Vec<f32> {
        let backbone = build(weights.config.clone(), &weights.tensors, &Device::flex()).unwrap();
        let ids: Vec<u32> = (0..23).map(|i| (i * i + 3) % 64).collect();
        let hidden = backbone
            .forward(&Input::new(&ids, &[ids.len()]), &mut NoAdapter, None)
            .unwrap();
        let found = backbone.logits(hidden, Rows::Tokens, &mut NoAdapter);
        to_vec(found.unwrap())
    }

    /// The oracle is the dense model itself.
    #[test]
    fn copies_under_any_router_compute_what_the_dense_layer_does() {
        let minicpm = json!({"model_type": "minicpm", "scale_emb": 12, "scale_depth": 1.4,
            "dim_model_base": 16, "rope_theta": 500.0});
        let mistral = json!({"model_type": "mistral", "sliding_window": 5});
        let of = |chosen, router_std, seed| Upcycling {
            experts_per_token: chosen,
            router_std,
            seed,
            ..Upcycling::default()
        };
        for raw in [minicpm, mistral, json!({"model_type": "llama"})] {
            let dense = dense(raw, 3);
            let expected = logits(&dense);
            let size = expected.iter().fold(0.0f32, |m, v| m.max(v.abs()));
            for upcycling in [of(2, 0.1, 0), of(1, 0.1, 1), of(3, 4.0, 2), of(8, 1.0, 3)] {
                let mixture = upcycle(&dense, &upcycling, &Device::flex()).unwrap();
                assert_eq!(mixture.config.cost().experts, 8);
                let found = logits(&mixture);
                let differences = found.iter().zip(&expected).map(|(a, b)| (a - b).abs());
                let worst = differences.fold(0.0, f32::max);
                assert!(
                    worst < 2e-5 * size,
                    "{:?}: {worst:e} of {size}",
                    dense.config.family
                );
            }
        }
    }

    #[test]
    fn routers_have_the_spread_that_is_asked_for_and_depend_on_the_seed() {
        let raw = json!({"model_type": "minicpm", "scale_emb": 12, "dim_model_base": 16});
        let dense = dense(raw, 1);
        let router = |seed| {
            let upcycling = Upcycling {
                seed,
                ..Upcycling::default()
            };
            let mixture = upcycle(&dense, &upcycling, &Device::flex()).unwrap();
            let mut values = Vec::new();
            for layer in 0..3 {
                let name = format!("model.layers.{layer}.mlp.gate.weight");
                values.extend(read_values(&mixture.tensors, &name, &[8, 32]).unwrap());
            }
            values
        };
        let values = router(0);
        let mean_square = values.iter().map(|v| v * v).sum::<f32>() / values.len() as f32;
        assert!((mean_square / 0.01 - 1.0).abs() < 0.15, "{mean_square}");
        assert!(values == router(0) && values != router(1));
    }

    #[test]
    fn models_that_cannot_become_mixtures_are_refused_by_name() {
        let refused = |raw: Value, upcycling: Upcycling| {
            let config = dense(raw, 0).config;
            upcycled_config(&config, &upcycling)
                .unwrap_err()
                .to_string()
        };
        let usual = Upcycling::default();
        let said = refused(json!({"model_type": "qwen2"}), usual);
        assert!(
            said.contains("`model_type`") && said.contains("`qwen2`"),
            "{said}"
        );
        let said = refused(
            json!({"model_type": "llama", "attention_bias": true}),
            usual,
        );
        assert!(
            said.contains("`attention_bias`") && said.contains("mixtral"),
            "{said}"
        );
        let said = refused(json!({"model_type": "minicpm", "num_experts": 4}), usual);
        assert!(said.contains("already"), "{said}");
        let one = Upcycling {
            experts: 1,
            experts_per_token: 1,
            ..usual
        };
        assert!(refused(json!({"model_type": "llama"}), one).contains("1 of 1 experts"));
    }
}
