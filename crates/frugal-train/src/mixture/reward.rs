//! What a change of loss is worth.

use std::f64::consts::E;

/// The reward of an arm whose loss on held-out examples went from `old` to `new` (the paper's
/// equation in section 3.3; `samblouir/birdie`, `agent_bird.py`): with the relative improvement `r = (old -
/// new) / old` and `s = √(old new)`, `100 e tanh(e s r³)`, cut to -1 to 1. Positive for an improvement, 0
/// where a loss is no number.
pub fn reward(old: f64, new: f64) -> f64 {
    let improvement = (old - new) / old;
    let size = (old * new).sqrt();
    let value = 100.0 * E * (E * size * improvement.powi(3)).tanh();
    if value.is_nan() {
        return 0.0;
    }
    value.clamp(-1.0, 1.0)
}

/// The mean of the values of each class: `classes` says to which each value belongs. Another arm with
/// the mean of its class changes nothing.
pub fn class_totals(values: &[f64], classes: &[usize]) -> Vec<f64> {
    let count = classes.iter().max().map_or(0, |last| last + 1);
    let mut sums = vec![(0.0, 0usize); count];
    for (value, &class) in values.iter().zip(classes) {
        sums[class].0 += value;
        sums[class].1 += 1;
    }
    let mean = |(sum, count): (f64, usize)| sum / count.max(1) as f64;
    sums.into_iter().map(mean).collect()
}
