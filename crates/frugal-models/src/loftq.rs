//! LoftQ: rounding a weight together with a low-rank pair that makes up for it.

use std::collections::BTreeMap;

use frugal_kernels::Packed;
use frugal_nn::Correction;
use frugal_nn::linalg::randomised_svd;

/// Which weights are rounded so, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Loftq {
    /// Rank of the pair by path of the layer; other layers are rounded as usual.
    pub ranks: BTreeMap<String, usize>,
    /// How often rounding and decomposition take turns.
    pub iterations: usize,
}

/// Power iterations of the decomposition: what rounding loses has no directions that stand out, so
/// more than for weights.
const POWER_ITERATIONS: usize = 4;

/// `Q = pack(W − B A)`, then `B A` the `rank` largest singular triples of `W − Q`, in turn
/// `iterations` times from `B A = 0`, for a row-major weight `[rows, cols]`.
pub(super) fn round(
    values: &[f32],
    cols: usize,
    rank: usize,
    iterations: usize,
    pack: impl Fn(&[f32]) -> Packed,
) -> (Packed, Correction) {
    let rows = values.len() / cols.max(1);
    let mut target = values.to_vec();
    let mut left = iterations.max(1);
    loop {
        let packed = pack(&target);
        let lost: Vec<f32> = values
            .iter()
            .zip(packed.to_vec())
            .map(|(w, q)| w - q)
            .collect();
        let found = randomised_svd(&lost, rows, cols, rank, rank.max(8), POWER_ITERATIONS, 0);
        let rank = found.s.len();
        let root: Vec<f32> = found.s.iter().map(|s| s.sqrt()).collect();
        let a: Vec<f32> = (0..rank * cols)
            .map(|n| root[n / cols] * found.vt[n])
            .collect();
        let b: Vec<f32> = (0..rows * rank)
            .map(|n| found.u[n] * root[n % rank])
            .collect();
        left -= 1;
        if left == 0 {
            return (packed, Correction { rank, a, b });
        }
        for (i, (target, values)) in target.chunks_mut(cols).zip(values.chunks(cols)).enumerate() {
            target.copy_from_slice(values);
            for (t, weight) in b[i * rank..(i + 1) * rank].iter().enumerate() {
                target
                    .iter_mut()
                    .zip(&a[t * cols..(t + 1) * cols])
                    .for_each(|(out, a)| *out -= weight * a);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `‖W − Q‖ / ‖W‖`, and `‖W − Q − B A‖ / ‖W‖` after 1 to 5 turns: what
    /// `scripts/golden/loftq.py` prints.
    const GOLDEN: [f64; 6] = [
        0.089747128,
        0.077273931,
        0.072636307,
        0.069958610,
        0.068293072,
        0.067600559,
    ];

    /// `‖W − Q − B A‖ / ‖W‖`.
    fn residual(weight: &[f32], cols: usize, packed: &Packed, pair: Option<&Correction>) -> f64 {
        let (mut lost, mut all) = (0.0, 0.0);
        for (n, (w, q)) in weight.iter().zip(packed.to_vec()).enumerate() {
            let (i, j) = (n / cols, n % cols);
            let low = pair.map_or(0.0, |p| {
                (0..p.rank)
                    .map(|t| p.b[i * p.rank + t] * p.a[t * cols + j])
                    .sum()
            });
            lost += f64::from(w - q - low).powi(2);
            all += f64::from(*w).powi(2);
        }
        (lost / all).sqrt()
    }

    /// The weight that `scripts/golden/loftq.py` has.
    fn weight(rows: usize, cols: usize) -> Vec<f32> {
        (0..rows * cols)
            .map(|n| {
                ((n as f64 * 1.7).sin() * (n as f64 * 0.013).cos()
                    + 0.3 * (n as f64 * n as f64 * 0.01).sin()) as f32
            })
            .collect()
    }

    #[test]
    fn the_residual_falls_as_in_numpy() {
        let (rows, cols) = (96, 128);
        let weight = weight(rows, cols);
        let nf4 = |values: &[f32]| Packed::nf4(values, cols);
        let plain = residual(&weight, cols, &nf4(&weight), None);
        assert!(
            (plain - GOLDEN[0]).abs() < 1e-5 * GOLDEN[0],
            "{plain} instead of {}",
            GOLDEN[0]
        );
        let mut before = plain;
        for (iterations, expected) in GOLDEN.iter().enumerate().skip(1) {
            let (packed, pair) = round(&weight, cols, 8, iterations, nf4);
            let found = residual(&weight, cols, &packed, Some(&pair));
            // The decomposition is approximate, and later turns round what it left.
            let tolerance = if iterations == 1 { 2e-3 } else { 2e-2 };
            assert!(
                (found / expected - 1.0).abs() < tolerance,
                "{iterations}: {found} instead of {expected}"
            );
            assert!(found < before, "{iterations}: {found} after {before}");
            before = found;
        }
    }
}
