//! How far a law's predictions can be off, and whether the runs that it comes from can tell.

use serde::{Deserialize, Serialize};

use super::law::{Law, Run};

/// Covariances of the coefficients of a law: of ln factor, exponent of the parameters and exponent
/// of the tokens for the rate, of ln factor and exponent of the tokens for the batch. Factor and
/// exponents make up for each other, so their deviations alone say little about a prediction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Covariance {
    /// Of the rate.
    pub rate: [[f64; 3]; 3],
    /// Of the batch.
    pub batch: [[f64; 2]; 2],
}

/// Those of the published law, over the 1,000 bootstrap fits that its authors released.
pub const STEP_LAW_COVARIANCE: Covariance = Covariance {
    rate: [
        [3.890_621_114_9e-1, -1.355_893_897_1e-2, -5.132_493_532_1e-3],
        [-1.355_893_897_1e-2, 8.914_857_372_5e-4, -1.743_317_885_3e-4],
        [-5.132_493_532_1e-3, -1.743_317_885_3e-4, 3.663_118_429_0e-4],
    ],
    batch: [
        [1.911_796_358_7e-1, -8.151_572_248_0e-3],
        [-8.151_572_248_0e-3, 3.485_179_395_0e-4],
    ],
};

/// What lies within one standard deviation of a prediction, least and most.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Band {
    /// Peak learning rate.
    pub rate: (f64, f64),
    /// Tokens for each step.
    pub batch: (f64, f64),
}

impl Covariance {
    /// Of coefficients that were fitted to many samples, in the order of [`super::Fit::deviations`].
    pub(super) fn of(draws: &[[f64; 5]]) -> Self {
        let count = draws.len().max(2) as f64;
        let mean = |i: usize| draws.iter().map(|d| d[i]).sum::<f64>() / draws.len().max(1) as f64;
        let means: [f64; 5] = std::array::from_fn(mean);
        let both = |i: usize, j: usize| {
            let sum: f64 = draws
                .iter()
                .map(|d| (d[i] - means[i]) * (d[j] - means[j]))
                .sum();
            sum / (count - 1.0)
        };
        Self {
            rate: std::array::from_fn(|i| std::array::from_fn(|j| both(i, j))),
            batch: std::array::from_fn(|i| std::array::from_fn(|j| both(3 + i, 3 + j))),
        }
    }

    /// One standard deviation on either side of a law's predictions.
    pub fn band(&self, law: &Law, parameters: f64, tokens: f64) -> Band {
        let spread = |variance: f64| variance.max(0.0).sqrt().exp();
        let rate = spread(quadratic(&self.rate, [1.0, parameters.ln(), tokens.ln()]));
        let batch = spread(quadratic(&self.batch, [1.0, tokens.ln()]));
        let (r, b) = (law.rate(parameters, tokens), law.batch(tokens));
        Band {
            rate: (r / rate, r * rate),
            batch: (b / batch, b * batch),
        }
    }
}

fn quadratic<const N: usize>(matrix: &[[f64; N]; N], at: [f64; N]) -> f64 {
    let row =
        |(row, a): (&[f64; N], &f64)| a * row.iter().zip(&at).map(|(v, b)| v * b).sum::<f64>();
    matrix.iter().zip(&at).map(row).sum()
}

/// Sizes whose best run lies on the edge of the grid: the optimum may lie beyond.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Edges {
    /// Sizes with more than one rate or batch.
    pub sizes: usize,
    /// Of these with the best rate at the edge.
    pub rate: usize,
    /// And with the best batch at the edge.
    pub batch: usize,
}

impl Edges {
    /// Of a grid.
    pub fn of(runs: &[Run]) -> Self {
        let mut found = Self::default();
        let mut sizes: Vec<(f64, f64)> = runs.iter().map(|r| (r.parameters, r.tokens)).collect();
        sizes.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.total_cmp(&b.1)));
        sizes.dedup();
        for size in sizes {
            let same = || {
                runs.iter()
                    .filter(move |r| (r.parameters, r.tokens) == size)
            };
            let Some(best) = same().min_by(|a, b| a.loss.total_cmp(&b.loss)) else {
                continue;
            };
            let edge = |value: fn(&Run) -> f64| {
                let low = same().map(value).fold(f64::INFINITY, f64::min);
                let high = same().map(value).fold(f64::NEG_INFINITY, f64::max);
                (high > low).then(|| value(best) <= low || value(best) >= high)
            };
            let (rate, batch) = (edge(|r| r.rate), edge(|r| r.batch));
            found.sizes += usize::from(rate.is_some() || batch.is_some());
            found.rate += usize::from(rate == Some(true));
            found.batch += usize::from(batch == Some(true));
        }
        found
    }

    /// What that means for a law; `None` where no optimum is at the edge.
    pub fn warning(&self) -> Option<String> {
        (self.rate + self.batch > 0).then(|| {
            format!(
                "the best rate of {} and the best batch of {} of {} sizes lie on the edge of the grid: the optimum may lie \
                 beyond it, and deviations do not show that; widen the grid before the law is used",
                self.rate, self.batch, self.sizes
            )
        })
    }
}

/// A deviation as tables show it: one that rounds to nothing is not known to be nothing.
pub fn deviation_text(value: f64) -> String {
    if value >= 5e-4 {
        format!("{value:.3}")
    } else {
        "-".to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::super::{STEP_LAW, fit};
    use super::*;

    #[test]
    fn the_band_is_that_of_the_released_fits() {
        // Deviations of ln rate and ln batch over the 1,000 released fits, predicted at these sizes
        // one by one in NumPy.
        for (n, d, rate, batch) in [
            (1e9, 1e11, 0.0440177, 0.0427912),
            (2.1e8, 4e9, 0.0340809, 0.0330338),
            (7e9, 1.4e12, 0.1040794, 0.0884621),
        ] {
            let band = STEP_LAW_COVARIANCE.band(&STEP_LAW, n, d);
            let r = (band.rate.1 / band.rate.0).ln() / 2.0;
            let b = (band.batch.1 / band.batch.0).ln() / 2.0;
            assert!(
                (r / rate - 1.0).abs() < 1e-3 && (b / batch - 1.0).abs() < 1e-3,
                "{r} {b}"
            );
            let middle = (band.rate.0 * band.rate.1).sqrt();
            assert!((middle / STEP_LAW.rate(n, d) - 1.0).abs() < 1e-12);
        }
    }

    fn grid(best_rate: f64, best_batch: f64) -> Vec<Run> {
        let mut runs = Vec::new();
        for (n, d) in [(1e6, 1e7), (1e6, 4e7), (4e6, 1e7), (4e6, 4e7)] {
            for rate in [1e-3, 2e-3, 4e-3] {
                for batch in [1e3, 2e3, 4e3] {
                    let (x, y): (f64, f64) = ((rate / best_rate), (batch / best_batch));
                    runs.push(Run {
                        parameters: n,
                        tokens: d,
                        rate,
                        batch,
                        loss: 3.0 + 0.1 * x.ln().powi(2) + 0.1 * y.ln().powi(2),
                    });
                }
            }
        }
        runs
    }

    #[test]
    fn optima_on_the_edge_of_the_grid_are_warned_of() {
        let edges = Edges::of(&grid(2e-3, 2e3));
        assert_eq!(
            edges,
            Edges {
                sizes: 4,
                rate: 0,
                batch: 0
            }
        );
        assert!(edges.warning().is_none());
        // Every optimum lies beyond the grid: the law through its edge has no deviation at all.
        let runs = grid(1e-2, 2e3);
        let found = fit(&runs, 0.0025, 200, 0).unwrap();
        assert!(found.deviations[1] < 1e-9 && deviation_text(found.deviations[1]) == "-");
        let warning = Edges::of(&runs).warning().unwrap();
        assert!(
            warning.contains("rate of 4") && warning.contains("batch of 0 of 4"),
            "{warning}"
        );
    }
}
