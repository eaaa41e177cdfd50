//! Scores where an example may have several labels, or none.

use serde::{Deserialize, Serialize};

use super::{ClassScores, MetricError, ratio};

/// Scores of a classifier that says yes or no to each label, as scikit-learn defines them with
/// `zero_division=0`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MultiLabelReport {
    /// F1 of all yes and no together: `f1_score(average="micro")`.
    pub micro_f1: f64,
    /// Mean F1 over the labels: `f1_score(average="macro")`.
    pub macro_f1: f64,
    /// Share of the examples whose labels are all right: `accuracy_score`.
    pub subset_accuracy: f64,
    /// Number of examples.
    pub examples: usize,
    /// One entry for each label, in their order.
    pub labels: Vec<ClassScores>,
}

impl MultiLabelReport {
    /// Scores what was said of each label of each example against what is so.
    ///
    /// # Errors
    /// If the numbers of examples differ or are zero, or an example has another number of labels.
    pub fn new(
        gold: &[Vec<bool>],
        predicted: &[Vec<bool>],
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
        for (example, (gold, predicted)) in gold.iter().zip(predicted).enumerate() {
            let found = [gold.len(), predicted.len()];
            if let Some(&found) = found.iter().find(|found| **found != labels.len()) {
                return Err(MetricError::Outputs {
                    example,
                    found,
                    expected: labels.len(),
                });
            }
        }
        let count = |rows: &[Vec<bool>], label: usize| rows.iter().filter(|row| row[label]).count();
        let right = |label: usize| {
            let both = gold.iter().zip(predicted);
            both.filter(|(g, p)| g[label] && p[label]).count()
        };
        let counts: Vec<[usize; 3]> = (0..labels.len())
            .map(|label| [right(label), count(predicted, label), count(gold, label)])
            .collect();
        let scores = |(label, &[right, claimed, support]): (&String, &[usize; 3])| ClassScores {
            label: label.clone(),
            precision: ratio(right, claimed),
            recall: ratio(right, support),
            f1: ratio(2 * right, claimed + support),
            support,
        };
        let classes: Vec<ClassScores> = labels.iter().zip(&counts).map(scores).collect();
        let total = |i: usize| counts.iter().map(|count| count[i]).sum::<usize>();
        let exact = gold.iter().zip(predicted).filter(|(g, p)| g == p).count();
        Ok(Self {
            micro_f1: ratio(2 * total(0), total(1) + total(2)),
            macro_f1: classes.iter().map(|class| class.f1).sum::<f64>() / labels.len() as f64,
            subset_accuracy: ratio(exact, gold.len()),
            examples: gold.len(),
            labels: classes,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Deserialize)]
    struct Case {
        gold: Vec<Vec<bool>>,
        predicted: Vec<Vec<bool>>,
        micro_f1: f64,
        macro_f1: f64,
        subset_accuracy: f64,
        precision: Vec<f64>,
        recall: Vec<f64>,
        f1: Vec<f64>,
        support: Vec<usize>,
    }

    #[test]
    fn scores_of_several_labels_equal_those_of_scikit_learn() {
        let file: serde_json::Value = serde_json::from_str(include_str!(
            "../../../../fixtures/metrics/multi_label.json"
        ))
        .unwrap();
        let cases: Vec<Case> = serde_json::from_value(file["cases"].clone()).unwrap();
        assert_eq!(cases.len(), 5);
        let close = |a: f64, b: f64| assert!((a - b).abs() < 1e-12, "{a} instead of {b}");
        for case in cases {
            let labels: Vec<String> = (0..case.f1.len()).map(|i| i.to_string()).collect();
            let found = MultiLabelReport::new(&case.gold, &case.predicted, &labels).unwrap();
            close(found.micro_f1, case.micro_f1);
            close(found.macro_f1, case.macro_f1);
            close(found.subset_accuracy, case.subset_accuracy);
            for (i, label) in found.labels.iter().enumerate() {
                close(label.precision, case.precision[i]);
                close(label.recall, case.recall[i]);
                close(label.f1, case.f1[i]);
                assert_eq!(label.support, case.support[i]);
            }
        }
    }

    #[test]
    fn an_example_with_another_number_of_labels_is_refused() {
        let labels = ["a".to_owned(), "b".to_owned()];
        let (two, one) = (vec![vec![true, false]; 2], vec![vec![true]; 2]);
        let error = MultiLabelReport::new(&two, &one, &labels).unwrap_err();
        assert_eq!(error.to_string(), "example 0: 1 outputs instead of 2");
        assert!(MultiLabelReport::new(&two, &two[..1], &labels).is_err());
        assert_eq!(
            MultiLabelReport::new(&[], &[], &labels),
            Err(MetricError::Empty)
        );
    }
}
