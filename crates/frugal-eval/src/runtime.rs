//! Idealized runtime: how long generation takes without anything in the way, from a few short
//! measurements.
//!
//! # What it does
//! Generating takes the time to read the prompt and write one token, and then a constant time for
//! each further token. Both are measured on a grid of short runs; the fit predicts any query. On
//! one common stack it compares models; with prices and powers it compares what answers cost.
//!
//! # Update rule
//! `T(p, o) = α_p + β (o − 1)` for `p` prompt tokens and `o` generated ones. `α_p = T(p, 1)` as
//! measured; `β` is the slope of the least-squares line through all `(o − 1, T − α_p)`.
//!
//! # When to use, when not
//! For decoders whose answers are short against their prompt limit. With long contexts a token
//! takes longer the later it comes: fit on the range that is asked about, and look at the error on
//! cells that were held out.
//!
//! # Cost
//! The grid: seconds to minutes, against measuring every query.
//!
//! # Defaults and where they come from
//! The median of the trials of a cell for a machine of one's own; the fastest trial for a service,
//! whose queues only ever add (*denoised*). Between measured prompt lengths the line between
//! neighbours; the rule of the reference, `α_P · p / P` with the next longer `P`, is there too and
//! gives less where reading is bound by memory.
//!
//! # Departures from the paper
//! No rounding of the fitted numbers.
//!
//! # References
//! Narayanan et al.: Cheaply Estimating Inference Efficiency Metrics for Autoregressive Transformer
//! Models, 2023, arXiv 2305.02440.

use std::collections::{BTreeMap, BTreeSet};

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use super::linear_algebra::{Matrix, least_squares};
use frugal_core::metrics::median;

/// The time of one query.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Timing {
    /// Tokens of the prompt.
    pub prompt: usize,
    /// Tokens generated, at least 1.
    pub output: usize,
    /// Seconds.
    pub seconds: f64,
}

/// How the trials of a cell become one time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Summary {
    /// The middle one.
    Median,
    /// The fastest: what contention adds is never negative.
    Fastest,
}

/// How prompts between the measured lengths are reckoned.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Rule {
    /// On the line between the neighbours.
    Linear,
    /// In proportion to the next longer one.
    Proportional,
}

/// A fitted runtime.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RuntimeFit {
    /// Prompt length and seconds up to the first token, by rising length.
    pub alpha: Vec<(usize, f64)>,
    /// Seconds for each further token.
    pub beta: f64,
    /// What the line of the fit adds at one token; near 0 if the model holds.
    pub intercept: f64,
    /// Share of the variance of `T − α` that the line explains.
    pub r_squared: f64,
}

/// How far the parameters of a fit would be off if everything were measured again: standard
/// deviations over resampled trials.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Spread {
    /// Prompt length and deviation of the seconds up to the first token.
    pub alpha: Vec<(usize, f64)>,
    /// Deviation of the seconds for each further token.
    pub beta: f64,
    /// Trials of the least measured cell; of fewer than two nothing can be said.
    pub trials: usize,
}

/// Refits resampled trials. The trials of a prompt length that were made in one run are drawn
/// together, since they share its delays.
///
/// `None` of fewer than two trials of a cell, or without a fit.
pub fn spread(
    trials: &[Timing],
    summary: Summary,
    regress: bool,
    draws: usize,
    seed: u64,
) -> Option<Spread> {
    let mut by_cell: BTreeMap<(usize, usize), Vec<f64>> = BTreeMap::new();
    for t in trials {
        by_cell
            .entry((t.prompt, t.output))
            .or_default()
            .push(t.seconds);
    }
    let least = by_cell.values().map(Vec::len).min()?;
    if least < 2 {
        return None;
    }
    let fit = RuntimeFit::new(&cells(trials, summary), regress)?;
    let prompts: BTreeSet<usize> = by_cell.keys().map(|(prompt, _)| *prompt).collect();
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut fits: Vec<RuntimeFit> = Vec::new();
    for _ in 0..draws {
        let drawn: BTreeMap<usize, Vec<usize>> = prompts
            .iter()
            .map(|prompt| {
                (
                    *prompt,
                    (0..least).map(|_| rng.random_range(0..least)).collect(),
                )
            })
            .collect();
        let again: Vec<Timing> = by_cell
            .iter()
            .flat_map(|(&(prompt, output), seconds)| {
                drawn[&prompt].iter().map(move |&i| Timing {
                    prompt,
                    output,
                    seconds: seconds[i],
                })
            })
            .collect();
        fits.extend(RuntimeFit::new(&cells(&again, summary), regress));
    }
    let deviation = |values: Vec<f64>| {
        let mean = values.iter().sum::<f64>() / values.len() as f64;
        let sum: f64 = values.iter().map(|v| (v - mean).powi(2)).sum();
        (sum / (values.len() - 1) as f64).sqrt()
    };
    if fits.len() < 2 {
        return None;
    }
    let of_prompt = |i: usize| {
        fits.iter()
            .filter_map(|f| Some(f.alpha.get(i)?.1))
            .collect()
    };
    Some(Spread {
        alpha: (0..fit.alpha.len())
            .map(|i| (fit.alpha[i].0, deviation(of_prompt(i))))
            .collect(),
        beta: deviation(fits.iter().map(|f| f.beta).collect()),
        trials: least,
    })
}

/// What a query costs on the hardware that the model needs.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Cost {
    /// Seconds.
    pub seconds: f64,
    /// Price.
    pub dollars: f64,
    /// Energy.
    pub joules: f64,
}

/// One time for each cell of the grid, from all trials.
pub fn cells(trials: &[Timing], summary: Summary) -> Vec<Timing> {
    let mut keys: Vec<(usize, usize)> = trials.iter().map(|t| (t.prompt, t.output)).collect();
    keys.sort_unstable();
    keys.dedup();
    keys.into_iter()
        .filter_map(|(prompt, output)| {
            let seconds: Vec<f64> = trials
                .iter()
                .filter(|t| (t.prompt, t.output) == (prompt, output))
                .map(|t| t.seconds)
                .collect();
            let seconds = match summary {
                Summary::Median => median(&seconds)?,
                Summary::Fastest => seconds.into_iter().fold(f64::INFINITY, f64::min),
            };
            Some(Timing {
                prompt,
                output,
                seconds,
            })
        })
        .collect()
}

impl RuntimeFit {
    /// Fits the two kinds of parameters; `None` unless there is a prompt length with a cell of one
    /// token and one of more.
    ///
    /// With `regress`, `α_p` comes from the line through all cells of its prompt length, at least
    /// that of the shortest prompt: for services whose single times are noisy.
    pub fn new(cells: &[Timing], regress: bool) -> Option<Self> {
        let mut prompts: Vec<usize> = cells.iter().map(|c| c.prompt).collect();
        prompts.sort_unstable();
        prompts.dedup();
        let mut alpha: Vec<(usize, f64)> = Vec::new();
        for prompt in prompts {
            let of: Vec<&Timing> = cells.iter().filter(|c| c.prompt == prompt).collect();
            let value = if regress {
                let line = line(
                    &of.iter()
                        .map(|c| (c.output as f64, c.seconds))
                        .collect::<Vec<_>>(),
                )?;
                (line.0 + line.1).max(alpha.first().map_or(f64::NEG_INFINITY, |a| a.1))
            } else {
                match of.iter().find(|c| c.output == 1) {
                    Some(first) => first.seconds,
                    None => continue,
                }
            };
            alpha.push((prompt, value));
        }
        let points: Vec<(f64, f64)> = cells
            .iter()
            .filter_map(|c| {
                let start = alpha.iter().find(|(p, _)| *p == c.prompt)?.1;
                Some(((c.output - 1) as f64, c.seconds - start))
            })
            .collect();
        let (intercept, beta) = line(&points)?;
        let mean = points.iter().map(|p| p.1).sum::<f64>() / points.len() as f64;
        let total: f64 = points.iter().map(|p| (p.1 - mean).powi(2)).sum();
        let left: f64 = points
            .iter()
            .map(|p| (p.1 - intercept - beta * p.0).powi(2))
            .sum();
        Some(Self {
            alpha,
            beta,
            intercept,
            r_squared: if total > 0.0 { 1.0 - left / total } else { 1.0 },
        })
    }

    /// The fit of a model that reads and writes nothing, such as an encoder: the time of reading
    /// alone. `None` without a cell of one token.
    pub fn reading_only(cells: &[Timing]) -> Option<Self> {
        let mut alpha: Vec<(usize, f64)> = cells
            .iter()
            .filter(|c| c.output == 1)
            .map(|c| (c.prompt, c.seconds))
            .collect();
        alpha.sort_by_key(|(prompt, _)| *prompt);
        alpha.dedup_by_key(|(prompt, _)| *prompt);
        (!alpha.is_empty()).then_some(Self {
            alpha,
            beta: 0.0,
            intercept: 0.0,
            r_squared: 1.0,
        })
    }

    /// Seconds up to the first token.
    pub fn prompt_seconds(&self, prompt: usize, rule: Rule) -> f64 {
        let p = prompt as f64;
        let at = self.alpha.partition_point(|(length, _)| *length < prompt);
        let Some(&(last, of_last)) = self.alpha.last() else {
            return 0.0;
        };
        let Some(&(next, of_next)) = self.alpha.get(at) else {
            return of_last * p / last.max(1) as f64;
        };
        if next == prompt {
            return of_next;
        }
        match (rule, at.checked_sub(1).map(|i| self.alpha[i])) {
            (Rule::Proportional, _) => of_next * p / next as f64,
            (Rule::Linear, Some((before, of_before))) => {
                of_before + (of_next - of_before) * (p - before as f64) / (next - before) as f64
            }
            (Rule::Linear, None) => of_next,
        }
    }

    /// Seconds of a query.
    pub fn predict(&self, prompt: usize, output: usize, rule: Rule) -> f64 {
        self.prompt_seconds(prompt, rule) + self.beta * output.saturating_sub(1) as f64
    }

    /// Mean absolute error over some cells, as a share of each time; `None` of nothing.
    pub fn relative_error(&self, cells: &[Timing], rule: Rule) -> Option<f64> {
        let error = |c: &Timing| (self.predict(c.prompt, c.output, rule) / c.seconds - 1.0).abs();
        frugal_core::metrics::mean(&cells.iter().map(error).collect::<Vec<_>>())
    }

    /// Time, price and energy of a query on so many devices.
    pub fn cost(
        &self,
        prompt: usize,
        output: usize,
        rule: Rule,
        devices: u32,
        dollars_per_hour: f64,
        watts: f64,
    ) -> Cost {
        let seconds = self.predict(prompt, output, rule);
        let busy = seconds * f64::from(devices);
        Cost {
            seconds,
            dollars: busy * dollars_per_hour / 3600.0,
            joules: busy * watts,
        }
    }
}

/// Intercept and slope of the least-squares line; `None` if all points have the same abscissa.
fn line(points: &[(f64, f64)]) -> Option<(f64, f64)> {
    let x = Matrix::from_rows(&points.iter().map(|p| vec![1.0, p.0]).collect::<Vec<_>>());
    let found = least_squares(&x, &points.iter().map(|p| p.1).collect::<Vec<_>>())?;
    found
        .iter()
        .all(|v| v.is_finite())
        .then(|| (found[0], found[1]))
}

#[cfg(test)]
mod tests {
    use super::*;

    const OUTPUTS: [usize; 10] = [1, 2, 4, 8, 12, 16, 24, 32, 48, 64];

    fn grid(time: impl Fn(usize, usize) -> f64) -> Vec<Timing> {
        [1, 16, 64]
            .iter()
            .flat_map(|&prompt| {
                OUTPUTS.map(|output| Timing {
                    prompt,
                    output,
                    seconds: time(prompt, output),
                })
            })
            .collect()
    }

    #[test]
    fn times_that_follow_the_model_are_recovered() {
        let alpha = |p: usize| 0.02 + 1e-4 * p as f64;
        let cells = grid(|p, o| alpha(p) + 0.021 * (o - 1) as f64);
        for regress in [false, true] {
            let fit = RuntimeFit::new(&cells, regress).unwrap();
            assert!(
                (fit.beta - 0.021).abs() < 1e-9
                    && (fit.r_squared - 1.0).abs() < 1e-9
                    && fit.intercept.abs() < 1e-9,
                "{fit:?}"
            );
            assert!(fit.alpha.iter().all(|(p, a)| (a - alpha(*p)).abs() < 1e-9));
            assert!(fit.relative_error(&cells, Rule::Linear).unwrap() < 1e-9);
        }
        // A constant that a network adds is part of reading the prompt, not of a token.
        let slower: Vec<Timing> = cells
            .iter()
            .map(|c| Timing {
                seconds: c.seconds + 0.15,
                ..*c
            })
            .collect();
        let fit = RuntimeFit::new(&slower, false).unwrap();
        assert!((fit.beta - 0.021).abs() < 1e-9 && (fit.alpha[0].1 - alpha(1) - 0.15).abs() < 1e-9);
    }

    /// Times of a decoder of 48 layers and width 4096 on an A100, as the authors logged them.
    #[test]
    fn a_real_log_gives_the_published_slope() {
        let rows = [
            (
                1,
                [
                    0.038, 0.073, 0.142, 0.282, 0.422, 0.561, 0.840, 1.120, 1.681, 2.240,
                ],
            ),
            (
                16,
                [
                    0.039, 0.074, 0.144, 0.284, 0.423, 0.563, 0.843, 1.122, 1.679, 2.240,
                ],
            ),
            (
                64,
                [
                    0.037, 0.073, 0.142, 0.283, 0.423, 0.563, 0.843, 1.122, 1.680, 2.238,
                ],
            ),
        ];
        let cells: Vec<Timing> = rows
            .iter()
            .flat_map(|(prompt, times)| {
                OUTPUTS.iter().zip(times).map(|(&output, &seconds)| Timing {
                    prompt: *prompt,
                    output,
                    seconds,
                })
            })
            .collect();
        let fit = RuntimeFit::new(&cells, false).unwrap();
        assert!((fit.beta - 0.034937).abs() < 5e-7, "{fit:?}");
        assert!(
            (fit.intercept - 0.00023).abs() < 5e-6 && (fit.r_squared - 0.999998).abs() < 5e-7,
            "{fit:?}"
        );
        assert_eq!(fit.predict(16, 1, Rule::Linear), 0.039);
    }

    fn davinci() -> RuntimeFit {
        RuntimeFit {
            alpha: vec![(1, 0.084), (256, 0.109), (512, 0.178), (1024, 0.323)],
            beta: 0.081,
            intercept: 0.0,
            r_squared: 1.0,
        }
    }

    #[test]
    fn published_parameters_predict_published_times() {
        let fit = davinci();
        assert!((fit.predict(512, 64, Rule::Linear) - 5.281).abs() < 1e-9);
        assert!((fit.prompt_seconds(300, Rule::Proportional) - 0.10430).abs() < 5e-6);
        assert!((fit.prompt_seconds(300, Rule::Linear) - 0.12086).abs() < 5e-6);
        assert!((fit.prompt_seconds(2048, Rule::Linear) - 0.646).abs() < 1e-9);
        assert!(
            (1..50)
                .all(|o| fit.predict(64, o + 1, Rule::Linear) > fit.predict(64, o, Rule::Linear))
        );
        let (one, eight) = (
            fit.cost(512, 64, Rule::Linear, 1, 5.12, 300.0),
            fit.cost(512, 64, Rule::Linear, 8, 5.12, 300.0),
        );
        assert!(
            (eight.dollars / one.dollars - 8.0).abs() < 1e-12
                && (eight.joules / one.joules - 8.0).abs() < 1e-12
        );
        assert!(
            (fit.cost(512, 64, Rule::Linear, 8, 2.56, 300.0).dollars / eight.dollars - 0.5).abs()
                < 1e-12
        );
    }

    #[test]
    fn the_fastest_trial_sees_through_contention() {
        use rand::{Rng, SeedableRng};
        let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(2);
        let mut trials = Vec::new();
        for cell in grid(|p, o| 0.05 + 1e-4 * p as f64 + 0.02 * (o - 1) as f64) {
            for _ in 0..30 {
                // Delays that are usually small and sometimes large.
                let delay = 0.01 * (2.0 * rng.random_range(-1.0f64..1.0)).exp();
                trials.push(Timing {
                    seconds: cell.seconds + delay,
                    ..cell
                });
            }
        }
        let fit = RuntimeFit::new(&cells(&trials, Summary::Fastest), true).unwrap();
        assert!((fit.beta / 0.02 - 1.0).abs() < 0.05, "{fit:?}");
    }

    #[test]
    fn parameters_have_the_spread_of_repeated_measurements() {
        use rand::{Rng, SeedableRng};
        let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(5);
        let mut measure = || {
            let mut trials = Vec::new();
            for cell in grid(|p, o| 0.05 + 1e-4 * p as f64 + 0.02 * (o - 1) as f64) {
                for _ in 0..9 {
                    let noise = rng.random_range(-0.01f64..0.01);
                    trials.push(Timing {
                        seconds: cell.seconds + noise,
                        ..cell
                    });
                }
            }
            trials
        };
        // What the slope differs by when everything is measured again, many times.
        let betas: Vec<f64> = (0..200)
            .map(|_| {
                RuntimeFit::new(&cells(&measure(), Summary::Median), false)
                    .unwrap()
                    .beta
            })
            .collect();
        let mean = betas.iter().sum::<f64>() / 200.0;
        let real = (betas.iter().map(|b| (b - mean).powi(2)).sum::<f64>() / 199.0).sqrt();
        let found = spread(&measure(), Summary::Median, false, 500, 0).unwrap();
        assert!(
            (0.4..2.5).contains(&(found.beta / real)),
            "{found:?}, really {real}"
        );
        assert_eq!((found.alpha.len(), found.trials), (3, 9));
        assert!(
            found.alpha.iter().all(|(_, d)| *d > 5e-4 && *d < 1e-2),
            "{found:?}"
        );
        let once = grid(|p, o| (p + o) as f64);
        assert!(spread(&once, Summary::Median, false, 50, 0).is_none());
    }

    #[test]
    fn encoders_have_the_time_of_reading() {
        let cells = grid(|p, _| 0.01 * p as f64);
        let fit = RuntimeFit::reading_only(&cells).unwrap();
        assert_eq!(fit.predict(16, 1, Rule::Linear), 0.16);
        assert_eq!((fit.alpha.len(), fit.beta), (3, 0.0));
        assert!(RuntimeFit::reading_only(&[]).is_none());
    }

    #[test]
    fn too_few_cells_give_no_fit() {
        let one = Timing {
            prompt: 4,
            output: 1,
            seconds: 0.1,
        };
        assert!(RuntimeFit::new(&[], false).is_none() && RuntimeFit::new(&[one], false).is_none());
        assert!(
            RuntimeFit::new(
                &[Timing { output: 2, ..one }, Timing { output: 3, ..one }],
                false
            )
            .is_none()
        );
    }
}
