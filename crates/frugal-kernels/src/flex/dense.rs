//! Products with dense weights: of matrices, and a path for a few rows.

use std::mem::MaybeUninit;

use burn::backend::flex::FlexTensor;
use rayon::prelude::*;

use super::matrix::{Matrix, MatrixMut, Threads, build, build_matrix, product};
use super::tensor::tensor_of;
use crate::simd::{Isa, dot, dots, multiversion, task_rows};

/// Up to this many rows, the weight is read once from memory and nothing is packed.
const FEW_ROWS: usize = 8;

pub(super) fn rows(tensor: &FlexTensor) -> usize {
    tensor.layout().shape()[0]
}

pub(super) fn matrix_tensor(a: Matrix, b: Matrix, scale: f32) -> FlexTensor {
    tensor_of(product(a, b, scale), [a.rows, b.cols])
}

/// `scale * x · aᵀ`.
pub(super) fn scaled_low(x: Matrix, a: Matrix, scale: f32) -> Vec<f32> {
    let mut low = affine(x, a, None, None);
    low.iter_mut().for_each(|value| *value *= scale);
    low
}

/// `x · weightᵀ + bias + l · bᵀ` of a low-rank pair `(l, bᵀ)`.
pub(super) fn affine(
    x: Matrix,
    weight: Matrix,
    bias: Option<&[f32]>,
    low_rank: Option<(Matrix, Matrix)>,
) -> Vec<f32> {
    if x.rows <= FEW_ROWS && x.has_dense_rows() && weight.has_dense_rows() {
        let mut y = few_rows(x, weight, bias);
        if let Some((l, b)) = low_rank {
            MatrixMut::new(&mut y, l.rows, b.cols).add(l, b, 1.0, Threads::All);
        }
        return y;
    }
    match bias {
        // SAFETY: the product writes every element.
        None => unsafe {
            build_matrix(x.rows, weight.rows, |mut out| {
                out.sum_of(x, weight.t(), low_rank, false)
            })
        },
        Some(bias) => {
            let mut y = bias.repeat(x.rows);
            MatrixMut::new(&mut y, x.rows, weight.rows).sum_of(x, weight.t(), low_rank, true);
            y
        }
    }
}

/// [`affine`] as dot products: each row of the weight is read once and meets all rows of x.
fn few_rows(x: Matrix, weight: Matrix, bias: Option<&[f32]>) -> Vec<f32> {
    let per_task = task_rows(x.cols);
    // Transposed, `[out, tokens]`, so that tasks write to disjoint pieces.
    let write = |out: &mut [MaybeUninit<f32>]| {
        out.par_chunks_mut(per_task * x.rows)
            .enumerate()
            .for_each(|(task, out)| {
                let weight = weight.narrow_rows(task * per_task, out.len() / x.rows);
                weight_rows(out, x, weight);
            });
    };
    if x.rows == 0 {
        return Vec::new();
    }
    // SAFETY: the tasks cover all of `out` and each writes its whole piece.
    let mut y = unsafe { build(x.rows * weight.rows, write) };
    if x.rows > 1 {
        y = (0..x.rows)
            .flat_map(|token| y.iter().skip(token).step_by(x.rows).copied())
            .collect();
    }
    if let Some(bias) = bias {
        y.chunks_mut(bias.len().max(1))
            .for_each(|row| row.iter_mut().zip(bias).for_each(|(y, bias)| *y += bias));
    }
    y
}

multiversion!(fn weight_rows(out: &mut [MaybeUninit<f32>], x: Matrix<'_>, weight: Matrix<'_>) = weight_rows_body);

/// Writes, for each row of the weight, its dot products with all rows of x. The weight is read once
/// and in order, as memory likes it; the few rows of x stay in the cache.
#[inline(always)]
fn weight_rows_body<I: Isa>(out: &mut [MaybeUninit<f32>], x: Matrix, weight: Matrix) {
    for (i, out) in out.chunks_exact_mut(x.rows).enumerate() {
        let row = weight.row(i);
        let (quads, rest) = out.as_chunks_mut::<4>();
        let rest_start = x.rows - rest.len();
        for (j, quad) in quads.iter_mut().enumerate() {
            let x = std::array::from_fn::<_, 4, _>(|k| x.row(4 * j + k));
            for (out, value) in quad.iter_mut().zip(dots::<I, 4>(x, row)) {
                out.write(value);
            }
        }
        for (j, out) in rest.iter_mut().enumerate() {
            out.write(dot::<I>(x.row(rest_start + j), row));
        }
    }
}

pub(super) fn column_sums(matrix: Matrix) -> FlexTensor {
    let mut sums = vec![0.0; matrix.cols];
    matrix.add_column_sums(&mut sums);
    tensor_of(sums, [matrix.cols])
}
