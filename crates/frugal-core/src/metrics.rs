//! Quality metrics and the small statistics that go with them.

mod entities;
mod multi_label;
mod regression;

use serde::{Deserialize, Serialize};
use thiserror::Error;

pub use entities::{Entity, EntityReport, continued, entities};
pub use multi_label::MultiLabelReport;
pub use regression::RegressionReport;

/// Predictions that cannot be scored.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum MetricError {
    /// Different numbers of gold labels and predictions.
    #[error(
        "{gold} gold labels but {predicted} predictions; there must be one prediction for each example"
    )]
    Lengths {
        /// Gold labels.
        gold: usize,
        /// Predictions.
        predicted: usize,
    },
    /// Nothing to score.
    #[error("no examples to score")]
    Empty,
    /// A class index outside the label list.
    #[error("example {example}: class {class} is not one of the {labels} labels (0..{labels})")]
    Class {
        /// Position of the example, from 0.
        example: usize,
        /// The class index found.
        class: usize,
        /// Number of labels.
        labels: usize,
    },
    /// An example with more or fewer outputs than the others.
    #[error("example {example}: {found} outputs instead of {expected}")]
    Outputs {
        /// Position of the example, from 0.
        example: usize,
        /// Outputs found.
        found: usize,
        /// Outputs of the others.
        expected: usize,
    },
}

/// Scores of one class.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ClassScores {
    /// The class's label.
    pub label: String,
    /// Share of the predictions of this class that are right; 0 if it was never predicted.
    pub precision: f64,
    /// Share of the examples of this class that were found; 0 if it never occurs.
    pub recall: f64,
    /// Harmonic mean of precision and recall; 0 if both are.
    pub f1: f64,
    /// Gold examples of this class.
    pub support: usize,
}

/// Scores of a classifier, as
/// `sklearn.metrics.classification_report(labels=range(n), zero_division=0)` defines them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ClassificationReport {
    /// Share of the examples that are right.
    pub accuracy: f64,
    /// Mean F1 over all labels, each with the same weight, labels that do not occur included.
    pub macro_f1: f64,
    /// Matthews correlation in its multi-class form, in -1..=1; 0 where it is not defined.
    pub matthews_correlation: f64,
    /// Number of examples.
    pub examples: usize,
    /// One entry for each label, in their order.
    pub classes: Vec<ClassScores>,
    /// `confusion[gold][predicted]`, in examples.
    pub confusion: Vec<Vec<usize>>,
}

impl ClassificationReport {
    /// Scores `predicted` against `gold`, both class indices into `labels`.
    ///
    /// # Errors
    /// If the lengths differ, are zero, or a class has no label.
    pub fn new(
        gold: &[usize],
        predicted: &[usize],
        labels: &[String],
    ) -> Result<Self, MetricError> {
        if gold.len() != predicted.len() {
            return Err(MetricError::Lengths {
                gold: gold.len(),
                predicted: predicted.len(),
            });
        }
        if gold.is_empty() {
            return Err(MetricError::Empty);
        }
        let mut confusion = vec![vec![0; labels.len()]; labels.len()];
        for (example, (&g, &p)) in gold.iter().zip(predicted).enumerate() {
            if let Some(&class) = [g, p].iter().find(|class| **class >= labels.len()) {
                return Err(MetricError::Class {
                    example,
                    class,
                    labels: labels.len(),
                });
            }
            confusion[g][p] += 1;
        }
        let support: Vec<usize> = confusion.iter().map(|row| row.iter().sum()).collect();
        let claimed: Vec<usize> = (0..labels.len())
            .map(|class| confusion.iter().map(|row| row[class]).sum())
            .collect();
        let scores = |class: usize| {
            let right = confusion[class][class];
            ClassScores {
                label: labels[class].clone(),
                precision: ratio(right, claimed[class]),
                recall: ratio(right, support[class]),
                f1: ratio(2 * right, claimed[class] + support[class]),
                support: support[class],
            }
        };
        let classes: Vec<ClassScores> = (0..labels.len()).map(scores).collect();
        let right: usize = (0..labels.len()).map(|class| confusion[class][class]).sum();
        Ok(Self {
            accuracy: ratio(right, gold.len()),
            macro_f1: classes.iter().map(|class| class.f1).sum::<f64>() / labels.len() as f64,
            matthews_correlation: matthews_correlation(right, gold.len(), &support, &claimed),
            examples: gold.len(),
            classes,
            confusion,
        })
    }
}

/// The R_K statistic of Gorodkin (2004), the multi-class form of Matthews correlation.
fn matthews_correlation(
    right: usize,
    examples: usize,
    support: &[usize],
    claimed: &[usize],
) -> f64 {
    // In i128 the products are exact for any number of examples that fits in memory.
    let dot = |a: &[usize], b: &[usize]| {
        a.iter()
            .zip(b)
            .map(|(a, b)| *a as i128 * *b as i128)
            .sum::<i128>()
    };
    let n = examples as i128;
    let between = right as i128 * n - dot(support, claimed);
    let gold = n * n - dot(support, support);
    let predicted = n * n - dot(claimed, claimed);
    if gold == 0 || predicted == 0 {
        0.0
    } else {
        between as f64 / ((gold as f64).sqrt() * (predicted as f64).sqrt())
    }
}

fn ratio(part: usize, whole: usize) -> f64 {
    if whole == 0 {
        0.0
    } else {
        part as f64 / whole as f64
    }
}

/// `exp(sum_nll / tokens)`, with the negative log-likelihood in nats; `None` without tokens.
pub fn perplexity(sum_nll: f64, tokens: usize) -> Option<f64> {
    (tokens > 0).then(|| (sum_nll / tokens as f64).exp())
}

/// Negative log-likelihood in bits for each UTF-8 byte of text, comparable between tokenizers;
/// `None` without bytes.
pub fn bits_per_byte(sum_nll: f64, bytes: usize) -> Option<f64> {
    (bytes > 0).then(|| sum_nll / std::f64::consts::LN_2 / bytes as f64)
}

/// Standard error of a proportion, `sqrt(p (1 - p) / n)`; `None` without examples.
pub fn standard_error(correct: usize, total: usize) -> Option<f64> {
    (total > 0).then(|| {
        let p = correct as f64 / total as f64;
        (p * (1.0 - p) / total as f64).sqrt()
    })
}

/// The 95 % Wilson score interval of a proportion, as (low, high); `None` without examples.
pub fn wilson_interval(correct: usize, total: usize) -> Option<(f64, f64)> {
    const Z: f64 = 1.959_963_984_540_054;
    (total > 0).then(|| {
        let (n, p) = (total as f64, correct as f64 / total as f64);
        let centre = p + Z * Z / (2.0 * n);
        let half = Z * (p * (1.0 - p) / n + Z * Z / (4.0 * n * n)).sqrt();
        let scale = 1.0 + Z * Z / n;
        (
            ((centre - half) / scale).max(0.0),
            ((centre + half) / scale).min(1.0),
        )
    })
}

/// Arithmetic mean; `None` of nothing.
pub fn mean(values: &[f64]) -> Option<f64> {
    (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
}

/// The middle value, or the mean of the two middle ones; `None` of nothing.
pub fn median(values: &[f64]) -> Option<f64> {
    quantile(values, 0.5)
}

/// The `q`-quantile for `q` in 0..=1, interpolated linearly between neighbours (NumPy's default);
/// `None` of nothing.
pub fn quantile(values: &[f64], q: f64) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let position = q.clamp(0.0, 1.0) * sorted.len().checked_sub(1)? as f64;
    let (below, share) = (position.floor() as usize, position.fract());
    let above = (below + 1).min(sorted.len() - 1);
    Some(sorted[below] + (sorted[above] - sorted[below]) * share)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Deserialize)]
    struct Case {
        name: String,
        gold: Vec<usize>,
        predicted: Vec<usize>,
        classes: usize,
        accuracy: f64,
        macro_f1: f64,
        matthews_correlation: f64,
        precision: Vec<f64>,
        recall: Vec<f64>,
        f1: Vec<f64>,
        support: Vec<usize>,
        confusion: Vec<Vec<usize>>,
    }

    #[derive(Deserialize)]
    struct Statistics {
        samples: Vec<Sample>,
        wilson: Vec<Proportion>,
    }

    #[derive(Deserialize)]
    struct Sample {
        values: Vec<f64>,
        mean: f64,
        median: f64,
        q: Vec<f64>,
        quantiles: Vec<f64>,
    }

    #[derive(Deserialize)]
    struct Proportion {
        correct: usize,
        total: usize,
        low: f64,
        high: f64,
    }

    fn close(ours: f64, reference: f64, what: &str) {
        assert!(
            (ours - reference).abs() <= 1e-12,
            "{what}: {ours} but the reference has {reference}"
        );
    }

    fn labels(count: usize) -> Vec<String> {
        (0..count).map(|i| format!("class {i}")).collect()
    }

    #[test]
    fn classification_agrees_with_scikit_learn() {
        #[derive(Deserialize)]
        struct Golden {
            cases: Vec<Case>,
        }
        let golden: Golden = serde_json::from_str(include_str!(
            "../../../fixtures/metrics/classification.json"
        ))
        .unwrap();
        assert_eq!(golden.cases.len(), 13);
        for case in golden.cases {
            let report =
                ClassificationReport::new(&case.gold, &case.predicted, &labels(case.classes))
                    .unwrap();
            close(report.accuracy, case.accuracy, &case.name);
            close(report.macro_f1, case.macro_f1, &case.name);
            close(
                report.matthews_correlation,
                case.matthews_correlation,
                &case.name,
            );
            assert_eq!(report.confusion, case.confusion, "{}", case.name);
            assert_eq!(report.classes.len(), case.classes);
            for (i, class) in report.classes.iter().enumerate() {
                close(class.precision, case.precision[i], &case.name);
                close(class.recall, case.recall[i], &case.name);
                close(class.f1, case.f1[i], &case.name);
                assert_eq!(class.support, case.support[i], "{}", case.name);
            }
        }
    }

    #[test]
    fn statistics_agree_with_numpy_and_scipy() {
        let golden: Statistics =
            serde_json::from_str(include_str!("../../../fixtures/metrics/statistics.json"))
                .unwrap();
        for sample in golden.samples {
            close(mean(&sample.values).unwrap(), sample.mean, "mean");
            close(median(&sample.values).unwrap(), sample.median, "median");
            for (q, reference) in sample.q.iter().zip(&sample.quantiles) {
                close(
                    quantile(&sample.values, *q).unwrap(),
                    *reference,
                    "quantile",
                );
            }
        }
        for case in golden.wilson {
            let (low, high) = wilson_interval(case.correct, case.total).unwrap();
            close(low, case.low, "wilson low");
            close(high, case.high, "wilson high");
        }
        assert_eq!(
            (
                mean(&[]),
                median(&[]),
                quantile(&[], 0.9),
                wilson_interval(0, 0)
            ),
            (None, None, None, None)
        );
    }

    #[test]
    fn likelihoods_have_known_values() {
        // A uniform guess over 50 tokens has perplexity 50; over 256 byte values it takes 8 bits a
        // byte.
        close(perplexity(7.0 * 50f64.ln(), 7).unwrap(), 50.0, "perplexity");
        close(
            bits_per_byte(10.0 * 256f64.ln(), 10).unwrap(),
            8.0,
            "bits per byte",
        );
        close(standard_error(50, 100).unwrap(), 0.05, "standard error");
        assert_eq!(
            (
                perplexity(1.0, 0),
                bits_per_byte(1.0, 0),
                standard_error(0, 0)
            ),
            (None, None, None)
        );
    }

    #[test]
    fn bad_predictions_are_refused() {
        let two = labels(2);
        assert_eq!(
            ClassificationReport::new(&[], &[], &two),
            Err(MetricError::Empty)
        );
        assert_eq!(
            ClassificationReport::new(&[0], &[], &two),
            Err(MetricError::Lengths {
                gold: 1,
                predicted: 0
            })
        );
        let error = ClassificationReport::new(&[0, 1], &[0, 2], &two).unwrap_err();
        assert_eq!(
            error.to_string(),
            "example 1: class 2 is not one of the 2 labels (0..2)"
        );
    }
}
