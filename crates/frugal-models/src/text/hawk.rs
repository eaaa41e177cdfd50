//! Hawk: a real-gated linear recurrent unit (RG-LRU) in the place of attention in every block, and a
//! gated feed-forward layer behind it.
//!
//! De et al., *Griffin*, 2024, arXiv 2402.19427, section 2; as the larger of the state space models of
//! *Birdie* (EMNLP 2024, arXiv 2411.01030) it may read the beginning of a text in both directions.
//! `transformers` has Griffin as `recurrent_gemma`, whose blocks and tensor names these are
//! (`block_types = ["recurrent"]`); without that class's factor on embeddings, cap on logits, offset of
//! gains and halved `intermediate_size`, a folder is a type of our own.
//!
//! `reverse_size` above 0: so many channels of the recurrences of every second block run backwards over
//! what comes before the first `gen_token_id`. Convolutions look back only, in both halves.

use std::sync::Arc;

use frugal_nn::{HeadLayout, ModelError, UsualTargets};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::recurrent_gemma::check_init;
use crate::activation::Activation;
use crate::architecture::{Family, KeyTable, ModelConfig};
use crate::blocks::decoder::DecoderSpec;
use crate::blocks::gqa::GqaSpec;
use crate::blocks::griffin::{Griffin, NAMES};
use crate::blocks::prefix::TwoWays;
use crate::blocks::rg_lru::RgLruSpec;
use crate::fresh::{Fresh, FreshSizes, Own};
use crate::keys::{self, Size, TokenId, bad};
use crate::rope::RopeReader;

/// Hawk.
pub static HAWK: Family = Family {
    model_type: "hawk",
    class: "HawkForCausalLM",
    classifier_class: "HawkForSequenceClassification",
    base_prefix: "model.",
    is_encoder: false,
    in_transformers: false,
    head: HeadLayout::Score,
    usual_targets: UsualTargets {
        ia3: &["linear_x", "down_proj"],
        ia3_feedforward: "down_proj",
    },
    read,
    fresh: Some(Fresh {
        about: "real-gated linear recurrences (RG-LRU) and feed-forward layers, without attention; may read prefixes in both directions",
        config: fresh,
    }),
    keys: KeyTable {
        honored: keys::names::<HawkConfig>,
        refused: &[],
        without_effect: &[],
    },
};

/// Keys of the configuration; defaults are Birdie's.
#[derive(Debug, Serialize, Deserialize)]
#[serde(default)]
struct HawkConfig {
    vocab_size: Size,
    hidden_size: Size,
    /// Width of the feed-forward layer.
    intermediate_size: Size,
    num_hidden_layers: Size,
    /// Channels of the recurrence.
    lru_width: Size,
    conv1d_width: Size,
    /// Blocks that the matrices of the gates are made of; 1 for full ones.
    num_gate_blocks: Size,
    hidden_activation: Activation,
    rms_norm_eps: f64,
    /// Channels of every second block that run backwards; 0 for a model that reads from left to
    /// right.
    reverse_size: usize,
    /// The token that ends what is read in both directions.
    gen_token_id: TokenId,
    w_init_variance_scale: f64,
    tie_word_embeddings: bool,
    pad_token_id: TokenId,
}

impl Default for HawkConfig {
    fn default() -> Self {
        Self {
            vocab_size: Size(32_000),
            hidden_size: Size(2048),
            intermediate_size: Size(5461),
            num_hidden_layers: Size(20),
            lru_width: Size(2560),
            conv1d_width: Size(4),
            num_gate_blocks: Size(1),
            hidden_activation: Activation::GeluTanh,
            rms_norm_eps: 1e-6,
            reverse_size: 0,
            gen_token_id: TokenId(None),
            w_init_variance_scale: 0.01,
            tie_word_embeddings: true,
            pad_token_id: TokenId(None),
        }
    }
}

fn fresh(sizes: &FreshSizes, own: &Own<'_>) -> Result<Value, ModelError> {
    let width = own.size("lru_width", sizes.hidden_size)?;
    Ok(json!({
        "hidden_size": sizes.hidden_size, "intermediate_size": sizes.intermediate_size,
        "num_hidden_layers": sizes.num_hidden_layers, "lru_width": width, "conv1d_width": 4,
        "num_gate_blocks": 1, "hidden_activation": "gelu_pytorch_tanh", "rms_norm_eps": 1e-6,
        "reverse_size": 0, "gen_token_id": null, "w_init_variance_scale": 0.01,
        "tie_word_embeddings": true,
    }))
}

fn read(raw: &Value, source: &str) -> Result<ModelConfig, ModelError> {
    let required = [
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "lru_width",
    ];
    let k: HawkConfig = keys::read(raw, source, &required)?;
    let (hidden, width, blocks) = (k.hidden_size.0, k.lru_width.0, k.num_gate_blocks.0);
    let num_hidden_layers = keys::layers("num_hidden_layers", k.num_hidden_layers, source)?;
    if !width.is_multiple_of(blocks) {
        let reason = format!("{blocks} does not divide the {width} channels of `lru_width`");
        return Err(bad(source, "num_gate_blocks", reason));
    }
    check_init(k.w_init_variance_scale, source)?;
    let vocab_size = k.vocab_size.0;
    let two_ways = TwoWays::read([k.reverse_size, width], k.gen_token_id, vocab_size, source)?;
    // There are no positions; the decoder around the blocks has a table for those that have.
    let none = json!({});
    let rope = RopeReader {
        raw: &none,
        source,
        default_theta: 10_000.0,
        max_positions: 1 << 20,
        rotated: 2,
    };
    let spec = DecoderSpec {
        rotated: 2,
        names: NAMES,
        prefix_token: two_ways.prefix_token(),
        ..DecoderSpec::new([hidden, num_hidden_layers], rope.uniform()?)
    };
    Ok(ModelConfig {
        family: &HAWK,
        hidden_size: hidden,
        intermediate_size: k.intermediate_size.0,
        num_hidden_layers,
        // There are no heads.
        num_attention_heads: 1,
        num_key_value_heads: 1,
        head_dim: hidden,
        vocab_size,
        max_position_embeddings: 1 << 20,
        norm_eps: k.rms_norm_eps,
        activation: k.hidden_activation,
        tie_word_embeddings: k.tie_word_embeddings,
        pad_token_id: k.pad_token_id.0,
        architecture: Arc::new(Griffin {
            spec,
            attention: GqaSpec {
                qkv_bias: false,
                output_bias: true,
                qk_norm: false,
            },
            attends: vec![false; num_hidden_layers],
            recurrent: RgLruSpec {
                width,
                taps: k.conv1d_width.0,
                gate_blocks: blocks,
                activation: k.hidden_activation,
                two_ways,
            },
            w_init_variance_scale: k.w_init_variance_scale,
        }),
        raw: raw.clone(),
        source: source.into(),
    })
}
