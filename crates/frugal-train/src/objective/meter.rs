//! Measuring a model, batch by batch.

use std::collections::BTreeMap;

use frugal_core::metrics::{ClassScores, MultiLabelReport};
use frugal_nn::ModelError;

use super::batch::Forward;
use crate::Tokenized;

/// A number that tells how good a model is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Metric {
    /// Its name in logs and records.
    pub name: &'static str,
    /// Whether less of it is better.
    pub smaller_is_better: bool,
}

impl Metric {
    /// One of which more is better.
    pub const fn larger(name: &'static str) -> Self {
        Self {
            name,
            smaller_is_better: false,
        }
    }

    /// One of which less is better.
    pub const fn smaller(name: &'static str) -> Self {
        Self {
            name,
            smaller_is_better: true,
        }
    }

    /// Whether `value` beats `best`.
    pub fn is_better(self, value: f64, best: f64) -> bool {
        if self.smaller_is_better {
            value < best
        } else {
            value > best
        }
    }
}

/// What an evaluation found.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Evaluation {
    /// Metrics by name: `loss` always, and those of the objective.
    pub metrics: BTreeMap<String, f64>,
    /// True classes in the order of the examples; empty unless each example has one.
    pub gold: Vec<usize>,
    /// Predicted classes, likewise.
    pub predicted: Vec<usize>,
    /// Outputs of the head in the order of the examples, where tokens are labelled those of all
    /// tokens one after another; empty for language modelling.
    pub logits: Vec<Vec<f32>>,
    /// Scores of each label, where an example may have several.
    pub labels: Option<MultiLabelReport>,
    /// Scores of each kind of entity, where tokens are labelled.
    pub entities: Vec<ClassScores>,
    /// Targets that the loss is the mean of: tokens, or examples for classification.
    pub targets: usize,
}

/// Metrics by name.
pub(super) fn named<const N: usize>(metrics: [(&str, f64); N]) -> BTreeMap<String, f64> {
    BTreeMap::from(metrics.map(|(name, value)| (name.to_owned(), value)))
}

/// An evaluation under way.
pub trait Meter {
    /// Takes in some more examples.
    ///
    /// # Errors
    /// What the backbone refuses.
    fn add(&mut self, examples: &[&Tokenized], forward: &mut Forward<'_>)
    -> Result<(), ModelError>;

    /// What all of them came to.
    fn finish(self: Box<Self>) -> Evaluation;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn smaller_loss_and_larger_accuracy_win() {
        let (loss, accuracy) = (Metric::smaller("loss"), Metric::larger("accuracy"));
        assert!(loss.is_better(1.0, 2.0) && !loss.is_better(2.0, 1.0));
        assert!(accuracy.is_better(0.9, 0.8) && !accuracy.is_better(0.9, 0.9));
        assert!(!loss.is_better(f64::NAN, 1.0));
    }
}
