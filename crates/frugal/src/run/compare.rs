//! What a trained classifier is compared with, and which classes it takes for which.

use std::collections::BTreeMap;

use frugal_core::encode::Target;
use frugal_eval::baselines::class_baselines;
use frugal_eval::report;

use super::Metrics;
use super::prepare::{Part, Prepared};

/// Metrics of the commonest class and of chance on a part of the data: an untrained head is no
/// measure of what was gained. Nothing for language models.
pub(super) fn baselines(prepared: &Prepared, part: &Part) -> BTreeMap<String, Metrics> {
    let Some(head) = &prepared.head else {
        return BTreeMap::new();
    };
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
