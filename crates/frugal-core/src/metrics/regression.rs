//! How near predicted numbers are to the true ones.

use serde::{Deserialize, Serialize};

use super::MetricError;

/// Scores of predicted numbers: the errors of `sklearn.metrics`, the correlations of `scipy.stats`.
/// With several outputs each is the mean over the outputs.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct RegressionReport {
    /// Mean of the squared differences.
    pub mse: f64,
    /// Mean of the magnitudes of the differences.
    pub mae: f64,
    /// Pearson's correlation, in -1..=1; 0 where it is not defined, as for a constant.
    pub pearson: f64,
    /// Spearman's correlation of ranks, likewise; equal numbers share the mean of their ranks.
    pub spearman: f64,
}

impl RegressionReport {
    /// Scores numbers that stand `outputs` to an example, one example after another.
    ///
    /// # Errors
    /// If the numbers of values differ or are zero, or do not make whole examples.
    pub fn new(gold: &[f64], predicted: &[f64], outputs: usize) -> Result<Self, MetricError> {
        if gold.len() != predicted.len() {
            return Err(MetricError::Lengths {
                gold: gold.len(),
                predicted: predicted.len(),
            });
        }
        if gold.is_empty() || outputs == 0 {
            return Err(MetricError::Empty);
        }
        if !gold.len().is_multiple_of(outputs) {
            return Err(MetricError::Outputs {
                example: gold.len() / outputs,
                found: gold.len() % outputs,
                expected: outputs,
            });
        }
        let n = gold.len() as f64;
        let differences = || gold.iter().zip(predicted).map(|(g, p)| p - g);
        let of_output = |values: &[f64], output: usize| -> Vec<f64> {
            values
                .iter()
                .skip(output)
                .step_by(outputs)
                .copied()
                .collect()
        };
        let mean_of = |score: fn(&[f64], &[f64]) -> f64| {
            let scores = (0..outputs).map(|i| score(&of_output(gold, i), &of_output(predicted, i)));
            scores.sum::<f64>() / outputs as f64
        };
        Ok(Self {
            mse: differences().map(|d| d * d).sum::<f64>() / n,
            mae: differences().map(f64::abs).sum::<f64>() / n,
            pearson: mean_of(pearson),
            spearman: mean_of(|a, b| pearson(&ranks(a), &ranks(b))),
        })
    }
}

/// Pearson's correlation; 0 where one side is constant.
fn pearson(a: &[f64], b: &[f64]) -> f64 {
    let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len() as f64;
    let (mean_a, mean_b) = (mean(a), mean(b));
    let (mut both, mut square_a, mut square_b) = (0.0, 0.0, 0.0);
    for (a, b) in a.iter().zip(b) {
        let (a, b) = (a - mean_a, b - mean_b);
        both += a * b;
        square_a += a * a;
        square_b += b * b;
    }
    let correlation = both / (square_a.sqrt() * square_b.sqrt());
    if correlation.is_finite() {
        correlation.clamp(-1.0, 1.0)
    } else {
        0.0
    }
}

/// Ranks from 1; equal numbers share the mean of theirs.
fn ranks(values: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|a, b| values[*a].total_cmp(&values[*b]));
    let mut ranks = vec![0.0; values.len()];
    let mut before = 0;
    for group in order.chunk_by(|a, b| values[*a] == values[*b]) {
        let rank = before as f64 + (group.len() + 1) as f64 / 2.0;
        group.iter().for_each(|&i| ranks[i] = rank);
        before += group.len();
    }
    ranks
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_and_correlations_equal_those_of_scikit_learn_and_scipy() {
        let file: serde_json::Value =
            serde_json::from_str(include_str!("../../../../fixtures/metrics/regression.json"))
                .unwrap();
        let cases = file["cases"].as_array().unwrap();
        assert_eq!(cases.len(), 4);
        for case in cases {
            let values =
                |key: &str| -> Vec<f64> { serde_json::from_value(case[key].clone()).unwrap() };
            let outputs = case["outputs"].as_u64().unwrap() as usize;
            let found =
                RegressionReport::new(&values("gold"), &values("predicted"), outputs).unwrap();
            for (name, found) in [
                ("mse", found.mse),
                ("mae", found.mae),
                ("pearson", found.pearson),
                ("spearman", found.spearman),
            ] {
                let expected = case[name].as_f64().unwrap();
                assert!(
                    (found - expected).abs() < 1e-12,
                    "{name}: {found} instead of {expected}"
                );
            }
        }
    }

    #[test]
    fn a_constant_has_no_correlation_and_no_nan() {
        let found = RegressionReport::new(&[1.0, 2.0], &[3.0, 3.0], 1).unwrap();
        assert_eq!((found.pearson, found.spearman), (0.0, 0.0));
        assert!(RegressionReport::new(&[], &[], 1).is_err());
        assert!(RegressionReport::new(&[1.0; 3], &[1.0; 3], 2).is_err());
    }
}
