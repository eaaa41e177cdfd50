//! Which rows of a layer belong together, as `peft` finds out when it makes an adapter and again when it
//! reads one: files do not say.

use frugal_nn::linalg::{qr, svd};

use crate::support::torch_random::TorchGenerator;

/// Seed of the clusters.
const SEED: u64 = 123_456_789;
/// Turns of k-means.
const TURNS: usize = 10;
/// Least movement of the centres, as a share of the mean variance of a column.
const TOLERANCE: f64 = 1e-4;
/// Power iterations of the decomposition.
const POWER: usize = 2;

/// The `r` largest singular triples of a matrix, as `torch.svd_lowrank` finds them.
pub(super) struct LowRank {
    /// `[rows, r]`.
    pub u: Vec<f32>,
    /// `[r, columns]`.
    pub vt: Vec<f32>,
}

fn transposed(matrix: &[f32], rows: usize, columns: usize) -> Vec<f32> {
    (0..columns)
        .flat_map(|j| (0..rows).map(move |i| matrix[i * columns + j]))
        .collect()
}

/// `a [n, k]` times `b [k, m]`.
fn product(a: &[f32], b: &[f32], n: usize, k: usize, m: usize) -> Vec<f32> {
    let mut out = vec![0.0; n * m];
    for (row, sums) in a.chunks_exact(k).zip(out.chunks_exact_mut(m)) {
        let mut wide = vec![0.0f64; m];
        for (value, other) in row.iter().zip(b.chunks_exact(m)) {
            let value = f64::from(*value);
            wide.iter_mut()
                .zip(other)
                .for_each(|(sum, o)| *sum += value * f64::from(*o));
        }
        sums.iter_mut().zip(wide).for_each(|(s, w)| *s = w as f32);
    }
    debug_assert_eq!(out.len(), n * m);
    out
}

/// `torch.svd_lowrank(matrix, q=r, niter=2)` after `torch.manual_seed(seed)`.
pub(super) fn svd_lowrank(
    matrix: &[f32],
    rows: usize,
    columns: usize,
    r: usize,
    seed: u64,
) -> LowRank {
    let is_wide = rows < columns;
    let (tall, n, k) = match is_wide {
        true => (transposed(matrix, rows, columns), columns, rows),
        false => (matrix.to_vec(), rows, columns),
    };
    let flat = transposed(&tall, n, k);
    let drawn = TorchGenerator::new(seed).randn((k * r).max(16));
    let mut q = qr(&product(&tall, &drawn[..k * r], n, k, r), n, r).q;
    for _ in 0..POWER {
        let back = qr(&product(&flat, &q, k, n, r), k, r).q;
        q = qr(&product(&tall, &back, n, k, r), n, r).q;
    }
    let small = product(&transposed(&q, n, r), &tall, r, n, k);
    let found = svd(&small, r, k);
    let u = product(&q, &found.u, n, r, r);
    match is_wide {
        true => LowRank {
            u: transposed(&found.vt, r, k),
            vt: transposed(&u, n, r),
        },
        false => LowRank { u, vt: found.vt },
    }
}

/// NumPy's `RandomState(seed).choice(n, size=count, replace=False, p=1/n)`.
fn choice(n: usize, count: usize, seed: u64) -> Vec<usize> {
    let mut generator = TorchGenerator::new(seed);
    let mut uniform = || {
        let (a, b) = (generator.random() >> 5, generator.random() >> 6);
        (f64::from(a) * 67_108_864.0 + f64::from(b)) / 9_007_199_254_740_992.0
    };
    let mut shares = vec![f64::from(1.0 / n as f32); n];
    let mut found: Vec<usize> = Vec::new();
    while found.len() < count {
        let drawn: Vec<f64> = (found.len()..count).map(|_| uniform()).collect();
        found.iter().for_each(|&i| shares[i] = 0.0);
        let mut sum = 0.0;
        let sums: Vec<f64> = shares
            .iter()
            .map(|share| {
                sum += share;
                sum
            })
            .collect();
        let mut new: Vec<usize> = Vec::new();
        for x in drawn {
            let place = sums.partition_point(|s| s / sum <= x).min(n - 1);
            if !new.contains(&place) {
                new.push(place);
            }
        }
        found.extend(new);
    }
    found
}

/// The cluster of each row of `points [n, d]`: k-means from `count` of them, as scikit-learn does it.
pub(super) fn clusters(points: &[f32], d: usize, count: usize) -> Vec<usize> {
    let n = points.len() / d;
    let mean = |column: usize| -> f64 {
        let values = points.iter().skip(column).step_by(d);
        values.map(|v| f64::from(*v)).sum::<f64>() / n as f64
    };
    let means: Vec<f64> = (0..d).map(mean).collect();
    let points: Vec<Vec<f64>> = points
        .chunks_exact(d)
        .map(|row| {
            row.iter()
                .zip(&means)
                .map(|(v, m)| f64::from(*v) - m)
                .collect()
        })
        .collect();
    let squares = points.iter().flatten().map(|v| v * v).sum::<f64>();
    let tolerance = TOLERANCE * squares / (n * d) as f64;
    let distance =
        |a: &[f64], b: &[f64]| -> f64 { a.iter().zip(b).map(|(a, b)| (a - b) * (a - b)).sum() };
    let nearest = |point: &Vec<f64>, centres: &[Vec<f64>]| {
        let distances = centres.iter().map(|centre| distance(point, centre));
        let first = distances.enumerate().min_by(|a, b| a.1.total_cmp(&b.1));
        first.map_or(0, |(i, _)| i)
    };
    let mut centres: Vec<Vec<f64>> = choice(n, count, SEED)
        .into_iter()
        .map(|i| points[i].clone())
        .collect();
    let mut labels = vec![usize::MAX; n];
    for _ in 0..TURNS {
        let new: Vec<usize> = points.iter().map(|p| nearest(p, &centres)).collect();
        let mut sums = vec![vec![0.0; d]; count];
        let mut sizes = vec![0usize; count];
        for (point, &label) in points.iter().zip(&new) {
            sizes[label] += 1;
            sums[label].iter_mut().zip(point).for_each(|(s, p)| *s += p);
        }
        // An empty one takes the point that is farthest from its centre.
        let mut far: Vec<usize> = (0..n).collect();
        far.sort_by(|&a, &b| {
            let of = |i: usize| distance(&points[i], &centres[new[i]]);
            of(b).total_cmp(&of(a))
        });
        let empty: Vec<usize> = (0..count).filter(|&c| sizes[c] == 0).collect();
        for (cluster, &point) in empty.into_iter().zip(&far) {
            let old = new[point];
            sums[old]
                .iter_mut()
                .zip(&points[point])
                .for_each(|(s, p)| *s -= p);
            sums[cluster].clone_from(&points[point]);
            sizes[cluster] = 1;
            sizes[old] -= 1;
        }
        let moved: Vec<Vec<f64>> = sums
            .into_iter()
            .zip(&sizes)
            .map(|(sum, &size)| sum.into_iter().map(|s| s / size.max(1) as f64).collect())
            .collect();
        let shift: f64 = moved
            .iter()
            .zip(&centres)
            .map(|(a, b)| distance(a, b))
            .sum();
        centres = moved;
        if new == labels {
            return labels;
        }
        labels = new;
        if shift <= tolerance {
            break;
        }
    }
    points.iter().map(|p| nearest(p, &centres)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_chosen_as_numpy_chooses_them() {
        // numpy.random.RandomState(123456789).choice(n, size=count, replace=False, p=1/n).
        assert_eq!(choice(32, 4, SEED), [17, 16, 22, 7]);
        assert_eq!(choice(6, 5, SEED), [3, 4, 1, 5, 0]);
    }
}
