//! Settings of ID3.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::target::Targets;

/// When the budget is spent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Schedule {
    /// Evenly over all steps.
    #[default]
    Incremental,
    /// In the first step.
    Static,
}

/// Settings.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Id3Config {
    /// Weights that are trained in the end; at most all.
    pub budget: usize,
    /// Exponent of the magnitude in the score.
    pub exp: f64,
    /// Added to the magnitude.
    pub eps: f64,
    /// When the budget is spent.
    pub schedule: Schedule,
    /// Released weights by path; set in adapter files, which then train no others.
    pub counts: Option<BTreeMap<String, usize>>,
    /// Which layers.
    #[serde(flatten)]
    pub targets: Targets,
}

impl Default for Id3Config {
    fn default() -> Self {
        Self {
            budget: 320_000,
            exp: 1.0,
            eps: 0.1,
            schedule: Schedule::Incremental,
            counts: None,
            targets: Targets::default(),
        }
    }
}

impl Id3Config {
    /// Weights released after the step that follows `step` finished ones, of `total` steps and
    /// `all` candidates.
    pub(crate) fn released(&self, step: u64, total: u64, all: usize) -> usize {
        let budget = self.budget.min(all);
        match self.schedule {
            Schedule::Static => budget,
            Schedule::Incremental => {
                let (total, done) = (total.max(1) as usize, (step + 1).min(total.max(1)) as usize);
                budget / total * done + (budget % total).min(done)
            }
        }
    }
}
