//! Qwen 2 and 2.5, Llama with biases on query, key and value; and Qwen 3, with normalised query and
//! key heads instead.
//!
//! <https://huggingface.co/docs/transformers/model_doc/qwen2>,
//! <https://huggingface.co/docs/transformers/model_doc/qwen3>

use std::sync::Arc;

use frugal_nn::{HeadLayout, ModelError, UsualTargets};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::activation::Activation;
use crate::architecture::{Family, KeyTable, ModelConfig};
use crate::blocks::decoder::DecoderSpec;
use crate::blocks::gqa::GqaSpec;
use crate::blocks::grouped::GroupedDecoder;
use crate::keys::{self, Size, TokenId};
use crate::rope::RopeReader;

const TARGETS: UsualTargets = UsualTargets {
    ia3: &["q_proj", "v_proj", "down_proj"],
    ia3_feedforward: "down_proj",
};

/// Qwen 2.
pub static QWEN2: Family = Family {
    model_type: "qwen2",
    class: "Qwen2ForCausalLM",
    classifier_class: "Qwen2ForSequenceClassification",
    base_prefix: "model.",
    is_encoder: false,
    in_transformers: true,
    head: HeadLayout::Score,
    usual_targets: TARGETS,
    read: read_qwen2,
    fresh: None,
    keys: KeyTable {
        honored: keys::names::<Qwen2Config>,
        refused: &[("partial_rotary_factor", "1.0")],
        without_effect: &["attention_dropout"],
    },
};

/// Qwen 3.
pub static QWEN3: Family = Family {
    model_type: "qwen3",
    class: "Qwen3ForCausalLM",
    classifier_class: "Qwen3ForSequenceClassification",
    base_prefix: "model.",
    is_encoder: false,
    in_transformers: true,
    head: HeadLayout::Score,
    usual_targets: TARGETS,
    read: read_qwen3,
    fresh: None,
    keys: KeyTable {
        honored: keys::names::<Qwen3Config>,
        refused: &[("partial_rotary_factor", "1.0")],
        without_effect: &["attention_dropout"],
    },
};

/// Keys of `Qwen2Config`, and a width of heads that readers of it obey.
#[derive(Debug, Serialize, Deserialize)]
#[serde(default)]
struct Qwen2Config {
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
    pad_token_id: TokenId,
    use_sliding_window: bool,
    sliding_window: Option<Size>,
    max_window_layers: usize,
    layer_types: Option<Vec<String>>,
}

impl Default for Qwen2Config {
    fn default() -> Self {
        Self {
            vocab_size: Size(151_936),
            hidden_size: Size(4096),
            intermediate_size: Size(22_016),
            num_hidden_layers: Size(32),
            num_attention_heads: Size(32),
            num_key_value_heads: Some(Size(32)),
            head_dim: None,
            hidden_act: Activation::Silu,
            max_position_embeddings: Size(32_768),
            rms_norm_eps: 1e-6,
            tie_word_embeddings: false,
            pad_token_id: TokenId(None),
            use_sliding_window: false,
            sliding_window: Some(Size(4096)),
            max_window_layers: 28,
            layer_types: None,
        }
    }
}

/// Keys of `Qwen3Config`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(default)]
struct Qwen3Config {
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
    pad_token_id: TokenId,
    attention_bias: bool,
    use_sliding_window: bool,
    sliding_window: Option<Size>,
    max_window_layers: usize,
    layer_types: Option<Vec<String>>,
}

impl Default for Qwen3Config {
    fn default() -> Self {
        Self {
            vocab_size: Size(151_936),
            hidden_size: Size(4096),
            intermediate_size: Size(22_016),
            num_hidden_layers: Size(32),
            num_attention_heads: Size(32),
            num_key_value_heads: Some(Size(32)),
            head_dim: Some(Size(128)),
            hidden_act: Activation::Silu,
            max_position_embeddings: Size(32_768),
            rms_norm_eps: 1e-6,
            tie_word_embeddings: false,
            pad_token_id: TokenId(None),
            attention_bias: false,
            use_sliding_window: false,
            sliding_window: Some(Size(4096)),
            max_window_layers: 28,
            layer_types: None,
        }
    }
}

/// Window and blocks that attend within it only.
fn window(
    [use_it, given]: [Option<usize>; 2],
    first: usize,
    kinds: Option<&[String]>,
    layers: usize,
    source: &str,
) -> Result<(Option<usize>, Vec<bool>), ModelError> {
    let window = use_it.and(given);
    let default = |i: usize| window.is_some() && i >= first;
    let sliding = keys::sliding_layers(kinds, layers, source, default)?;
    Ok((window, sliding))
}

fn read_qwen2(raw: &Value, source: &str) -> Result<ModelConfig, ModelError> {
    let k: Qwen2Config = keys::read(raw, source, keys::DECODER_SIZES)?;
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
    let (window, sliding) = window(
        [
            k.use_sliding_window.then_some(1),
            k.sliding_window.map(|w| w.0),
        ],
        k.max_window_layers,
        k.layer_types.as_deref(),
        num_hidden_layers,
        source,
    )?;
    let architecture = Arc::new(GroupedDecoder {
        spec: DecoderSpec::new([head_dim, num_hidden_layers], rope.uniform()?)
            .sliding(window, sliding)
            .check("head_dim", source)?,
        attention: GqaSpec {
            qkv_bias: true,
            output_bias: false,
            qk_norm: false,
        },
        mlp_bias: false,
    });
    Ok(ModelConfig {
        family: &QWEN2,
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

fn read_qwen3(raw: &Value, source: &str) -> Result<ModelConfig, ModelError> {
    let k: Qwen3Config = keys::read(raw, source, keys::DECODER_SIZES)?;
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
    let (window, sliding) = window(
        [
            k.use_sliding_window.then_some(1),
            k.sliding_window.map(|w| w.0),
        ],
        k.max_window_layers,
        k.layer_types.as_deref(),
        num_hidden_layers,
        source,
    )?;
    let architecture = Arc::new(GroupedDecoder {
        spec: DecoderSpec::new([head_dim, num_hidden_layers], rope.uniform()?)
            .sliding(window, sliding)
            .check("head_dim", source)?,
        attention: GqaSpec {
            qkv_bias: k.attention_bias,
            output_bias: k.attention_bias,
            qk_norm: true,
        },
        mlp_bias: false,
    });
    Ok(ModelConfig {
        family: &QWEN3,
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
