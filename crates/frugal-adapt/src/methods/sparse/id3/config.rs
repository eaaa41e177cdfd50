//! Settings of ID3.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::target::Targets;

pub(crate) const NAME: &str = "id3";

/// Which weights come first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Criterion {
    /// Those of a large gradient and a small magnitude.
    #[default]
    D3,
    /// The smallest, whatever the gradient (PaFi).
    Pafi,
    /// Any.
    Random,
}

/// Tensors whose elements are candidates.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Candidate {
    /// Weights of the chosen linear layers.
    Linear,
    /// Biases of the chosen linear layers, and of the norms where these are candidates.
    Bias,
    /// Gains of norms.
    Norm,
    /// Tables; one that is the output head too counts once.
    Embedding,
}

/// When the budget is spent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Schedule {
    /// Evenly over all steps.
    #[default]
    Incremental,
    /// In the first step.
    Static,
    /// In every step anew: those chosen before are not trained on, and more than the budget differ
    /// in the end.
    Repeat,
}

/// Settings.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Id3Config {
    /// Weights that are trained in the end; at most all.
    pub budget: usize,
    /// Which weights come first.
    pub criterion: Criterion,
    /// Exponent of the magnitude in the score.
    pub exp: f64,
    /// Added to the magnitude.
    pub eps: f64,
    /// When the budget is spent.
    pub schedule: Schedule,
    /// Tensors whose elements are candidates.
    pub candidates: Vec<Candidate>,
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
            criterion: Criterion::D3,
            exp: 1.0,
            eps: 0.1,
            schedule: Schedule::Incremental,
            candidates: vec![Candidate::Linear],
            counts: None,
            targets: Targets::default(),
        }
    }
}

impl Id3Config {
    /// Whether elements of this kind are candidates.
    pub(crate) fn chooses(&self, candidate: Candidate) -> bool {
        self.candidates.contains(&candidate)
    }

    /// Weights released after the step that follows `step` finished ones, of `total` steps and
    /// `all` candidates.
    pub(crate) fn released(&self, step: u64, total: u64, all: usize) -> usize {
        let budget = self.budget.min(all);
        match self.schedule {
            Schedule::Static | Schedule::Repeat => budget,
            Schedule::Incremental => {
                let (total, done) = (total.max(1) as usize, (step + 1).min(total.max(1)) as usize);
                budget / total * done + (budget % total).min(done)
            }
        }
    }
}
