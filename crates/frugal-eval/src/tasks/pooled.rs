//! What the scores of the tasks of a group come to together.

use super::group::Group;
use super::results::{Measured, TaskResult};

impl Group {
    /// The scores of the group over the results of its tasks, of which `by_name` gives each: the
    /// mean, and the standard error of the pooled samples.
    pub fn measure<'a>(&self, by_name: impl Fn(&str) -> Option<&'a TaskResult>) -> Vec<Measured> {
        let results: Vec<&TaskResult> =
            self.tasks.iter().filter_map(|name| by_name(name)).collect();
        let mut measured = Vec::new();
        for wanted in &self.metrics {
            let mut filters = wanted.filters.clone();
            if filters.is_empty() {
                let all = results.iter().flat_map(|r| &r.measured);
                filters = all
                    .filter(|m| m.metric == wanted.metric)
                    .map(|m| m.filter.clone())
                    .collect();
                filters.sort();
                filters.dedup();
            }
            for filter in filters {
                let parts = results.iter().filter_map(|result| {
                    let found = result
                        .measured
                        .iter()
                        .find(|m| m.metric == wanted.metric && m.filter == filter)?;
                    Some((found, result.effective as f64))
                });
                let parts: Vec<(&Measured, f64)> = parts.collect();
                let Some((first, _)) = parts.first() else {
                    continue;
                };
                let weight = |size: f64| if wanted.weight_by_size { size } else { 1.0 };
                let weights: f64 = parts.iter().map(|(_, size)| weight(*size)).sum();
                let sum: f64 = parts.iter().map(|(m, size)| m.value * weight(*size)).sum();
                measured.push(Measured {
                    metric: wanted.metric.clone(),
                    filter,
                    value: sum / weights,
                    stderr: pooled(&parts),
                    higher_is_better: first.higher_is_better,
                });
            }
        }
        measured
    }
}

/// Standard error of the mean over all samples, from those of the parts.
fn pooled(parts: &[(&Measured, f64)]) -> Option<f64> {
    let squares = parts
        .iter()
        .map(|(m, size)| m.stderr.map(|e| (size - 1.0) * e * e * size));
    let squares: f64 = squares.collect::<Option<Vec<f64>>>()?.iter().sum();
    let sizes: f64 = parts.iter().map(|(_, size)| size).sum();
    let free = sizes - parts.len() as f64;
    (free > 0.0).then(|| (squares / free / sizes).sqrt())
}
