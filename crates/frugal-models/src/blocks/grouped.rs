//! An architecture of grouped attention and gated feed-forward layers throughout.

use std::sync::Arc;

use frugal_nn::{Backbone, ModelError, SiteInfo, SiteTable};
use serde_json::{Value, json};

use crate::architecture::{Architecture, Cost, ModelConfig};
use crate::blocks::decoder::{Decoder, DecoderSpec};
use crate::blocks::gated_mlp::GatedMlp;
use crate::blocks::gqa::{GqaSpec, GroupedQueryAttention};
use crate::weights::WeightLoader;

/// Grouped attention and a gated feed-forward layer in every block.
#[derive(Clone, Debug)]
pub struct GroupedDecoder {
    /// What is around them.
    pub spec: DecoderSpec,
    /// Attention.
    pub attention: GqaSpec,
    /// Whether the feed-forward projections have biases.
    pub mlp_bias: bool,
}

impl Architecture for GroupedDecoder {
    fn arithmetic(&self, config: &ModelConfig) -> Value {
        self.spec.arithmetic(
            config,
            &[json!(self.attention), json!({"mlp_bias": self.mlp_bias})],
        )
    }

    fn sites(&self, c: &ModelConfig) -> Vec<SiteInfo> {
        self.spec.sites(
            c,
            |sites, l, path| GroupedQueryAttention::sites(sites, c, self.attention, l, path),
            |sites, l, path| GatedMlp::sites(sites, c, self.mlp_bias, l, &format!("{path}.mlp")),
        )
    }

    fn cost(&self, config: &ModelConfig) -> Cost {
        Cost {
            extra_norms: if self.spec.sandwich_norms { 2 } else { 0 },
            normalizes_heads: self.attention.qk_norm,
            ..Cost::of_decoder(config)
        }
    }

    fn final_logit_softcapping(&self) -> Option<f64> {
        self.spec.final_logit_softcapping
    }

    fn norm_offset(&self) -> f32 {
        self.spec.norm_offset
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
            |loader, path| {
                let attention = GroupedQueryAttention::load(config, self.attention, loader, path)?;
                Ok(Box::new(attention))
            },
            |loader, path| {
                let path = format!("{path}.mlp");
                Ok(Box::new(GatedMlp::load(config.activation, loader, &path)?))
            },
        )
    }
}
