//! Llama 2 and 3, SmolLM2; and Mistral, which is Llama with a sliding window.
//!
//! <https://huggingface.co/docs/transformers/model_doc/llama2>,
//! <https://huggingface.co/docs/transformers/model_doc/mistral>

use std::sync::Arc;

use frugal_nn::{HeadLayout, ModelError, UsualTargets};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::activation::Activation;
use crate::architecture::{Family, KeyTable, ModelConfig};
use crate::blocks::decoder::DecoderSpec;
use crate::blocks::gqa::GqaSpec;
use crate::blocks::grouped::GroupedDecoder;
use crate::blocks::prefix::check_gen_token;
use crate::fresh::{Fresh, FreshSizes, Own};
use crate::keys::{self, Size, TokenId};
use crate::rope::RopeReader;

const TARGETS: UsualTargets = UsualTargets {
    ia3: &["k_proj", "v_proj", "down_proj"],
    ia3_feedforward: "down_proj",
};

/// Llama.
pub static LLAMA: Family = Family {
    model_type: "llama",
    class: "LlamaForCausalLM",
    classifier_class: "LlamaForSequenceClassification",
    base_prefix: "model.",
    is_encoder: false,
    in_transformers: true,
    head: HeadLayout::Score,
    usual_targets: TARGETS,
    read: read_llama,
    fresh: Some(Fresh {
        about: "attention and a gated feed-forward layer",
        config: fresh,
    }),
    keys: KeyTable {
        honored: keys::names::<LlamaConfig>,
        refused: &[("pretraining_tp", "1"), ("partial_rotary_factor", "1.0")],
        without_effect: &["attention_dropout"],
    },
};

/// Mistral.
pub static MISTRAL: Family = Family {
    model_type: "mistral",
    class: "MistralForCausalLM",
    classifier_class: "MistralForSequenceClassification",
    base_prefix: "model.",
    is_encoder: false,
    in_transformers: true,
    head: HeadLayout::Score,
    usual_targets: TARGETS,
    read: read_mistral,
    fresh: None,
    keys: KeyTable {
        honored: keys::names::<MistralConfig>,
        refused: &[("partial_rotary_factor", "1.0")],
        without_effect: &["attention_dropout"],
    },
};

/// Keys of `LlamaConfig`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(default)]
struct LlamaConfig {
    vocab_size: Size,
    hidden_size: Size,
    intermediate_size: Size,
    num_hidden_layers: Size,
    num_attention_heads: Size,
    num_key_value_heads: Option<Size>,
    head_dim: Option<Size>,
    hidden_act: Activation,
    max_position_embeddings: Size,
    rms_norm_eps: f64,
    tie_word_embeddings: bool,
    attention_bias: bool,
    mlp_bias: bool,
    pad_token_id: TokenId,
    /// The token in front of which a text is read in both directions, as models trained with
    /// prefixes have it; a key of our own.
    gen_token_id: TokenId,
}

impl Default for LlamaConfig {
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
            tie_word_embeddings: false,
            attention_bias: false,
            mlp_bias: false,
            pad_token_id: TokenId(None),
            gen_token_id: TokenId(None),
        }
    }
}

/// Keys of `MistralConfig`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(default)]
struct MistralConfig {
    vocab_size: Size,
    hidden_size: Size,
    intermediate_size: Size,
    num_hidden_layers: Size,
    num_attention_heads: Size,
    num_key_value_heads: Option<Size>,
    head_dim: Option<Size>,
    hidden_act: Activation,
    max_position_embeddings: Size,
    rms_norm_eps: f64,
    tie_word_embeddings: bool,
    sliding_window: Option<Size>,
    pad_token_id: TokenId,
}

impl Default for MistralConfig {
    fn default() -> Self {
        Self {
            vocab_size: Size(32_000),
            hidden_size: Size(4096),
            intermediate_size: Size(14_336),
            num_hidden_layers: Size(32),
            num_attention_heads: Size(32),
            num_key_value_heads: Some(Size(8)),
            head_dim: None,
            hidden_act: Activation::Silu,
            max_position_embeddings: Size(131_072),
            rms_norm_eps: 1e-6,
            tie_word_embeddings: false,
            sliding_window: Some(Size(4096)),
            pad_token_id: TokenId(None),
        }
    }
}

/// A new Llama.
fn fresh(sizes: &FreshSizes, own: &Own<'_>) -> Result<Value, ModelError> {
    sizes.decoder(own).map(Value::Object)
}

fn read_llama(raw: &Value, source: &str) -> Result<ModelConfig, ModelError> {
    let k: LlamaConfig = keys::read(raw, source, keys::DECODER_SIZES)?;
    let head_dim = match k.head_dim {
        Some(dim) => dim.0,
        None => k.hidden_size.0 / k.num_attention_heads.0,
    };
    let rope = RopeReader {
        raw,
        source,
        default_theta: 10_000.0,
        max_positions: k.max_position_embeddings.0,
        rotated: head_dim,
    };
    let num_hidden_layers = keys::layers("num_hidden_layers", k.num_hidden_layers, source)?;
    let spec = DecoderSpec {
        prefix_token: check_gen_token(k.gen_token_id, k.vocab_size.0, source)?,
        ..DecoderSpec::new([head_dim, num_hidden_layers], rope.uniform()?)
    };
    let architecture = Arc::new(GroupedDecoder {
        spec: spec.check("head_dim", source)?,
        attention: GqaSpec {
            qkv_bias: k.attention_bias,
            output_bias: k.attention_bias,
            qk_norm: false,
        },
        mlp_bias: k.mlp_bias,
    });
    Ok(ModelConfig {
        family: &LLAMA,
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

fn read_mistral(raw: &Value, source: &str) -> Result<ModelConfig, ModelError> {
    let k: MistralConfig = keys::read(raw, source, keys::DECODER_SIZES)?;
    let head_dim = match k.head_dim {
        Some(dim) => dim.0,
        None => k.hidden_size.0 / k.num_attention_heads.0,
    };
    let rope = RopeReader {
        raw,
        source,
        default_theta: 10_000.0,
        max_positions: k.max_position_embeddings.0,
        rotated: head_dim,
    };
    let num_hidden_layers = keys::layers("num_hidden_layers", k.num_hidden_layers, source)?;
    let window = k.sliding_window.map(|window| window.0);
    let all = vec![true; num_hidden_layers];
    let architecture = Arc::new(GroupedDecoder {
        spec: DecoderSpec::new([head_dim, num_hidden_layers], rope.uniform()?)
            .sliding(window, all)
            .check("head_dim", source)?,
        attention: GqaSpec::default(),
        mlp_bias: false,
    });
    Ok(ModelConfig {
        family: &MISTRAL,
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
