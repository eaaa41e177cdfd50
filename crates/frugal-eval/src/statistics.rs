//! Paired comparisons: is one thing better than another, and how large a difference could have been
//! seen at all?
//!
//! With few repetitions "no significant difference" says little by itself. Each comparison therefore
//! carries the smallest true difference that it would have found in four of five cases, from the exact
//! power of the paired t test (noncentral t distribution).

use serde::Serialize;
use statrs::distribution::{ContinuousCDF, Normal, StudentsT};
use statrs::function::gamma::ln_gamma;

/// Coverage of the intervals.
pub const CONFIDENCE: f64 = 0.95;
/// Share of repetitions of the experiment that find a difference of the smallest size.
pub const POWER: f64 = 0.8;

/// The mean of paired differences, and what it stands on.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct PairedDifference {
    /// Pairs.
    pub count: usize,
    /// Mean difference.
    pub mean: f64,
    /// Sample standard deviation of the differences.
    pub deviation: f64,
    /// What the differences say; absent where all are the same, since repetitions that do not vary
    /// tell nothing of what would have varied.
    pub interval: Option<Interval>,
}

/// A confidence interval of a mean difference.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Interval {
    /// Lower end at 95 %.
    pub low: f64,
    /// Upper end.
    pub high: f64,
    /// Two-sided p-value of no difference.
    pub p: f64,
    /// Smallest true difference that this number of pairs with this deviation finds with a power of
    /// 80 %.
    pub detectable: f64,
}

/// Whether a claim that something is better stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// The interval lies above zero.
    Holds,
    /// The interval lies below zero.
    DoesNotHold,
    /// Zero lies inside, or there is no interval.
    CannotBeTold,
}

impl PairedDifference {
    /// Of these differences, positive where the first of a pair is better. `None` for fewer than
    /// two, or for one that is not finite.
    pub fn new(differences: &[f64]) -> Option<Self> {
        let count = differences.len();
        if count < 2 || !differences.iter().all(|d| d.is_finite()) {
            return None;
        }
        let n = count as f64;
        let mean = differences.iter().sum::<f64>() / n;
        let squares: f64 = differences.iter().map(|d| (d - mean).powi(2)).sum();
        let deviation = (squares / (n - 1.0)).sqrt();
        // What is left of equal numbers after rounding is no spread.
        let largest = differences.iter().fold(0.0, |m: f64, d| m.max(d.abs()));
        let interval = (deviation > 1e-12 * largest)
            .then(|| Interval::new(mean, deviation, n))
            .flatten();
        Some(Self {
            count,
            mean,
            deviation,
            interval,
        })
    }

    /// Whether the first of the pairs are better.
    pub fn verdict(&self) -> Verdict {
        match self.interval {
            Some(interval) if interval.low > 0.0 => Verdict::Holds,
            Some(interval) if interval.high < 0.0 => Verdict::DoesNotHold,
            _ => Verdict::CannotBeTold,
        }
    }
}

impl Interval {
    fn new(mean: f64, deviation: f64, n: f64) -> Option<Self> {
        let student = StudentsT::new(0.0, 1.0, n - 1.0).ok()?;
        let critical = quantile(&student, 0.5 + CONFIDENCE / 2.0);
        let error = deviation / n.sqrt();
        Some(Self {
            low: mean - critical * error,
            high: mean + critical * error,
            p: (2.0 * student.sf((mean / error).abs())).min(1.0),
            detectable: shift(n - 1.0, critical)? * error,
        })
    }
}

/// Quantile above the median by bisection: the library's own is less exact than its distribution
/// function.
fn quantile(student: &StudentsT, share: f64) -> f64 {
    rising(1.0, |x| student.cdf(x) - share)
}

/// The root of a rising function that is negative at zero; `first` is a first upper bound.
fn rising(first: f64, of: impl Fn(f64) -> f64) -> f64 {
    let (mut low, mut high) = (0.0, first);
    while of(high) < 0.0 && high < 1e12 {
        (low, high) = (high, 2.0 * high);
    }
    for _ in 0..80 {
        let middle = 0.5 * (low + high);
        if of(middle) < 0.0 {
            low = middle;
        } else {
            high = middle;
        }
    }
    0.5 * (low + high)
}

/// The true difference in standard errors that the test finds with [`POWER`].
fn shift(freedom: f64, critical: f64) -> Option<f64> {
    let normal = Normal::standard();
    // A noncentral t is (Z + shift) / U, where U² is χ² over its degrees of freedom: the power is a
    // mean over U, by Simpson's rule.
    let scale = 2f64.ln() + 0.5 * freedom * (0.5 * freedom).ln() - ln_gamma(0.5 * freedom);
    let density = |u: f64| {
        if u == 0.0 {
            return if freedom == 1.0 { scale.exp() } else { 0.0 };
        }
        (scale + (freedom - 1.0) * u.ln() - 0.5 * freedom * u * u).exp()
    };
    const INTERVALS: usize = 4000;
    let step = (1.0 + 9.0 / freedom.sqrt()) / INTERVALS as f64;
    let nodes: Vec<(f64, f64)> = (0..=INTERVALS)
        .map(|i| {
            let weight = match i {
                0 | INTERVALS => 1.0,
                _ if i % 2 == 1 => 4.0,
                _ => 2.0,
            };
            let u = i as f64 * step;
            (u, weight * step / 3.0 * density(u))
        })
        .collect();
    let power = |shift: f64| -> f64 {
        let found = |u: f64| normal.cdf(shift - critical * u) + normal.cdf(-shift - critical * u);
        nodes.iter().map(|(u, weight)| weight * found(*u)).sum()
    };
    let found = rising(4.0, |x| power(x) - POWER);
    found.is_finite().then_some(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    #[test]
    fn intervals_and_detectable_differences_are_those_of_scipy() {
        let text = include_str!("../../../fixtures/statistics/paired_t.json");
        let golden: Value = serde_json::from_str(text).unwrap();
        for case in golden["cases"].as_array().unwrap() {
            let values: Vec<f64> = serde_json::from_value(case["values"].clone()).unwrap();
            let found = PairedDifference::new(&values).unwrap();
            let interval = found.interval.unwrap();
            for (key, value) in [
                ("mean", found.mean),
                ("low", interval.low),
                ("high", interval.high),
                ("p", interval.p),
                ("detectable", interval.detectable),
            ] {
                let expected = case[key].as_f64().unwrap();
                let name = &case["name"];
                assert!(
                    (value / expected - 1.0).abs() < 1e-8,
                    "{name}: {key} is {value}, not {expected}"
                );
            }
        }
    }

    #[test]
    fn a_claim_holds_fails_or_cannot_be_told() {
        let verdict = |values: &[f64]| PairedDifference::new(values).unwrap().verdict();
        assert_eq!(verdict(&[0.021, 0.018, 0.026]), Verdict::Holds);
        assert_eq!(verdict(&[-0.4, -0.31, -0.52]), Verdict::DoesNotHold);
        assert_eq!(verdict(&[0.01, -0.02, 0.004]), Verdict::CannotBeTold);
    }

    #[test]
    fn repetitions_that_do_not_vary_tell_nothing() {
        for values in [[0.1, 0.1, 0.1], [0.0; 3]] {
            let found = PairedDifference::new(&values).unwrap();
            assert_eq!(
                (found.interval, found.verdict()),
                (None, Verdict::CannotBeTold)
            );
        }
        assert_eq!(PairedDifference::new(&[0.1]), None);
        assert_eq!(PairedDifference::new(&[0.1, f64::NAN]), None);
    }
}
