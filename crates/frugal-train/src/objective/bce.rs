//! Telling of each text by itself whether it answers the query.

use burn::prelude::*;
use burn::tensor::activation::log_sigmoid;
use serde::Deserialize;

use super::reranking::ListLoss;
use super::text_sets::constant;

/// Settings of [`Bce`].
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct BceConfig {
    /// What texts that answer count; 1 if absent.
    pub pos_weight: Option<f64>,
}

/// Binary cross-entropy of each score, as sentence-transformers' `BinaryCrossEntropyLoss`; labels
/// lie between 0 and 1.
pub struct Bce {
    pos_weight: f64,
}

impl Bce {
    /// From its settings.
    ///
    /// # Errors
    /// A weight that is none.
    pub fn new(config: BceConfig) -> Result<Self, String> {
        let pos_weight = config.pos_weight.unwrap_or(1.0);
        if pos_weight > 0.0 && pos_weight.is_finite() {
            return Ok(Self { pos_weight });
        }
        Err("`pos_weight` must be a positive number".into())
    }
}

impl ListLoss for Bce {
    fn name(&self) -> &'static str {
        "bce"
    }

    fn check(&self, labels: &[f32]) -> Result<(), String> {
        match labels.iter().find(|l| !(0.0..=1.0).contains(*l)) {
            None => Ok(()),
            Some(label) => Err(format!(
                "the label {label} is not between 0 and 1, as `bce` needs: `list_net`, `lambda_loss` and `pairwise` take any grades"
            )),
        }
    }

    fn num_targets(&self, labels: &[f32]) -> f64 {
        labels.len() as f64
    }

    fn loss(&self, scores: Tensor<2>, lists: &[&[f32]]) -> Tensor<1> {
        let labels = lists.concat();
        let shape = scores.dims();
        let yes = labels.iter().map(|l| l * self.pos_weight as f32).collect();
        let no = labels.iter().map(|l| 1.0 - l).collect();
        let yes = constant(yes, shape, &scores) * log_sigmoid(scores.clone());
        let no = constant(no, shape, &scores) * log_sigmoid(scores.neg());
        (yes + no).sum().neg()
    }
}
