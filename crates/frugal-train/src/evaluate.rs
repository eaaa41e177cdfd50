//! Measuring a model on examples, without gradients.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};

use burn::prelude::*;
use frugal_core::metrics::ClassificationReport;
use frugal_nn::{Adapter, Backbone, Fixed, Head, Mode, to_vec};

use crate::error::{Set, TrainError};
use crate::objective::{MicroBatch, Objective, cross_entropy};
use crate::{Target, Tokenized};

/// Rows of vocabulary logits formed at a time.
const LOGIT_ROWS: usize = 256;

/// What an evaluation found.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Evaluation {
    /// Metrics by name: `loss` always, `perplexity` for language modelling, `accuracy` and more for
    /// classification.
    pub metrics: BTreeMap<String, f64>,
    /// True classes in the order of the examples; empty for language modelling.
    pub gold: Vec<usize>,
    /// Predicted classes, likewise.
    pub predicted: Vec<usize>,
    /// Logits of the classes, likewise.
    pub logits: Vec<Vec<f32>>,
    /// Targets that the loss is the mean of: tokens, or examples for classification.
    pub targets: usize,
}

/// For each example the logits of a head. Targets are not looked at.
///
/// # Errors
/// Examples that do not fit the model, and logits that are not finite.
pub fn head_logits(
    backbone: &dyn Backbone,
    adapter: Option<&dyn Adapter>,
    head: &Head,
    examples: &[Tokenized],
) -> Result<Vec<Vec<f32>>, TrainError> {
    if examples.is_empty() {
        return Ok(Vec::new());
    }
    Objective::Classification(head).check(Set::Evaluation, backbone, examples)?;
    let fixed = Fixed::new(adapter);
    let mut pass = fixed.pass();
    let failed = |source| TrainError::Forward {
        set: Set::Evaluation,
        rows: (0..examples.len() as u32).collect(),
        source,
    };
    let batch = MicroBatch::new(examples.iter());
    let logits = batch
        .class_logits(head, backbone, pass.as_mut(), Mode::Eval)
        .map_err(failed)?;
    let labels = logits.dims()[1];
    let values = to_vec(logits);
    if let Some(at) = values.iter().position(|value| !value.is_finite()) {
        return Err(TrainError::Example {
            set: Set::Evaluation,
            row: at / labels,
            reason: "the model's logits are not finite: its weights are damaged".into(),
        });
    }
    Ok(values.chunks(labels).map(<[f32]>::to_vec).collect())
}

/// Evaluates a backbone, with `adapter` if one is given, in batches of at most `max_tokens` tokens.
///
/// The loss is the plain cross-entropy, without label smoothing. Returns `None` if `stop` was set
/// before the end.
///
/// # Errors
/// No example, examples that do not fit the objective or the model, a backbone without output head
/// for language modelling.
pub fn evaluate(
    backbone: &dyn Backbone,
    adapter: Option<&dyn Adapter>,
    objective: Objective<'_>,
    examples: &[Tokenized],
    max_tokens: usize,
    stop: &AtomicBool,
) -> Result<Option<Evaluation>, TrainError> {
    evaluate_observed(
        backbone,
        adapter,
        objective,
        examples,
        max_tokens,
        stop,
        &mut |_, _| {},
    )
}

/// [`evaluate`], which tells after each batch how many examples are done, and of how many.
///
/// # Errors
/// As [`evaluate`].
pub fn evaluate_observed(
    backbone: &dyn Backbone,
    adapter: Option<&dyn Adapter>,
    objective: Objective<'_>,
    examples: &[Tokenized],
    max_tokens: usize,
    stop: &AtomicBool,
    observe: &mut dyn FnMut(usize, usize),
) -> Result<Option<Evaluation>, TrainError> {
    objective.check(Set::Evaluation, backbone, examples)?;
    let rows: Vec<u32> = (0..examples.len() as u32)
        .filter(|&i| crate::batch::num_targets(&examples[i as usize]) > 0)
        .collect();
    let (mut loss, mut targets) = (0.0, 0);
    let (mut gold, mut predicted, mut all_logits) = (Vec::new(), Vec::new(), Vec::new());
    let fixed = Fixed::new(adapter);
    let (mut done, of) = (0, rows.len());
    for range in crate::batch::pack(&rows, max_tokens, |row| {
        examples[row as usize].input_ids.len()
    }) {
        if stop.load(Ordering::Relaxed) {
            return Ok(None);
        }
        let rows = &rows[range];
        let batch = MicroBatch::new(rows.iter().map(|&row| &examples[row as usize]));
        let mut pass = fixed.pass();
        let failed = |source| TrainError::Forward {
            set: Set::Evaluation,
            rows: rows.to_vec(),
            source,
        };
        let sum = match objective {
            Objective::CausalLm => objective
                .loss(&batch, backbone, pass.as_mut(), Mode::Eval, 0.0, LOGIT_ROWS)
                .map_err(failed)?,
            Objective::Classification(head) => {
                let logits = batch
                    .class_logits(head, backbone, pass.as_mut(), Mode::Eval)
                    .map_err(failed)?;
                predicted.extend(largest(logits.clone()));
                let labels = logits.dims()[1];
                all_logits.extend(to_vec(logits.clone()).chunks(labels).map(<[f32]>::to_vec));
                cross_entropy(logits, &batch.targets, 0.0)
            }
        };
        loss += f64::from(to_vec(sum)[0]);
        for example in rows.iter().map(|&row| &examples[row as usize]) {
            targets += crate::batch::num_targets(example);
            if let Target::Class(class) = example.labels {
                gold.push(class);
            }
        }
        done += rows.len();
        observe(done, of);
    }
    let loss = loss / targets as f64;
    let mut metrics = match objective {
        Objective::CausalLm => BTreeMap::from([("perplexity".to_owned(), loss.exp())]),
        Objective::Classification(head) => {
            classification_metrics(&gold, &predicted, &head.config().labels)
        }
    };
    metrics.insert("loss".into(), loss);
    Ok(Some(Evaluation {
        metrics,
        gold,
        predicted,
        logits: all_logits,
        targets,
    }))
}

/// Names of the metrics that [`evaluate`] gives for an objective.
pub(super) fn metric_names(objective: Objective<'_>) -> Vec<String> {
    let mut names: Vec<String> = match objective {
        Objective::CausalLm => vec!["perplexity".into()],
        Objective::Classification(head) => {
            classification_metrics(&[0], &[0], &head.config().labels)
                .into_keys()
                .collect()
        }
    };
    names.push("loss".into());
    names
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
    metrics
        .into_iter()
        .map(|(name, value)| (name.to_owned(), value))
        .collect()
}

/// Index of the largest logit of each row; the first one among equals.
fn largest(logits: Tensor<2>) -> Vec<usize> {
    let classes = logits.dims()[1];
    let first_largest = |row: &[f32]| {
        row.iter()
            .enumerate()
            .fold(0, |best, (i, x)| if *x > row[best] { i } else { best })
    };
    to_vec(logits).chunks(classes).map(first_largest).collect()
}
