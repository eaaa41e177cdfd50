//! Phi-3 and 4: Llama with fused projections, rotary positions on a part of each head, and LongRoPE.
//!
//! <https://huggingface.co/docs/transformers/model_doc/phi3>

use std::sync::Arc;

use burn::prelude::*;
use frugal_nn::state::DecodeState;
use frugal_nn::{
    Backbone, Frozen, HeadLayout, Linear, ModelError, Pass, RotaryTable, SiteInfo, SiteTable,
    UsualTargets,
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::activation::Activation;
use crate::architecture::{Architecture, Cost, Family, KeyTable, ModelConfig};
use crate::blocks::attention::{Attend, SelfAttention, attend};
use crate::blocks::decoder::{Decoder, DecoderSpec};
use crate::blocks::gated_mlp::{FeedForward, gate_by};
use crate::keys::{self, Size, TokenId};
use crate::rope::{RopeReader, RopeScaling, rotate};
use crate::weights::WeightLoader;

/// Phi-3.
pub static PHI3: Family = Family {
    model_type: "phi3",
    class: "Phi3ForCausalLM",
    classifier_class: "Phi3ForSequenceClassification",
    base_prefix: "model.",
    is_encoder: false,
    in_transformers: true,
    head: HeadLayout::Score,
    // Without a choice in peft: the two fused projections' outputs hold keys and values, and more.
    usual_targets: UsualTargets {
        ia3: &["qkv_proj", "down_proj"],
        ia3_feedforward: "down_proj",
    },
    read,
    fresh: None,
    keys: KeyTable {
        honored: keys::names::<Phi3Config>,
        refused: &[],
        without_effect: &["attention_dropout", "embd_pdrop", "resid_pdrop"],
    },
};

/// Keys of `Phi3Config`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(default)]
struct Phi3Config {
    vocab_size: Size,
    hidden_size: Size,
    intermediate_size: Size,
    num_hidden_layers: Size,
    num_attention_heads: Size,
    num_key_value_heads: Option<Size>,
    hidden_act: Activation,
    max_position_embeddings: Size,
    original_max_position_embeddings: Size,
    rms_norm_eps: f64,
    tie_word_embeddings: bool,
    sliding_window: Option<Size>,
    partial_rotary_factor: Option<f64>,
    pad_token_id: TokenId,
}

impl Default for Phi3Config {
    fn default() -> Self {
        Self {
            vocab_size: Size(32_064),
            hidden_size: Size(3072),
            intermediate_size: Size(8192),
            num_hidden_layers: Size(32),
            num_attention_heads: Size(32),
            num_key_value_heads: None,
            hidden_act: Activation::Silu,
            max_position_embeddings: Size(4096),
            original_max_position_embeddings: Size(4096),
            rms_norm_eps: 1e-5,
            tie_word_embeddings: false,
            sliding_window: None,
            partial_rotary_factor: None,
            pad_token_id: TokenId(Some(32_000)),
        }
    }
}

#[derive(Debug)]
struct Phi3 {
    spec: DecoderSpec,
}

fn read(raw: &Value, source: &str) -> Result<ModelConfig, ModelError> {
    let k: Phi3Config = keys::read(raw, source, keys::DECODER_SIZES)?;
    let (width, heads) = (k.hidden_size.0, k.num_attention_heads.0);
    let head_dim = keys::shared_head_dim(width, heads, "num_attention_heads", source)?;
    let num_hidden_layers = keys::layers("num_hidden_layers", k.num_hidden_layers, source)?;
    let share = rotated_share(raw, k.partial_rotary_factor);
    if !(share > 0.0 && share <= 1.0) {
        let reason = format!(
            "{} of a head given, but it must be above 0 and at most 1",
            keys::shown(share)
        );
        return Err(keys::bad(source, "partial_rotary_factor", reason));
    }
    let rotated = (head_dim as f64 * share) as usize;
    // The class has a value for it where the file has none.
    let mut with_original = raw.clone();
    let original = k.original_max_position_embeddings.0;
    with_original["original_max_position_embeddings"] = original.into();
    name_longrope(&mut with_original);
    let rope = RopeReader {
        raw: &with_original,
        source,
        default_theta: 10_000.0,
        max_positions: k.max_position_embeddings.0,
        rotated,
    };
    let window = k.sliding_window.map(|window| window.0);
    let spec = DecoderSpec {
        rotated,
        ..DecoderSpec::new([head_dim, num_hidden_layers], rope.uniform()?)
    };
    let spec = spec
        .sliding(window, vec![true; num_hidden_layers])
        .check("partial_rotary_factor", source)?;
    Ok(ModelConfig {
        family: &PHI3,
        hidden_size: width,
        intermediate_size: k.intermediate_size.0,
        num_hidden_layers,
        num_attention_heads: heads,
        num_key_value_heads: k.num_key_value_heads.unwrap_or(k.num_attention_heads).0,
        head_dim,
        vocab_size: k.vocab_size.0,
        max_position_embeddings: k.max_position_embeddings.0,
        norm_eps: k.rms_norm_eps,
        activation: k.hidden_act,
        tie_word_embeddings: k.tie_word_embeddings,
        pad_token_id: k.pad_token_id.0,
        architecture: Arc::new(Phi3 { spec }),
        raw: raw.clone(),
        source: source.into(),
    })
}

/// The share of a head that is rotated.
fn rotated_share(raw: &Value, top: Option<f64>) -> f64 {
    let of = |key: &str| raw.get(key)?.get("partial_rotary_factor")?.as_f64();
    of("rope_scaling")
        .or(of("rope_parameters"))
        .or(top)
        .unwrap_or(1.0)
}

/// Older files call LongRoPE `su` or `yarn`; this architecture has no other scaling. The share of a
/// head that is rotated is read already.
fn name_longrope(raw: &mut Value) {
    for key in ["rope_scaling", "rope_parameters"] {
        let Some(block) = raw.get_mut(key).and_then(Value::as_object_mut) else {
            continue;
        };
        block.remove("partial_rotary_factor");
        for name in ["rope_type", "type"] {
            if block
                .get(name)
                .is_some_and(|kind| kind == "su" || kind == "yarn")
            {
                block.insert(name.into(), json!("longrope"));
            }
        }
    }
}

impl Architecture for Phi3 {
    fn arithmetic(&self, config: &ModelConfig) -> Value {
        self.spec.arithmetic(config, &[])
    }

    fn sites(&self, c: &ModelConfig) -> Vec<SiteInfo> {
        let (d, ff) = (c.hidden_size, c.intermediate_size);
        let q = c.num_attention_heads * c.head_dim;
        let qkv = q + 2 * c.num_key_value_heads * c.head_dim;
        self.spec.sites(
            c,
            |sites, l, path| {
                sites.linear(format!("{path}.qkv_proj"), l, [d, qkv], false);
                sites.output(format!("{path}.o_proj"), l, [q, d], false);
            },
            |sites, l, path| {
                sites.linear(format!("{path}.mlp.gate_up_proj"), l, [d, 2 * ff], false);
                sites.output(format!("{path}.mlp.down_proj"), l, [ff, d], false);
            },
        )
    }

    fn cost(&self, config: &ModelConfig) -> Cost {
        Cost::of_decoder(config)
    }

    fn max_sequence(&self, config: &ModelConfig) -> usize {
        self.spec.max_sequence(config)
    }

    fn rotates_anew_beyond(&self) -> Option<usize> {
        match &self.spec.rope.scaling {
            RopeScaling::Longrope {
                original_max_position_embeddings: original,
                ..
            } => Some(*original as usize),
            _ => None,
        }
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
            |loader, path| {
                Ok(Box::new(FusedAttention {
                    qkv_proj: loader.linear(&format!("{path}.qkv_proj"))?,
                    o_proj: loader.linear(&format!("{path}.o_proj"))?,
                }))
            },
            |loader, path| {
                Ok(Box::new(FusedMlp {
                    activation: config.activation,
                    gate_up_proj: loader.linear(&format!("{path}.mlp.gate_up_proj"))?,
                    down_proj: loader.linear(&format!("{path}.mlp.down_proj"))?,
                }))
            },
        )
    }
}

/// Queries, keys and values from one projection.
struct FusedAttention {
    qkv_proj: Linear,
    o_proj: Linear,
}

impl SelfAttention for FusedAttention {
    fn forward(
        &self,
        at: &Attend<'_>,
        rotary: &RotaryTable,
        x: Tensor<2>,
        pass: &mut dyn Pass,
        cache: Option<&mut DecodeState>,
    ) -> Tensor<2> {
        let [heads, kv_heads, dim] = at.heads;
        let qkv = pass.linear(&self.qkv_proj, x);
        let part = |first: usize, heads: usize| qkv.clone().narrow(1, first * dim, heads * dim);
        let q = rotate(part(0, heads), rotary, dim);
        let k = rotate(part(heads, kv_heads), rotary, dim);
        let v = part(heads + kv_heads, kv_heads);
        let y = attend(at, q, k, v, pass, cache);
        pass.linear(&self.o_proj, y)
    }

    fn visit_weights(&self, visit: &mut dyn FnMut(Frozen<'_>)) {
        visit(Frozen::Linear(&self.qkv_proj));
        visit(Frozen::Linear(&self.o_proj));
    }

    fn takes_prefix(&self) -> bool {
        true
    }

    fn takes_control(&self) -> bool {
        true
    }
}

/// Gate and way up from one projection.
struct FusedMlp {
    activation: Activation,
    gate_up_proj: Linear,
    down_proj: Linear,
}

impl FeedForward for FusedMlp {
    fn forward(&self, _layer: usize, x: Tensor<2>, pass: &mut dyn Pass) -> Tensor<2> {
        let both = pass.linear(&self.gate_up_proj, x);
        let ff = both.dims()[1] / 2;
        let (gate, up) = (both.clone().narrow(1, 0, ff), both.narrow(1, ff, ff));
        pass.linear(&self.down_proj, gate_by(self.activation, gate, up))
    }

    fn visit_weights(&self, visit: &mut dyn FnMut(Frozen<'_>)) {
        visit(Frozen::Linear(&self.gate_up_proj));
        visit(Frozen::Linear(&self.down_proj));
    }
}
