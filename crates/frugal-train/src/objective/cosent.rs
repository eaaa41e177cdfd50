//! Putting pairs of texts in the order of the scores that they were given.

use burn::prelude::*;
use burn::tensor::activation::log_softmax;
use serde::Deserialize;

use super::text_sets::{Similarity, TextSets, constant};
use super::vector_loss::{Kind, VectorLoss};

/// Settings of [`Cosent`].
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CosentConfig {
    /// What similarities are multiplied by.
    pub scale: f64,
    /// How near two vectors are.
    pub similarity: Similarity,
}

impl Default for CosentConfig {
    fn default() -> Self {
        Self {
            scale: 20.0,
            similarity: Similarity::Cos,
        }
    }
}

/// CoSENT (Su 2022), as sentence-transformers' `CoSENTLoss`: `log(1 + Σ exp(s(i) − s(j)))` over all
/// pairs i, j of a batch of which j was given the higher score. It is one number for the batch, and
/// counts for as many examples as the batch has.
pub struct Cosent {
    config: CosentConfig,
}

impl Cosent {
    /// From its settings.
    ///
    /// # Errors
    /// A scale that is none.
    pub fn new(config: CosentConfig) -> Result<Self, String> {
        if config.scale > 0.0 && config.scale.is_finite() {
            return Ok(Self { config });
        }
        Err("`scale` must be a positive number".into())
    }
}

/// What stands in place of a difference that does not count.
const LEFT_OUT: f32 = -1e9;

impl VectorLoss for Cosent {
    fn name(&self) -> &'static str {
        "cosent"
    }

    fn kind(&self) -> Kind {
        Kind::Scored
    }

    fn check(&self, texts: usize, scores: &[f32]) -> Result<(), String> {
        match (texts, scores.len()) {
            (2, 1) => Ok(()),
            (2, 0) => Err(
                "it has no `score`, which `cosent` needs: `info_nce` learns from pairs without one"
                    .into(),
            ),
            _ => Err(format!(
                "it has {texts} texts and {} scores: `cosent` learns from two texts and a score",
                scores.len()
            )),
        }
    }

    fn needs_others(&self, _texts: usize) -> bool {
        true
    }

    fn similarity(&self) -> Similarity {
        self.config.similarity
    }

    fn loss(&self, examples: &TextSets<'_>) -> Tensor<1> {
        let n = examples.sets.len();
        let scores = examples.to_anchors(self.config.similarity) * self.config.scale;
        let score = |i: usize| examples.sets[i].scores[0];
        let offset: Vec<f32> = (0..n * n)
            .map(|at| (score(at / n) < score(at % n)).then_some(0.0))
            .map(|offset| offset.unwrap_or(LEFT_OUT))
            .collect();
        let differences = scores.clone() - scores.clone().transpose();
        let differences = differences + constant(offset, [n, n], &scores);
        let zero = constant(vec![0.0], [1, 1], &scores);
        let row = Tensor::cat(vec![zero, differences.reshape([1, n * n])], 1);
        // log Σ exp(x) is what the log-softmax of an x of 0 lacks.
        let sum = log_softmax(row, 1).slice([0..1, 0..1]).neg();
        sum.sum() * n as f64
    }
}
