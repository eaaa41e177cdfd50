//! Settings of IncreLoRA.

use std::collections::BTreeMap;

use frugal_nn::AdaptError;
use serde::{Deserialize, Serialize};

use crate::target::Targets;

pub(crate) const NAME: &str = "increlora";

/// Settings.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct IncreloraConfig {
    /// Rank of every layer at the start.
    pub init_r: usize,
    /// Mean rank at the end.
    pub target_rank: usize,
    /// Maps that grow in a round.
    pub top_h: usize,
    /// Components that a growing layer gains; 0 for half of `target_rank`.
    pub incre_rank_num: usize,
    /// Steps before growth may begin; 0 for `incre_interval`.
    pub init_warmup: u64,
    /// Steps between rounds; 0 to fit them into the run.
    pub incre_interval: u64,
    /// Steps in which a new group of components reaches its full rate; 0 for `incre_interval`.
    pub warmup_steps: u64,
    /// Smoothing of importance.
    pub beta1: f64,
    /// Smoothing of its uncertainty.
    pub beta2: f64,
    /// Weight of the orthogonality term.
    pub orth_reg_weight: f64,
    /// Train the directions of the next components before they are active.
    pub advance_learning: bool,
    /// Scale numerator.
    pub lora_alpha: f64,
    /// Probability of dropping an input element on the low-rank path while training.
    pub lora_dropout: f64,
    /// Sizes of the groups of components by path, as growth left them; set in adapter files.
    pub groups: BTreeMap<String, Vec<usize>>,
    /// Which layers.
    #[serde(flatten)]
    pub targets: Targets,
}

impl Default for IncreloraConfig {
    fn default() -> Self {
        Self {
            init_r: 1,
            target_rank: 2,
            top_h: 5,
            incre_rank_num: 0,
            init_warmup: 0,
            incre_interval: 0,
            warmup_steps: 0,
            beta1: 0.85,
            beta2: 0.85,
            orth_reg_weight: 0.1,
            advance_learning: true,
            lora_alpha: 16.0,
            lora_dropout: 0.0,
            groups: BTreeMap::new(),
            targets: Targets::default(),
        }
    }
}

impl IncreloraConfig {
    /// Checks ranges.
    pub(crate) fn check(&self) -> Result<(), AdaptError> {
        let bad = |field, reason: String| {
            Err(AdaptError::Config {
                method: NAME,
                field,
                reason,
            })
        };
        if self.init_r == 0 || self.top_h == 0 {
            return bad(
                if self.init_r == 0 { "init_r" } else { "top_h" },
                "must be at least 1".into(),
            );
        }
        if self.target_rank < self.init_r {
            return bad(
                "target_rank",
                format!(
                    "{} is below `init_r` ({}): ranks only grow",
                    self.target_rank, self.init_r
                ),
            );
        }
        for (field, beta) in [
            ("beta1", self.beta1),
            ("beta2", self.beta2),
            ("lora_dropout", self.lora_dropout),
        ] {
            if !(0.0..1.0).contains(&beta) {
                return bad(field, format!("{beta} is not within 0 and 1 (excluded)"));
            }
        }
        if !(self.lora_alpha.is_finite() && self.lora_alpha > 0.0) {
            return bad(
                "lora_alpha",
                format!("{} is not a positive number", self.lora_alpha),
            );
        }
        if !(self.orth_reg_weight.is_finite() && self.orth_reg_weight >= 0.0) {
            return bad(
                "orth_reg_weight",
                format!("{} is not a number of at least 0", self.orth_reg_weight),
            );
        }
        Ok(())
    }

    pub(crate) fn components(&self) -> usize {
        if self.incre_rank_num > 0 {
            self.incre_rank_num
        } else {
            (self.target_rank / 2).max(1)
        }
    }
}
