//! Linear maps by products of matrices, and a path for a few rows.

use std::mem::MaybeUninit;
use std::sync::Arc;

use burn::backend::flex::FlexTensor;
use burn::tensor::Tensor;
use rayon::prelude::*;

use super::matrix::{Matrix, MatrixMut, Threads, build, build_matrix, product};
use super::record::{Op, Operand, present, record, tensor_of};
use super::weight::{Base, Weight};
use crate::memory::Cost;
use crate::packed::Packed;
use crate::simd::{Isa, dot, dots, multiversion, task_rows};

/// Up to this many rows, the weight is read once from memory and nothing is packed.
const FEW_ROWS: usize = 8;

/// [`linear`](crate::linear) on Flex.
pub(crate) fn linear(
    x: &Tensor<2>,
    weight: &Weight<'_>,
    bias: Option<&Tensor<1>>,
) -> Option<Tensor<2>> {
    let (x, (weight, packed), bias) = (Operand::new(x)?, weight.split()?, Operand::optional(bias)?);
    let op = Op {
        cost: Cost::Heavy,
        reads: |[for_x, for_weight, _]| [for_weight, for_x, false],
        forward: move |[x, weight, bias]: &[Option<FlexTensor>; 3], _| {
            let x = present(x);
            let weight = Base::new(weight.as_ref(), packed.as_ref());
            (
                tensor_of(
                    weight.affine(x, bias.as_ref(), None),
                    [rows(x), weight.dims()[0]],
                ),
                packed.clone(),
            )
        },
        backward: |[x, weight, _],
                   packed: Option<Arc<Packed>>,
                   dy,
                   [for_x, _, for_bias],
                   [waiting, ..]| {
            let dy = Matrix::of(&dy);
            let dx = for_x.then(|| {
                Base::new(weight.as_ref(), packed.as_ref()).input_gradient(dy, None, waiting)
            });
            let dweight = x.map(|x| matrix_tensor(dy.t(), Matrix::of(&x), 1.0));
            [dx, dweight, for_bias.then(|| column_sums(dy))]
        },
    };
    Some(record([Some(&x), weight.as_ref(), bias.as_ref()], op))
}

/// [`lora_linear`](crate::lora_linear) on Flex.
pub(crate) fn lora_linear(
    x: &Tensor<2>,
    weight: &Weight<'_>,
    bias: Option<&Tensor<1>>,
    a: &Tensor<2>,
    b: &Tensor<2>,
    scale: f32,
) -> Option<Tensor<2>> {
    let (x, (weight, packed), bias) = (Operand::new(x)?, weight.split()?, Operand::optional(bias)?);
    let (a, b) = (Operand::new(a)?, Operand::new(b)?);
    let op = Op {
        cost: Cost::Heavy,
        reads: |[for_x, for_weight, _, for_a, _]| {
            [for_weight || for_a, for_x, false, for_x, for_x || for_a]
        },
        forward: move |[x, weight, bias, a, b]: &[Option<FlexTensor>; 5], wanted: [bool; 5]| {
            let (x, a, b) = (present(x), present(a), present(b));
            let weight = Base::new(weight.as_ref(), packed.as_ref());
            let shape = [rows(x), weight.dims()[0]];
            // Kept for the gradient of b.
            let low = tensor_of(
                scaled_low(Matrix::of(x), Matrix::of(a), scale),
                [shape[0], rows(a)],
            );
            let y = weight.affine(
                x,
                bias.as_ref(),
                Some((Matrix::of(&low), Matrix::of(b).t())),
            );
            let saved = LoraSaved {
                packed: packed.clone(),
                scale,
                low: wanted[4].then_some(low),
            };
            (tensor_of(y, shape), saved)
        },
        backward: |[x, weight, _, a, b],
                   saved: LoraSaved,
                   dy,
                   [for_x, for_weight, for_bias, for_a, _],
                   [waiting, ..]| {
            let dy = Matrix::of(&dy);
            let db = saved
                .low
                .map(|low| matrix_tensor(dy.t(), Matrix::of(&low), 1.0));
            let dlow = b.map(|b| matrix_tensor(dy, Matrix::of(&b), saved.scale));
            let dlow = dlow.as_ref().map(Matrix::of);
            let da = dlow
                .zip(x.as_ref())
                .filter(|_| for_a)
                .map(|(dlow, x)| matrix_tensor(dlow.t(), Matrix::of(x), 1.0));
            let low_rank = a.as_ref().map(Matrix::of);
            let base = for_x.then(|| Base::new(weight.as_ref(), saved.packed.as_ref()));
            let dx = base.map(|base| base.input_gradient(dy, dlow.zip(low_rank), waiting));
            let dweight = x
                .filter(|_| for_weight)
                .map(|x| matrix_tensor(dy.t(), Matrix::of(&x), 1.0));
            [dx, dweight, for_bias.then(|| column_sums(dy)), da, db]
        },
    };
    Some(record(
        [Some(&x), weight.as_ref(), bias.as_ref(), Some(&a), Some(&b)],
        op,
    ))
}

#[derive(Clone, Debug)]
struct LoraSaved {
    packed: Option<Arc<Packed>>,
    scale: f32,
    /// `scale * x · aᵀ`.
    low: Option<FlexTensor>,
}

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
