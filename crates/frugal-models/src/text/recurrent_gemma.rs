//! RecurrentGemma (Griffin): two recurrent blocks for each block that attends within a window, and a
//! gated feed-forward layer behind each.
//!
//! De et al., *Griffin*, 2024, arXiv 2402.19427.
//! <https://huggingface.co/docs/transformers/model_doc/recurrent_gemma>

use std::sync::Arc;

use frugal_nn::{HeadLayout, ModelError, UsualTargets};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::activation::Activation;
use crate::architecture::{Family, KeyTable, ModelConfig};
use crate::blocks::decoder::DecoderSpec;
use crate::blocks::gqa::GqaSpec;
use crate::blocks::griffin::{Griffin, NAMES};
use crate::blocks::prefix::TwoWays;
use crate::blocks::rg_lru::RgLruSpec;
use crate::keys::{self, Size, TokenId, bad};
use crate::rope::RopeReader;

/// RecurrentGemma.
pub static RECURRENT_GEMMA: Family = Family {
    model_type: "recurrent_gemma",
    class: "RecurrentGemmaForCausalLM",
    // Hugging Face has no such class; a folder with a head is read here.
    classifier_class: "RecurrentGemmaForSequenceClassification",
    base_prefix: "model.",
    is_encoder: false,
    in_transformers: true,
    head: HeadLayout::Score,
    // Without a choice in peft: what both kinds of blocks have, and what the mixer gives.
    usual_targets: UsualTargets {
        ia3: &["linear_x", "q_proj", "v_proj", "down_proj"],
        ia3_feedforward: "down_proj",
    },
    read,
    fresh: None,
    keys: KeyTable {
        honored: keys::names::<RecurrentGemmaConfig>,
        refused: &[],
        without_effect: &["attention_dropout"],
    },
};

/// Keys of `RecurrentGemmaConfig`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(default)]
struct RecurrentGemmaConfig {
    vocab_size: Size,
    hidden_size: Size,
    /// Both ways up of the feed-forward layer together.
    intermediate_size: Size,
    num_hidden_layers: Size,
    num_attention_heads: Size,
    num_key_value_heads: Option<Size>,
    lru_width: Option<Size>,
    attention_window_size: Size,
    conv1d_width: Size,
    logits_soft_cap: f64,
    rms_norm_eps: f64,
    hidden_activation: Activation,
    block_types: Vec<String>,
    attention_bias: bool,
    /// Share of a head that is rotated, where the rotary settings do not say.
    partial_rotary_factor: f64,
    w_init_variance_scale: f64,
    tie_word_embeddings: bool,
    pad_token_id: TokenId,
}

impl Default for RecurrentGemmaConfig {
    fn default() -> Self {
        Self {
            vocab_size: Size(256_000),
            hidden_size: Size(2560),
            intermediate_size: Size(7680),
            num_hidden_layers: Size(26),
            num_attention_heads: Size(10),
            num_key_value_heads: None,
            lru_width: None,
            attention_window_size: Size(2048),
            conv1d_width: Size(4),
            logits_soft_cap: 30.0,
            rms_norm_eps: 1e-6,
            hidden_activation: Activation::GeluTanh,
            block_types: ["recurrent", "recurrent", "attention"]
                .map(Into::into)
                .into(),
            attention_bias: false,
            partial_rotary_factor: 0.5,
            w_init_variance_scale: 0.01,
            tie_word_embeddings: true,
            pad_token_id: TokenId(Some(0)),
        }
    }
}

fn read(raw: &Value, source: &str) -> Result<ModelConfig, ModelError> {
    let k: RecurrentGemmaConfig = keys::read(raw, source, keys::DECODER_SIZES)?;
    let (width, heads) = (k.hidden_size.0, k.num_attention_heads.0);
    let head_dim = keys::shared_head_dim(width, heads, "num_attention_heads", source)?;
    let num_hidden_layers = keys::layers("num_hidden_layers", k.num_hidden_layers, source)?;
    let lru_width = k.lru_width.unwrap_or(k.hidden_size).0;
    if !lru_width.is_multiple_of(heads) {
        let reason = format!("{lru_width} is not a multiple of the {heads} blocks of the gates");
        return Err(bad(source, "lru_width", reason));
    }
    if k.intermediate_size.0 < 2 {
        return Err(bad(
            source,
            "intermediate_size",
            "1 given, but half of it is the width",
        ));
    }
    if !(k.logits_soft_cap > 0.0 && k.logits_soft_cap.is_finite()) {
        let reason = format!(
            "{} given, but it must be above 0",
            keys::shown(k.logits_soft_cap)
        );
        return Err(bad(source, "logits_soft_cap", reason));
    }
    check_init(k.w_init_variance_scale, source)?;
    let (rotated, rope) = rotary(raw, source, head_dim, k.partial_rotary_factor)?;
    let attends = attends(&k.block_types, num_hidden_layers, source)?;
    let spec = DecoderSpec {
        rotated,
        final_logit_softcapping: Some(k.logits_soft_cap),
        // Files store gains as an offset from 1.
        norm_offset: 1.0,
        // Held in half precision by the reference, whatever the model is held in.
        embed_scale: Some(half::bf16::from_f32((width as f32).sqrt()).to_f32()),
        names: NAMES,
        ..DecoderSpec::new([head_dim, num_hidden_layers], rope)
    };
    let spec = spec
        .sliding(Some(k.attention_window_size.0), attends.clone())
        .check("partial_rotary_factor", source)?;
    Ok(ModelConfig {
        family: &RECURRENT_GEMMA,
        hidden_size: width,
        intermediate_size: k.intermediate_size.0 / 2,
        num_hidden_layers,
        num_attention_heads: heads,
        num_key_value_heads: k.num_key_value_heads.unwrap_or(k.num_attention_heads).0,
        head_dim,
        vocab_size: k.vocab_size.0,
        // Positions are rotated within a window; the class has no longest sequence.
        max_position_embeddings: 1 << 20,
        norm_eps: k.rms_norm_eps,
        activation: k.hidden_activation,
        tie_word_embeddings: k.tie_word_embeddings,
        pad_token_id: k.pad_token_id.0,
        architecture: Arc::new(Griffin {
            spec,
            attention: GqaSpec {
                qkv_bias: k.attention_bias,
                output_bias: true,
                qk_norm: false,
            },
            attends,
            recurrent: RgLruSpec {
                width: lru_width,
                taps: k.conv1d_width.0,
                gate_blocks: heads,
                activation: k.hidden_activation,
                two_ways: TwoWays::default(),
            },
            w_init_variance_scale: k.w_init_variance_scale,
        }),
        raw: raw.clone(),
        source: source.into(),
    })
}

/// What fresh weights are drawn from has a root.
pub(super) fn check_init(scale: f64, source: &str) -> Result<(), ModelError> {
    if scale >= 0.0 && scale.is_finite() {
        return Ok(());
    }
    let reason = format!("{} given, but it must be 0 or more", keys::shown(scale));
    Err(bad(source, "w_init_variance_scale", reason))
}

/// The width of the part of a head that is rotated, and by what.
fn rotary(
    raw: &Value,
    source: &str,
    head_dim: usize,
    top: f64,
) -> Result<(usize, crate::rope::RopeConfig), ModelError> {
    let blocks = ["rope_scaling", "rope_parameters"];
    let given = |key: &&'static str| raw.get(*key)?.get("partial_rotary_factor")?.as_f64();
    let share = blocks.iter().find_map(given).unwrap_or(top);
    if !(share > 0.0 && share <= 1.0) {
        let reason = format!(
            "{} of a head given, but it must be above 0 and at most 1",
            keys::shown(share)
        );
        return Err(bad(source, "partial_rotary_factor", reason));
    }
    let mut without = raw.clone();
    for key in blocks {
        if let Some(block) = without.get_mut(key).and_then(Value::as_object_mut) {
            block.remove("partial_rotary_factor");
            let kind = block.get("rope_type").or(block.get("type"));
            if kind.is_some_and(|kind| kind != "default") {
                return Err(bad(
                    source,
                    key,
                    "this architecture has no scaled rotary positions",
                ));
            }
        }
    }
    let rotated = (head_dim as f64 * share) as usize;
    let rope = RopeReader {
        raw: &without,
        source,
        default_theta: 10_000.0,
        max_positions: 1 << 20,
        rotated,
    };
    Ok((rotated, rope.uniform()?))
}

/// For each block whether it attends: the list is repeated.
fn attends(kinds: &[String], layers: usize, source: &str) -> Result<Vec<bool>, ModelError> {
    let key = "block_types";
    if kinds.is_empty() {
        return Err(bad(source, key, "the list is empty"));
    }
    let of = |kind: &String| match kind.as_str() {
        "recurrent" => Ok(false),
        "attention" => Ok(true),
        other => {
            let reason = format!("`{other}` is not supported; recurrent and attention are");
            Err(bad(source, key, reason))
        }
    };
    let kinds = kinds.iter().map(of).collect::<Result<Vec<bool>, _>>()?;
    Ok(kinds.iter().copied().cycle().take(layers).collect())
}
