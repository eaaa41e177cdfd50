//! What a trained classifier is compared with, and which classes it takes for which.

use std::collections::BTreeMap;

use frugal_core::encode::Target;
use frugal_core::metrics::RegressionReport;
use frugal_eval::baselines::class_baselines;
use frugal_eval::report;
use frugal_nn::ProblemType;

use super::Metrics;
use super::prepare::{Part, Prepared};

/// Metrics of the commonest class and of chance on a part of the data: an untrained head is no
/// measure of what was gained. For regression the mean of the training data. Nothing for several
/// labels and language models.
pub(super) fn baselines(prepared: &Prepared, part: &Part) -> BTreeMap<String, Metrics> {
    let Some(head) = &prepared.head else {
        return BTreeMap::new();
    };
    match head.problem_type {
        // The commonest tag of words is no entity.
        ProblemType::SingleLabel if head.labels_tokens() => return BTreeMap::new(),
        ProblemType::SingleLabel => {}
        ProblemType::MultiLabel => return BTreeMap::new(),
        ProblemType::Regression => return mean_baseline(&values(&prepared.train), &values(part)),
    }
    let counts = |part: &Part| {
        let mut counts = vec![0; head.labels.len()];
        for example in part.examples() {
            if let Target::Class(class) = &example.labels
                && let Some(count) = counts.get_mut(*class)
            {
                *count += 1;
            }
        }
        counts
    };
    class_baselines(&counts(&prepared.train), &counts(part))
}

fn values(part: &Part) -> Vec<&[f32]> {
    let examples = part.examples().iter();
    examples
        .filter_map(|example| match &example.labels {
            Target::Values(values) => Some(values.as_slice()),
            _ => None,
        })
        .collect()
}

/// Name of the answer that is always the mean of the training data.
const MEAN: &str = "training mean";

/// Errors of the mean of the training data.
fn mean_baseline(train: &[&[f32]], part: &[&[f32]]) -> BTreeMap<String, Metrics> {
    let outputs = train.first().map_or(0, |values| values.len());
    let mean: Vec<f64> = (0..outputs)
        .map(|i| train.iter().map(|v| f64::from(v[i])).sum::<f64>() / train.len() as f64)
        .collect();
    let gold: Vec<f64> = part
        .iter()
        .copied()
        .flatten()
        .map(|v| f64::from(*v))
        .collect();
    let predicted: Vec<f64> = mean.iter().copied().cycle().take(gold.len()).collect();
    let Ok(report) = RegressionReport::new(&gold, &predicted, outputs) else {
        return BTreeMap::new();
    };
    let metrics = [
        ("mae", report.mae),
        ("mse", report.mse),
        ("loss", report.mse),
        ("pearson", report.pearson),
        ("spearman", report.spearman),
    ];
    let metrics = metrics.map(|(name, value)| (name.to_owned(), value));
    [(MEAN.to_owned(), metrics.into())].into()
}

/// How often each class was taken for each.
pub(super) fn confusion(
    labels: &[String],
    gold: &[usize],
    predicted: &[usize],
) -> report::Confusion {
    let mut counts = vec![vec![0; labels.len()]; labels.len()];
    for (gold, predicted) in gold.iter().zip(predicted) {
        if let Some(count) = counts
            .get_mut(*gold)
            .and_then(|row| row.get_mut(*predicted))
        {
            *count += 1;
        }
    }
    report::Confusion {
        labels: labels.to_vec(),
        counts,
    }
}
