//! Settings of AdaMSS.

use serde::{Deserialize, Serialize};

use crate::support::layer_targets::LayerTargets;

pub(super) const NAME: &str = "adamss";

/// Settings, with `peft`'s names.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct AdamssConfig {
    /// Singular directions; fewer where a layer has no more.
    pub r: usize,
    /// Groups of outputs.
    pub num_subspaces: usize,
    /// Rank of a group.
    pub subspace_rank: usize,
    /// `"orthogonal"`: zero `B`; none: random, for tests.
    pub init_weights: Option<String>,
    /// Whether groups stop learning.
    pub use_asa: bool,
    /// Groups that learn in the end, in the whole model.
    pub asa_target_subspaces: usize,
    /// First step at which groups are compared.
    pub init_warmup: u64,
    /// Last such step.
    pub final_warmup: u64,
    /// Steps between comparisons.
    pub mask_interval: u64,
    /// `β` of the importance.
    pub asa_importance_beta: f64,
    /// `β` of its uncertainty.
    pub asa_uncertainty_beta: f64,
    /// How soon groups stop.
    pub asa_schedule_exponent: f64,
    /// Ranks of groups by their singular values, up to `subspace_rank`.
    pub use_dynamic_rank: bool,
    /// Least singular value for that, as a share of the largest.
    pub svd_threshold: f64,
    /// Seed of the decomposition.
    pub random_seed: u64,
    /// Which layers.
    #[serde(flatten)]
    pub targets: LayerTargets,
}

impl Default for AdamssConfig {
    fn default() -> Self {
        Self {
            r: 100,
            num_subspaces: 5,
            subspace_rank: 1,
            init_weights: Some("orthogonal".into()),
            use_asa: false,
            asa_target_subspaces: 50,
            init_warmup: 50,
            final_warmup: 1000,
            mask_interval: 100,
            asa_importance_beta: 0.85,
            asa_uncertainty_beta: 0.85,
            asa_schedule_exponent: 3.0,
            use_dynamic_rank: false,
            svd_threshold: 0.1,
            random_seed: 0,
            targets: LayerTargets::default(),
        }
    }
}
