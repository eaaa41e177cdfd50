//! An architecture of recurrent blocks, attention within a window in some of their places, and a gated
//! feed-forward layer behind each.

use std::cell::Cell;
use std::sync::Arc;

use frugal_nn::{Backbone, ModelError, SiteInfo, SiteTable, named_rng, standard_normal, uniform};
use serde_json::{Value, json};

use crate::architecture::{Architecture, Cost, FirstValues, ModelConfig, RecurrenceCost};
use crate::blocks::attention::SelfAttention;
use crate::blocks::decoder::{Decoder, DecoderNames, DecoderSpec};
use crate::blocks::gated_mlp::GatedMlp;
use crate::blocks::gqa::{GqaSpec, GroupedQueryAttention};
use crate::blocks::rg_lru::{RecurrentBlock, RgLruSpec};
use crate::weights::WeightLoader;

/// What its parts are called.
pub(crate) const NAMES: DecoderNames = DecoderNames {
    input_norm: "temporal_pre_norm",
    attention: "temporal_block",
    mlp_norm: "channel_pre_norm",
    final_norm: "model.final_norm",
};

/// Griffin, or Hawk where no block attends.
#[derive(Debug)]
pub(crate) struct Griffin {
    /// What is around the blocks.
    pub spec: DecoderSpec,
    /// Attention.
    pub attention: GqaSpec,
    /// For each block whether it attends.
    pub attends: Vec<bool>,
    /// Recurrent blocks.
    pub recurrent: RgLruSpec,
    /// What fresh weights of gates, convolutions and feed-forward layers are drawn from.
    pub w_init_variance_scale: f64,
}

impl Architecture for Griffin {
    fn arithmetic(&self, config: &ModelConfig) -> Value {
        let attends: Vec<&str> = self.attends.iter().map(|a| kind(*a)).collect();
        let own = json!({
            "block_types": attends,
            "lru_width": self.recurrent.width,
            "conv1d_width": self.recurrent.taps,
            "num_gate_blocks": self.recurrent.gate_blocks,
            "reverse_size": self.recurrent.two_ways.reverse_size,
            "embed_scale": self.spec.embed_scale,
        });
        self.spec.arithmetic(config, &[json!(self.attention), own])
    }

    fn sites(&self, c: &ModelConfig) -> Vec<SiteInfo> {
        self.spec.sites(
            c,
            |sites, l, path| match self.attends[l] {
                true => GroupedQueryAttention::sites(sites, c, self.attention, l, path),
                false => RecurrentBlock::sites(sites, &self.recurrent, l, path, c.hidden_size),
            },
            |sites, l, path| GatedMlp::sites(sites, c, true, l, &format!("{path}.mlp_block")),
        )
    }

    fn cost(&self, config: &ModelConfig) -> Cost {
        Cost {
            // A window or a state: neither grows with a text beyond it.
            cache_width: 0,
            key_value_width: 0,
            recurrence: Some(RecurrenceCost {
                channels: self.recurrent.width,
                projected: 3 * self.recurrent.width,
                state: 1,
                feed_forward: config.intermediate_size,
            }),
            ..Cost::of_decoder(config)
        }
    }

    fn final_logit_softcapping(&self) -> Option<f64> {
        self.spec.final_logit_softcapping
    }

    fn norm_offset(&self) -> f32 {
        self.spec.norm_offset
    }

    /// As `RecurrentGemmaPreTrainedModel._init_weights` has it.
    fn first_values(
        &self,
        config: &ModelConfig,
        site: &SiteInfo,
        tensor: FirstValues,
        seed: u64,
    ) -> Option<Vec<f32>> {
        if tensor == FirstValues::Bias {
            return None;
        }
        let (scale, name) = (self.w_init_variance_scale, site.name());
        let out = 2.0 / config.num_hidden_layers as f64;
        let variance = match name {
            "linear_x" | "linear_y" | "q_proj" | "k_proj" | "v_proj" => 1.0 / site.d_in as f64,
            "linear_out" | "o_proj" => out / site.d_in as f64,
            "input_gate_weight" | "recurrent_gate_weight" => scale / site.d_in as f64,
            "input_gate_bias" | "recurrent_gate_bias" => 0.0,
            "recurrent_param" => return Some(decays(site, seed)),
            _ if site.kind == frugal_nn::SiteKind::Norm => return None,
            _ => scale / self.recurrent.taps as f64,
        };
        let std = variance.sqrt() as f32;
        let mut rng = named_rng(seed, &site.weight_name());
        let draw = |_| std * standard_normal(&mut rng);
        Some((0..site.d_in * site.d_out).map(draw).collect())
    }

    fn build(
        &self,
        config: &ModelConfig,
        sites: Arc<SiteTable>,
        loader: &mut WeightLoader<'_>,
    ) -> Result<Arc<dyn Backbone>, ModelError> {
        // Blocks are loaded in order.
        let next = Cell::new(0);
        Decoder::load(
            config,
            &self.spec,
            sites,
            loader,
            |loader, path| {
                let layer = next.replace(next.get() + 1);
                Ok(match self.attends[layer] {
                    true => {
                        let spec = self.attention;
                        let attention = GroupedQueryAttention::load(config, spec, loader, path)?;
                        Box::new(attention) as Box<dyn SelfAttention>
                    }
                    false => Box::new(RecurrentBlock::load(self.recurrent, loader, path, layer)?),
                })
            },
            |loader, path| {
                let path = format!("{path}.mlp_block");
                Ok(Box::new(GatedMlp::load(config.activation, loader, &path)?))
            },
        )
    }
}

/// What `block_types` calls a block.
fn kind(attends: bool) -> &'static str {
    match attends {
        true => "attention",
        false => "recurrent",
    }
}

/// Values of Λ whose decays at an open gate lie between 0.9⁸ and 0.999⁸ (Griffin, section 2.4).
fn decays(site: &SiteInfo, seed: u64) -> Vec<f32> {
    let mut rng = named_rng(seed, &site.weight_name());
    let (low, high) = (0.9f64 * 0.9 + 1e-8, 0.999f64 * 0.999 + 1e-8);
    let draw = |_| {
        let square = low + (high - low) * uniform(&mut rng);
        ((-0.5 * square.ln()).exp() - 1.0).ln() as f32
    };
    (0..site.d_in * site.d_out).map(draw).collect()
}
