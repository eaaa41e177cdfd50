//! Depth-wise causal convolution, row by row: every tap is a product of rows.

use std::sync::Arc;

use burn::backend::flex::FlexTensor;
use burn::tensor::Tensor;
use rayon::prelude::*;

use super::dense::column_sums;
use super::matrix::Matrix;
use super::record::{Op, Operand, present, record};
use super::tensor::{contiguous, dense_rows, tensor_of, values};
use crate::save_policy::Cost;
use crate::simd::{Isa, mul_add, multiversion, task_rows};

/// [`causal_conv1d`](crate::causal_conv1d) on Flex.
pub(crate) fn causal_conv1d(
    x: &Tensor<2>,
    weight: &Tensor<2>,
    bias: Option<&Tensor<1>>,
    state: Option<&Tensor<2>>,
    cu_seqlens: &[usize],
) -> Option<Tensor<2>> {
    let (x, weight) = (Operand::new(x)?, Operand::new(weight)?);
    let (bias, state) = (Operand::optional(bias)?, Operand::optional(state)?);
    let cu: Arc<[usize]> = cu_seqlens.into();
    let op = Op {
        cost: Cost::Light,
        reads: |[for_x, for_weight, _, for_state]| {
            [
                for_weight,
                for_x || for_state || for_weight,
                false,
                for_weight,
            ]
        },
        forward: move |[x, weight, bias, state]: &[Option<FlexTensor>; 4], _| {
            let (x, state) = (dense_rows(present(x)), state.as_ref().map(dense_rows));
            let bias = bias.as_ref().map(contiguous);
            let taps = Taps::of(present(weight));
            let rows = Rows {
                x: Matrix::of(&x),
                state: state.as_ref().map(Matrix::of),
                cu: &cu,
                before: taps.count - 1,
            };
            (forward(&rows, &taps, bias.as_ref().map(values)), cu.clone())
        },
        backward,
    };
    Some(record(
        [Some(&x), Some(&weight), bias.as_ref(), state.as_ref()],
        op,
    ))
}

/// The weight by taps, the oldest first: `[k, d]`.
struct Taps {
    values: Vec<f32>,
    count: usize,
    width: usize,
}

impl Taps {
    fn of(weight: &FlexTensor) -> Self {
        let weight = Matrix::of(weight);
        Self {
            values: weight.t().to_rows(),
            count: weight.cols,
            width: weight.rows,
        }
    }

    fn tap(&self, j: usize) -> &[f32] {
        &self.values[j * self.width..][..self.width]
    }
}

/// The rows of sequences, and those before them.
struct Rows<'a> {
    x: Matrix<'a>,
    state: Option<Matrix<'a>>,
    cu: &'a [usize],
    /// Rows before a sequence.
    before: usize,
}

impl<'a> Rows<'a> {
    /// The row `back` places before `row` of a sequence; none where that is 0.
    fn back(&self, sequence: usize, row: usize, back: usize) -> Option<&'a [f32]> {
        let place = row - self.cu[sequence];
        if place >= back {
            return Some(self.x.row(row - back));
        }
        let state = self.state?;
        Some(state.row(sequence * self.before + self.before + place - back))
    }
}

/// Each row of `rows` with the number of its sequence.
fn with_sequence(
    cu: &[usize],
    rows: std::ops::Range<usize>,
) -> impl Iterator<Item = (usize, usize)> {
    let mut sequence = cu.partition_point(|start| *start <= rows.start) - 1;
    rows.map(move |row| {
        while cu[sequence + 1] <= row {
            sequence += 1;
        }
        (sequence, row)
    })
}

fn forward(rows: &Rows<'_>, taps: &Taps, bias: Option<&[f32]>) -> FlexTensor {
    let (tokens, width) = (rows.x.rows, taps.width);
    let mut y = vec![0.0; tokens * width];
    let per_task = task_rows(width);
    y.par_chunks_mut((per_task * width).max(1))
        .enumerate()
        .for_each(|(task, y)| {
            let first = task * per_task;
            let own = first..first + y.len() / width;
            for (y, (sequence, row)) in y.chunks_exact_mut(width).zip(with_sequence(rows.cu, own)) {
                if let Some(bias) = bias {
                    y.copy_from_slice(bias);
                }
                for j in 0..taps.count {
                    if let Some(x) = rows.back(sequence, row, taps.count - 1 - j) {
                        add_product(y, taps.tap(j), x);
                    }
                }
            }
        });
    tensor_of(y, [tokens, width])
}

fn backward(
    [x, weight, _, state]: [Option<FlexTensor>; 4],
    cu: Arc<[usize]>,
    grad: FlexTensor,
    [for_x, for_weight, for_bias, for_state]: [bool; 4],
    _waiting: &mut [Option<FlexTensor>; 4],
) -> [Option<FlexTensor>; 4] {
    let grad = dense_rows(&grad);
    let grad = Matrix::of(&grad);
    let dbias = for_bias.then(|| column_sums(grad));
    let Some(weight) = weight else {
        return [None, None, dbias, None];
    };
    let taps = Taps::of(&weight);
    let (tokens, width) = (grad.rows, taps.width);
    let dx = for_x.then(|| {
        let mut dx = vec![0.0; tokens * width];
        let per_task = task_rows(width);
        dx.par_chunks_mut((per_task * width).max(1))
            .enumerate()
            .for_each(|(task, dx)| {
                let first = task * per_task;
                let own = first..first + dx.len() / width;
                for (dx, (sequence, row)) in dx.chunks_exact_mut(width).zip(with_sequence(&cu, own))
                {
                    let reached = (cu[sequence + 1] - row).min(taps.count);
                    for ahead in 0..reached {
                        add_product(dx, taps.tap(taps.count - 1 - ahead), grad.row(row + ahead));
                    }
                }
            });
        tensor_of(dx, [tokens, width])
    });
    let before = taps.count - 1;
    let dstate = for_state.then(|| {
        let mut dstate = vec![0.0; (cu.len() - 1) * before * width];
        for (i, dstate) in dstate.chunks_exact_mut(width.max(1)).enumerate() {
            let (sequence, place) = (i / before, i % before);
            let (start, len) = (cu[sequence], cu[sequence + 1] - cu[sequence]);
            for j in 0..=place {
                if place - j < len {
                    add_product(dstate, taps.tap(j), grad.row(start + place - j));
                }
            }
        }
        tensor_of(dstate, [(cu.len() - 1) * before, width])
    });
    let dweight = x.filter(|_| for_weight).map(|x| {
        let (x, state) = (dense_rows(&x), state.as_ref().map(dense_rows));
        let rows = Rows {
            x: Matrix::of(&x),
            state: state.as_ref().map(Matrix::of),
            cu: &cu,
            before,
        };
        let by_tap = weight_gradient(&rows, grad, taps.count);
        tensor_of(
            Matrix::new(&by_tap, taps.count, width).t().to_rows(),
            [width, taps.count],
        )
    });
    [dx, dweight, dbias, dstate]
}

/// `[k, d]`: blocks of rows first, then the blocks in order, so that the sum does not depend on the
/// threads.
fn weight_gradient(rows: &Rows<'_>, grad: Matrix<'_>, count: usize) -> Vec<f32> {
    let (tokens, width) = (grad.rows, grad.cols);
    let per_task = task_rows(width);
    let starts: Vec<usize> = (0..tokens).step_by(per_task).collect();
    let blocks: Vec<Vec<f32>> = starts
        .into_par_iter()
        .map(|start| {
            let mut sums = vec![0.0; count * width];
            let own = start..(start + per_task).min(tokens);
            for (sequence, row) in with_sequence(rows.cu, own) {
                for (j, sums) in sums.chunks_exact_mut(width.max(1)).enumerate() {
                    if let Some(x) = rows.back(sequence, row, count - 1 - j) {
                        add_product(sums, x, grad.row(row));
                    }
                }
            }
            sums
        })
        .collect();
    let mut sum = vec![0.0; count * width];
    for block in blocks {
        sum.iter_mut()
            .zip(block)
            .for_each(|(sum, value)| *sum += value);
    }
    sum
}

multiversion!(fn add_product(out: &mut [f32], a: &[f32], b: &[f32]) = add_product_body);

#[inline(always)]
fn add_product_body<I: Isa>(out: &mut [f32], a: &[f32], b: &[f32]) {
    for ((out, a), b) in out.iter_mut().zip(a).zip(b) {
        *out = mul_add::<I>(*a, *b, *out);
    }
}
