//! Putting texts in order by pairs that count by how much they change nDCG.

use burn::prelude::*;
use burn::tensor::activation::log_sigmoid;
use frugal_nn::{select_rows, to_vec};
use serde::Deserialize;

use super::reranking::ListLoss;
use super::text_sets::constant;

/// What a pair counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Weighting {
    /// Always 1.
    None,
    /// The gain of the first text over the discount of its rank.
    NdcgLoss1,
    /// The difference in gain by that of the discounts of ranks as far apart.
    NdcgLoss2,
    /// The difference in gain by that of the discounts of both ranks.
    LambdaRank,
    /// The sum of the last two, the first of them times `mu`.
    #[serde(alias = "ndcg_loss2pp")]
    NdcgLoss2Pp,
}

/// Settings of [`LambdaLoss`], with the defaults of sentence-transformers.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LambdaLossConfig {
    /// What a pair counts.
    pub weighting_scheme: Weighting,
    /// How much `ndcg_loss2` counts in `ndcg_loss2_pp`.
    pub mu: f64,
    /// Only pairs of which one text is among the first so many; all if absent.
    pub k: Option<usize>,
    /// What differences of scores are multiplied by.
    pub sigma: f64,
}

impl Default for LambdaLossConfig {
    fn default() -> Self {
        Self {
            weighting_scheme: Weighting::NdcgLoss2Pp,
            mu: 10.0,
            k: None,
            sigma: 1.0,
        }
    }
}

/// LambdaLoss (Wang et al. 2018), as sentence-transformers' `LambdaLoss`: `−w log₂ σ(s(i) − s(j))` of
/// the pairs of a list of which i has the higher label, the mean over the pairs of a batch.
pub struct LambdaLoss {
    name: &'static str,
    config: LambdaLossConfig,
}

/// Smallest ideal DCG.
const EPSILON: f64 = 1e-10;

impl LambdaLoss {
    /// From its settings.
    ///
    /// # Errors
    /// Settings that are out of range.
    pub fn new(name: &'static str, config: LambdaLossConfig) -> Result<Self, String> {
        if !(config.sigma > 0.0 && config.sigma.is_finite()) {
            return Err("`sigma` must be a positive number".into());
        }
        if config.k == Some(0) {
            return Err("`k` must be at least 1".into());
        }
        if !config.mu.is_finite() {
            return Err("`mu` must be a number".into());
        }
        Ok(Self { name, config })
    }

    /// Pairs of the places in a list, with what they count.
    fn pairs(&self, labels: &[f32], scores: &[f32]) -> Vec<(usize, usize, f32)> {
        let n = labels.len();
        let k = self.config.k.unwrap_or(n);
        let mut order: Vec<usize> = (0..n).collect();
        order.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]));
        let label = |rank: usize| f64::from(labels[order[rank]]);
        let power = |label: f64| label.max(0.0).exp2() - 1.0;
        let discount = |rank: usize| ((rank + 2) as f64).log2();
        let mut ideal: Vec<f64> = labels.iter().map(|l| f64::from(*l)).collect();
        ideal.sort_by(|a, b| b.total_cmp(a));
        let gains = ideal.iter().take(k).enumerate();
        let best: f64 = gains.map(|(i, label)| power(*label) / discount(i)).sum();
        let gain = |rank: usize| power(label(rank)) / best.max(EPSILON);
        let loss2 = |i: usize, j: usize| {
            let apart = i.abs_diff(j);
            let change = match apart {
                0 => 0.0,
                _ => (1.0 / discount(apart - 1) - 1.0 / discount(apart)).abs(),
            };
            change * (gain(i) - gain(j)).abs()
        };
        let rank = |i: usize, j: usize| {
            (1.0 / discount(i) - 1.0 / discount(j)).abs() * (gain(i) - gain(j)).abs()
        };
        let every = self.config.weighting_scheme == Weighting::NdcgLoss1;
        let mut found = Vec::new();
        for (i, j) in (0..n).flat_map(|i| (0..n).map(move |j| (i, j))) {
            if !(every || label(i) > label(j)) || (i >= k && j >= k) {
                continue;
            }
            let weight = match self.config.weighting_scheme {
                Weighting::None => 1.0,
                Weighting::NdcgLoss1 => gain(i) / discount(i),
                Weighting::NdcgLoss2 => loss2(i, j),
                Weighting::LambdaRank => rank(i, j),
                Weighting::NdcgLoss2Pp => self.config.mu * loss2(i, j) + rank(i, j),
            };
            found.push((order[i], order[j], weight as f32));
        }
        found
    }
}

impl ListLoss for LambdaLoss {
    fn name(&self) -> &'static str {
        self.name
    }

    fn check(&self, labels: &[f32]) -> Result<(), String> {
        if labels.len() > 1 {
            return Ok(());
        }
        Err(format!(
            "the query has one text: `{}` compares several of one query; `bce` learns from single ones",
            self.name
        ))
    }

    fn num_targets(&self, labels: &[f32]) -> f64 {
        if self.config.weighting_scheme == Weighting::NdcgLoss1 {
            return (labels.len() * labels.len()) as f64;
        }
        let lower = |label: &f32| labels.iter().filter(|other| *other < label).count();
        labels.iter().map(lower).sum::<usize>() as f64
    }

    fn loss(&self, scores: Tensor<2>, lists: &[&[f32]]) -> Tensor<1> {
        let values = to_vec(scores.clone());
        let (mut better, mut worse, mut weights) = (vec![], vec![], vec![]);
        let (mut start, mut targets) = (0, 0.0);
        for labels in lists {
            let own = &values[start..start + labels.len()];
            for (i, j, weight) in self.pairs(labels, own) {
                better.push(start + i);
                worse.push(start + j);
                weights.push(weight);
            }
            start += labels.len();
            targets += self.num_targets(labels);
        }
        if better.is_empty() {
            // Nothing to learn, but still of the graph.
            return scores.sum() * 0.0;
        }
        let count = better.len() as f64;
        let differences = select_rows(scores.clone(), &better) - select_rows(scores, &worse);
        let weights = constant(weights, differences.dims(), &differences);
        let losses = log_sigmoid(differences * self.config.sigma) * weights;
        losses.sum().neg() * (targets / count / std::f64::consts::LN_2)
    }
}
