//! Many runs against one, with the significance of their differences.

use super::error::RetrievalError;
use super::evaluate::Evaluation;
use super::measure::Measure;
use super::significance::{PairedTest, holm, paired_permutation};

/// One run against the baseline.
#[derive(Clone, Debug, PartialEq)]
pub struct Comparison {
    /// Name of the run.
    pub name: String,
    /// Mean of the baseline.
    pub baseline: f64,
    /// Mean of the run.
    pub mean: f64,
    /// The paired test; a difference above 0 is in favour of the run.
    pub test: PairedTest,
    /// The test's p value, corrected by Holm's method for the number of runs.
    pub corrected_p: f64,
}

/// Compares runs with a baseline in one measure, query by query, by paired randomisation tests.
///
/// # Errors
/// A measure that was not computed, or evaluations over different queries: evaluate them with
/// `all_queries`, so that no query is left out silently.
pub fn compare(
    baseline: &Evaluation,
    runs: &[&Evaluation],
    measure: Measure,
    rounds: usize,
    seed: u64,
) -> Result<Vec<Comparison>, RetrievalError> {
    let mut found = Vec::new();
    for run in runs {
        let wrong = |problem: String| RetrievalError::Compare {
            first: baseline.name.clone(),
            second: run.name.clone(),
            problem,
        };
        let absent = || wrong(format!("`{measure}` was not computed for both"));
        let first = baseline.per_query(measure).ok_or_else(absent)?;
        let second = run.per_query(measure).ok_or_else(absent)?;
        let ids = |evaluation: &Evaluation| -> Vec<String> {
            evaluation.queries.iter().map(|q| q.id.clone()).collect()
        };
        if ids(baseline) != ids(run) {
            return Err(wrong(format!(
                "they are over different queries ({} and {}); evaluate both over all queries with judgements",
                baseline.queries.len(),
                run.queries.len()
            )));
        }
        let test = paired_permutation(&first, &second, rounds, seed)
            .ok_or_else(|| wrong("there is no query".into()))?;
        found.push(Comparison {
            name: run.name.clone(),
            baseline: baseline.mean(measure).unwrap_or_default(),
            mean: run.mean(measure).unwrap_or_default(),
            test,
            corrected_p: test.p_value,
        });
    }
    let p_values: Vec<f64> = found.iter().map(|c| c.test.p_value).collect();
    for (comparison, corrected) in found.iter_mut().zip(holm(&p_values)) {
        comparison.corrected_p = corrected;
    }
    Ok(found)
}
