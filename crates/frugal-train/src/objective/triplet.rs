//! Holding what does not belong to an anchor a margin farther off than what does.

use burn::prelude::*;
use burn::tensor::activation::relu;
use serde::Deserialize;

use super::text_sets::{Similarity, TextSets, constant, length};
use super::vector_loss::{Kind, VectorLoss};

/// How far two vectors are apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Distance {
    /// 1 − the cosine of the angle between them.
    Cosine,
    /// Length of the difference.
    Euclidean,
    /// Sum of the differences.
    Manhattan,
}

/// Settings of [`Triplet`], with the defaults of sentence-transformers.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TripletConfig {
    /// How far two vectors are apart.
    pub distance_metric: Distance,
    /// The margin.
    pub triplet_margin: f64,
}

impl Default for TripletConfig {
    fn default() -> Self {
        Self {
            distance_metric: Distance::Euclidean,
            triplet_margin: 5.0,
        }
    }
}

/// Triplet loss, `max(d(a, p) − d(a, n) + margin, 0)`, as sentence-transformers' `TripletLoss`; the
/// mean over the negatives where an example has several.
pub struct Triplet {
    config: TripletConfig,
}

impl Triplet {
    /// From its settings.
    ///
    /// # Errors
    /// A margin below 0.
    pub fn new(config: TripletConfig) -> Result<Self, String> {
        let margin = config.triplet_margin;
        if margin.is_finite() && margin >= 0.0 {
            return Ok(Self { config });
        }
        Err(format!(
            "`triplet_margin`: {margin} given, but it must be at least 0"
        ))
    }

    /// `[rows, 1]`.
    fn distance(&self, a: Tensor<2>, b: Tensor<2>) -> Tensor<2> {
        match self.config.distance_metric {
            Distance::Cosine => Similarity::Cos.of_rows(a, b).neg() + 1.0,
            Distance::Euclidean => length(a - b),
            Distance::Manhattan => (a - b).abs().sum_dim(1),
        }
    }
}

impl VectorLoss for Triplet {
    fn name(&self) -> &'static str {
        "triplet"
    }

    fn kind(&self) -> Kind {
        Kind::Ranked
    }

    fn check(&self, texts: usize, scores: &[f32]) -> Result<(), String> {
        if texts < 3 {
            return Err("it has no negative, which `triplet` needs: `info_nce` takes the other examples of a batch".into());
        }
        if scores.is_empty() {
            return Ok(());
        }
        Err("it has scores, which `triplet` makes no use of: take `margin_mse` or `kl_distill`, or leave the column out".into())
    }

    fn similarity(&self) -> Similarity {
        Similarity::Cos
    }

    fn loss(&self, examples: &TextSets<'_>) -> Tensor<1> {
        let (mut anchors, mut positives, mut negatives, mut weights) =
            (vec![], vec![], vec![], vec![]);
        for (set, start) in examples.sets.iter().zip(examples.anchors()) {
            let count = set.texts.len() - 2;
            for i in 0..count {
                anchors.push(start);
                positives.push(start + 1);
                negatives.push(start + 2 + i);
                weights.push(1.0 / count as f32);
            }
        }
        let anchors = examples.rows(&anchors);
        let near = self.distance(anchors.clone(), examples.rows(&positives));
        let far = self.distance(anchors, examples.rows(&negatives));
        let losses = relu(near - far + self.config.triplet_margin);
        let weights = constant(weights, losses.dims(), &losses);
        (losses * weights).sum()
    }
}
