//! Learning from a teacher by how much more a positive text is to an anchor than a negative one.

use burn::prelude::*;
use serde::Deserialize;

use super::text_sets::{Similarity, TextSets, constant};
use super::vector_loss::{Kind, VectorLoss};

/// Settings of [`MarginMse`].
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MarginMseConfig {
    /// How near two vectors are.
    pub similarity: Similarity,
}

impl Default for MarginMseConfig {
    fn default() -> Self {
        Self {
            similarity: Similarity::Dot,
        }
    }
}

/// MarginMSE (Hofstätter et al. 2020), as sentence-transformers' `MarginMSELoss`: the squared
/// difference between the teacher's margin of positive over negative and that of the vectors.
/// Scores are the margins, or those of the positive and each negative.
pub struct MarginMse {
    /// Its settings.
    pub config: MarginMseConfig,
}

impl VectorLoss for MarginMse {
    fn name(&self) -> &'static str {
        "margin_mse"
    }

    fn kind(&self) -> Kind {
        Kind::Ranked
    }

    fn check(&self, texts: usize, scores: &[f32]) -> Result<(), String> {
        if texts < 3 {
            return Err("it has no negative, which `margin_mse` needs".into());
        }
        let negatives = texts - 2;
        if scores.len() == negatives || scores.len() == negatives + 1 {
            return Ok(());
        }
        Err(format!(
            "it has {} scores, but `margin_mse` needs {negatives} (a margin for each negative) or {} (of the positive and each negative)",
            scores.len(),
            negatives + 1
        ))
    }

    fn similarity(&self) -> Similarity {
        self.config.similarity
    }

    fn loss(&self, examples: &TextSets<'_>) -> Tensor<1> {
        let scores = examples.to_anchors(self.config.similarity);
        let (mut positives, mut negatives, mut margins, mut weights) =
            (vec![], vec![], vec![], vec![]);
        let mut start = 0;
        for set in examples.sets {
            let count = set.texts.len() - 2;
            let given = &set.scores;
            let margin = |i: usize| match given.len() == count {
                true => given[i],
                false => given[0] - given[i + 1],
            };
            for i in 0..count {
                positives.push(start);
                negatives.push(start + 1 + i);
                margins.push(margin(i));
                weights.push(1.0 / count as f32);
            }
            start += count + 1;
        }
        let of = |rows: &[usize]| frugal_nn::select_rows(scores.clone(), rows);
        let found = of(&positives) - of(&negatives);
        let shape = found.dims();
        let errors = found - constant(margins, shape, &scores);
        (errors.clone() * errors * constant(weights, shape, &scores)).sum()
    }
}
