//! Linear maps through Flex's own matrix product, and a path for a few rows.

use std::mem::MaybeUninit;

use burn::backend::flex::FlexTensor;
use burn::tensor::Tensor;
use rayon::prelude::*;

use super::matrix::{Matrix, MatrixMut, Threads, build, product};
use super::record::{Operand, record, tensor_of, values};
use crate::simd::{Isa, dot, dots, multiversion, task_rows};

/// Up to this many rows, the weight is read once from memory and nothing is packed.
const FEW_ROWS: usize = 8;

/// Kept for the backward pass; each part only when a gradient needs it.
#[derive(Clone, Debug)]
struct Saved {
    x: Option<FlexTensor>,
    weight: Option<FlexTensor>,
}

/// [`linear`](crate::linear) on Flex.
pub(crate) fn linear(x: &Tensor<2>, weight: &Tensor<2>, bias: Option<&Tensor<1>>) -> Option<Tensor<2>> {
    let (x, weight, bias) = (Operand::new(x)?, Operand::new(weight)?, Operand::optional(bias)?);
    let forward = |[for_x, for_weight, _]: [bool; 3]| {
        let y = affine(&x.tensor, &weight.tensor, bias.as_ref().map(|bias| &bias.tensor));
        let shape = [rows(&x.tensor), rows(&weight.tensor)];
        let saved = Saved { x: for_weight.then(|| x.tensor.clone()), weight: for_x.then(|| weight.tensor.clone()) };
        (tensor_of(y, shape), saved)
    };
    Some(record([Some(&x), Some(&weight), bias.as_ref()], forward, |saved, dy, [_, _, for_bias]| {
        let dy = Matrix::of(&dy);
        let dx = saved.weight.map(|weight| matrix_tensor(dy, Matrix::of(&weight), 1.0));
        let dweight = saved.x.map(|x| matrix_tensor(dy.t(), Matrix::of(&x), 1.0));
        [dx, dweight, for_bias.then(|| column_sums(dy))]
    }))
}

#[derive(Clone, Debug)]
struct LoraSaved {
    base: Saved,
    scale: f32,
    /// x, for the gradient of `a`.
    x: Option<FlexTensor>,
    a: Option<FlexTensor>,
    b: Option<FlexTensor>,
    /// `x · aᵀ`, for the gradient of `b`.
    low: Option<FlexTensor>,
}

/// [`lora_linear`](crate::lora_linear) on Flex.
pub(crate) fn lora_linear(
    x: &Tensor<2>,
    weight: &Tensor<2>,
    bias: Option<&Tensor<1>>,
    a: &Tensor<2>,
    b: &Tensor<2>,
    scale: f32,
) -> Option<Tensor<2>> {
    let (x, weight, bias) = (Operand::new(x)?, Operand::new(weight)?, Operand::optional(bias)?);
    let (a, b) = (Operand::new(a)?, Operand::new(b)?);
    let forward = |[for_x, for_weight, _, for_a, for_b]: [bool; 5]| {
        let shape = [rows(&x.tensor), rows(&weight.tensor)];
        let low = tensor_of(affine(&x.tensor, &a.tensor, None), [shape[0], rows(&a.tensor)]);
        let mut y = affine(&x.tensor, &weight.tensor, bias.as_ref().map(|bias| &bias.tensor));
        MatrixMut::new(&mut y, shape[0], shape[1]).add(Matrix::of(&low), Matrix::of(&b.tensor).t(), scale, Threads::All);
        let keep = |wanted: bool, tensor: &FlexTensor| wanted.then(|| tensor.clone());
        let saved = LoraSaved {
            base: Saved { x: keep(for_weight, &x.tensor), weight: keep(for_x, &weight.tensor) },
            scale,
            x: keep(for_a, &x.tensor),
            a: keep(for_x, &a.tensor),
            b: keep(for_x || for_a, &b.tensor),
            low: for_b.then_some(low),
        };
        (tensor_of(y, shape), saved)
    };
    let inputs = [Some(&x), Some(&weight), bias.as_ref(), Some(&a), Some(&b)];
    Some(record(inputs, forward, |saved, dy, [_, _, for_bias, ..]| {
        let dy = Matrix::of(&dy);
        let db = saved.low.map(|low| matrix_tensor(dy.t(), Matrix::of(&low), saved.scale));
        let dlow = saved.b.map(|b| matrix_tensor(dy, Matrix::of(&b), saved.scale));
        let dlow = dlow.as_ref().map(Matrix::of);
        let da = dlow.zip(saved.x.as_ref()).map(|(dlow, x)| matrix_tensor(dlow.t(), Matrix::of(x), 1.0));
        let dx = saved.base.weight.zip(saved.a).zip(dlow).map(|((weight, a), dlow)| {
            let mut dx = product(dy, Matrix::of(&weight), 1.0);
            let width = weight.layout().shape()[1];
            MatrixMut::new(&mut dx, dy.rows, width).add(dlow, Matrix::of(&a), 1.0, Threads::All);
            tensor_of(dx, [dy.rows, width])
        });
        let dweight = saved.base.x.map(|x| matrix_tensor(dy.t(), Matrix::of(&x), 1.0));
        [dx, dweight, for_bias.then(|| column_sums(dy)), da, db]
    }))
}

fn rows(tensor: &FlexTensor) -> usize {
    tensor.layout().shape()[0]
}

fn matrix_tensor(a: Matrix, b: Matrix, scale: f32) -> FlexTensor {
    tensor_of(product(a, b, scale), [a.rows, b.cols])
}

/// `x · weightᵀ + bias`.
fn affine(x: &FlexTensor, weight: &FlexTensor, bias: Option<&FlexTensor>) -> Vec<f32> {
    let (x, weight) = (Matrix::of(x), Matrix::of(weight));
    let bias = bias.map(values);
    if x.rows <= FEW_ROWS && x.has_dense_rows() && weight.has_dense_rows() {
        return few_rows(x, weight, bias);
    }
    match bias {
        None => product(x, weight.t(), 1.0),
        Some(bias) => {
            let mut y = bias.repeat(x.rows);
            MatrixMut::new(&mut y, x.rows, weight.rows).add(x, weight.t(), 1.0, Threads::All);
            y
        }
    }
}

/// [`affine`] as dot products: each row of the weight is read once and meets all rows of x.
fn few_rows(x: Matrix, weight: Matrix, bias: Option<&[f32]>) -> Vec<f32> {
    let per_task = task_rows(x.cols);
    // Transposed, `[out, tokens]`, so that tasks write to disjoint pieces.
    let write = |out: &mut [MaybeUninit<f32>]| {
        out.par_chunks_mut(per_task * x.rows).enumerate().for_each(|(task, out)| {
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
        y = (0..x.rows).flat_map(|token| y.iter().skip(token).step_by(x.rows).copied()).collect();
    }
    if let Some(bias) = bias {
        y.chunks_mut(bias.len().max(1)).for_each(|row| row.iter_mut().zip(bias).for_each(|(y, bias)| *y += bias));
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

fn column_sums(matrix: Matrix) -> FlexTensor {
    let mut sums = vec![0.0; matrix.cols];
    matrix.add_column_sums(&mut sums);
    tensor_of(sums, [matrix.cols])
}
