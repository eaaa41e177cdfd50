//! Learning rate and batch size of a pre-training run from its size: the Step Law and what it is
//! compared with.
//!
//! # What it does
//! For AdamW pre-training the loss is a smooth bowl over (log rate, log batch); two power laws say
//! where its bottom is, from the number of parameters outside the vocabulary `N` and the number of
//! training tokens `D`. [`fit`] finds such laws from runs of one's own, [`Study`] from a grid of
//! them, which `frugal bench pretrain` makes.
//!
//! # Update rule
//! `η* = 1.79 · N^−0.713 · D^0.307`, `B* = 0.58 · D^0.571` tokens for each step. The schedule that
//! goes with it: linear warm-up over 2,000 steps, cosine down to the fixed rate 1e-5.
//!
//! # When to use, when not
//! To start a pre-training run of 0.2 to 1.1 billion parameters on 4 to 100 billion tokens near its
//! optimum, which is what the released dense runs cover; outside of that as a first guess, to be varied by factors of two. Not for fine-tuning, and not for schedules
//! that end at a share of the peak rate.
//!
//! # Cost
//! None.
//!
//! # Defaults and where they come from
//! The coefficients are those that the paper prints; the uncertainties are the standard deviations
//! of its 1,000 bootstrap fits. Short runs (below 20,000 steps) warm up over a tenth of their steps
//! and end at a hundredth of the peak rate if that is below 1e-5. Tokens for a compute budget:
//! `C = 6 N D` with 20 tokens for each parameter (Hoffmann et al., 2022).
//!
//! # Departures from the paper
//! The laws to compare with are written down from the paper's table as it is usually cited, but for
//! the factor of `microsoft`: 1.3192e-5 gives no rate that anybody trains with, while 1.55e-3, for
//! billions of parameters and of tokens, gives the lines that the authors' page draws for two
//! sizes. A [`Study`] takes the loss on held-out text, which is the same for all runs, instead of
//! the smoothed loss of training; and beside the published procedure it fits the law to the bottoms
//! of paraboloids through the runs of each size, which no grid rounds.
//!
//! # References
//! Li et al.: Predictable Scale: Part I, Step Law: Optimal Hyperparameter Scaling Law in Large
//! Language Model Pretraining, 2025, arXiv 2503.04715. Hoffmann et al.: Training Compute-Optimal
//! Large Language Models, 2022, arXiv 2203.15556.

mod band;
mod law;
mod runs;
mod study;

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::Serialize;

use super::linear_algebra::dot;
pub use band::{Band, Covariance, Edges, STEP_LAW_COVARIANCE, deviation_text};
pub use law::{COVERED_PARAMETERS, COVERED_TOKENS, Law, Run, STEP_LAW, covered};
pub use runs::{RunsError, read_runs};
pub use study::{Bowl, Cell, Compared, Measured, Study, measured};

/// Other published laws, to compare with; `C = 6 N D`.
pub const COMPARED: [(&str, fn(f64, f64) -> (f64, Option<f64>)); 4] = [
    ("deepseek", |n, d| {
        (
            0.3118 * (6.0 * n * d).powf(-0.125),
            Some(0.2920 * (6.0 * n * d).powf(0.3271)),
        )
    }),
    ("porian", |n, _| {
        (3.7 * n.powf(-0.36), Some(0.7576 * n.powf(0.703)))
    }),
    ("openai", |n, _| (3.239e-3 - 1.395e-4 * n.ln(), None)),
    ("microsoft", |n, d| {
        (
            1.55e-3 * (1e-9 * n).powf(-0.23) * (1e-9 * d).powf(-0.32),
            None,
        )
    }),
];

/// A run that can be started.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Recipe {
    /// Parameters outside the vocabulary.
    pub parameters: f64,
    /// Tokens of training.
    pub tokens: f64,
    /// Peak learning rate.
    pub peak_rate: f64,
    /// Where the schedule ends.
    pub final_rate: f64,
    /// Tokens for each step by the law.
    pub batch_tokens: f64,
    /// Sequences for each step, at least one.
    pub sequences: u64,
    /// Tokens of a sequence.
    pub sequence_length: u64,
    /// Optimiser steps with that many sequences.
    pub steps: u64,
    /// Steps of linear warm-up.
    pub warmup_steps: u64,
    /// Floating-point operations by `6 N D`.
    pub compute: f64,
}

/// Steps above which the published schedule holds as it is.
const LONG: u64 = 20_000;

/// Steps of warm-up and the final rate that go with a peak rate and a number of steps.
pub fn schedule(peak_rate: f64, steps: u64) -> (u64, f64) {
    if steps < LONG {
        (2000.min(steps / 10), f64::min(1e-5, 0.01 * peak_rate))
    } else {
        (2000, 1e-5)
    }
}

impl Recipe {
    /// What `law` says for this size, with a batch of whole sequences.
    pub fn new(law: &Law, parameters: f64, tokens: f64, sequence_length: u64) -> Self {
        let (peak_rate, batch_tokens) = (law.rate(parameters, tokens), law.batch(tokens));
        let sequences = (batch_tokens / sequence_length as f64).round().max(1.0) as u64;
        let steps = ((tokens / (sequences * sequence_length) as f64) as u64).max(1);
        let (warmup_steps, final_rate) = schedule(peak_rate, steps);
        Self {
            parameters,
            tokens,
            peak_rate,
            final_rate,
            batch_tokens,
            sequences,
            sequence_length,
            steps,
            warmup_steps,
            compute: 6.0 * parameters * tokens,
        }
    }

    /// Learning rate at a step, from 0 at step 0 over the peak to the final rate at the last step.
    pub fn rate_at(&self, step: u64) -> f64 {
        if step < self.warmup_steps {
            return self.peak_rate * step as f64 / self.warmup_steps as f64;
        }
        let decay = (self.steps - self.warmup_steps).max(1) as f64;
        let share = ((step - self.warmup_steps) as f64 / decay).min(1.0);
        self.final_rate
            + (self.peak_rate - self.final_rate)
                * 0.5
                * (1.0 + (std::f64::consts::PI * share).cos())
    }
}

/// Tokens that a compute budget buys for a model of this size, by `C = 6 N D`.
pub fn tokens_for_compute(compute: f64, parameters: f64) -> f64 {
    compute / (6.0 * parameters)
}

/// Parameters and tokens for a compute budget with a fixed number of tokens for each parameter.
pub fn optimal_size(compute: f64, tokens_per_parameter: f64) -> (f64, f64) {
    let parameters = (compute / (6.0 * tokens_per_parameter)).sqrt();
    (parameters, parameters * tokens_per_parameter)
}

/// Parameters of a dense decoder with gated feed-forward layers, without vocabulary and norms:
/// `L (4 h² + 3 h f)`.
pub fn parameters(hidden: u64, intermediate: u64, layers: u64) -> u64 {
    layers * (4 * hidden * hidden + 3 * hidden * intermediate)
}

/// Operations for each training token of that decoder: `6 (4 h + 3 f + 2 s) L h`.
pub fn flops_per_token(hidden: u64, intermediate: u64, layers: u64, sequence_length: u64) -> u64 {
    6 * (4 * hidden + 3 * intermediate + 2 * sequence_length) * layers * hidden
}

/// Laws that were fitted to runs.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Fit {
    /// The fit to all runs that were kept.
    pub law: Law,
    /// Standard deviations of the coefficients over bootstrap samples, in the order of [`Law`]; of
    /// the logarithms of factors.
    pub deviations: [f64; 5],
    /// Covariances of the same, for the band around a prediction.
    pub covariance: Covariance,
    /// Runs that were kept.
    pub kept: usize,
}

/// Fits both laws to the runs whose loss is within `excess` of the best one of their size.
///
/// `None` if the sizes do not vary enough to tell the exponents.
pub fn fit(runs: &[Run], excess: f64, bootstraps: usize, seed: u64) -> Option<Fit> {
    let best = |run: &Run| {
        let same = runs
            .iter()
            .filter(|r| r.parameters == run.parameters && r.tokens == run.tokens);
        same.map(|r| r.loss).fold(f64::INFINITY, f64::min)
    };
    let kept: Vec<Run> = runs
        .iter()
        .copied()
        .filter(|r| r.loss <= best(r) * (1.0 + excess))
        .collect();
    let coefficients = solve(&kept)?;
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut draws: Vec<[f64; 5]> = Vec::with_capacity(bootstraps);
    for _ in 0..bootstraps {
        let sample: Vec<Run> = (0..kept.len())
            .map(|_| kept[rng.random_range(0..kept.len())])
            .collect();
        // A sample of one size only tells nothing.
        draws.extend(solve(&sample));
    }
    let deviation = |i: usize| {
        let mean = draws.iter().map(|d| d[i]).sum::<f64>() / draws.len().max(1) as f64;
        (draws.iter().map(|d| (d[i] - mean).powi(2)).sum::<f64>() / (draws.len().max(2) - 1) as f64)
            .sqrt()
    };
    let [rate, rate_parameters, rate_tokens, batch, batch_tokens] = coefficients;
    let law = Law {
        rate_scale: rate.exp(),
        rate_parameters,
        rate_tokens,
        batch_scale: batch.exp(),
        batch_tokens,
    };
    Some(Fit {
        law,
        deviations: std::array::from_fn(deviation),
        covariance: Covariance::of(&draws),
        kept: kept.len(),
    })
}

/// Least squares of the logarithms; `None` if the sizes do not tell the exponents apart.
fn solve(runs: &[Run]) -> Option<[f64; 5]> {
    let count = runs.len() as f64;
    // About their means: what is left of a bootstrap sample may lie almost on one line.
    let centred = |value: fn(&Run) -> f64| {
        let logs: Vec<f64> = runs.iter().map(|r| value(r).ln()).collect();
        let mean = logs.iter().sum::<f64>() / count;
        (
            mean,
            logs.into_iter().map(|v| v - mean).collect::<Vec<f64>>(),
        )
    };
    let ((n0, n), (d0, d)) = (centred(|r| r.parameters), centred(|r| r.tokens));
    let ((rate0, rate), (batch0, batch)) = (centred(|r| r.rate), centred(|r| r.batch));
    let (nn, nd, dd) = (dot(&n, &n), dot(&n, &d), dot(&d, &d));
    let determinant = nn * dd - nd * nd;
    if runs.len() < 3 || !(nn > 1e-12 * count && dd > 1e-12 * count && determinant > 1e-9 * nn * dd)
    {
        return None;
    }
    let (nr, dr) = (dot(&n, &rate), dot(&d, &rate));
    let (by_parameters, by_tokens) = (
        (dd * nr - nd * dr) / determinant,
        (nn * dr - nd * nr) / determinant,
    );
    let batch_by_tokens = dot(&d, &batch) / dd;
    let all = [
        rate0 - by_parameters * n0 - by_tokens * d0,
        by_parameters,
        by_tokens,
        batch0 - batch_by_tokens * d0,
        batch_by_tokens,
    ];
    all.iter().all(|v| v.is_finite()).then_some(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(a: f64, b: f64, relative: f64) {
        assert!((a / b - 1.0).abs() < relative, "{a} and {b}");
    }

    #[test]
    fn worked_values_of_the_law() {
        close(STEP_LAW.rate(1e9, 1e11), 1.632499e-3, 1e-6);
        close(STEP_LAW.batch(1e11), 1_107_714.9, 1e-7);
        close(STEP_LAW.rate(214_663_680.0, 4e9), 1.820294e-3, 1e-6);
        close(STEP_LAW.batch(4e9), 176_280.5, 1e-6);
        close(STEP_LAW.rate(7e9, 1.4e12), 9.165569e-4, 1e-6);
        close(STEP_LAW.batch(1.4e12), 4_998_815.0, 1e-6);
        close(
            STEP_LAW.rate(1e10, 1e10) / STEP_LAW.rate(1e9, 1e10),
            0.193642,
            1e-5,
        );
        close(
            STEP_LAW.rate(1e9, 4e10) / STEP_LAW.rate(1e9, 1e10),
            1.53050,
            1e-5,
        );
        close(STEP_LAW.batch(4e10) / STEP_LAW.batch(1e10), 2.20687, 1e-5);
    }

    /// Rates of the lines in the first figure of <https://step-law.github.io>, read off its axes.
    #[test]
    fn other_laws_are_where_the_authors_draw_them() {
        for (n, d, name, rate) in [
            (429_260_800.0, 4e10, "openai", 4.66e-4),
            (429_260_800.0, 4e10, "microsoft", 5.78e-4),
            (1_073_741_824.0, 1e11, "openai", 3.38e-4),
            (1_073_741_824.0, 1e11, "microsoft", 3.49e-4),
        ] {
            let law = COMPARED.iter().find(|(known, _)| *known == name).unwrap().1;
            close(law(n, d).0, rate, 5e-3);
        }
    }

    #[test]
    fn sizes_and_operations_of_a_model() {
        assert_eq!(parameters(960, 9368, 7), 214_663_680);
        assert_eq!(flops_per_token(960, 9368, 7, 2048), 1_453_132_800);
        let (n, d) = optimal_size(5.76e23, 20.0);
        close(6.0 * n * d, 5.76e23, 1e-12);
        close(d, tokens_for_compute(5.76e23, n), 1e-12);
        // The budget of a well-known model of 70 billion parameters and 1.4 trillion tokens.
        close(n, 70e9, 0.02);
    }

    #[test]
    fn seven_billion_parameters_are_outside_of_the_released_runs() {
        // Smallest and largest of the released dense runs.
        assert!(covered(214_663_680.0, 4e9) && covered(1_073_741_824.0, 1e11));
        assert!(!covered(7e9, 1.4e12) && !covered(1e9, 1.4e12) && !covered(7e9, 1e11));
        assert!(!covered(1e8, 1e10) && !covered(5e8, 3e9));
    }

    /// Best of the runs of one size in the data that the authors released: parameters, tokens,
    /// rate, sequences of 2048.
    #[test]
    fn the_law_is_near_the_best_of_real_runs() {
        let best = [
            (214_663_680.0, 4e9, 2.762e-3, 128.0),
            (268_304_384.0, 8e10, 3.906e-3, 512.0),
            (536_872_960.0, 1e10, 9.766e-4, 128.0),
            (1_073_741_824.0, 2e10, 1.381e-3, 256.0),
        ];
        for (n, d, rate, sequences) in best {
            // The bowl is flat: a factor of two in either direction costs less than a percent of
            // loss.
            let (r, b) = (
                STEP_LAW.rate(n, d) / rate,
                STEP_LAW.batch(d) / 2048.0 / sequences,
            );
            assert!(
                (0.5..2.0).contains(&r) && (0.5..2.0).contains(&b),
                "{n} {d}: {r} {b}"
            );
        }
    }

    #[test]
    fn the_schedule_goes_from_zero_over_the_peak_to_its_end() {
        let recipe = Recipe::new(&STEP_LAW, 1e9, 1e11, 2048);
        assert_eq!((recipe.sequences, recipe.warmup_steps), (541, 2000));
        assert_eq!(recipe.steps, (1e11 / (541.0 * 2048.0)) as u64);
        assert_eq!(
            (recipe.rate_at(0), recipe.rate_at(2000)),
            (0.0, recipe.peak_rate)
        );
        close(recipe.rate_at(recipe.steps), 1e-5, 1e-9);
        let even = Recipe {
            steps: 12_000,
            ..recipe
        };
        close(even.rate_at(7000), (recipe.peak_rate + 1e-5) / 2.0, 1e-9);
        let short = Recipe::new(&STEP_LAW, 1e6, 1e6, 128);
        assert!(
            short.warmup_steps == short.steps / 10 && short.final_rate <= 1e-5,
            "{short:?}"
        );
    }

    fn cells() -> Vec<(f64, f64)> {
        let sizes = [
            214_663_680.0,
            268_304_384.0,
            429_260_800.0,
            536_872_960.0,
            1_073_741_824.0,
        ];
        sizes
            .iter()
            .flat_map(|n| [4e9, 2e10, 1e11].map(|d| (*n, d)))
            .collect()
    }

    #[test]
    fn a_law_is_found_again_from_runs() {
        let exact: Vec<Run> = cells()
            .into_iter()
            .map(|(parameters, tokens)| Run {
                parameters,
                tokens,
                rate: STEP_LAW.rate(parameters, tokens),
                batch: STEP_LAW.batch(tokens),
                loss: 2.0,
            })
            .collect();
        let found = fit(&exact, 0.0025, 50, 0).unwrap();
        close(found.law.rate_scale, 1.79, 1e-8);
        close(found.law.rate_parameters, -0.713, 1e-9);
        close(found.law.rate_tokens, 0.307, 1e-9);
        close(found.law.batch_tokens, 0.571, 1e-9);
        assert!(found.deviations.iter().all(|d| *d < 1e-8) && found.kept == 15);

        // On the grid of the paper, with a bowl around the optimum.
        let grid: Vec<Run> = cells()
            .into_iter()
            .flat_map(|(parameters, tokens)| {
                let rates = (0..14).map(|i| 2f64.powf(-12.0 + 0.5 * f64::from(i)));
                let batches = [16, 24, 32, 64, 96, 128, 192, 256, 352, 512, 736, 1024, 2048]
                    .map(|b| f64::from(b) * 2048.0);
                rates.flat_map(move |rate| {
                    batches.map(|batch| {
                        let (a, b) = (
                            (rate / STEP_LAW.rate(parameters, tokens)).ln(),
                            (batch / STEP_LAW.batch(tokens)).ln(),
                        );
                        Run {
                            parameters,
                            tokens,
                            rate,
                            batch,
                            loss: 2.0 + 0.05 * a * a + 0.02 * b * b,
                        }
                    })
                })
            })
            .collect();
        let found = fit(&grid, 0.0025, 100, 1).unwrap();
        assert!(
            (found.law.rate_parameters + 0.713).abs() < 0.03
                && (found.law.rate_tokens - 0.307).abs() < 0.03,
            "{found:?}"
        );
        assert!(
            (found.law.batch_tokens - 0.571).abs() < 0.03 && found.kept > 50,
            "{found:?}"
        );
        assert!(
            found.deviations[1] > 0.0 && found.deviations[1] < 0.1,
            "{found:?}"
        );
        assert!(fit(&exact[..1], 0.0025, 0, 0).is_none());
        // On one line the exponents cannot be told apart.
        let line: Vec<Run> = (1..6)
            .map(|i| Run {
                parameters: 1e8 * f64::from(i),
                tokens: 2e9 * f64::from(i),
                ..exact[0]
            })
            .collect();
        assert!(fit(&line, 0.0025, 0, 0).is_none());
    }
}
