//! What a model of this type is, beyond the sizes that all have.

use super::settings::RouterSpec;
use super::sharing::Plan;
use crate::blocks::gqa::GqaSpec;
use crate::rope::RopeConfig;

/// What differs between models of this type.
#[derive(Clone, Debug)]
pub(super) struct MorSpec {
    /// Which layers share weights.
    pub plan: Plan,
    /// Whether layers that share weights share their norms too.
    pub share_layer_norm: bool,
    /// Whether all steps read the first one's keys and values.
    pub kv_sharing: bool,
    /// How tokens are routed, if they are.
    pub router: Option<RouterSpec>,
    pub rope: RopeConfig,
    pub attention: GqaSpec,
    /// Whether the feed-forward projections have biases.
    pub mlp_bias: bool,
}

impl MorSpec {
    /// The first layer with the norms of this one.
    pub fn norm_layer(&self, layer: usize) -> usize {
        if self.share_layer_norm {
            self.plan.first(layer)
        } else {
            layer
        }
    }
}
