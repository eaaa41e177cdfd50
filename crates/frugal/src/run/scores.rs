//! Metrics of the parts of the data, before and after training.

use std::collections::BTreeMap;

use frugal_eval::report::Confusion;
use serde::Serialize;

use super::Metrics;

/// Metrics of a part of the data.
#[derive(Clone, Debug, Serialize)]
pub struct PartScores {
    /// `validation` or `test`.
    pub part: String,
    /// Examples.
    pub examples: usize,
    /// Before training.
    pub base: Metrics,
    /// After training.
    pub adapted: Metrics,
    /// What needs no model: the commonest class and chance, for classification.
    pub baselines: BTreeMap<String, Metrics>,
}

/// Metrics of each part that was evaluated.
pub(super) type Scores = Vec<(&'static str, Metrics, Option<Confusion>)>;
