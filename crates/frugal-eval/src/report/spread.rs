//! Mean and spread of a number over the seeds of a run.

use serde::Serialize;

use super::markup::score;
use frugal_core::metrics;

/// Mean and standard deviation over seeds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Spread {
    /// Mean.
    pub mean: f64,
    /// Sample standard deviation; absent for one value.
    pub deviation: Option<f64>,
    /// Number of values.
    pub count: usize,
}

impl Spread {
    /// Of these values; `None` without any.
    pub fn new(values: &[f64]) -> Option<Self> {
        let mean = metrics::mean(values)?;
        let count = values.len();
        let sum: f64 = values.iter().map(|v| (v - mean).powi(2)).sum();
        Some(Self {
            mean,
            deviation: (count > 1).then(|| (sum / (count - 1) as f64).sqrt()),
            count,
        })
    }

    pub(super) fn text(self) -> String {
        self.deviation.map_or_else(
            || score(self.mean),
            |d| format!("{} \u{b1} {}", score(self.mean), score(d)),
        )
    }
}
