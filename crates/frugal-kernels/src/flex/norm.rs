//! Row normalisations; only x and one or two numbers per row are kept.

use std::mem::MaybeUninit;
use std::sync::Arc;

use burn::backend::flex::FlexTensor;
use burn::tensor::Tensor;
use rayon::prelude::*;

use super::add;
use super::matrix::{Matrix, build};
use super::record::{Op, Operand, present, record, record_computed};
use super::sum::write_sum;
use super::tensor::{contiguous, dense_rows, tensor_of, values};
use crate::save_policy::Cost;
use crate::simd::{Isa, LANES, Lanes, mul_add, multiversion, sum, task_rows};

/// [`rms_norm`](crate::rms_norm) on Flex.
pub(crate) fn rms_norm(x: &Tensor<2>, weight: &Tensor<1>, eps: f64) -> Option<Tensor<2>> {
    normalize(x, weight, None, Kind { eps, center: false })
}

/// [`layer_norm`](crate::layer_norm) on Flex.
pub(crate) fn layer_norm(
    x: &Tensor<2>,
    weight: &Tensor<1>,
    bias: Option<&Tensor<1>>,
    eps: f64,
) -> Option<Tensor<2>> {
    normalize(x, weight, bias, Kind { eps, center: true })
}

/// [`add_rms_norm`](crate::add_rms_norm) on Flex.
pub(crate) fn add_rms_norm(
    x: &Tensor<2>,
    y: &Tensor<2>,
    weight: &Tensor<1>,
    eps: f64,
) -> Option<[Tensor<2>; 2]> {
    add_normalize([x, y], weight, None, Kind { eps, center: false })
}

/// [`add_layer_norm`](crate::add_layer_norm) on Flex.
pub(crate) fn add_layer_norm(
    x: &Tensor<2>,
    y: &Tensor<2>,
    weight: &Tensor<1>,
    bias: Option<&Tensor<1>>,
    eps: f64,
) -> Option<[Tensor<2>; 2]> {
    add_normalize([x, y], weight, bias, Kind { eps, center: true })
}

/// Which normalisation.
#[derive(Clone, Copy, Debug)]
struct Kind {
    eps: f64,
    /// Whether the mean is taken off.
    center: bool,
}

/// What normalised a row: `(x - mean) * scale`.
#[derive(Clone, Copy, Debug)]
struct Statistics {
    mean: f32,
    scale: f32,
}

type Saved = (Arc<[Statistics]>, Kind);

fn normalize(
    x: &Tensor<2>,
    weight: &Tensor<1>,
    bias: Option<&Tensor<1>>,
    kind: Kind,
) -> Option<Tensor<2>> {
    let (x, weight, bias) = (
        Operand::new(x)?,
        Operand::new(weight)?,
        Operand::optional(bias)?,
    );
    Some(record([Some(&x), Some(&weight), bias.as_ref()], op(kind)))
}

/// The sum and its normalisation: two operations, whose forward passes are one pass over memory.
fn add_normalize(
    [x, y]: [&Tensor<2>; 2],
    weight: &Tensor<1>,
    bias: Option<&Tensor<1>>,
    kind: Kind,
) -> Option<[Tensor<2>; 2]> {
    let (x, y, weight, bias) = (
        Operand::new(x)?,
        Operand::new(y)?,
        Operand::new(weight)?,
        Operand::optional(bias)?,
    );
    let [first, second] = [&x, &y].map(|term| dense_rows(&term.tensor));
    let [first, second] = [&first, &second].map(Matrix::of);
    let mut normalized = None;
    let fill = |sum: &mut [MaybeUninit<f32>]| {
        let bias = bias.as_ref().map(|bias| &bias.tensor);
        normalized = Some(forward(
            Input::Sum {
                sum,
                of: [first, second],
            },
            &weight.tensor,
            bias,
            kind,
        ));
    };
    // SAFETY: the pass writes each row of the sum whole.
    let sum = tensor_of(
        unsafe { build(first.rows * first.cols, fill) },
        [first.rows, first.cols],
    );
    let sum: Tensor<2> = record_computed([Some(&x), Some(&y)], add::op(), Some((sum, ())));
    let x = Operand::new(&sum)?;
    let normalized = record_computed(
        [Some(&x), Some(&weight), bias.as_ref()],
        op(kind),
        normalized,
    );
    Some([sum, normalized])
}

fn op(
    kind: Kind,
) -> Op<
    impl Fn(&[Option<FlexTensor>; 3], [bool; 3]) -> (FlexTensor, Saved) + Clone + Send + 'static,
    Saved,
    3,
> {
    Op {
        cost: Cost::Light,
        reads: |[for_x, for_weight, _]| [for_x || for_weight, for_x, false],
        forward: move |[x, weight, bias]: &[Option<FlexTensor>; 3], _: [bool; 3]| {
            let x = dense_rows(present(x));
            forward(
                Input::Given(Matrix::of(&x)),
                present(weight),
                bias.as_ref(),
                kind,
            )
        },
        backward,
    }
}

/// What is normalised.
enum Input<'a> {
    Given(Matrix<'a>),
    /// The sum of two matrices, which is still to be written.
    Sum {
        sum: &'a mut [MaybeUninit<f32>],
        of: [Matrix<'a>; 2],
    },
}

fn forward(
    input: Input<'_>,
    weight: &FlexTensor,
    bias: Option<&FlexTensor>,
    kind: Kind,
) -> (FlexTensor, Saved) {
    let (weight, bias) = (contiguous(weight), bias.map(contiguous));
    let (weight, bias) = (values(&weight), bias.as_ref().map(values));
    let Kind { eps, center } = kind;
    let (Input::Given(Matrix { rows, cols, .. })
    | Input::Sum {
        of: [Matrix { rows, cols, .. }, _],
        ..
    }) = input;
    let per_task = task_rows(cols);
    let mut statistics = vec![
        Statistics {
            mean: 0.0,
            scale: 0.0
        };
        rows
    ];
    let fill = |out: &mut [MaybeUninit<f32>]| {
        if cols == 0 {
            return;
        }
        let tasks = out
            .par_chunks_mut(per_task * cols)
            .zip(statistics.par_chunks_mut(per_task))
            .enumerate();
        match input {
            Input::Given(x) => tasks.for_each(|(task, (out, statistics))| {
                let x = x.narrow_rows(task * per_task, statistics.len());
                forward_rows(out, statistics, x, weight, bias, eps as f32, center);
            }),
            Input::Sum { sum, of } => tasks.zip(sum.par_chunks_mut(per_task * cols)).for_each(
                |((task, (out, statistics)), sum)| {
                    let [x, y] = of.map(|term| term.narrow_rows(task * per_task, statistics.len()));
                    for (i, sum) in sum.chunks_exact_mut(cols).enumerate() {
                        write_sum(sum, x.row(i), y.row(i));
                    }
                    // SAFETY: all rows have just been written.
                    let sum = unsafe { sum.assume_init_ref() };
                    forward_rows(
                        out,
                        statistics,
                        Matrix::new(sum, x.rows, cols),
                        weight,
                        bias,
                        eps as f32,
                        center,
                    );
                },
            ),
        }
    };
    // SAFETY: the tasks cover the output and each row is written whole.
    let y = unsafe { build(rows * cols, fill) };
    (tensor_of(y, [rows, cols]), (Arc::from(statistics), kind))
}

fn backward(
    [x, weight, _]: [Option<FlexTensor>; 3],
    (statistics, Kind { center, .. }): Saved,
    grad: FlexTensor,
    [for_x, for_weight, for_bias]: [bool; 3],
    [waiting, ..]: &mut [Option<FlexTensor>; 3],
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
        let (weight, waiting) = (
            contiguous(&weight),
            waiting.take().map(|waiting| dense_rows(&waiting)),
        );
        let waiting = waiting.as_ref().map(Matrix::of);
        let fill = |out: &mut [MaybeUninit<f32>]| {
            out.par_chunks_mut(per_task * d)
                .enumerate()
                .for_each(|(task, out)| {
                    let start = task * per_task;
                    let count = out.len() / d;
                    let statistics = &statistics[start..start + count];
                    let [x, grad] = [x, grad].map(|rows| rows.narrow_rows(start, count));
                    let waiting = waiting.map(|rows| rows.narrow_rows(start, count));
                    input_gradient(out, x, grad, values(&weight), statistics, center, waiting);
                });
        };
        // SAFETY: the tasks cover the output and each row is written whole.
        tensor_of(unsafe { build(rows * d, fill) }, [rows, d])
    });
    if !for_weight && !for_bias {
        return [dx, None, None];
    }
    // Blocks of rows first, then the blocks in order, so that the sum does not depend on the
    // threads.
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
            sum.iter_mut()
                .zip(block)
                .for_each(|(sum, value)| *sum += value);
        }
    }
    let [dweight, dbias] = sums;
    [
        dx,
        for_weight.then(|| tensor_of(dweight, [d])),
        for_bias.then(|| tensor_of(dbias, [d])),
    ]
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
        let mean = if center {
            sum::<I>(row) / d as f32
        } else {
            0.0
        };
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
        waiting: Option<Matrix<'_>>,
    ) = input_gradient_body
);

/// With n = (x - mean) * scale and g = grad * weight: `scale * (g - mean(g) - n * mean(g n))`, the
/// second term only where the mean was taken off. What waits is added.
#[inline(always)]
fn input_gradient_body<I: Isa>(
    out: &mut [MaybeUninit<f32>],
    x: Matrix,
    grad: Matrix,
    weight: &[f32],
    statistics: &[Statistics],
    center: bool,
    waiting: Option<Matrix>,
) {
    let d = x.cols;
    let weight = &weight[..d];
    for (i, (out, &Statistics { mean, scale })) in
        out.chunks_exact_mut(d).zip(statistics).enumerate()
    {
        let (row, grad) = (x.row(i), grad.row(i));
        let [along, total] =
            projections::<I>(row, grad, weight, mean, scale).map(|sum| sum / d as f32);
        let total = if center { total } else { 0.0 };
        let gradient = |x: f32, grad: f32, weight: f32| {
            let n = (x - mean) * scale;
            scale * mul_add::<I>(-n, along, mul_add::<I>(grad, weight, -total))
        };
        let inputs = out.iter_mut().zip(row).zip(grad).zip(weight);
        match waiting {
            Some(waiting) => {
                for ((((out, x), grad), weight), waiting) in inputs.zip(waiting.row(i)) {
                    out.write(waiting + gradient(*x, *grad, *weight));
                }
            }
            None => inputs
                .for_each(|(((out, x), grad), weight)| _ = out.write(gradient(*x, *grad, *weight))),
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
fn parameter_gradients_body<I: Isa>(
    dweight: &mut [f32],
    dbias: &mut [f32],
    x: Matrix,
    grad: Matrix,
    statistics: &[Statistics],
) {
    for (i, &Statistics { mean, scale }) in statistics.iter().enumerate() {
        for (((dweight, dbias), x), grad) in dweight
            .iter_mut()
            .zip(dbias.iter_mut())
            .zip(x.row(i))
            .zip(grad.row(i))
        {
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
    rest.iter()
        .fold(lanes.sum(), |sum, x| mul_add::<I>(x - mean, x - mean, sum))
}

/// The sums of `grad * weight * n` and of `grad * weight`, with `n = (x - mean) * scale`.
#[inline(always)]
fn projections<I: Isa>(
    row: &[f32],
    grad: &[f32],
    weight: &[f32],
    mean: f32,
    scale: f32,
) -> [f32; 2] {
    let (blocks, rest) = row.as_chunks::<LANES>();
    let (grad_blocks, grad_rest) = grad.as_chunks::<LANES>();
    let (weight_blocks, weight_rest) = weight.as_chunks::<LANES>();
    let mut along = I::Lanes::splat(0.0);
    let mut total = I::Lanes::splat(0.0);
    for ((x, grad), weight) in blocks.iter().zip(grad_blocks).zip(weight_blocks) {
        let g = I::Lanes::load(grad).mul(I::Lanes::load(weight));
        let n = I::Lanes::load(x)
            .add(I::Lanes::splat(-mean))
            .mul(I::Lanes::splat(scale));
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
