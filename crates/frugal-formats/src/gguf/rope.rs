//! Llama 3's rotary scaling: as settings in Hugging Face configs, as the table `rope_freqs.weight`
//! in GGUF files.
//!
//! The table holds, per rotated pair, what its frequency is divided by: 1 for short wavelengths,
//! `factor` for long ones, and between them 1 / ((1 - s) / factor + s) with s = (original /
//! wavelength - low) / (high - low).

use std::f64::consts::TAU;

use super::GgufProblem;

/// Settings of Hugging Face's `rope_type` `llama3`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Llama3 {
    pub(super) factor: f64,
    pub(super) low_freq_factor: f64,
    pub(super) high_freq_factor: f64,
    pub(super) original: f64,
}

/// Turns per token of pair `i`.
fn turns(i: usize, pairs: usize, theta: f64) -> f64 {
    theta.powf(-(i as f64) / pairs as f64) / TAU
}

impl Llama3 {
    /// The table for `pairs` rotated pairs.
    pub(super) fn table(&self, pairs: usize, theta: f64) -> Vec<f32> {
        let Self {
            factor,
            low_freq_factor: low,
            high_freq_factor: high,
            original,
        } = *self;
        let divisor = |i| {
            let turns = original * turns(i, pairs, theta);
            if turns > high {
                1.0
            } else if turns < low {
                factor
            } else {
                let smooth = (turns - low) / (high - low);
                1.0 / ((1.0 - smooth) / factor + smooth)
            }
        };
        (0..pairs).map(|i| divisor(i) as f32).collect()
    }

    /// Settings that give `table`; `None` when it scales nothing.
    ///
    /// Only the ratios of original : low : high matter to it, so low is 1, as Llama's own settings
    /// have it; with fewer than two pairs on the slope high is 4 too.
    pub(super) fn from_table(table: &[f32], theta: f64) -> Result<Option<Self>, GgufProblem> {
        let pairs = table.len();
        let factor = f64::from(table.iter().copied().fold(1.0_f32, f32::max));
        if table.iter().all(|&divisor| divisor == 1.0) {
            return Ok(None);
        }
        // Pairs come with falling frequency: first those left alone, then the slope, then those
        // scaled in full.
        let alone = table.iter().take_while(|&&divisor| divisor == 1.0).count();
        let slope: Vec<(f64, f64)> = (alone..pairs)
            .map(|i| (turns(i, pairs, theta), f64::from(table[i])))
            .take_while(|&(_, divisor)| divisor < factor * (1.0 - 1e-6))
            .map(|(turns, divisor)| (turns, (1.0 / divisor - 1.0 / factor) / (1.0 - 1.0 / factor)))
            .collect();
        let usual = |original: f64| Self {
            factor,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original,
        };
        let guess = match slope[..] {
            [(t0, s0), .., (t1, s1)] => {
                // s = a * turns + b with a = original / (high - low), b = -low / (high - low).
                let a = (s0 - s1) / (t0 - t1);
                let b = s0 - a * t0;
                Self {
                    high_freq_factor: 1.0 - 1.0 / b,
                    ..usual(-a / b)
                }
            }
            [(t0, s0)] => usual((3.0 * s0 + 1.0) / t0),
            // Any length between these makes the step; the geometric mean is as far from both.
            [] => {
                let most = 1.0 / turns(alone, pairs, theta);
                let least = if alone == 0 {
                    most / 4.0
                } else {
                    4.0 / turns(alone - 1, pairs, theta)
                };
                usual((least * most).sqrt())
            }
        };
        let rounded = Self {
            high_freq_factor: (guess.high_freq_factor * 100.0).round() / 100.0,
            original: guess.original.round(),
            ..guess
        };
        let close = |a: f32, b: f32| (a - b).abs() <= 1e-3 * b.abs();
        let fits = rounded
            .table(pairs, theta)
            .iter()
            .zip(table)
            .all(|(&a, &b)| close(a, b));
        let found = fits.then_some(rounded);
        found.map(Some).ok_or_else(|| {
            GgufProblem::Unsupported("rope_freqs.weight is not of the llama3 kind".into())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_survive_the_table() {
        let llama31 = Llama3 {
            factor: 8.0,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original: 8192.0,
        };
        let table = llama31.table(64, 500_000.0);
        assert_eq!((table[0], table[63]), (1.0, 8.0));
        assert_eq!(
            Llama3::from_table(&table, 500_000.0).unwrap(),
            Some(llama31)
        );
        let llama32 = Llama3 {
            factor: 32.0,
            ..llama31
        };
        assert_eq!(
            Llama3::from_table(&llama32.table(32, 500_000.0), 500_000.0).unwrap(),
            Some(llama32)
        );
        assert!(Llama3::from_table(&[1.0, 3.0, 2.0, 8.0, 1.0], 10_000.0).is_err());
        assert!(Llama3::from_table(&[1.0, f32::NAN, 8.0, 8.0], 10_000.0).is_err());
        assert!(Llama3::from_table(&[0.0, -1.0], 10_000.0).is_err());
        assert_eq!(Llama3::from_table(&[1.0; 8], 10_000.0).unwrap(), None);
        assert_eq!(Llama3::from_table(&[], 10_000.0).unwrap(), None);
        for step in [[1.0, 1.0, 8.0, 8.0], [8.0; 4]] {
            assert_eq!(
                Llama3::from_table(&step, 10_000.0)
                    .unwrap()
                    .unwrap()
                    .table(4, 10_000.0),
                step
            );
        }
    }

    /// Pair 32 of Llama 3.1's 64: wavelength 2 pi sqrt(500000) = 4442.883, 8192 / 4442.883 =
    /// 1.843848, s = 0.2812826, 1 / ((1 - s) / 8 + s) = 2.694530.
    #[test]
    fn the_slope_follows_the_worked_example() {
        let llama31 = Llama3 {
            factor: 8.0,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original: 8192.0,
        };
        assert!((f64::from(llama31.table(64, 500_000.0)[32]) - 2.694_530).abs() < 1e-6);
    }
}
