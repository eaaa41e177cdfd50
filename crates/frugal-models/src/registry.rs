//! The list of architectures, and from a `config.json` to one of them.

use frugal_nn::ModelError;
use serde_json::{Map, Value, json};

pub use crate::architecture::Family;
use crate::architecture::ModelConfig;
use crate::fresh::{FreshSizes, Own};
use crate::keys::{self, bad};
use crate::{text, vision};

/// Keys of which a new tokenizer decides.
const TOKEN_IDS: [&str; 3] = ["bos_token_id", "eos_token_id", "pad_token_id"];

/// All architectures.
pub const FAMILIES: &[&Family] = &[
    &text::llama::LLAMA,
    &text::llama::MISTRAL,
    &text::qwen::QWEN2,
    &text::qwen::QWEN3,
    &text::gemma3::GEMMA3_TEXT,
    &text::mixtral::MIXTRAL,
    &text::rmoe::RMOE,
    &text::widenet::WIDENET,
    &text::deepseek::DEEPSEEK_V3,
    &text::phi3::PHI3,
    &text::native_sparse::NATIVE_SPARSE,
    &text::tokenformer::TOKENFORMER,
    &text::mor::MOR,
    &text::minicpm::MINICPM,
    &text::mamba::MAMBA,
    &text::mamba2::MAMBA2,
    &text::gated_ssm::GATED_SSM,
    &text::hawk::HAWK,
    &text::recurrent_gemma::RECURRENT_GEMMA,
    &text::gpt2::GPT2,
    &text::bert::BERT,
    &text::bert::ROBERTA,
    &vision::vit::VIT,
    &vision::efficientvmamba::EFFICIENT_VMAMBA,
    &vision::vmamba::VMAMBA,
];

/// The architecture of a `model_type`.
pub fn find(model_type: &str) -> Option<&'static Family> {
    FAMILIES
        .iter()
        .copied()
        .find(|f| f.model_type == model_type)
}

impl Family {
    /// The `config.json` of a new model; `end` is the id of the token that begins, ends and pads.
    ///
    /// # Errors
    /// An architecture of which no new models are made, a key that it does not read, a value that it
    /// refuses, a size that no new model has. `source` names it in errors.
    pub fn fresh_config(
        &self,
        sizes: &FreshSizes,
        own: &Map<String, Value>,
        end: Option<u32>,
        source: &str,
    ) -> Result<Value, ModelError> {
        let Some(fresh) = self.fresh else {
            let reason = format!("no new `{}` models are made", self.model_type);
            return Err(bad(source, "arch", reason));
        };
        if let Some(key) = own.keys().find(|key| TOKEN_IDS.contains(&key.as_str())) {
            let reason = "a new model has a new tokenizer, whose token of the end this is";
            return Err(bad(source, key, reason));
        }
        // Elsewhere what is no id is none, as in the reference.
        let is_id = |value: &Value| value.as_u64().is_some_and(|id| u32::try_from(id).is_ok());
        let mut ids = own.iter().filter(|(key, _)| key.ends_with("_token_id"));
        if let Some((key, value)) = ids.find(|(_, value)| !is_id(value)) {
            return Err(bad(source, key, format!("expected a token, found {value}")));
        }
        sizes.check(own, source)?;
        let mut honored = (self.keys.honored)();
        honored.retain(|key| !TOKEN_IDS.contains(&key.as_str()));
        honored.extend(keys::ROPE.iter().map(|key| (*key).to_owned()));
        if let Some(key) = own.keys().find(|key| !honored.contains(*key)) {
            let near = frugal_core::suggest::did_you_mean(key, honored.iter().map(String::as_str));
            let hint = near.map_or(String::new(), |near| format!("; did you mean `{near}`?"));
            let reason = format!("`{}` models have no such key{hint}", self.model_type);
            return Err(bad(source, key, reason));
        }
        let mut config = (fresh.config)(sizes, &Own::new(own, source))?;
        let Some(keys) = config.as_object_mut() else {
            return Err(bad(source, "arch", "its configuration is no table"));
        };
        keys.extend(own.clone());
        let all = json!({
            "architectures": [self.class], "model_type": self.model_type, "vocab_size": sizes.vocab_size,
            "bos_token_id": end, "eos_token_id": end, "pad_token_id": end,
        });
        keys.extend(all.as_object().cloned().unwrap_or_default());
        keys::initializer_range(&config, source)?;
        // The keys of rotary positions are in no architecture's own list: one without such positions would
        // write them and never look at them.
        let rotary = own.keys().find(|key| keys::ROPE.contains(&key.as_str()));
        if let Some(key) = rotary.filter(|key| !self.looks_at(key, &config)) {
            let reason = format!("`{}` models do not look at it", self.model_type);
            return Err(bad(source, key, reason));
        }
        Ok(config)
    }

    /// Whether a key of a configuration is read: a value of no kind that it may have is refused then.
    fn looks_at(&self, key: &str, config: &Value) -> bool {
        let mut config = config.clone();
        config[key] = "none of its kinds".into();
        (self.read)(&config, "").is_err()
    }

    /// Which of the sizes that every new model has change nothing in one of this architecture, beside
    /// the keys of its `own`.
    pub fn idle_sizes(
        &self,
        sizes: &FreshSizes,
        own: &Map<String, Value>,
    ) -> impl Iterator<Item = &'static str> {
        let made = |sizes: &FreshSizes| self.fresh_config(sizes, own, None, "").ok();
        let usual = made(sizes);
        let others = sizes.doubled().into_iter();
        others
            .filter(|(_, other)| usual.is_some() && made(other) == usual)
            .map(|(key, _)| key)
            .collect::<Vec<_>>()
            .into_iter()
    }
}

impl ModelConfig {
    /// Reads a `config.json` value; `source` names it in errors.
    ///
    /// # Errors
    /// An unsupported `model_type`, a missing key, a value of the wrong kind or one that is not
    /// supported, sizes that do not fit.
    pub fn from_json(raw: Value, source: &str) -> Result<Self, ModelError> {
        let name = raw
            .get("model_type")
            .and_then(Value::as_str)
            .ok_or_else(|| bad(source, "model_type", "the key is missing"))?;
        let family = find(name).ok_or_else(|| ModelError::Architecture {
            source_name: source.into(),
            model_type: name.into(),
            supported: FAMILIES
                .iter()
                .map(|f| f.model_type)
                .collect::<Vec<_>>()
                .join(", "),
        })?;
        check_unquantized(&raw, source)?;
        family.check_refused(&raw, source)?;
        let config = (family.read)(&raw, source)?;
        config.check(source)?;
        Ok(config)
    }

    fn check(&self, source: &str) -> Result<(), ModelError> {
        let (heads, kv_heads) = (self.num_attention_heads, self.num_key_value_heads);
        if !heads.is_multiple_of(kv_heads) {
            return Err(bad(
                source,
                "num_key_value_heads",
                format!("{kv_heads} does not divide the {heads} of `num_attention_heads`"),
            ));
        }
        let of_norms = ["rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon"];
        let key = of_norms.into_iter().find(|key| self.raw.get(key).is_some());
        keys::not_negative(key.unwrap_or(of_norms[0]), self.norm_eps, source)?;
        Ok(())
    }
}

/// What `quant_method` says in folders whose layers are two thin matrices each. Other programs
/// would take the layers for missing and draw them at random; this they refuse.
pub const FACTORED_METHOD: &str = "frugal_factored";

/// Weights in codes of other programs are no weights here.
fn check_unquantized(raw: &Value, source: &str) -> Result<(), ModelError> {
    let Some(settings) = raw.get("quantization_config").filter(|v| !v.is_null()) else {
        return Ok(());
    };
    let text = |key: &str| settings.get(key).and_then(Value::as_str);
    if text("quant_method") == Some(FACTORED_METHOD) {
        return Ok(());
    }
    let by = text("quant_method")
        .or(text("quant_type"))
        .unwrap_or("another program");
    let reason = format!(
        "this checkpoint is quantised by {by}, whose codes cannot be read here: give the unquantised one, \
         and `--quantize nf4` or another kind to hold it in few bits"
    );
    Err(bad(source, "quantization_config", reason))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::fresh_memory::check_memory;

    #[test]
    fn heads_share_the_width_evenly() {
        let gpt2 = json!({"model_type": "gpt2", "n_embd": 64, "n_head": 6, "n_layer": 1, "n_positions": 8, "vocab_size": 9});
        let bert = json!({"model_type": "bert", "hidden_size": 64, "num_attention_heads": 6, "num_hidden_layers": 1,
            "intermediate_size": 8, "max_position_embeddings": 8, "vocab_size": 9});
        for (mut raw, key) in [(gpt2, "n_head"), (bert, "num_attention_heads")] {
            let error = ModelConfig::from_json(raw.clone(), "config.json")
                .unwrap_err()
                .to_string();
            assert!(error.contains(key) && error.contains("64"), "{error}");
            raw[key] = json!(4);
            assert_eq!(
                ModelConfig::from_json(raw, "config.json").unwrap().head_dim,
                16
            );
        }
    }

    #[test]
    fn a_root_of_a_negative_number_is_refused_before_it_is_taken_for_damaged_weights() {
        for epsilon in [json!(-1.0), json!(-1e-6)] {
            let raw = json!({"model_type": "llama", "hidden_size": 32, "intermediate_size": 8, "num_hidden_layers": 1,
                "num_attention_heads": 4, "vocab_size": 9, "rms_norm_eps": epsilon});
            let error = ModelConfig::from_json(raw, "config.json")
                .unwrap_err()
                .to_string();
            assert!(
                error.contains("`rms_norm_eps`: -") && error.contains("0 or more"),
                "{error}"
            );
        }
    }

    #[test]
    fn a_checkpoint_in_codes_of_another_program_is_refused_by_name() {
        let raw = json!({"model_type": "llama", "hidden_size": 32, "quantization_config": {"quant_method": "gptq", "bits": 4}});
        let error = ModelConfig::from_json(raw, "config.json")
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("gptq") && error.contains("unquantised"),
            "{error}"
        );
    }

    const SIZES: FreshSizes = FreshSizes {
        vocab_size: 64,
        hidden_size: 32,
        intermediate_size: 48,
        num_hidden_layers: 3,
        num_attention_heads: 4,
        num_key_value_heads: 2,
        max_position_embeddings: 16,
    };

    fn made(
        family: &Family,
        sizes: &FreshSizes,
        own: Value,
    ) -> Result<ModelConfig, frugal_nn::ModelError> {
        let own = own.as_object().cloned().unwrap_or_default();
        let raw = family.fresh_config(sizes, &own, Some(0), "shape")?;
        ModelConfig::from_json(raw, "shape")
    }

    fn makers() -> impl Iterator<Item = &'static Family> {
        let families = FAMILIES.iter().copied();
        families.filter(|family| family.fresh.is_some())
    }

    #[test]
    fn every_size_of_a_new_model_is_bounded_before_anything_is_made_of_it() {
        let mut tried = 0;
        for family in makers() {
            for key in (family.keys.honored)() {
                let shared = SIZES.doubled().iter().any(|(of_all, _)| *of_all == key);
                if shared || key == "pad_token_id" {
                    continue;
                }
                let own = json!({&key: 1_000_000_000});
                let error = made(family, &SIZES, own).unwrap_err().to_string();
                assert!(error.contains(&format!("`{key}`")), "{family:?}: {error}");
                tried += 1;
            }
            for wrong in [0, 1_000_000_000] {
                for (i, (key, _)) in SIZES.doubled().iter().enumerate() {
                    let mut all = [64, 32, 48, 3, 4, 2, 16];
                    all[i] = wrong;
                    let [vocab, hidden, inner, layers, heads, kv, longest] = all;
                    let sizes = FreshSizes {
                        vocab_size: vocab,
                        hidden_size: hidden,
                        intermediate_size: inner,
                        num_hidden_layers: layers,
                        num_attention_heads: heads,
                        num_key_value_heads: kv,
                        max_position_embeddings: longest,
                    };
                    if *key == "max_position_embeddings" {
                        continue;
                    }
                    let error = made(family, &sizes, json!({})).unwrap_err().to_string();
                    assert!(error.contains(&format!("`{key}`")), "{family:?}: {error}");
                }
            }
        }
        assert!(tried > 60, "{tried}");
    }

    #[test]
    fn a_new_model_that_no_memory_holds_is_refused_with_its_largest_size() {
        let llama = find("llama").unwrap();
        let usual = made(llama, &SIZES, json!({})).unwrap();
        let parameters = usual.sites().num_parameters() as u64;
        let none = Map::new();
        let check = |bytes: u64| check_memory(&usual, SIZES, &none, [8, bytes]);
        check(8 * parameters).unwrap();
        assert!(check(8 * parameters - 1).is_err());
        let own = json!({"head_dim": 1 << 20});
        let wide = made(llama, &SIZES, own.clone()).unwrap();
        let own = own.as_object().unwrap();
        let error = check_memory(&wide, SIZES, own, [8, 1 << 30]).unwrap_err();
        let error = error.to_string();
        let said = ["`head_dim`", "1048576", "GiB"];
        assert!(said.iter().all(|part| error.contains(part)), "{error}");
        // Products of sizes do not wrap around to something small.
        for family in makers() {
            let sizes = FreshSizes {
                hidden_size: 1 << 20,
                num_hidden_layers: 4096,
                ..SIZES
            };
            let Ok(config) = made(family, &sizes, json!({})) else {
                continue;
            };
            let error = check_memory(&config, sizes, &none, [8, 1 << 40]).unwrap_err();
            assert!(error.to_string().contains("`hidden_size`"), "{error}");
        }
    }

    #[test]
    fn ids_of_tokens_are_not_taken_and_then_overwritten() {
        for family in makers() {
            for key in TOKEN_IDS {
                let error = made(family, &SIZES, json!({key: 5})).unwrap_err();
                let error = error.to_string();
                assert!(
                    error.contains(&format!("`{key}`")) && error.contains("tokenizer"),
                    "{family:?}: {error}"
                );
            }
        }
    }

    #[test]
    fn sizes_that_an_architecture_has_no_use_for_are_known() {
        let of = |name: &str| {
            let family = find(name).unwrap();
            family.idle_sizes(&SIZES, &Map::new()).collect::<Vec<_>>()
        };
        assert!(of("llama").is_empty(), "{:?}", of("llama"));
        assert_eq!(of("tokenformer"), ["num_key_value_heads"]);
        assert_eq!(of("deepseek_v3"), ["num_key_value_heads"]);
        for name in ["mamba", "mamba2"] {
            let idle = [
                "intermediate_size",
                "num_attention_heads",
                "num_key_value_heads",
                "max_position_embeddings",
            ];
            assert_eq!(of(name), idle, "{name}");
        }
    }

    #[test]
    fn numbers_that_single_precision_or_sense_do_not_hold_are_refused_by_key() {
        let raw = |model: &str, key: &str, value: Value| {
            json!({"model_type": model, "hidden_size": 32, "intermediate_size": 8,
                "num_hidden_layers": 3, "num_attention_heads": 4, "vocab_size": 9, "qkv_slot_num": 4,
                "proj_slot_num": 4, "ffn_slot_num": 4, key: value})
        };
        for (model, key, value) in [
            ("llama", "rms_norm_eps", json!(1e300)),
            ("mamba", "layer_norm_epsilon", json!(1e300)),
            ("mamba", "initializer_range", json!(1e300)),
            ("mamba", "time_step_scale", json!(1e-300)),
            ("tokenformer", "layer_norm_eps", json!(1e300)),
            ("tokenformer", "pattention_eps", json!(1e300)),
            ("mixtral", "router_aux_loss_coef", json!(-0.1)),
            ("rmoe", "router_aux_loss_coef", json!(-0.1)),
            ("rmoe", "router_z_loss_coef", json!(-0.1)),
            ("rmoe", "moe_router_residual", json!(1e300)),
            ("widenet", "router_aux_loss_coef", json!(-0.1)),
            ("widenet", "expert_capacity_factor", json!(1e300)),
            ("widenet", "switch_deepth", json!(2)),
            ("widenet", "switch_deepth", json!("all")),
        ] {
            let error = ModelConfig::from_json(raw(model, key, value), "config.json");
            let error = error.unwrap_err().to_string();
            assert!(error.contains(&format!("`{key}`")), "{model}: {error}");
        }
        for depth in [3, 128] {
            ModelConfig::from_json(raw("widenet", "switch_deepth", json!(depth)), "").unwrap();
        }
        for family in makers() {
            let error = made(family, &SIZES, json!({"initializer_range": 1e300})).unwrap_err();
            let error = error.to_string();
            assert!(error.contains("`initializer_range`"), "{error}");
        }
    }

    #[test]
    fn a_router_without_a_state_has_no_width_of_it() {
        let rmoe = find("rmoe").unwrap();
        let linear = json!({"moe_router_type": "linear"});
        let config = made(rmoe, &SIZES, linear.clone()).unwrap();
        assert!(config.raw.get("moe_router_rnn_hidden_size").is_none());
        let mut wide = linear;
        wide["moe_router_rnn_hidden_size"] = json!(8);
        let error = made(rmoe, &SIZES, wide).unwrap_err().to_string();
        assert!(error.contains("`moe_router_rnn_hidden_size`"), "{error}");
    }

    #[test]
    fn no_width_is_not_called_odd() {
        let raw = json!({"model_type": "tokenformer", "hidden_size": 8, "num_hidden_layers": 1,
            "num_attention_heads": 4, "vocab_size": 9, "qkv_slot_num": 4, "proj_slot_num": 4,
            "ffn_slot_num": 4, "partial_rotary_factor": 0.25});
        let error = ModelConfig::from_json(raw, "config.json").unwrap_err();
        let error = error.to_string();
        assert!(
            error.contains("`partial_rotary_factor`") && !error.contains("odd"),
            "{error}"
        );
    }

    /// `rope_scaling = 5` was written to `config.json`, where nothing else than an object has a meaning.
    #[test]
    fn keys_of_a_kind_that_they_cannot_have_were_written() {
        let mut taken = Vec::new();
        for family in makers() {
            let mut keys = (family.keys.honored)();
            keys.extend(keys::ROPE.iter().map(|key| (*key).to_owned()));
            keys.retain(|key| !TOKEN_IDS.contains(&key.as_str()));
            for key in keys {
                let is_size = SIZES.clone().by_key().iter().any(|(size, _)| *size == key);
                let is_rope = keys::ROPE.contains(&key.as_str()) && key != "rope_theta";
                let numbers = is_rope.then_some([json!(5), json!(true)]);
                let wrong = [json!("no such"), json!({"no": ["such"]}), json!([[[]]])];
                for value in wrong.into_iter().chain(numbers.into_iter().flatten()) {
                    // Sizes have settings of their own.
                    if is_size || is_rope && value.is_object() {
                        continue;
                    }
                    let error = match made(family, &SIZES, json!({key.as_str(): value.clone()})) {
                        Ok(_) => "it is taken".to_owned(),
                        Err(error) => error.to_string(),
                    };
                    if !error.contains(&key) {
                        taken.push(format!("{}: {key} = {value}: {error}", family.model_type));
                    }
                }
            }
        }
        assert!(taken.is_empty(), "{}", taken.join("\n"));
        let mamba = made(find("mamba").unwrap(), &SIZES, json!({"rope_theta": 500.0}));
        let error = mamba.unwrap_err().to_string();
        assert!(
            error.contains("`rope_theta`") && error.contains("do not look"),
            "{error}"
        );
        let linear =
            json!({"rope_scaling": {"rope_type": "linear", "factor": 2.0}, "rope_theta": 500.0});
        for arch in ["llama", "minicpm", "mixtral"] {
            assert!(
                made(find(arch).unwrap(), &SIZES, linear.clone()).is_ok(),
                "{arch}"
            );
        }
    }
}
