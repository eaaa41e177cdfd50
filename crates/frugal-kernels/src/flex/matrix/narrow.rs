//! Products of a large matrix with a narrow one, such as the factors of a low-rank change.
//!
//! There is little to compute for each element of the large matrix, so that it is read once, as it
//! lies in memory, and copied nowhere.

use std::ops::Range;

use rayon::prelude::*;

use super::super::gemm::prefetch;
use super::super::scratch::Scratch;
use super::threads::Threads;
use super::view::Matrix;
use super::view_mut::Sink;
use crate::simd::{Isa, LANES, Lanes, TASK, multiversion};

/// Columns of the widest matrix that counts as narrow, where the columns of the large one are
/// contiguous; [`GROUP`] where its rows are.
const WIDEST: usize = 16;
/// The shortest sums that are worth it.
const SHORTEST: usize = 4 * LANES;
/// Columns of a narrow matrix that are treated at once, each in two lanes.
const GROUP: usize = LANES / 2;
/// Rows of a large matrix that meet them.
const MR: usize = 6;
/// Columns of a large matrix that are treated at once: two vectors.
const NR: usize = 2 * LANES;
/// Rows of a large matrix that are gone through at a time, and the most columns: what the
/// first-level cache holds.
const BLOCK: [usize; 2] = [16, 384];

/// Whether `large * narrow` is better computed here.
pub(super) fn is_better(large: Matrix, narrow: Matrix) -> bool {
    let widest = if large.has_dense_rows() {
        GROUP
    } else {
        WIDEST
    };
    let lines_up = large.has_dense_rows() || large.t().has_dense_rows();
    lines_up
        && (1..=widest).contains(&narrow.cols)
        && narrow.cols <= large.rows
        && large.cols >= SHORTEST
}

/// `large * narrow`, of `[n, depth]` and `[depth, r]`.
pub(super) fn product(large: Matrix, narrow: Matrix, threads: Threads, out: Sink) {
    let threads = match threads {
        Threads::All if large.rows * large.cols >= TASK => rayon::current_num_threads(),
        _ => 1,
    };
    if large.has_dense_rows() {
        by_rows(large, narrow, threads, &out);
    } else if narrow.has_dense_rows() {
        by_columns(large.t(), narrow, threads, &out);
    } else {
        let copied = rows_of(narrow);
        by_columns(
            large.t(),
            Matrix::new(&copied, narrow.rows, narrow.cols),
            threads,
            &out,
        );
    }
}

/// A copy, row by row.
fn rows_of(matrix: Matrix) -> Scratch {
    let mut copied = Scratch::new(matrix.rows * matrix.cols);
    matrix.copy_rows_to(&mut copied);
    copied
}

/// `x * a` of `[n, depth]`, with contiguous rows, and `[depth, r]`, where r is at most [`GROUP`].
fn by_rows(x: Matrix, a: Matrix, threads: usize, out: &Sink) {
    let mut paired = Scratch::zeros(a.rows.div_ceil(2) * LANES);
    let (paired, _) = paired.as_chunks_mut();
    pair_rows(paired, a);
    let paired = &*paired;
    let per_task = if threads > 1 {
        (4 * TASK / x.cols)
            .clamp(1, x.rows.div_ceil(threads))
            .next_multiple_of(MR)
    } else {
        x.rows
    };
    in_tasks(x.rows.div_ceil(per_task), threads, |task| {
        let rows = task * per_task..x.rows.min((task + 1) * per_task);
        let mut sums = Scratch::new(rows.len() * GROUP);
        let (sums, _) = sums.as_chunks_mut();
        sum_rows(sums, x.narrow_rows(rows.start, rows.len()), paired);
        for (i, row) in rows.zip(sums) {
            // SAFETY: each task has rows of its own.
            unsafe { out.put_row(i, &row[..a.cols]) };
        }
    });
}

/// Two rows at a time: `[depth, r]` to `[depth / 2, GROUP, 2]`, whose other places are 0 already.
fn pair_rows(paired: &mut [[f32; LANES]], a: Matrix) {
    if a.has_dense_rows() {
        for k in 0..a.rows {
            a.row(k)
                .iter()
                .zip(paired[k / 2][k % 2..].iter_mut().step_by(2))
                .for_each(|(value, lane)| *lane = *value);
        }
    } else if a.t().has_dense_rows() {
        for j in 0..a.cols {
            for (pair, values) in paired.iter_mut().zip(a.t().row(j).chunks(2)) {
                pair[2 * j..][..values.len()].copy_from_slice(values);
            }
        }
    } else {
        pair_rows(paired, Matrix::new(&rows_of(a), a.rows, a.cols));
    }
}

multiversion!(fn sum_rows(out: &mut [[f32; GROUP]], x: Matrix<'_>, paired: &[[f32; LANES]]) = sum_rows_body);

#[inline(always)]
fn sum_rows_body<I: Isa>(out: &mut [[f32; GROUP]], x: Matrix, paired: &[[f32; LANES]]) {
    if x.rows < MR {
        (0..x.rows).for_each(|i| sum_tile::<I, 1>(&mut out[i..], x, i, paired));
        return;
    }
    for i in (0..x.rows).step_by(MR) {
        // The last rows again where they are not a whole tile.
        let i = i.min(x.rows - MR);
        sum_tile::<I, MR>(&mut out[i..], x, i, paired);
    }
}

/// Some rows. Even lanes add up the products of even places, odd lanes of odd ones.
#[inline(always)]
fn sum_tile<I: Isa, const N: usize>(
    out: &mut [[f32; GROUP]],
    x: Matrix,
    first: usize,
    paired: &[[f32; LANES]],
) {
    let (whole, rest) = paired.split_at(x.cols / 2);
    let mut rows = [&[][..]; N];
    let mut last = [[0.0; 2]; N];
    for (i, (row, last)) in rows.iter_mut().zip(&mut last).enumerate() {
        let (pairs, odd) = x.row(first + i).as_chunks::<2>();
        *row = &pairs[..whole.len()];
        last[0] = odd.first().copied().unwrap_or(0.0);
    }
    let mut sums = [I::Lanes::splat(0.0); N];
    for (k, right) in whole.iter().enumerate() {
        let right = I::Lanes::load(right);
        for (sum, row) in sums.iter_mut().zip(&rows) {
            // SAFETY: the rows have been cut to this length.
            *sum = I::Lanes::pairs(unsafe { row.get_unchecked(k) }).mul_add(right, *sum);
        }
    }
    for right in rest {
        let right = I::Lanes::load(right);
        for (sum, last) in sums.iter_mut().zip(&last) {
            *sum = I::Lanes::pairs(last).mul_add(right, *sum);
        }
    }
    for (out, sum) in out.iter_mut().zip(&sums) {
        let mut lanes = [0.0; LANES];
        sum.store(&mut lanes);
        for (out, [even, odd]) in out.iter_mut().zip(lanes.as_chunks::<2>().0) {
            *out = even + odd;
        }
    }
}

/// `lᵀ * x`, of `[depth, r]` and `[depth, n]`, both with contiguous rows.
fn by_columns(x: Matrix, l: Matrix, threads: usize, out: &Sink) {
    let tasks = threads * x.cols.div_ceil(threads * BLOCK[1]);
    let width = x.cols.div_ceil(tasks).next_multiple_of(NR);
    in_tasks(x.cols.div_ceil(width), threads, |task| {
        let cols = task * width..x.cols.min((task + 1) * width);
        let mut sums = Scratch::zeros(width * l.cols);
        sum_columns(&mut sums, x, cols.clone(), l);
        for (j, row) in sums.chunks_exact(width).enumerate() {
            // SAFETY: each task has rows of its own.
            unsafe { out.put_col(cols.start, j, &row[..cols.len()]) };
        }
    });
}

fn in_tasks(tasks: usize, threads: usize, task: impl Fn(usize) + Sync + Send) {
    if threads > 1 {
        (0..tasks).into_par_iter().with_max_len(1).for_each(task);
    } else {
        (0..tasks).for_each(task);
    }
}

multiversion!(fn sum_columns(out: &mut [f32], x: Matrix<'_>, cols: Range<usize>, l: Matrix<'_>) = sum_columns_body);

/// Adds to `[r, width]`, whose width is a multiple of [`NR`] and at least the number of columns.
#[inline(always)]
fn sum_columns_body<I: Isa>(out: &mut [f32], x: Matrix, cols: Range<usize>, l: Matrix) {
    let width = out.len() / l.cols;
    let whole = cols.len() / NR * NR;
    let mut padded = [[0.0; NR]; BLOCK[0]];
    for k in (0..x.rows).step_by(BLOCK[0]) {
        let depth = BLOCK[0].min(x.rows - k);
        for col in (0..whole).step_by(NR) {
            let rows: [&[f32]; BLOCK[0]] = std::array::from_fn(|i| {
                if i < depth {
                    &x.row(k + i)[cols.start + col..]
                } else {
                    &[]
                }
            });
            if k + 2 * BLOCK[0] <= x.rows {
                for i in 0..BLOCK[0] {
                    let next = &x.row(k + BLOCK[0] + i)[cols.start + col..];
                    prefetch(next.as_ptr());
                    prefetch(next[LANES..].as_ptr());
                }
            }
            add_columns::<I>(out, width, col, &rows[..depth], l, k);
        }
        if whole < cols.len() {
            for (padded, i) in padded.iter_mut().zip(0..depth) {
                padded[..cols.len() - whole]
                    .copy_from_slice(&x.row(k + i)[cols.start + whole..cols.end]);
            }
            let rows: [&[f32]; BLOCK[0]] = std::array::from_fn(|i| &padded[i][..]);
            add_columns::<I>(out, width, whole, &rows[..depth], l, k);
        }
    }
}

/// A few rows' part of [`NR`] columns of the sums.
#[inline(always)]
fn add_columns<I: Isa>(
    out: &mut [f32],
    width: usize,
    col: usize,
    x: &[&[f32]],
    l: Matrix,
    k: usize,
) {
    let fours = l.cols / 4 * 4;
    for j in (0..fours).step_by(4) {
        add_tile::<I, 4>(&mut out[j * width + col..], width, x, l, k, j);
    }
    for j in fours..l.cols {
        add_tile::<I, 1>(&mut out[j * width + col..], width, x, l, k, j);
    }
}

#[inline(always)]
fn add_tile<I: Isa, const N: usize>(
    out: &mut [f32],
    width: usize,
    x: &[&[f32]],
    l: Matrix,
    k: usize,
    j: usize,
) {
    let mut sums = [[I::Lanes::splat(0.0); 2]; N];
    for (t, sums) in sums.iter_mut().enumerate() {
        let part = out[t * width..][..NR].as_chunks::<LANES>().0;
        *sums = [I::Lanes::load(&part[0]), I::Lanes::load(&part[1])];
    }
    for (i, x) in x.iter().enumerate() {
        let x = x[..NR].as_chunks::<LANES>().0;
        let right = [I::Lanes::load(&x[0]), I::Lanes::load(&x[1])];
        let left = &l.row(k + i)[j..j + N];
        for (sums, left) in sums.iter_mut().zip(left) {
            let left = I::Lanes::splat(*left);
            sums[0] = left.mul_add(right[0], sums[0]);
            sums[1] = left.mul_add(right[1], sums[1]);
        }
    }
    for (t, sums) in sums.iter().enumerate() {
        let part = out[t * width..][..NR].as_chunks_mut::<LANES>().0;
        sums[0].store(&mut part[0]);
        sums[1].store(&mut part[1]);
    }
}

#[cfg(test)]
mod tests {
    use super::super::view_mut::MatrixMut;
    use super::*;

    /// Values that differ from place to place and are exact in every sum.
    fn values(len: usize) -> Vec<f32> {
        (0..len).map(|i| ((i * 7919) % 31) as f32 - 15.0).collect()
    }

    #[test]
    fn products_are_exact_whatever_the_layout() {
        // Whole and partial vectors, blocks and tasks; a narrow side of one, of fours and between.
        for [n, depth, r] in [
            [5, 64, 1],
            [700, 65, 8],
            [33, 100, 7],
            [1000, 79, 16],
            [40, 700, 4],
            [9, 70_000, 8],
        ] {
            let (left, right) = (values(n * depth), values(depth * r));
            for (turned_left, turned_right, threads) in [
                (false, false, Threads::One),
                (false, true, Threads::All),
                (true, false, Threads::All),
                (true, true, Threads::One),
            ] {
                let view = |data, rows, cols, turned| {
                    if turned {
                        Matrix::new(data, cols, rows).t()
                    } else {
                        Matrix::new(data, rows, cols)
                    }
                };
                let (large, narrow) = (
                    view(&left, n, depth, turned_left),
                    view(&right, depth, r, turned_right),
                );
                if !turned_left && r > GROUP {
                    continue;
                }
                assert!(is_better(large, narrow));
                let mut written = vec![f32::NAN; n * r];
                product(
                    large,
                    narrow,
                    threads,
                    MatrixMut::new(&mut written, n, r).sink(1.0, false),
                );
                // Transposed, and added twice over to what is there.
                let mut added = vec![3.0; n * r];
                product(
                    large,
                    narrow,
                    threads,
                    MatrixMut::new(&mut added, r, n).sink(2.0, true).t(),
                );
                let (large, narrow) = (large.to_rows(), narrow.to_rows());
                for (i, j) in (0..n).flat_map(|i| (0..r).map(move |j| (i, j))) {
                    let expected = (0..depth)
                        .map(|k| large[i * depth + k] * narrow[k * r + j])
                        .sum::<f32>();
                    let found = [written[i * r + j], added[j * n + i]];
                    assert_eq!(
                        found,
                        [expected, 3.0 + 2.0 * expected],
                        "{n} x {depth} x {r} at [{i}, {j}]"
                    );
                }
            }
        }
    }
}
