//! Telling which one of several classes a text has.

use std::collections::BTreeMap;

use burn::prelude::*;
use frugal_core::metrics::ClassificationReport;
use frugal_nn::{ModelError, to_vec};
use serde::{Deserialize, Serialize};

use super::Objective;
use super::batch::{Forward, MicroBatch, ModelParts};
use super::cross_entropy::{cross_entropy, weighted_cross_entropy};
use super::label_weights::LabelWeights;
use super::meter::{Evaluation, Meter, Metric, named};
use crate::{Target, Tokenized};

/// Settings of [`Classification`].
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ClassificationConfig {
    /// How much the examples of each class count; `balanced` is n / (classes · n of the class), as
    /// in scikit-learn.
    pub class_weights: Option<LabelWeights>,
}

/// Cross-entropy of the classes of a head.
#[derive(Clone, Debug, Default)]
pub struct Classification {
    /// Share of the target probability that is spread evenly over the classes.
    pub label_smoothing: f64,
    /// Its settings.
    pub config: ClassificationConfig,
    /// The weight of each class; empty where all weigh the same.
    weights: Vec<f32>,
}

impl Classification {
    /// With these settings.
    pub fn new(config: ClassificationConfig, label_smoothing: f64) -> Self {
        Self {
            label_smoothing,
            config,
            weights: Vec::new(),
        }
    }
}

fn class_of(example: &Tokenized) -> Option<usize> {
    match example.labels {
        Target::Class(class) => Some(class),
        _ => None,
    }
}

fn classes_of(examples: &[&Tokenized]) -> Vec<usize> {
    examples.iter().filter_map(|e| class_of(e)).collect()
}

/// n / (classes · n of the class); a class that does not occur counts nothing.
fn balanced(classes: usize, train: &[Tokenized]) -> Vec<f32> {
    let mut counts = vec![0usize; classes];
    for class in train.iter().filter_map(class_of) {
        counts[class] += 1;
    }
    let total: usize = counts.iter().sum();
    let weight = |count: usize| match count {
        0 => 0.0,
        _ => (total as f64 / (classes * count) as f64) as f32,
    };
    counts.into_iter().map(weight).collect()
}

impl Objective for Classification {
    fn name(&self) -> &'static str {
        "classification"
    }

    fn check_model(&self, model: ModelParts<'_>) -> Result<(), String> {
        model.needs_head("classification needs a classification")
    }

    fn check_example(&self, model: ModelParts<'_>, example: &Tokenized) -> Result<(), String> {
        let labels = model.outputs();
        match &example.labels {
            Target::Class(class) if *class < labels => Ok(()),
            Target::Class(class) => Err(format!("class {class}, but the head has {labels} labels")),
            Target::Tokens(_) => {
                Err("it has target tokens, but a classification head needs a class".into())
            }
            _ => Err("it has no class of its own, which classification needs".into()),
        }
    }

    fn fit(&mut self, model: ModelParts<'_>, train: &[Tokenized]) -> Result<(), String> {
        if let Some(weights) = &self.config.class_weights {
            let balanced = || balanced(model.outputs(), train);
            self.weights = weights.for_labels(model.labels(), balanced)?;
        }
        Ok(())
    }

    fn num_targets(&self, _model: ModelParts<'_>, example: &Tokenized) -> f64 {
        let weight = class_of(example).and_then(|class| self.weights.get(class));
        weight.map_or(1.0, |weight| f64::from(*weight))
    }

    fn loss(
        &self,
        examples: &[&Tokenized],
        forward: &mut Forward<'_>,
    ) -> Result<Tensor<1>, ModelError> {
        let logits = MicroBatch::new(examples).head_logits(forward)?;
        let classes = classes_of(examples);
        if !forward.mode.is_train() {
            return Ok(plain(logits, &classes, 0.0));
        }
        Ok(if self.weights.is_empty() {
            plain(logits, &classes, self.label_smoothing)
        } else {
            weighted_cross_entropy(logits, &classes, &self.weights, self.label_smoothing)
        })
    }

    fn metrics(&self) -> &'static [Metric] {
        const METRICS: &[Metric] = &[
            Metric::larger("accuracy"),
            Metric::larger("macro_f1"),
            Metric::larger("matthews_correlation"),
            Metric::smaller("loss"),
        ];
        METRICS
    }

    fn meter<'a>(&'a self, model: ModelParts<'a>) -> Box<dyn Meter + 'a> {
        Box::new(ClassMeter {
            labels: model.labels(),
            loss: 0.0,
            gold: Vec::new(),
            predicted: Vec::new(),
            logits: Vec::new(),
        })
    }
}

fn plain(logits: Tensor<2>, classes: &[usize], label_smoothing: f64) -> Tensor<1> {
    let targets: Vec<i32> = classes.iter().map(|class| *class as i32).collect();
    cross_entropy(logits, &targets, label_smoothing)
}

struct ClassMeter<'a> {
    labels: &'a [String],
    loss: f64,
    gold: Vec<usize>,
    predicted: Vec<usize>,
    logits: Vec<Vec<f32>>,
}

impl Meter for ClassMeter<'_> {
    fn add(
        &mut self,
        examples: &[&Tokenized],
        forward: &mut Forward<'_>,
    ) -> Result<(), ModelError> {
        let logits = MicroBatch::new(examples).head_logits(forward)?;
        let classes = classes_of(examples);
        let labels = logits.dims()[1];
        let values = to_vec(logits.clone());
        let rows = values.chunks(labels);
        self.predicted.extend(rows.clone().map(largest));
        self.logits.extend(rows.map(<[f32]>::to_vec));
        self.loss += f64::from(to_vec(plain(logits, &classes, 0.0))[0]);
        self.gold.extend(classes);
        Ok(())
    }

    fn finish(self: Box<Self>) -> Evaluation {
        let targets = self.gold.len();
        let mut metrics = classification_metrics(&self.gold, &self.predicted, self.labels);
        metrics.insert("loss".into(), self.loss / targets as f64);
        Evaluation {
            metrics,
            gold: self.gold,
            predicted: self.predicted,
            logits: self.logits,
            targets,
            ..Evaluation::default()
        }
    }
}

fn classification_metrics(
    gold: &[usize],
    predicted: &[usize],
    labels: &[String],
) -> BTreeMap<String, f64> {
    let report = ClassificationReport::new(gold, predicted, labels)
        .expect("every example was checked against the labels");
    let metrics = [
        ("accuracy", report.accuracy),
        ("macro_f1", report.macro_f1),
        ("matthews_correlation", report.matthews_correlation),
    ];
    named(metrics)
}

/// Index of the largest logit; the first one among equals.
pub(super) fn largest(row: &[f32]) -> usize {
    row.iter()
        .enumerate()
        .fold(0, |best, (i, x)| if *x > row[best] { i } else { best })
}
