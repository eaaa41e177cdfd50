//! DeepSeek V3 without experts: keys and values from one narrow vector per token (multi-head latent
//! attention).
//!
//! <https://huggingface.co/docs/transformers/model_doc/deepseek_v3>

use std::sync::Arc;

use frugal_nn::{Backbone, HeadLayout, ModelError, SiteInfo, SiteTable, UsualTargets};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::activation::Activation;
use crate::architecture::{Architecture, Cost, Family, KeyTable, LatentCost, ModelConfig};
use crate::blocks::decoder::{Decoder, DecoderSpec};
use crate::blocks::gated_mlp::GatedMlp;
use crate::blocks::mla::{Mla, MlaSpec};
use crate::fresh::{Fresh, FreshSizes, Own};
use crate::keys::{self, Size, TokenId};
use crate::rope::{RopeReader, RopeScaling, mscale};
use crate::weights::WeightLoader;

/// DeepSeek V3.
pub static DEEPSEEK_V3: Family = Family {
    model_type: "deepseek_v3",
    class: "DeepseekV3ForCausalLM",
    classifier_class: "DeepseekV3ForSequenceClassification",
    base_prefix: "model.",
    is_encoder: false,
    in_transformers: true,
    head: HeadLayout::Score,
    // Without a choice in peft: what stands closest to the usual one.
    usual_targets: UsualTargets {
        ia3: &["kv_b_proj", "down_proj"],
        ia3_feedforward: "down_proj",
    },
    read,
    fresh: Some(Fresh {
        about: "latent attention",
        config: fresh,
    }),
    keys: KeyTable {
        honored: keys::names::<DeepseekV3Config>,
        refused: &[("pretraining_tp", "1"), ("partial_rotary_factor", "1.0")],
        // Keys of experts describe blocks that are refused, and of further predictions layers that
        // the reference leaves out too.
        without_effect: &[
            "attention_dropout",
            "moe_intermediate_size",
            "n_shared_experts",
            "n_routed_experts",
            "output_router_logits",
            "routed_scaling_factor",
            "n_group",
            "topk_group",
            "num_experts_per_tok",
            "norm_topk_prob",
            "num_mtp_layers",
            "num_nextn_predict_layers",
            "head_dim",
        ],
    },
};

/// Keys of `DeepseekV3Config`; `head_dim` follows from others.
#[derive(Debug, Serialize, Deserialize)]
#[serde(default)]
struct DeepseekV3Config {
    vocab_size: Size,
    hidden_size: Size,
    intermediate_size: Size,
    num_hidden_layers: Size,
    num_attention_heads: Size,
    num_key_value_heads: Option<Size>,
    hidden_act: Activation,
    max_position_embeddings: Size,
    rms_norm_eps: f64,
    tie_word_embeddings: bool,
    pad_token_id: TokenId,
    q_lora_rank: Option<Size>,
    kv_lora_rank: Size,
    qk_nope_head_dim: Size,
    qk_rope_head_dim: Size,
    v_head_dim: Size,
    rope_interleave: Option<bool>,
    first_k_dense_replace: Option<usize>,
    attention_bias: bool,
}

impl Default for DeepseekV3Config {
    fn default() -> Self {
        Self {
            vocab_size: Size(129_280),
            hidden_size: Size(7168),
            intermediate_size: Size(18_432),
            num_hidden_layers: Size(61),
            num_attention_heads: Size(128),
            num_key_value_heads: Some(Size(128)),
            hidden_act: Activation::Silu,
            max_position_embeddings: Size(4096),
            rms_norm_eps: 1e-6,
            tie_word_embeddings: false,
            pad_token_id: TokenId(None),
            q_lora_rank: Some(Size(1536)),
            kv_lora_rank: Size(512),
            qk_nope_head_dim: Size(128),
            qk_rope_head_dim: Size(64),
            v_head_dim: Size(128),
            rope_interleave: Some(true),
            first_k_dense_replace: Some(3),
            attention_bias: false,
        }
    }
}

#[derive(Debug)]
struct DeepseekV3 {
    spec: DecoderSpec,
    attention: MlaSpec,
}

fn fresh(sizes: &FreshSizes, own: &Own<'_>) -> Result<Value, ModelError> {
    let head_dim = sizes.head_dim(own)?;
    let rotated = own.size("qk_rope_head_dim", head_dim / 2)?;
    let mut keys = sizes.decoder(own)?;
    let more = json!({
        "q_lora_rank": null, "kv_lora_rank": 4 * head_dim, "qk_nope_head_dim": head_dim,
        "qk_rope_head_dim": rotated, "v_head_dim": head_dim, "head_dim": rotated,
        "rope_interleave": false, "first_k_dense_replace": sizes.num_hidden_layers,
        "num_key_value_heads": sizes.num_attention_heads,
    });
    keys.extend(more.as_object().cloned().unwrap_or_default());
    Ok(Value::Object(keys))
}

fn read(raw: &Value, source: &str) -> Result<ModelConfig, ModelError> {
    let k: DeepseekV3Config = keys::read(raw, source, keys::DECODER_SIZES)?;
    if k.first_k_dense_replace.unwrap_or(0) < k.num_hidden_layers.0 {
        return Err(keys::bad(
            source,
            "first_k_dense_replace",
            "blocks with experts are not supported for this architecture: only dense ones are",
        ));
    }
    let attention = MlaSpec {
        q_lora_rank: k.q_lora_rank.map(|rank| rank.0),
        kv_lora_rank: k.kv_lora_rank.0,
        qk_nope_head_dim: k.qk_nope_head_dim.0,
        qk_rope_head_dim: k.qk_rope_head_dim.0,
        v_head_dim: k.v_head_dim.0,
        rope_interleave: k.rope_interleave.unwrap_or(false),
        attention_bias: k.attention_bias,
    };
    // The file's `head_dim` is that of the rotated part.
    let head_dim = attention.qk_nope_head_dim + attention.qk_rope_head_dim;
    let reader = RopeReader {
        raw,
        source,
        default_theta: 10_000.0,
        max_positions: k.max_position_embeddings.0,
        rotated: attention.qk_rope_head_dim,
    };
    let num_hidden_layers = keys::layers("num_hidden_layers", k.num_hidden_layers, source)?;
    let rope = reader.uniform()?;
    let spec = DecoderSpec::new([head_dim, num_hidden_layers], rope);
    let spec = DecoderSpec {
        rotated: attention.qk_rope_head_dim,
        attention_scale: spec.attention_scale * temperature(&spec.rope.scaling, raw, source)?,
        ..spec
    };
    let spec = spec.check("qk_rope_head_dim", source)?;
    let architecture = Arc::new(DeepseekV3 { spec, attention });
    Ok(ModelConfig {
        family: &DEEPSEEK_V3,
        hidden_size: k.hidden_size.0,
        intermediate_size: k.intermediate_size.0,
        num_hidden_layers,
        num_attention_heads: k.num_attention_heads.0,
        num_key_value_heads: k.num_key_value_heads.unwrap_or(k.num_attention_heads).0,
        head_dim,
        vocab_size: k.vocab_size.0,
        max_position_embeddings: k.max_position_embeddings.0,
        norm_eps: k.rms_norm_eps,
        activation: k.hidden_act,
        tie_word_embeddings: k.tie_word_embeddings,
        pad_token_id: k.pad_token_id.0,
        architecture,
        raw: raw.clone(),
        source: source.into(),
    })
}

/// What `mscale_all_dim` multiplies attention scores by, beside what it does to cosine and sine.
fn temperature(scaling: &RopeScaling, raw: &Value, source: &str) -> Result<f64, ModelError> {
    // An empty one is none, as in the reference.
    let is_given = |value: &&Value| value.as_object().is_some_and(|block| !block.is_empty());
    let block = ["rope_scaling", "rope_parameters"]
        .iter()
        .find_map(|key| raw.get(key).filter(is_given));
    let all = block
        .and_then(|b| b.get("mscale_all_dim"))
        .and_then(Value::as_f64)
        .filter(|m| *m != 0.0);
    let factor = match scaling {
        RopeScaling::None => return Ok(1.0),
        RopeScaling::Linear { factor }
        | RopeScaling::Dynamic { factor }
        | RopeScaling::Llama3 { factor, .. }
        | RopeScaling::Yarn { factor, .. } => *factor,
        RopeScaling::Longrope { .. } if all.is_none() => return Ok(1.0),
        RopeScaling::Longrope { .. } => {
            let reason = "`mscale_all_dim` does not go with longrope";
            return Err(keys::bad(source, "rope_scaling", reason));
        }
    };
    Ok(all.map_or(1.0, |all| mscale(factor, all).powi(2)))
}

impl Architecture for DeepseekV3 {
    fn arithmetic(&self, config: &ModelConfig) -> Value {
        self.spec.arithmetic(config, &[json!(self.attention)])
    }

    fn sites(&self, c: &ModelConfig) -> Vec<SiteInfo> {
        self.spec.sites(
            c,
            |sites, l, path| Mla::sites(sites, c, &self.attention, l, path),
            |sites, l, path| GatedMlp::sites(sites, c, false, l, &format!("{path}.mlp")),
        )
    }

    fn cost(&self, config: &ModelConfig) -> Cost {
        Cost {
            cache_width: self.attention.kv_lora_rank + self.attention.qk_rope_head_dim,
            key_value_width: 0,
            latent: Some(LatentCost {
                query_rank: self.attention.q_lora_rank,
                rank: self.attention.kv_lora_rank,
                plain: self.attention.qk_nope_head_dim,
                rotated: self.attention.qk_rope_head_dim,
                value: self.attention.v_head_dim,
            }),
            ..Cost::of_decoder(config)
        }
    }

    fn max_sequence(&self, config: &ModelConfig) -> usize {
        self.spec.max_sequence(config)
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
            |loader, path| Ok(Box::new(Mla::load(self.attention, config, loader, path)?)),
            |loader, path| {
                let path = format!("{path}.mlp");
                Ok(Box::new(GatedMlp::load(config.activation, loader, &path)?))
            },
        )
    }
}
