//! Reading a `config.json`.

use frugal_nn::ModelError;
use serde_json::Value;

use crate::config::{
    Activation, ExpertsConfig, LatentConfig, ModelConfig, ModelType, RopeConfig, RopeScaling,
    SparseConfig,
};

struct Reader<'a> {
    value: &'a Value,
    source: &'a str,
}

impl Reader<'_> {
    fn bad(&self, key: &str, reason: impl Into<String>) -> ModelError {
        ModelError::Config {
            source_name: self.source.into(),
            key: key.into(),
            reason: reason.into(),
        }
    }

    fn get(&self, key: &str) -> Option<&Value> {
        self.value.get(key).filter(|v| !v.is_null())
    }

    fn size(&self, key: &str) -> Result<usize, ModelError> {
        self.opt_size(key)?
            .ok_or_else(|| self.bad(key, "the key is missing"))
    }

    fn opt_size(&self, key: &str) -> Result<Option<usize>, ModelError> {
        let Some(v) = self.get(key) else {
            return Ok(None);
        };
        match v.as_u64() {
            // A bound that no real model reaches keeps products of sizes from overflowing.
            Some(n) if n > 0 && n < (1 << 31) => Ok(Some(n as usize)),
            _ => Err(self.bad(key, format!("expected a positive whole number, found {v}"))),
        }
    }

    fn float(&self, key: &str, default: f64) -> Result<f64, ModelError> {
        match self.get(key) {
            None => Ok(default),
            Some(v) => v
                .as_f64()
                .ok_or_else(|| self.bad(key, format!("expected a number, found {v}"))),
        }
    }

    fn flag(&self, key: &str, default: bool) -> Result<bool, ModelError> {
        match self.get(key) {
            None => Ok(default),
            Some(v) => v
                .as_bool()
                .ok_or_else(|| self.bad(key, format!("expected true or false, found {v}"))),
        }
    }

    fn rope(
        &self,
        theta: f64,
        block: Option<&Value>,
        max_positions: usize,
    ) -> Result<RopeConfig, ModelError> {
        let Some(block) = block else {
            return Ok(RopeConfig {
                theta,
                scaling: RopeScaling::None,
            });
        };
        let r = Reader {
            value: block,
            source: self.source,
        };
        let theta = r.float("rope_theta", theta)?;
        let kind = r
            .get("rope_type")
            .or_else(|| r.get("type"))
            .and_then(Value::as_str)
            .unwrap_or("default");
        let original = r.float("original_max_position_embeddings", max_positions as f64)?;
        let factor = r.float("factor", 1.0)?;
        let scaling = match kind {
            "default" => RopeScaling::None,
            "linear" => RopeScaling::Linear { factor },
            "dynamic" => RopeScaling::Dynamic { factor },
            "llama3" => RopeScaling::Llama3 {
                factor,
                low_freq_factor: r.float("low_freq_factor", 1.0)?,
                high_freq_factor: r.float("high_freq_factor", 4.0)?,
                original_max_position_embeddings: original,
            },
            "yarn" => RopeScaling::Yarn {
                factor,
                original_max_position_embeddings: original,
                beta_fast: r.float("beta_fast", 32.0)?,
                beta_slow: r.float("beta_slow", 1.0)?,
                attention_factor: r.float("attention_factor", 0.1 * factor.ln() + 1.0)?,
            },
            other => {
                return Err(
                    self.bad("rope_scaling", format!("kind `{other}` is not supported; supported: default, linear, dynamic, llama3, yarn"))
                );
            }
        };
        if factor <= 0.0 || theta <= 0.0 {
            return Err(self.bad("rope_scaling", "theta and factor must be positive"));
        }
        Ok(RopeConfig { theta, scaling })
    }
}

pub(super) fn is_classifier(config: &Value) -> bool {
    let class = config
        .get("architectures")
        .and_then(|a| a.get(0))
        .and_then(Value::as_str);
    class.is_some_and(|class| class.ends_with("ForSequenceClassification"))
}

impl ModelConfig {
    /// Reads a `config.json` value; `source` names it in errors.
    ///
    /// # Errors
    /// An unsupported `model_type`, a missing key, a value of the wrong kind or sizes that do not
    /// fit.
    pub fn from_json(raw: Value, source: &str) -> Result<Self, ModelError> {
        let r = Reader {
            value: &raw,
            source,
        };
        let name = r
            .get("model_type")
            .and_then(Value::as_str)
            .ok_or_else(|| r.bad("model_type", "the key is missing"))?;
        let Some(&(_, model_type)) = ModelType::ALL.iter().find(|(n, _)| *n == name) else {
            return Err(ModelError::Architecture {
                source_name: source.into(),
                model_type: name.into(),
                supported: ModelType::ALL.map(|(n, _)| n).join(", "),
            });
        };
        let config = match model_type {
            ModelType::Gpt2 => Self::gpt2(&r)?,
            t if t.is_encoder() => Self::encoder(&r, t)?,
            t => Self::decoder(&r, t)?,
        };
        config.check(&r)?;
        // A decoder that was saved as a classifier has no output over the vocabulary; the token
        // table stands in for it.
        let tie_word_embeddings =
            config.tie_word_embeddings || (is_classifier(&raw) && !model_type.is_encoder());
        Ok(Self {
            raw,
            tie_word_embeddings,
            ..config
        })
    }

    fn check(&self, r: &Reader<'_>) -> Result<(), ModelError> {
        if !self
            .num_attention_heads
            .is_multiple_of(self.num_key_value_heads)
        {
            return Err(r.bad(
                "num_key_value_heads",
                format!(
                    "{} does not divide the {} attention heads",
                    self.num_key_value_heads, self.num_attention_heads
                ),
            ));
        }
        if self.rope.is_some() && !self.head_dim.is_multiple_of(2) {
            return Err(r.bad(
                "head_dim",
                format!(
                    "{} is odd, rotary positions need an even width",
                    self.head_dim
                ),
            ));
        }
        if self.num_hidden_layers > 4096 {
            return Err(r.bad(
                "num_hidden_layers",
                format!(
                    "{} blocks are more than any known model has",
                    self.num_hidden_layers
                ),
            ));
        }
        Ok(())
    }

    fn decoder(r: &Reader<'_>, model_type: ModelType) -> Result<Self, ModelError> {
        let gemma = model_type == ModelType::Gemma3Text;
        let hidden_size = r.size("hidden_size")?;
        let heads = r.size("num_attention_heads")?;
        let layers = r.size("num_hidden_layers")?;
        let default_head_dim = if gemma { 256 } else { hidden_size / heads };
        let latent = if model_type == ModelType::DeepseekV3 {
            Some(latent(r, layers)?)
        } else {
            None
        };
        let head_dim = match &latent {
            // The file's `head_dim` is that of the rotated part.
            Some(latent) => latent.qk_nope_head_dim + latent.qk_rope_head_dim,
            None => r.opt_size("head_dim")?.unwrap_or(default_head_dim),
        };
        let max_positions =
            r.opt_size("max_position_embeddings")?
                .unwrap_or(if gemma { 131_072 } else { 2048 });
        let theta = r.float("rope_theta", if gemma { 1_000_000.0 } else { 10_000.0 })?;

        // transformers 5 writes `rope_parameters`, for Gemma one block per kind of layer.
        let parameters = r.get("rope_parameters");
        let block = parameters
            .and_then(|p| p.get("full_attention"))
            .or(parameters)
            .or_else(|| r.get("rope_scaling"));
        let rope = r.rope(theta, block, max_positions)?;
        let rope_local = if gemma {
            let local = r.float("rope_local_base_freq", 10_000.0)?;
            Some(r.rope(
                local,
                parameters.and_then(|p| p.get("sliding_attention")),
                max_positions,
            )?)
        } else {
            None
        };

        let use_window = match model_type {
            ModelType::Qwen2 | ModelType::Qwen3 => r.flag("use_sliding_window", false)?,
            _ => true,
        };
        let sliding_window = if use_window {
            r.opt_size("sliding_window")?
        } else {
            None
        };
        let pattern = r
            .opt_size("sliding_window_pattern")?
            .or(r.opt_size("_sliding_window_pattern")?)
            .unwrap_or(6);
        let max_window_layers = r
            .get("max_window_layers")
            .and_then(Value::as_u64)
            .unwrap_or(0) as usize;
        let sliding_layers = match r.get("layer_types").and_then(Value::as_array) {
            Some(kinds) if kinds.len() == layers => kinds
                .iter()
                .map(|k| k.as_str() == Some("sliding_attention"))
                .collect(),
            Some(kinds) => {
                return Err(r.bad(
                    "layer_types",
                    format!("{} entries for {layers} blocks", kinds.len()),
                ));
            }
            None => (0..layers)
                .map(|i| match model_type {
                    ModelType::Gemma3Text => (i + 1) % pattern != 0,
                    ModelType::Mistral | ModelType::Mixtral => true,
                    ModelType::Qwen2 | ModelType::Qwen3 => i >= max_window_layers,
                    _ => false,
                })
                .map(|sliding| sliding && sliding_window.is_some())
                .collect(),
        };
        let attention_bias = r.flag("attention_bias", model_type == ModelType::Qwen2)?;
        let scalar = r.float("query_pre_attn_scalar", head_dim as f64)?;
        Ok(Self {
            model_type,
            hidden_size,
            intermediate_size: r.size("intermediate_size")?,
            num_hidden_layers: layers,
            num_attention_heads: heads,
            num_key_value_heads: r.opt_size("num_key_value_heads")?.unwrap_or(heads),
            head_dim,
            vocab_size: r.size("vocab_size")?,
            max_position_embeddings: max_positions,
            norm_eps: r.float("rms_norm_eps", 1e-6)?,
            activation: activation(
                r,
                &["hidden_activation", "hidden_act"],
                if gemma { "gelu_pytorch_tanh" } else { "silu" },
            )?,
            rope: Some(rope),
            rope_local,
            tie_word_embeddings: r.flag("tie_word_embeddings", gemma)?,
            sliding_window,
            sliding_layers,
            attention_scale: 1.0 / scalar.sqrt(),
            final_logit_softcapping: r.get("final_logit_softcapping").and_then(Value::as_f64),
            qkv_bias: attention_bias,
            output_bias: attention_bias && model_type != ModelType::Qwen2,
            mlp_bias: r.flag("mlp_bias", false)?,
            experts: if model_type == ModelType::Mixtral {
                Some(experts(r)?)
            } else {
                None
            },
            latent,
            sparse: if model_type == ModelType::NativeSparse {
                Some(sparse(r)?)
            } else {
                None
            },
            type_vocab_size: 0,
            pad_token_id: token_id(r, "pad_token_id"),
            raw: Value::Null,
        })
    }

    fn gpt2(r: &Reader<'_>) -> Result<Self, ModelError> {
        let hidden_size = r.size("n_embd")?;
        let heads = r.size("n_head")?;
        check_heads(r, "n_head", heads, hidden_size)?;
        let layers = r.size("n_layer")?;
        let positions = r.size("n_positions")?;
        for key in ["scale_attn_by_inverse_layer_idx", "reorder_and_upcast_attn"] {
            if r.flag(key, false)? {
                return Err(r.bad(key, "this GPT-2 variant is not supported"));
            }
        }
        Ok(Self {
            model_type: ModelType::Gpt2,
            hidden_size,
            intermediate_size: r.opt_size("n_inner")?.unwrap_or(4 * hidden_size),
            num_hidden_layers: layers,
            num_attention_heads: heads,
            num_key_value_heads: heads,
            head_dim: hidden_size / heads,
            vocab_size: r.size("vocab_size")?,
            max_position_embeddings: positions,
            norm_eps: r.float("layer_norm_epsilon", 1e-5)?,
            activation: activation(r, &["activation_function"], "gelu_new")?,
            rope: None,
            rope_local: None,
            tie_word_embeddings: r.flag("tie_word_embeddings", true)?,
            sliding_window: None,
            sliding_layers: vec![false; layers],
            attention_scale: if r.flag("scale_attn_weights", true)? {
                1.0 / ((hidden_size / heads) as f64).sqrt()
            } else {
                1.0
            },
            final_logit_softcapping: None,
            qkv_bias: true,
            output_bias: true,
            mlp_bias: true,
            experts: None,
            latent: None,
            sparse: None,
            type_vocab_size: 0,
            pad_token_id: token_id(r, "pad_token_id"),
            raw: Value::Null,
        })
    }

    fn encoder(r: &Reader<'_>, model_type: ModelType) -> Result<Self, ModelError> {
        let hidden_size = r.size("hidden_size")?;
        let heads = r.size("num_attention_heads")?;
        check_heads(r, "num_attention_heads", heads, hidden_size)?;
        let layers = r.size("num_hidden_layers")?;
        let positions = r
            .get("position_embedding_type")
            .and_then(Value::as_str)
            .unwrap_or("absolute");
        if positions != "absolute" {
            return Err(r.bad(
                "position_embedding_type",
                format!("`{positions}` is not supported, only `absolute`"),
            ));
        }
        Ok(Self {
            model_type,
            hidden_size,
            intermediate_size: r.size("intermediate_size")?,
            num_hidden_layers: layers,
            num_attention_heads: heads,
            num_key_value_heads: heads,
            head_dim: hidden_size / heads,
            vocab_size: r.size("vocab_size")?,
            max_position_embeddings: r.size("max_position_embeddings")?,
            norm_eps: r.float("layer_norm_eps", 1e-12)?,
            activation: activation(r, &["hidden_act"], "gelu")?,
            rope: None,
            rope_local: None,
            tie_word_embeddings: true,
            sliding_window: None,
            sliding_layers: vec![false; layers],
            attention_scale: 1.0 / ((hidden_size / heads) as f64).sqrt(),
            final_logit_softcapping: None,
            qkv_bias: true,
            output_bias: true,
            mlp_bias: true,
            experts: None,
            latent: None,
            sparse: None,
            type_vocab_size: r.opt_size("type_vocab_size")?.unwrap_or(2),
            pad_token_id: token_id(r, "pad_token_id").or(Some(
                if model_type == ModelType::Roberta {
                    1
                } else {
                    0
                },
            )),
            raw: Value::Null,
        })
    }
}

/// Where the file does not give the width of a head, the heads share that of the model.
fn check_heads(
    r: &Reader<'_>,
    key: &str,
    heads: usize,
    hidden_size: usize,
) -> Result<(), ModelError> {
    if !hidden_size.is_multiple_of(heads) {
        return Err(r.bad(
            key,
            format!("{heads} heads cannot share a width of {hidden_size} evenly"),
        ));
    }
    Ok(())
}

fn experts(r: &Reader<'_>) -> Result<ExpertsConfig, ModelError> {
    let num_local_experts = r.size("num_local_experts")?;
    let num_experts_per_tok = r.opt_size("num_experts_per_tok")?.unwrap_or(2);
    if num_experts_per_tok > num_local_experts {
        return Err(r.bad(
            "num_experts_per_tok",
            format!("{num_experts_per_tok} of {num_local_experts} experts"),
        ));
    }
    Ok(ExpertsConfig {
        num_local_experts,
        num_experts_per_tok,
        router_aux_loss_coef: r.float("router_aux_loss_coef", 0.001)?,
    })
}

fn latent(r: &Reader<'_>, layers: usize) -> Result<LatentConfig, ModelError> {
    if r.get("first_k_dense_replace")
        .and_then(Value::as_u64)
        .unwrap_or(3)
        < layers as u64
    {
        return Err(r.bad(
            "first_k_dense_replace",
            "blocks with experts are not supported for this architecture: only dense ones are",
        ));
    }
    let scaling = r.get("rope_parameters").or_else(|| r.get("rope_scaling"));
    if scaling
        .and_then(|s| s.get("mscale_all_dim"))
        .and_then(Value::as_f64)
        .is_some_and(|m| m != 0.0)
    {
        return Err(r.bad("rope_scaling", "`mscale_all_dim` is not supported"));
    }
    let latent = LatentConfig {
        q_lora_rank: r.opt_size("q_lora_rank")?,
        kv_lora_rank: r.size("kv_lora_rank")?,
        qk_nope_head_dim: r.size("qk_nope_head_dim")?,
        qk_rope_head_dim: r.size("qk_rope_head_dim")?,
        v_head_dim: r.size("v_head_dim")?,
        rope_interleave: r.flag("rope_interleave", true)?,
    };
    if !latent.qk_rope_head_dim.is_multiple_of(2) {
        return Err(r.bad("qk_rope_head_dim", "rotary positions need an even width"));
    }
    Ok(latent)
}

fn sparse(r: &Reader<'_>) -> Result<SparseConfig, ModelError> {
    let size = |key: &str, default: usize| Ok::<_, ModelError>(r.opt_size(key)?.unwrap_or(default));
    let sparse = SparseConfig {
        compress_block: size("compress_block", 16)?,
        compress_stride: size("compress_stride", 8)?,
        select_block: size("select_block", 16)?,
        select_count: size("select_count", 4)?,
        window: size("window", 64)?,
    };
    if sparse.select_count < 3 {
        return Err(r.bad(
            "select_count",
            "the first and the two most recent blocks are always selected: at least 3",
        ));
    }
    Ok(sparse)
}

fn token_id(r: &Reader<'_>, key: &str) -> Option<u32> {
    r.get(key)
        .and_then(Value::as_u64)
        .and_then(|id| u32::try_from(id).ok())
}

fn activation(r: &Reader<'_>, keys: &[&str], default: &str) -> Result<Activation, ModelError> {
    let (key, name) = keys
        .iter()
        .find_map(|k| r.get(k).and_then(Value::as_str).map(|v| (*k, v)))
        .unwrap_or((keys[0], default));
    Ok(match name {
        "silu" | "swish" => Activation::Silu,
        "gelu" => Activation::Gelu,
        "gelu_new" | "gelu_pytorch_tanh" | "gelu_fast" => Activation::GeluTanh,
        "relu" => Activation::Relu,
        other => return Err(r.bad(key, format!("activation `{other}` is not supported"))),
    })
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
}
