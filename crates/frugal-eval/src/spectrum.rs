//! How much hidden states spread: matrix nuclear-norm, matrix entropy and the exact nuclear norm.
//!
//! # What it does
//! The hidden states of a text, one row for each token, are centred and every row is scaled to
//! length 1. How evenly the result fills its dimensions says how far the model compresses the text.
//! The nuclear norm and the entropy of the spectrum need eigenvalues; the matrix nuclear-norm
//! replaces them by the largest column lengths.
//!
//! # Update rule
//! `X = rows of (R − mean)` divided by their lengths; `c_j` the column lengths of `X` in falling
//! order; `MNN = Σ_{j ≤ min(N, d)} c_j`, reported as `MNN / N`. Matrix entropy: `−Σ λ ln λ / ln d`
//! over the eigenvalues of `XᵀX / N`.
//!
//! # When to use, when not
//! To compare checkpoints or models of one width on the same text cut to the same number of tokens.
//! The value depends on `N` and `d` by construction (`MNN / N ≤ 1`, and `≤ √(d / N)` for `N > d`),
//! so other comparisons say little. It is not tight as an estimate of the nuclear norm: rank
//! correlations mean something, differences do not.
//!
//! # Cost
//! `O(N d)` against `O(min(N, d)² max(N, d))` for the two exact measures, which `faer` computes
//! (eigenvalues of the smaller Gram matrix for the entropy, singular values for the norm).
//!
//! # Defaults and where they come from
//! Last layer after the final norm, `min(N, d)` columns, f64 sums, one thread. Texts begin with the
//! special tokens that the tokenizer puts there, whose states count.
//!
//! # Departures from the paper
//! None known. Texts of fewer than two tokens, and tokens that equal the mean, are left out instead
//! of giving NaN.
//!
//! # References
//! Li et al.: Large Language Model Evaluation via Matrix Nuclear-Norm, 2024, arXiv 2410.10672. Wei
//! et al.: Diff-eRank, 2024, arXiv 2401.17139, for the entropy.

use std::time::Instant;

use serde::Serialize;

use super::linear_algebra::{Matrix, singular_values, smaller_gram, symmetric_eigenvalues};

/// Measures of one text.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Spectrum {
    /// Tokens that count.
    pub tokens: usize,
    /// Matrix nuclear-norm for each token.
    pub matrix_nuclear_norm: f64,
    /// Exact nuclear norm for each token.
    pub nuclear_norm: Option<f64>,
    /// Entropy of the spectrum as a share of the largest possible.
    pub matrix_entropy: Option<f64>,
    /// What the matrix nuclear-norm took, in seconds.
    pub seconds: f64,
    /// What the entropy took.
    pub entropy_seconds: Option<f64>,
}

/// Centred rows of length 1; rows that equal the mean are left out.
pub fn normalised(states: &[f32], width: usize) -> Matrix {
    let rows = states.len() / width.max(1);
    let mut mean = vec![0.0; width];
    for row in states.chunks_exact(width.max(1)) {
        mean.iter_mut()
            .zip(row)
            .for_each(|(m, v)| *m += f64::from(*v) / rows as f64);
    }
    let mut data = Vec::with_capacity(states.len());
    let mut kept = 0;
    for row in states.chunks_exact(width.max(1)) {
        let centred: Vec<f64> = row
            .iter()
            .zip(&mean)
            .map(|(v, m)| f64::from(*v) - m)
            .collect();
        let length = centred.iter().map(|v| v * v).sum::<f64>().sqrt();
        let scale = row.iter().map(|v| f64::from(v.abs())).fold(0.0, f64::max);
        if length > scale * 1e-7 {
            data.extend(centred.iter().map(|v| v / length));
            kept += 1;
        }
    }
    Matrix {
        rows: kept,
        columns: width,
        data,
    }
}

/// Lengths of the columns, longest first.
pub fn column_norms(x: &Matrix) -> Vec<f64> {
    let mut norms = vec![0.0; x.columns];
    for i in 0..x.rows {
        norms
            .iter_mut()
            .zip(x.row(i))
            .for_each(|(n, v)| *n += v * v);
    }
    norms.iter_mut().for_each(|n| *n = n.sqrt());
    norms.sort_by(|a, b| b.total_cmp(a));
    norms
}

/// Sum of the `min(N, d)` longest columns.
pub fn matrix_nuclear_norm(x: &Matrix) -> f64 {
    column_norms(x).iter().take(x.rows.min(x.columns)).sum()
}

/// Sum of the singular values.
pub fn nuclear_norm(x: &Matrix) -> Option<f64> {
    Some(singular_values(x)?.into_iter().sum())
}

/// Entropy of the eigenvalues of `XᵀX / tr`, divided by `ln d`.
pub fn matrix_entropy(x: &Matrix) -> Option<f64> {
    let values = symmetric_eigenvalues(&smaller_gram(x))?;
    let sum: f64 = values.iter().sum();
    (sum > 0.0 && x.columns > 1).then(|| {
        let shares = values.iter().map(|v| v / sum).filter(|s| *s > 0.0);
        -shares.map(|s| s * s.ln()).sum::<f64>() / (x.columns as f64).ln()
    })
}

/// Measures hidden states `[tokens, width]`; `exact` also computes what needs eigenvalues. `None`
/// of fewer than two tokens.
pub fn spectrum(states: &[f32], width: usize, exact: bool) -> Option<Spectrum> {
    let begin = Instant::now();
    let x = normalised(states, width);
    if x.rows < 2 {
        return None;
    }
    let prepared = begin.elapsed();
    let tokens = x.rows as f64;
    let norm = matrix_nuclear_norm(&x) / tokens;
    let seconds = begin.elapsed().as_secs_f64();
    let begin = Instant::now();
    let matrix_entropy = exact.then(|| matrix_entropy(&x)).flatten();
    let entropy_seconds = matrix_entropy.map(|_| (begin.elapsed() + prepared).as_secs_f64());
    let nuclear_norm = exact
        .then(|| nuclear_norm(&x))
        .flatten()
        .map(|n| n / tokens);
    Some(Spectrum {
        tokens: x.rows,
        matrix_nuclear_norm: norm,
        nuclear_norm,
        matrix_entropy,
        seconds,
        entropy_seconds,
    })
}

#[cfg(test)]
mod tests {
    use rand::{Rng, SeedableRng};

    use super::*;

    fn close(a: f64, b: f64) {
        assert!((a - b).abs() < 5e-6, "{a} and {b}");
    }

    fn random(rows: usize, width: usize, seed: u64) -> Vec<f32> {
        let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(seed);
        (0..rows * width)
            .map(|_| rng.random_range(-1.0..1.0))
            .collect()
    }

    #[test]
    fn worked_matrices() {
        let r = [3.0, 0.0, 1.0, 0.0, 2.0, 1.0, 1.0, 1.0, 0.0, 2.0, 0.0, 2.0];
        let x = normalised(&r, 3);
        let norms = column_norms(&x);
        for (found, expected) in norms.iter().zip([1.31094, 1.14614, 0.98377]) {
            assert!((found - expected).abs() < 5e-6, "{norms:?}");
        }
        close(matrix_nuclear_norm(&x), 3.440848);
        close(nuclear_norm(&x).unwrap(), 2.963552);
        close(x.data.iter().map(|v| v * v).sum(), 4.0);
        close(
            spectrum(&r, 3, false).unwrap().matrix_nuclear_norm,
            0.860212,
        );
        let mut identity = [0.0f32; 16];
        (0..4).for_each(|i| identity[5 * i] = 1.0);
        let x = normalised(&identity, 4);
        close(matrix_nuclear_norm(&x), 4.0);
        close(nuclear_norm(&x).unwrap(), 2.0 * 3f64.sqrt());
    }

    /// Entropy and nuclear norm by NumPy's singular values; `scripts/golden/measure.py` wrote them.
    #[test]
    fn spectra_agree_with_numpy() {
        let golden: serde_json::Value =
            serde_json::from_str(include_str!("../../../fixtures/measure/spectrum.json")).unwrap();
        let cases = golden["cases"].as_array().unwrap();
        assert!(cases.len() >= 4);
        for case in cases {
            let (rows, width) = (
                case["rows"].as_u64().unwrap() as usize,
                case["width"].as_u64().unwrap() as usize,
            );
            let value = |k: usize| {
                (0.37 * k as f64 + 0.003 * (k * k) as f64).sin() * (1.0 + (k % width) as f64 / 7.0)
            };
            let states: Vec<f32> = (0..rows * width).map(|k| value(k) as f32).collect();
            let found = spectrum(&states, width, true).unwrap();
            let expected = |key: &str| case[key].as_f64().unwrap();
            for (ours, key) in [
                (found.matrix_nuclear_norm, "matrix_nuclear_norm"),
                (found.nuclear_norm.unwrap(), "nuclear_norm"),
                (found.matrix_entropy.unwrap(), "matrix_entropy"),
            ] {
                assert!(
                    (ours / expected(key) - 1.0).abs() < 1e-6,
                    "{key} {rows}x{width}: {ours} and {}",
                    expected(key)
                );
            }
        }
    }

    #[test]
    fn what_does_not_change_the_measure() {
        let (rows, width) = (30, 12);
        let states = random(rows, width, 1);
        let base = matrix_nuclear_norm(&normalised(&states, width));
        let moved: Vec<f32> = states
            .iter()
            .enumerate()
            .map(|(k, v)| 3.0 * v + (k % width) as f32)
            .collect();
        close(matrix_nuclear_norm(&normalised(&moved, width)), base);
        let turned: Vec<f32> = states
            .chunks(width)
            .rev()
            .flat_map(|row| row.iter().rev().copied())
            .collect();
        close(matrix_nuclear_norm(&normalised(&turned, width)), base);
        // A rotation of two dimensions changes it, but neither the nuclear norm nor the entropy.
        let (s, c) = 0.7f32.sin_cos();
        let rotated: Vec<f32> = states
            .chunks(width)
            .flat_map(|row| {
                let mut row = row.to_vec();
                (row[0], row[1]) = (c * row[0] - s * row[1], s * row[0] + c * row[1]);
                row
            })
            .collect();
        let (a, b) = (normalised(&states, width), normalised(&rotated, width));
        assert!((matrix_nuclear_norm(&b) - base).abs() > 1e-4);
        close(nuclear_norm(&a).unwrap(), nuclear_norm(&b).unwrap());
        close(matrix_entropy(&a).unwrap(), matrix_entropy(&b).unwrap());
    }

    #[test]
    fn bounds_hold() {
        for seed in 0..100 {
            let (rows, width) = (5 + seed as usize % 30, 3 + seed as usize % 17);
            let x = normalised(&random(rows, width, seed), width);
            assert!(matrix_nuclear_norm(&x) <= ((rows.min(width) * rows) as f64).sqrt() + 1e-9);
            assert!(column_norms(&x).iter().sum::<f64>() >= nuclear_norm(&x).unwrap() - 1e-9);
        }
    }

    #[test]
    fn texts_without_spread_have_no_measure() {
        assert!(spectrum(&[1.0, 2.0], 2, true).is_none());
        assert!(spectrum(&[1.0, 2.0, 1.0, 2.0, 1.0, 2.0], 2, true).is_none());
    }
}
