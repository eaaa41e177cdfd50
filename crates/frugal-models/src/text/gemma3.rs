//! Gemma 3, text only: norms before and after each sub-layer, alternating local and global
//! attention, and in embedding models attention in both directions.
//!
//! <https://huggingface.co/docs/transformers/model_doc/gemma3>

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

/// Gemma 3.
pub static GEMMA3_TEXT: Family = Family {
    model_type: "gemma3_text",
    class: "Gemma3ForCausalLM",
    classifier_class: "Gemma3TextForSequenceClassification",
    base_prefix: "model.",
    is_encoder: false,
    in_transformers: true,
    head: HeadLayout::Score,
    usual_targets: UsualTargets {
        ia3: &["q_proj", "v_proj", "down_proj"],
        ia3_feedforward: "down_proj",
    },
    read,
    fresh: None,
    keys: KeyTable {
        honored: keys::names::<Gemma3TextConfig>,
        refused: &[],
        // The reference writes the pattern under this name, and reads it under the other alone.
        without_effect: &["attention_dropout", "_sliding_window_pattern"],
    },
};

/// Keys of `Gemma3TextConfig`, and two of its older spellings.
#[derive(Debug, Serialize, Deserialize)]
#[serde(default)]
struct Gemma3TextConfig {
    vocab_size: Size,
    hidden_size: Size,
    intermediate_size: Size,
    num_hidden_layers: Size,
    num_attention_heads: Size,
    num_key_value_heads: Option<Size>,
    head_dim: Size,
    hidden_activation: Activation,
    max_position_embeddings: Size,
    rms_norm_eps: f64,
    tie_word_embeddings: bool,
    pad_token_id: TokenId,
    attention_bias: bool,
    query_pre_attn_scalar: f64,
    sliding_window: Option<Size>,
    layer_types: Option<Vec<String>>,
    final_logit_softcapping: Option<f64>,
    attn_logit_softcapping: Option<f64>,
    use_bidirectional_attention: Option<bool>,
    sliding_window_pattern: Option<Size>,
    rope_local_base_freq: Option<f64>,
}

impl Default for Gemma3TextConfig {
    fn default() -> Self {
        Self {
            vocab_size: Size(262_208),
            hidden_size: Size(2304),
            intermediate_size: Size(9216),
            num_hidden_layers: Size(26),
            num_attention_heads: Size(8),
            num_key_value_heads: Some(Size(4)),
            head_dim: Size(256),
            hidden_activation: Activation::GeluTanh,
            max_position_embeddings: Size(131_072),
            rms_norm_eps: 1e-6,
            tie_word_embeddings: true,
            pad_token_id: TokenId(None),
            attention_bias: false,
            query_pre_attn_scalar: 256.0,
            sliding_window: Some(Size(4096)),
            layer_types: None,
            final_logit_softcapping: None,
            attn_logit_softcapping: None,
            use_bidirectional_attention: None,
            sliding_window_pattern: None,
            rope_local_base_freq: None,
        }
    }
}

fn read(raw: &Value, source: &str) -> Result<ModelConfig, ModelError> {
    let k: Gemma3TextConfig = keys::read(raw, source, keys::DECODER_SIZES)?;
    let head_dim = k.head_dim.0;
    let rope = RopeReader {
        raw,
        source,
        default_theta: 1_000_000.0,
        max_positions: k.max_position_embeddings.0,
        rotated: head_dim,
    };
    let num_hidden_layers = keys::layers("num_hidden_layers", k.num_hidden_layers, source)?;
    let pattern = k.sliding_window_pattern.map_or(6, |pattern| pattern.0);
    let layers = keys::sliding_layers(k.layer_types.as_deref(), num_hidden_layers, source, |i| {
        (i + 1) % pattern != 0
    })?;
    if k.attn_logit_softcapping.is_some() {
        // The reference has the key, but no place where it computes with it.
        return Err(keys::bad(
            source,
            "attn_logit_softcapping",
            "logits of attention are not capped in this architecture: remove the key, or set it to null",
        ));
    }
    let bidirectional = k.use_bidirectional_attention.unwrap_or(false);
    let window = k.sliding_window.map(|window| match bidirectional {
        // Half of it on either side.
        true => window.0 / 2 + 1,
        false => window.0,
    });
    let [full, local] = rope.by_layer_type("rope_local_base_freq", 10_000.0)?;
    let spec = DecoderSpec {
        rope_local: Some(local),
        sliding_window: window,
        sliding_layers: layers,
        bidirectional,
        attention_scale: 1.0 / k.query_pre_attn_scalar.sqrt(),
        final_logit_softcapping: k.final_logit_softcapping,
        // Files store gains as an offset from 1.
        norm_offset: 1.0,
        sandwich_norms: true,
        // The reference keeps this factor in the embedding's precision, f32 here.
        embed_scale: Some((k.hidden_size.0 as f32).sqrt()),
        ..DecoderSpec::new([head_dim, num_hidden_layers], full)
    };
    let architecture = Arc::new(GroupedDecoder {
        spec: spec.check("head_dim", source)?,
        attention: GqaSpec {
            qkv_bias: k.attention_bias,
            output_bias: k.attention_bias,
            qk_norm: true,
        },
        mlp_bias: false,
    });
    Ok(ModelConfig {
        family: &GEMMA3_TEXT,
        hidden_size: k.hidden_size.0,
        intermediate_size: k.intermediate_size.0,
        num_hidden_layers,
        num_attention_heads: k.num_attention_heads.0,
        num_key_value_heads: k.num_key_value_heads.unwrap_or(k.num_attention_heads).0,
        head_dim,
        vocab_size: k.vocab_size.0,
        max_position_embeddings: k.max_position_embeddings.0,
        norm_eps: k.rms_norm_eps,
        activation: k.hidden_activation,
        tie_word_embeddings: k.tie_word_embeddings,
        pad_token_id: k.pad_token_id.0,
        architecture,
        raw: raw.clone(),
        source: source.into(),
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// transformers reads `sliding_window_pattern`, writes `_sliding_window_pattern`, and takes 6
    /// where the former is absent.
    #[test]
    fn the_pattern_that_transformers_only_writes_changes_no_block() {
        let layers = |key: &str, pattern: usize| {
            let raw = json!({
                "model_type": "gemma3_text", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 7,
                "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "vocab_size": 64, key: pattern,
            });
            read(&raw, "config.json").unwrap().arithmetic()["layer_types"].clone()
        };
        let six = layers("sliding_window_pattern", 6);
        assert_eq!(layers("_sliding_window_pattern", 2), six);
        assert_ne!(layers("sliding_window_pattern", 2), six);
    }
}
