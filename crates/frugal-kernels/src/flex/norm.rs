//! Row normalisations; only x and one or two numbers per row are kept.

use std::mem::MaybeUninit;
use std::sync::Arc;

use burn::backend::flex::FlexTensor;
use burn::tensor::Tensor;
use rayon::prelude::*;

use super::matrix::{Matrix, build};
use super::record::{Op, Operand, contiguous, dense_rows, present, record, tensor_of, values};
use crate::memory::Cost;
use crate::simd::{Isa, LANES, Lanes, mul_add, multiversion, sum, task_rows};

/// [`rms_norm`](crate::rms_norm) on Flex.
pub(crate) fn rms_norm(x: &Tensor<2>, weight: &Tensor<1>, eps: f64) -> Option<Tensor<2>> {
    normalize(x, weight, None, eps, false)
}

/// [`layer_norm`](crate::layer_norm) on Flex.
pub(crate) fn layer_norm(x: &Tensor<2>, weight: &Tensor<1>, bias: Option<&Tensor<1>>, eps: f64) -> Option<Tensor<2>> {
    normalize(x, weight, bias, eps, true)
}

/// What normalised a row: `(x - mean) * scale`.
#[derive(Clone, Copy, Debug)]
struct Statistics {
    mean: f32,
    scale: f32,
}

fn normalize(x: &Tensor<2>, weight: &Tensor<1>, bias: Option<&Tensor<1>>, eps: f64, center: bool) -> Option<Tensor<2>> {
    let (x, weight, bias) = (Operand::new(x)?, Operand::new(weight)?, Operand::optional(bias)?);
    let op = Op {
        cost: Cost::Light,
        reads: |[for_x, for_weight, _]| [for_x || for_weight, for_x, false],
        forward: move |[x, weight, bias]: &[Option<FlexTensor>; 3], _| {
            let (x, weight, bias) = (dense_rows(present(x)), contiguous(present(weight)), bias.as_ref().map(contiguous));
            let rows = Matrix::of(&x);
            let bias = bias.as_ref().map(values);
            let per_task = task_rows(rows.cols);
            let mut statistics = vec![Statistics { mean: 0.0, scale: 0.0 }; rows.rows];
            let fill = |out: &mut [MaybeUninit<f32>]| {
                if rows.cols == 0 {
                    return;
                }
                let tasks = out.par_chunks_mut(per_task * rows.cols).zip(statistics.par_chunks_mut(per_task)).enumerate();
                tasks.for_each(|(task, (out, statistics))| {
                    let rows = rows.narrow_rows(task * per_task, statistics.len());
                    forward_rows(out, statistics, rows, values(&weight), bias, eps as f32, center);
                });
            };
            // SAFETY: the tasks cover the output and each row is written whole.
            let y = unsafe { build(rows.rows * rows.cols, fill) };
            (tensor_of(y, [rows.rows, rows.cols]), (Arc::from(statistics), center))
        },
        backward,
    };
    Some(record([Some(&x), Some(&weight), bias.as_ref()], op))
}

fn backward(
    [x, weight, _]: [Option<FlexTensor>; 3],
    (statistics, center): (Arc<[Statistics]>, bool),
    grad: FlexTensor,
    [for_x, for_weight, for_bias]: [bool; 3],
) -> [Option<FlexTensor>; 3] {
    let (x, grad) = (x.map(|x| dense_rows(&x)), dense_rows(&grad));
    let grad = Matrix::of(&grad);
    // The gradient of the bias alone needs no x.
    let x = x.as_ref().map_or(grad, Matrix::of);
    let (rows, d) = (grad.rows, grad.cols);
    if d == 0 {
        let empty = |wanted: bool, rows: usize| wanted.then(|| tensor_of(Vec::new(), [rows, 0]));
        let vector = |wanted: bool| wanted.then(|| tensor_of(Vec::new(), [0]));
        return [empty(for_x, rows), vector(for_weight), vector(for_bias)];
    }
    let per_task = task_rows(d);
    let dx = weight.filter(|_| for_x).map(|weight| {
        let weight = contiguous(&weight);
        let fill = |out: &mut [MaybeUninit<f32>]| {
            out.par_chunks_mut(per_task * d).enumerate().for_each(|(task, out)| {
                let start = task * per_task;
                let count = out.len() / d;
                let statistics = &statistics[start..start + count];
                input_gradient(out, x.narrow_rows(start, count), grad.narrow_rows(start, count), values(&weight), statistics, center);
            });
        };
        // SAFETY: the tasks cover the output and each row is written whole.
        tensor_of(unsafe { build(rows * d, fill) }, [rows, d])
    });
    if !for_weight && !for_bias {
        return [dx, None, None];
    }
    // Blocks of rows first, then the blocks in order, so that the sum does not depend on the threads.
    let starts: Vec<usize> = (0..rows).step_by(per_task).collect();
    let blocks: Vec<[Vec<f32>; 2]> = starts
        .into_par_iter()
        .map(|start| {
            let count = per_task.min(rows - start);
            let mut sums = [vec![0.0; d], vec![0.0; d]];
            let [dweight, dbias] = &mut sums;
            parameter_gradients(
                dweight,
                dbias,
                x.narrow_rows(start, count),
                grad.narrow_rows(start, count),
                &statistics[start..start + count],
            );
            sums
        })
        .collect();
    let mut sums = [vec![0.0; d], vec![0.0; d]];
    for block in blocks {
        for (sum, block) in sums.iter_mut().zip(block) {
            sum.iter_mut().zip(block).for_each(|(sum, value)| *sum += value);
        }
    }
    let [dweight, dbias] = sums;
    [dx, for_weight.then(|| tensor_of(dweight, [d])), for_bias.then(|| tensor_of(dbias, [d]))]
}

multiversion!(
    fn forward_rows(
        out: &mut [MaybeUninit<f32>],
        statistics: &mut [Statistics],
        x: Matrix<'_>,
        weight: &[f32],
        bias: Option<&[f32]>,
        eps: f32,
        center: bool,
    ) = forward_rows_body
);

#[inline(always)]
fn forward_rows_body<I: Isa>(
    out: &mut [MaybeUninit<f32>],
    statistics: &mut [Statistics],
    x: Matrix,
    weight: &[f32],
    bias: Option<&[f32]>,
    eps: f32,
    center: bool,
) {
    let d = x.cols;
    for (i, (out, statistics)) in out.chunks_exact_mut(d).zip(statistics).enumerate() {
        let row = x.row(i);
        let mean = if center { sum::<I>(row) / d as f32 } else { 0.0 };
        let square = squares::<I>(row, mean);
        let scale = 1.0 / (square / d as f32 + eps).sqrt();
        *statistics = Statistics { mean, scale };
        match bias {
            Some(bias) => {
                for (((out, x), weight), bias) in out.iter_mut().zip(row).zip(weight).zip(bias) {
                    out.write(mul_add::<I>((x - mean) * scale, *weight, *bias));
                }
            }
            None => {
                for ((out, x), weight) in out.iter_mut().zip(row).zip(weight) {
                    out.write((x - mean) * scale * weight);
                }
            }
        }
    }
}

multiversion!(
    fn input_gradient(
        out: &mut [MaybeUninit<f32>],
        x: Matrix<'_>,
        grad: Matrix<'_>,
        weight: &[f32],
        statistics: &[Statistics],
        center: bool,
    ) = input_gradient_body
);

/// With n = (x - mean) * scale and g = grad * weight: `scale * (g - mean(g) - n * mean(g n))`, the
/// second term only where the mean was taken off.
#[inline(always)]
fn input_gradient_body<I: Isa>(
    out: &mut [MaybeUninit<f32>],
    x: Matrix,
    grad: Matrix,
    weight: &[f32],
    statistics: &[Statistics],
    center: bool,
) {
    let d = x.cols;
    let weight = &weight[..d];
    for (i, (out, &Statistics { mean, scale })) in out.chunks_exact_mut(d).zip(statistics).enumerate() {
        let (row, grad) = (x.row(i), grad.row(i));
        let [along, total] = projections::<I>(row, grad, weight, mean, scale).map(|sum| sum / d as f32);
        let total = if center { total } else { 0.0 };
        for (((out, x), grad), weight) in out.iter_mut().zip(row).zip(grad).zip(weight) {
            let n = (x - mean) * scale;
            out.write(scale * mul_add::<I>(-n, along, mul_add::<I>(*grad, *weight, -total)));
        }
    }
}

multiversion!(
    fn parameter_gradients(
        dweight: &mut [f32],
        dbias: &mut [f32],
        x: Matrix<'_>,
        grad: Matrix<'_>,
        statistics: &[Statistics],
    ) = parameter_gradients_body
);

#[inline(always)]
fn parameter_gradients_body<I: Isa>(dweight: &mut [f32], dbias: &mut [f32], x: Matrix, grad: Matrix, statistics: &[Statistics]) {
    for (i, &Statistics { mean, scale }) in statistics.iter().enumerate() {
        for (((dweight, dbias), x), grad) in dweight.iter_mut().zip(dbias.iter_mut()).zip(x.row(i)).zip(grad.row(i)) {
            *dweight = mul_add::<I>((x - mean) * scale, *grad, *dweight);
            *dbias += grad;
        }
    }
}

/// The sum of `(x - mean)^2`.
#[inline(always)]
fn squares<I: Isa>(row: &[f32], mean: f32) -> f32 {
    let (blocks, rest) = row.as_chunks::<LANES>();
    let mut lanes = I::Lanes::splat(0.0);
    for block in blocks {
        let x = I::Lanes::load(block).add(I::Lanes::splat(-mean));
        lanes = x.mul_add(x, lanes);
    }
    rest.iter().fold(lanes.sum(), |sum, x| mul_add::<I>(x - mean, x - mean, sum))
}

/// The sums of `grad * weight * n` and of `grad * weight`, with `n = (x - mean) * scale`.
#[inline(always)]
fn projections<I: Isa>(row: &[f32], grad: &[f32], weight: &[f32], mean: f32, scale: f32) -> [f32; 2] {
    let (blocks, rest) = row.as_chunks::<LANES>();
    let (grad_blocks, grad_rest) = grad.as_chunks::<LANES>();
    let (weight_blocks, weight_rest) = weight.as_chunks::<LANES>();
    let mut along = I::Lanes::splat(0.0);
    let mut total = I::Lanes::splat(0.0);
    for ((x, grad), weight) in blocks.iter().zip(grad_blocks).zip(weight_blocks) {
        let g = I::Lanes::load(grad).mul(I::Lanes::load(weight));
        let n = I::Lanes::load(x).add(I::Lanes::splat(-mean)).mul(I::Lanes::splat(scale));
        along = g.mul_add(n, along);
        total = total.add(g);
    }
    let (mut along, mut total) = (along.sum(), total.sum());
    for ((x, grad), weight) in rest.iter().zip(grad_rest).zip(weight_rest) {
        let g = grad * weight;
        along = mul_add::<I>(g, (x - mean) * scale, along);
        total += g;
    }
    [along, total]
}
