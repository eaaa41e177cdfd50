//! Settings of AdaLoRA.

use std::collections::BTreeMap;

use frugal_nn::AdaptError;
use serde::{Deserialize, Serialize};

use crate::support::rank_budget::Schedule;
use crate::target::{Layers, Names, Targets};

pub(crate) const NAME: &str = "adalora";

/// Settings, with `peft`'s names.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AdaLoraConfig {
    /// Rank of every layer at the start.
    pub init_r: usize,
    /// Mean rank at the end.
    pub target_r: usize,
    /// Scale numerator.
    pub lora_alpha: f64,
    /// Probability of dropping an input element on the low-rank path while training.
    pub lora_dropout: f64,
    /// Steps before ranks shrink; by default a tenth of the run, at most all but the last.
    pub tinit: Option<u64>,
    /// Steps at the end with fixed ranks; by default four tenths of the run.
    pub tfinal: Option<u64>,
    /// Steps between two choices.
    #[serde(rename = "deltaT")]
    pub delta_t: u64,
    /// Smoothing of the sensitivity.
    pub beta1: f64,
    /// Smoothing of its uncertainty.
    pub beta2: f64,
    /// Weight of the orthogonality term.
    pub orth_reg_weight: f64,
    /// Steps that the schedule is laid out for; by default those of the run.
    pub total_step: Option<u64>,
    /// Triplets that are left, by path; what files have.
    pub rank_pattern: Option<BTreeMap<String, Vec<bool>>>,
    /// Path endings, one regular expression over the whole path, or `all-linear`.
    pub target_modules: Names,
    /// Same grammar; wins over the targets.
    pub exclude_modules: Option<Names>,
    /// Only these blocks.
    pub layers_to_transform: Option<Layers>,
    /// Name of the list of blocks in the path.
    pub layers_pattern: Option<Names>,
}

impl Default for AdaLoraConfig {
    fn default() -> Self {
        let targets = Targets::default();
        Self {
            init_r: 12,
            target_r: 8,
            lora_alpha: 16.0,
            lora_dropout: 0.0,
            tinit: None,
            tfinal: None,
            delta_t: 1,
            beta1: 0.85,
            beta2: 0.85,
            orth_reg_weight: 0.5,
            total_step: None,
            rank_pattern: None,
            target_modules: targets.target_modules,
            exclude_modules: targets.exclude_modules,
            layers_to_transform: targets.layers_to_transform,
            layers_pattern: targets.layers_pattern,
        }
    }
}

impl AdaLoraConfig {
    /// Checks ranges.
    pub(crate) fn check(&self) -> Result<(), AdaptError> {
        let bad = |field, reason: &str| {
            Err(AdaptError::Config {
                method: NAME,
                field,
                reason: reason.into(),
            })
        };
        if self.target_r == 0 || self.target_r > self.init_r {
            return bad("target_r", "must be from 1 to `init_r`");
        }
        if !(self.lora_alpha > 0.0 && self.lora_alpha.is_finite()) {
            return bad("lora_alpha", "must be a positive number");
        }
        if !(0.0..=1.0).contains(&self.lora_dropout) {
            return bad("lora_dropout", "must be from 0 to 1");
        }
        if self.delta_t == 0 {
            return bad("deltaT", "must be at least 1");
        }
        let inside = |beta: f64| beta > 0.0 && beta < 1.0;
        if !inside(self.beta1) {
            return bad("beta1", "must be between 0 and 1");
        }
        if !inside(self.beta2) {
            return bad("beta2", "must be between 0 and 1");
        }
        if !(self.orth_reg_weight >= 0.0 && self.orth_reg_weight.is_finite()) {
            return bad("orth_reg_weight", "must be zero or positive");
        }
        if let Some(total) = self.total_step
            && total <= self.tinit.unwrap_or(0) + self.tfinal.unwrap_or(0)
        {
            return bad(
                "total_step",
                "`tinit` and `tfinal` leave no step to choose ranks in: raise it or lower them",
            );
        }
        Ok(())
    }

    pub(crate) fn targets(&self) -> Targets {
        Targets {
            target_modules: self.target_modules.clone(),
            exclude_modules: self.exclude_modules.clone(),
            layers_to_transform: self.layers_to_transform.clone(),
            layers_pattern: self.layers_pattern.clone(),
        }
    }

    /// When ranks shrink in a run of this many steps.
    pub(crate) fn schedule(&self, run_steps: u64) -> Schedule {
        let total = self.total_step.unwrap_or(run_steps).max(1);
        // The last step is left to choose in.
        let tinit = self
            .tinit
            .unwrap_or(total / 10)
            .min(total.saturating_sub(1));
        Schedule {
            total,
            tinit,
            tfinal: self
                .tfinal
                .unwrap_or(total * 2 / 5)
                .min(total.saturating_sub(tinit + 1)),
        }
    }
}
