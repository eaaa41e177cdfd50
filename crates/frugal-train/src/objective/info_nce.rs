//! Telling the text that belongs to an anchor from all others of a batch.

use burn::prelude::*;
use burn::tensor::activation::log_softmax;
use serde::Deserialize;

use super::text_sets::{Similarity, TextSets, constant};
use super::vector_loss::{Kind, VectorLoss};

/// Settings of [`InfoNce`].
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct InfoNceConfig {
    /// What similarities are multiplied by; 20 if neither this nor `temperature` is given.
    pub scale: Option<f64>,
    /// What they are divided by.
    pub temperature: Option<f64>,
    /// How near two vectors are.
    pub similarity: Similarity,
    /// Leave out negatives that are no such: texts that are the anchor's positive again, the anchor
    /// itself, and further positives of the same anchor.
    pub mask_duplicates: bool,
}

impl Default for InfoNceConfig {
    fn default() -> Self {
        Self {
            scale: None,
            temperature: None,
            similarity: Similarity::Cos,
            mask_duplicates: true,
        }
    }
}

/// InfoNCE (van den Oord et al. 2018), as sentence-transformers' `MultipleNegativesRankingLoss`:
/// cross-entropy over the similarities of an anchor to its positive, its own negatives, and the
/// positives and negatives of all other examples of the batch.
pub struct InfoNce {
    scale: f64,
    config: InfoNceConfig,
}

impl InfoNce {
    /// From its settings.
    ///
    /// # Errors
    /// A scale that is none.
    pub fn new(config: InfoNceConfig) -> Result<Self, String> {
        let scale = match (config.scale, config.temperature) {
            (Some(_), Some(_)) => {
                return Err(
                    "`scale` and `temperature` are one over the other: give one of them".into(),
                );
            }
            (Some(scale), None) => scale,
            (None, Some(temperature)) => 1.0 / temperature,
            (None, None) => 20.0,
        };
        if !(scale > 0.0 && scale.is_finite()) {
            return Err("`scale` and `temperature` must be positive numbers".into());
        }
        Ok(Self { scale, config })
    }
}

/// A text among those that an anchor is compared with.
struct Candidate {
    /// The example that it comes from.
    owner: usize,
    text: u64,
    is_positive: bool,
}

/// What stands in place of a similarity that does not count.
const LEFT_OUT: f32 = -1e9;

impl VectorLoss for InfoNce {
    fn name(&self) -> &'static str {
        "info_nce"
    }

    fn kind(&self) -> Kind {
        Kind::Ranked
    }

    fn check(&self, texts: usize, scores: &[f32]) -> Result<(), String> {
        if texts < 2 {
            return Err("it has no positive beside its anchor".into());
        }
        if scores.is_empty() {
            return Ok(());
        }
        Err("it has scores, which `info_nce` makes no use of: take `cosent`, `margin_mse` or `kl_distill`, or leave the column out".into())
    }

    fn needs_others(&self, texts: usize) -> bool {
        texts == 2
    }

    fn similarity(&self) -> Similarity {
        self.config.similarity
    }

    fn loss(&self, examples: &TextSets<'_>) -> Tensor<1> {
        let (rows, _) = examples.pairs();
        let mut candidates = Vec::with_capacity(rows.len());
        for (owner, set) in examples.sets.iter().enumerate() {
            let texts = set.texts.iter().enumerate().skip(1);
            candidates.extend(texts.map(|(i, text)| Candidate {
                owner,
                text: *text,
                is_positive: i == 1,
            }));
        }
        let shape = [examples.sets.len(), candidates.len()];
        let (mut offset, mut chosen) = (vec![0.0; shape[0] * shape[1]], Vec::new());
        chosen.resize(offset.len(), 0.0);
        for (i, set) in examples.sets.iter().enumerate() {
            for (j, candidate) in candidates.iter().enumerate() {
                let at = i * shape[1] + j;
                let own = candidate.owner == i && candidate.is_positive;
                let same_anchor = examples.sets[candidate.owner].texts[0] == set.texts[0];
                let is_no_negative = candidate.text == set.texts[1]
                    || candidate.text == set.texts[0]
                    || (candidate.is_positive && same_anchor);
                if own {
                    chosen[at] = 1.0;
                } else if self.config.mask_duplicates && is_no_negative {
                    offset[at] = LEFT_OUT;
                }
            }
        }
        let anchors = examples.rows(&examples.anchors());
        let scores = self.config.similarity.matrix(anchors, examples.rows(&rows)) * self.scale;
        let offset = constant(offset, shape, &scores);
        let chosen = constant(chosen, shape, &scores);
        -(log_softmax(scores + offset, 1) * chosen).sum()
    }
}
