//! Singular value and QR decompositions of weight matrices, in double precision.
//!
//! Matrices are row-major `[rows, cols]`. Signs are fixed, so that equal matrices give equal
//! factors: the element of largest magnitude of each left singular vector is positive.

use rayon::prelude::*;

use crate::rng::{named_rng, standard_normal};

/// A thin singular value decomposition `M = U diag(s) Vᵀ` of `k` triples, largest first.
#[derive(Clone, Debug, PartialEq)]
pub struct Svd {
    /// Left vectors, `[rows, k]`.
    pub u: Vec<f32>,
    /// Singular values, `[k]`.
    pub s: Vec<f32>,
    /// Right vectors, `[k, cols]`.
    pub vt: Vec<f32>,
}

/// A thin QR decomposition `M = Q R` with `k = min(rows, cols)`.
#[derive(Clone, Debug, PartialEq)]
pub struct Qr {
    /// Orthonormal columns, `[rows, k]`.
    pub q: Vec<f32>,
    /// Upper triangle, `[k, cols]`.
    pub r: Vec<f32>,
}

/// Columns of a matrix.
type Columns = Vec<Vec<f64>>;

/// All `min(rows, cols)` singular triples, by one-sided Jacobi rotations.
///
/// # Panics
/// If `matrix` does not have `rows * cols` elements: a broken invariant of the caller.
pub fn svd(matrix: &[f32], rows: usize, cols: usize) -> Svd {
    assert_eq!(matrix.len(), rows * cols, "a {rows} x {cols} matrix");
    // The work is in the columns, so the short side goes there.
    let wide = rows < cols;
    let columns = if wide {
        split_rows(matrix, cols)
    } else {
        split_columns(matrix, rows, cols)
    };
    let (left, s, right) = decompose(columns);
    let (u, v) = if wide { (right, left) } else { (left, right) };
    finish(u, s, v, rows, cols)
}

/// The `rank` largest singular triples, approximately: the matrix is projected to
/// `rank + oversampling` random directions, which `power_iterations` turn towards the leading ones
/// (2 are enough for most weights).
///
/// # Panics
/// If `matrix` does not have `rows * cols` elements: a broken invariant of the caller.
pub fn randomised_svd(
    matrix: &[f32],
    rows: usize,
    cols: usize,
    rank: usize,
    oversampling: usize,
    power_iterations: usize,
    seed: u64,
) -> Svd {
    assert_eq!(matrix.len(), rows * cols, "a {rows} x {cols} matrix");
    let width = (rank + oversampling).min(rows).min(cols);
    if width == rows.min(cols) {
        return truncate(svd(matrix, rows, cols), rows, cols, rank);
    }
    let mut rng = named_rng(seed, "randomised svd");
    let directions: Columns = (0..width)
        .map(|_| {
            (0..cols)
                .map(|_| f64::from(standard_normal(&mut rng)))
                .collect()
        })
        .collect();
    let mut basis = householder(times(matrix, rows, cols, &directions)).0;
    for _ in 0..power_iterations {
        let back = householder(transposed_times(matrix, cols, &basis)).0;
        basis = householder(times(matrix, rows, cols, &back)).0;
    }
    // Qᵀ M as the columns of its transpose [cols, width].
    let (right, s, small) = decompose(transposed_times(matrix, cols, &basis));
    let combine = |weights: &Vec<f64>| {
        let mut out = vec![0.0; rows];
        for (w, column) in weights.iter().zip(&basis) {
            out.iter_mut().zip(column).for_each(|(o, b)| *o += w * b);
        }
        out
    };
    truncate(
        finish(small.iter().map(combine).collect(), s, right, rows, cols),
        rows,
        cols,
        rank,
    )
}

/// QR by Householder reflections. The signs are those of LAPACK: the diagonal of `R` is opposite in
/// sign to the leading element of the column that was reflected.
///
/// # Panics
/// If `matrix` does not have `rows * cols` elements: a broken invariant of the caller.
pub fn qr(matrix: &[f32], rows: usize, cols: usize) -> Qr {
    leading_qr(matrix, rows, cols, rows.min(cols))
}

/// The first `rank` columns of `Q` and rows of `R`.
///
/// # Panics
/// As [`qr`].
pub fn leading_qr(matrix: &[f32], rows: usize, cols: usize, rank: usize) -> Qr {
    assert_eq!(matrix.len(), rows * cols, "a {rows} x {cols} matrix");
    let k = rank.min(rows).min(cols);
    let (q, r) = reflected(split_columns(matrix, rows, cols), k);
    Qr {
        q: join_columns(&q, rows),
        r: join_columns(&r, k),
    }
}

fn split_columns(matrix: &[f32], rows: usize, cols: usize) -> Columns {
    (0..cols)
        .map(|j| (0..rows).map(|i| f64::from(matrix[i * cols + j])).collect())
        .collect()
}

fn split_rows(matrix: &[f32], cols: usize) -> Columns {
    matrix
        .chunks_exact(cols)
        .map(|row| row.iter().map(|&v| f64::from(v)).collect())
        .collect()
}

/// `[rows, columns.len()]` row by row.
fn join_columns(columns: &Columns, rows: usize) -> Vec<f32> {
    (0..rows)
        .flat_map(|i| columns.iter().map(move |c| c[i] as f32))
        .collect()
}

/// As eight sums in flight.
fn dot(a: &[f64], b: &[f64]) -> f64 {
    let ((a, a_rest), (b, b_rest)) = (a.as_chunks::<8>(), b[..a.len()].as_chunks::<8>());
    let mut sums = [0.0; 8];
    for (a, b) in a.iter().zip(b) {
        sums.iter_mut()
            .zip(a.iter().zip(b))
            .for_each(|(sum, (a, b))| *sum += a * b);
    }
    sums.iter().sum::<f64>() + a_rest.iter().zip(b_rest).map(|(a, b)| a * b).sum::<f64>()
}

/// `M X`, `X` given by columns.
fn times(matrix: &[f32], rows: usize, cols: usize, x: &Columns) -> Columns {
    let row = |row: &[f32]| {
        let wide: Vec<f64> = row.iter().map(|&v| f64::from(v)).collect();
        x.iter()
            .map(|column| dot(&wide, column))
            .collect::<Vec<f64>>()
    };
    let by_row: Vec<Vec<f64>> = matrix.par_chunks_exact(cols).map(row).collect();
    (0..x.len())
        .map(|j| (0..rows).map(|i| by_row[i][j]).collect())
        .collect()
}

/// `Mᵀ X`, `X` given by columns.
fn transposed_times(matrix: &[f32], cols: usize, x: &Columns) -> Columns {
    let column = |column: &Vec<f64>| {
        let mut out = vec![0.0; cols];
        for (row, &weight) in matrix.chunks_exact(cols).zip(column) {
            out.iter_mut()
                .zip(row)
                .for_each(|(out, &v)| *out += weight * f64::from(v));
        }
        out
    };
    x.par_iter().map(column).collect()
}

/// Thin `Q` and `R`, both by columns.
fn householder(columns: Columns) -> (Columns, Columns) {
    let k = columns.first().map_or(0, Vec::len).min(columns.len());
    reflected(columns, k)
}

/// The first `k` columns of `Q` and rows of `R`, by columns.
fn reflected(mut columns: Columns, k: usize) -> (Columns, Columns) {
    let rows = columns.first().map_or(0, Vec::len);
    let mut reflections: Vec<Option<Vec<f64>>> = Vec::with_capacity(k);
    for j in 0..k {
        let reflection = reflection(&columns[j][j..]);
        if let Some(v) = &reflection {
            columns[j..]
                .iter_mut()
                .for_each(|column| reflect(&mut column[j..], v));
        }
        reflections.push(reflection);
    }
    let mut q = vec![vec![0.0; rows]; k];
    for (j, column) in q.iter_mut().enumerate() {
        column[j] = 1.0;
        for (i, v) in reflections.iter().enumerate().rev() {
            if let Some(v) = v {
                reflect(&mut column[i..], v);
            }
        }
    }
    for (j, column) in columns.iter_mut().enumerate() {
        column.truncate(k);
        column.iter_mut().skip(j + 1).for_each(|v| *v = 0.0);
    }
    (q, columns)
}

/// The unit normal of the mirror that leaves only the first element; `None` where that is so
/// already.
fn reflection(x: &[f64]) -> Option<Vec<f64>> {
    let rest = dot(&x[1..], &x[1..]);
    if rest == 0.0 {
        return None;
    }
    let norm = (x[0] * x[0] + rest).sqrt();
    let mut v = x.to_vec();
    v[0] += norm.copysign(x[0]);
    let length = dot(&v, &v).sqrt();
    v.iter_mut().for_each(|e| *e /= length);
    Some(v)
}

fn reflect(x: &mut [f64], v: &[f64]) {
    let twice = 2.0 * dot(x, v);
    x.iter_mut().zip(v).for_each(|(x, v)| *x -= twice * v);
}

/// Left vectors, singular values and right vectors of a matrix with no more columns than rows, in
/// falling order.
fn decompose(columns: Columns) -> (Columns, Vec<f64>, Columns) {
    let (rows, cols) = (columns.first().map_or(0, Vec::len), columns.len());
    if rows > cols {
        let (q, r) = householder(columns);
        let (small, s, right) = jacobi(r);
        let lift = |weights: &Vec<f64>| {
            let mut out = vec![0.0; rows];
            for (w, column) in weights.iter().zip(&q) {
                out.iter_mut().zip(column).for_each(|(o, b)| *o += w * b);
            }
            out
        };
        return (small.iter().map(lift).collect(), s, right);
    }
    jacobi(columns)
}

/// The same for a square matrix: rotates pairs of columns until all are orthogonal.
fn jacobi(mut a: Columns) -> (Columns, Vec<f64>, Columns) {
    const SWEEPS: usize = 60;
    let n = a.len();
    let mut v: Columns = (0..n)
        .map(|j| (0..n).map(|i| f64::from(u8::from(i == j))).collect())
        .collect();
    let total: f64 = a.iter().map(|c| dot(c, c)).sum();
    let nothing = f64::EPSILON * f64::EPSILON * total;
    for _ in 0..SWEEPS {
        let mut norms: Vec<f64> = a.iter().map(|c| dot(c, c)).collect();
        let mut rotated = false;
        for i in 0..n {
            for j in i + 1..n {
                if norms[i].min(norms[j]) <= nothing {
                    continue;
                }
                let (head, tail) = a.split_at_mut(j);
                let product = dot(&head[i], &tail[0]);
                if product.abs() <= 4.0 * f64::EPSILON * (norms[i] * norms[j]).sqrt() {
                    continue;
                }
                rotated = true;
                let zeta = (norms[j] - norms[i]) / (2.0 * product);
                let t = zeta.signum() / (zeta.abs() + zeta.hypot(1.0));
                let c = 1.0 / t.hypot(1.0);
                rotate(&mut head[i], &mut tail[0], c, c * t);
                let (head, tail) = v.split_at_mut(j);
                rotate(&mut head[i], &mut tail[0], c, c * t);
                norms[i] -= t * product;
                norms[j] += t * product;
            }
        }
        if !rotated {
            break;
        }
    }
    let mut order: Vec<(f64, usize)> = a.iter().map(|c| dot(c, c).sqrt()).zip(0..).collect();
    order.sort_by(|x, y| y.0.total_cmp(&x.0));
    let zero = f64::EPSILON * total.sqrt() * n as f64;
    let mut left: Columns = Vec::with_capacity(n);
    for &(norm, j) in &order {
        let direction = (norm > zero).then(|| a[j].iter().map(|e| e / norm).collect());
        let direction = direction.unwrap_or_else(|| complement(&left, a[j].len()));
        left.push(direction);
    }
    let right = order
        .iter()
        .map(|&(_, j)| std::mem::take(&mut v[j]))
        .collect();
    (
        left,
        order.into_iter().map(|(norm, _)| norm).collect(),
        right,
    )
}

fn rotate(a: &mut [f64], b: &mut [f64], c: f64, s: f64) {
    for (a, b) in a.iter_mut().zip(b) {
        (*a, *b) = (c * *a - s * *b, s * *a + c * *b);
    }
}

/// A unit vector orthogonal to all of `basis`, which does not span the space.
fn complement(basis: &Columns, len: usize) -> Vec<f64> {
    let mut best = (0.0, vec![0.0; len]);
    for axis in 0..len {
        let mut x = vec![0.0; len];
        x[axis] = 1.0;
        // Twice, for what rounding leaves behind.
        for b in basis.iter().chain(basis) {
            let share = dot(&x, b);
            x.iter_mut().zip(b).for_each(|(x, b)| *x -= share * b);
        }
        let norm = dot(&x, &x).sqrt();
        if norm > best.0 {
            best = (norm, x);
        }
        if best.0 > 0.5 {
            break;
        }
    }
    best.1.iter().map(|x| x / best.0).collect()
}

/// Fixes the signs and rounds.
fn finish(mut u: Columns, s: Vec<f64>, mut v: Columns, rows: usize, cols: usize) -> Svd {
    for (left, right) in u.iter_mut().zip(&mut v) {
        let largest = left.iter().fold(
            0.0_f64,
            |best, &e| if e.abs() > best.abs() { e } else { best },
        );
        if largest < 0.0 {
            left.iter_mut()
                .chain(right.iter_mut())
                .for_each(|e| *e = -*e);
        }
    }
    debug_assert!(v.iter().all(|v| v.len() == cols));
    let vt = v.iter().flatten().map(|&e| e as f32).collect();
    Svd {
        u: join_columns(&u, rows),
        s: s.into_iter().map(|s| s as f32).collect(),
        vt,
    }
}

fn truncate(full: Svd, rows: usize, cols: usize, rank: usize) -> Svd {
    let (k, keep) = (full.s.len(), rank.min(full.s.len()));
    let u = (0..rows)
        .flat_map(|i| full.u[i * k..i * k + keep].iter().copied())
        .collect();
    Svd {
        u,
        s: full.s[..keep].to_vec(),
        vt: full.vt[..keep * cols].to_vec(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn product(svd: &Svd, rows: usize, cols: usize) -> Vec<f32> {
        let k = svd.s.len();
        let element = |i: usize, j: usize| {
            (0..k)
                .map(|t| svd.u[i * k + t] * svd.s[t] * svd.vt[t * cols + j])
                .sum()
        };
        (0..rows * cols)
            .map(|n| element(n / cols, n % cols))
            .collect()
    }

    fn worst(a: &[f32], b: &[f32]) -> f32 {
        a.iter()
            .zip(b)
            .map(|(a, b)| (a - b).abs())
            .fold(0.0, f32::max)
    }

    #[test]
    fn a_worked_example() {
        // [[3, 0], [4, 5]]: the eigenvalues of MᵀM = [[25, 20], [20, 25]] are 45 and 5.
        let found = svd(&[3.0, 0.0, 4.0, 5.0], 2, 2);
        assert!(
            worst(&found.s, &[45.0_f32.sqrt(), 5.0_f32.sqrt()]) < 1e-6,
            "{found:?}"
        );
        let (a, b) = (0.1_f32.sqrt(), 0.9_f32.sqrt());
        assert!(worst(&found.u, &[a, b, b, -a]) < 1e-6, "{found:?}");
        let half = 0.5_f32.sqrt();
        assert!(
            worst(&found.vt, &[half, half, half, -half]) < 1e-6,
            "{found:?}"
        );
    }

    #[test]
    fn missing_rank_is_completed_by_orthonormal_vectors() {
        // Rank 1 of 3.
        let matrix: Vec<f32> = (0..12)
            .map(|n| ((n / 3 + 1) * (n % 3 + 2)) as f32)
            .collect();
        let found = svd(&matrix, 4, 3);
        assert!(found.s[1] < 1e-6 && found.s[2] < 1e-6, "{found:?}");
        assert!(worst(&product(&found, 4, 3), &matrix) < 1e-5);
        for (i, j) in [(0, 1), (0, 2), (1, 2), (1, 1), (2, 2)] {
            let dot: f32 = (0..4)
                .map(|r| found.u[r * 3 + i] * found.u[r * 3 + j])
                .sum();
            assert!(
                (dot - f32::from(u8::from(i == j))).abs() < 1e-6,
                "{i} {j}: {dot}"
            );
        }
    }

    #[test]
    fn the_randomised_form_finds_the_leading_part() {
        // Singular values 1, 1/2, 1/4, ... in random directions.
        let (rows, cols) = (40, 60);
        let mut rng = named_rng(1, "test");
        let mut random = |n: usize| {
            (0..n * 12)
                .map(|_| standard_normal(&mut rng))
                .collect::<Vec<f32>>()
        };
        let (left, right) = (qr(&random(rows), rows, 12).q, qr(&random(cols), cols, 12).q);
        let element = |i: usize, j: usize| {
            (0..12)
                .map(|t| left[i * 12 + t] * right[j * 12 + t] * 0.5_f32.powi(t as i32))
                .sum()
        };
        let matrix: Vec<f32> = (0..rows * cols)
            .map(|n| element(n / cols, n % cols))
            .collect();
        let (found, exact) = (
            randomised_svd(&matrix, rows, cols, 4, 4, 2, 3),
            truncate(svd(&matrix, rows, cols), rows, cols, 4),
        );
        assert!(
            worst(&found.s, &[1.0, 0.5, 0.25, 0.125]) < 1e-5,
            "{:?}",
            found.s
        );
        assert!(worst(&found.u, &exact.u) < 1e-3 && worst(&found.vt, &exact.vt) < 1e-3);
    }
}
