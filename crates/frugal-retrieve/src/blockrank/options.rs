//! Settings of in-context ranking.

use frugal_nn::BackboneInfo;
use serde::{Deserialize, Serialize};

/// How documents are ranked, and trained to be.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct BlockRankOptions {
    /// Layer whose attention ranks, from 0; where unset, at 5/8 of the model.
    pub layer: Option<usize>,
    /// Position of the closing question; where unset, 8192 or half of the model's positions if that
    /// is less.
    pub position_offset: Option<u32>,
    /// Ordinary causal attention and positions in place of blocks: the baseline, whose cost grows
    /// with the square of the number of documents.
    pub full_attention: bool,
    /// Tokens of a document that are shown; longer ones are cut.
    pub document_tokens: usize,
    /// Weight λ of the contrastive loss on attention.
    pub auxiliary_weight: f64,
    /// Its temperature τ.
    pub temperature: f64,
    /// Whether the answer is learnt too (the next-token loss).
    pub next_token: bool,
}

impl Default for BlockRankOptions {
    fn default() -> Self {
        Self {
            layer: None,
            position_offset: None,
            full_attention: false,
            document_tokens: 96,
            auxiliary_weight: 0.1,
            temperature: 0.05,
            next_token: true,
        }
    }
}

impl BlockRankOptions {
    /// Whether the numbers can be used.
    ///
    /// # Errors
    /// The field at fault, and what would work.
    pub fn validate(&self) -> Result<(), String> {
        if self.document_tokens == 0 {
            return Err("`document_tokens` is 0: a document needs at least one token".into());
        }
        if !(self.temperature > 0.0 && self.temperature.is_finite()) {
            return Err(format!(
                "`temperature` is {}: it must be positive",
                self.temperature
            ));
        }
        if !(self.auxiliary_weight >= 0.0 && self.auxiliary_weight.is_finite()) {
            return Err(format!(
                "`auxiliary_weight` is {}: it must not be negative",
                self.auxiliary_weight
            ));
        }
        if self.auxiliary_weight == 0.0 && !self.next_token {
            return Err("`auxiliary_weight` is 0 and `next_token` false: nothing is learnt".into());
        }
        Ok(())
    }

    /// The layer whose attention ranks.
    ///
    /// # Errors
    /// A layer that the model does not have.
    pub fn layer_of(&self, info: &BackboneInfo) -> Result<usize, String> {
        let layers = info.num_hidden_layers;
        let usual = ((0.625 * layers as f64).round() as usize).min(layers.saturating_sub(1));
        match self.layer.unwrap_or(usual) {
            layer if layer < layers => Ok(layer),
            layer => Err(format!(
                "`layer` is {layer}, but the model has layers 0 to {}",
                layers.saturating_sub(1)
            )),
        }
    }

    /// The position of the closing question; none where positions are ordinary.
    pub fn offset_of(&self, info: &BackboneInfo) -> Option<u32> {
        let half = u32::try_from(info.max_sequence / 2).unwrap_or(u32::MAX);
        let offset = self.position_offset.unwrap_or(half.min(8192));
        (!self.full_attention).then_some(offset)
    }
}
