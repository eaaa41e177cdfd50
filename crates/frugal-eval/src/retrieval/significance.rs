//! Whether a difference between two systems is more than chance.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// Differences that are not 0 up to which all sign changes are tried: 2^16.
const EXACT: usize = 16;

/// What a paired test found.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PairedTest {
    /// Mean of the second values less mean of the first.
    pub difference: f64,
    /// Probability of a difference at least as large, in either direction, if both systems were the
    /// same.
    pub p_value: f64,
    /// Pairs in which the second is higher.
    pub wins: usize,
    /// Pairs in which the first is higher.
    pub losses: usize,
    /// Pairs of equal values.
    pub ties: usize,
}

/// Paired randomisation test: the signs of the differences are changed at random, `rounds` times;
/// with up to 16 differences all changes are tried. The same seed gives the same value.
///
/// `None` if the lists differ in length, are empty or hold a value that is not finite.
pub fn paired_permutation(
    first: &[f64],
    second: &[f64],
    rounds: usize,
    seed: u64,
) -> Option<PairedTest> {
    if first.len() != second.len() || first.is_empty() {
        return None;
    }
    let differences: Vec<f64> = first.iter().zip(second).map(|(a, b)| b - a).collect();
    if differences.iter().any(|d| !d.is_finite()) {
        return None;
    }
    let changed: Vec<f64> = differences.iter().copied().filter(|d| *d != 0.0).collect();
    let sum: f64 = changed.iter().sum();
    let p_value = match changed.len() <= EXACT {
        true => exact(&changed),
        false => sampled(&changed, rounds, seed),
    };
    let wins = changed.iter().filter(|d| **d > 0.0).count();
    Some(PairedTest {
        difference: sum / first.len() as f64,
        p_value,
        wins,
        losses: changed.len() - wins,
        ties: first.len() - changed.len(),
    })
}

/// Whether a sum is at least as far from 0 as the observed one, but for rounding.
fn as_extreme(differences: &[f64]) -> impl Fn(f64) -> bool {
    let observed = differences.iter().sum::<f64>().abs();
    let size: f64 = differences.iter().map(|d| d.abs()).sum();
    move |sum: f64| sum.abs() >= observed - 1e-12 * size
}

fn exact(differences: &[f64]) -> f64 {
    let is_extreme = as_extreme(differences);
    let total = 1usize << differences.len();
    let signed = |signs: usize| -> f64 {
        let of = |(i, d): (usize, &f64)| if signs >> i & 1 == 1 { -d } else { *d };
        differences.iter().enumerate().map(of).sum()
    };
    let extreme = (0..total)
        .filter(|signs| is_extreme(signed(*signs)))
        .count();
    extreme as f64 / total as f64
}

fn sampled(differences: &[f64], rounds: usize, seed: u64) -> f64 {
    let is_extreme = as_extreme(differences);
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut extreme = 0;
    for _ in 0..rounds {
        let mut sum = 0.0;
        for chunk in differences.chunks(64) {
            let signs: u64 = rng.random();
            let of = |(i, d): (usize, &f64)| if signs >> i & 1 == 1 { -d } else { *d };
            sum += chunk.iter().enumerate().map(of).sum::<f64>();
        }
        extreme += usize::from(is_extreme(sum));
    }
    // The observed order is one of the possible ones, so that no p value is 0.
    (extreme + 1) as f64 / (rounds + 1) as f64
}

/// p values of several tests, corrected by Holm's step-down method, in the order given.
pub fn holm(p_values: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..p_values.len()).collect();
    order.sort_by(|a, b| p_values[*a].total_cmp(&p_values[*b]));
    let mut corrected = vec![0.0; p_values.len()];
    let mut highest: f64 = 0.0;
    for (i, test) in order.into_iter().enumerate() {
        let value = p_values[test] * (p_values.len() - i) as f64;
        highest = highest.max(value.min(1.0));
        corrected[test] = highest;
    }
    corrected
}
