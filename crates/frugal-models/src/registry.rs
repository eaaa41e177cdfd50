//! The list of architectures, and from a `config.json` to one of them.

use frugal_nn::ModelError;
use serde_json::{Map, Value, json};

pub use crate::architecture::Family;
use crate::architecture::ModelConfig;
use crate::fresh::{FreshSizes, Own};
use crate::keys::{self, bad};
use crate::{text, vision};

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
    &text::mamba::MAMBA,
    &text::mamba2::MAMBA2,
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
    /// refuses. `source` names it in errors.
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
        let mut honored = (self.keys.honored)();
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
        Ok(config)
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
        if !(self.norm_eps.is_finite() && self.norm_eps >= 0.0) {
            let keys = ["rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon"];
            let key = keys.into_iter().find(|key| self.raw.get(key).is_some());
            let reason = format!("{} given, but it must be 0 or more", self.norm_eps);
            return Err(bad(source, key.unwrap_or(keys[0]), reason));
        }
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
}
