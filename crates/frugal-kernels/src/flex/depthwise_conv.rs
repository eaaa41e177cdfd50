//! Depth-wise convolution over images, row by row: every tap is a product of rows.

use std::ops::Range;

use burn::backend::flex::FlexTensor;
use burn::tensor::Tensor;
use rayon::prelude::*;

use super::dense::column_sums;
use super::matrix::Matrix;
use super::record::{Op, Operand, present, record};
use super::tensor::{contiguous, dense_rows, tensor_of, values};
use crate::save_policy::Cost;
use crate::simd::{Isa, mul_add, multiversion, task_rows};

/// [`depthwise_conv2d`](crate::depthwise_conv2d) on Flex, with a kernel of this side.
pub(crate) fn depthwise_conv2d(
    x: &Tensor<2>,
    weight: &Tensor<2>,
    bias: Option<&Tensor<1>>,
    grid: [usize; 2],
    side: usize,
) -> Option<Tensor<2>> {
    let (x, weight) = (Operand::new(x)?, Operand::new(weight)?);
    let bias = Operand::optional(bias)?;
    let place = Grid {
        height: grid[0],
        width: grid[1],
        side,
    };
    let op = Op {
        cost: Cost::Light,
        reads: |[for_x, for_weight, _]| [for_weight, for_x || for_weight, false],
        forward: move |[x, weight, bias]: &[Option<FlexTensor>; 3], _| {
            let x = dense_rows(present(x));
            let bias = bias.as_ref().map(contiguous);
            let taps = Taps::of(present(weight));
            let bias = bias.as_ref().map(values);
            (convolved(Matrix::of(&x), &taps, place, bias, false), place)
        },
        backward,
    };
    Some(record([Some(&x), Some(&weight), bias.as_ref()], op))
}

/// Where rows lie.
#[derive(Clone, Copy, Debug)]
struct Grid {
    height: usize,
    width: usize,
    side: usize,
}

impl Grid {
    /// The row `tap` of the kernel away from `row`, where it is in the same image; on the other side of
    /// it where `back`.
    fn neighbor(self, row: usize, tap: usize, back: bool) -> Option<usize> {
        let half = (self.side / 2) as isize;
        let (down, right) = (
            (tap / self.side) as isize - half,
            (tap % self.side) as isize - half,
        );
        let (down, right) = if back { (-down, -right) } else { (down, right) };
        let (line, column) = (row / self.width % self.height, row % self.width);
        let line = line.checked_add_signed(down)?;
        let column = column.checked_add_signed(right)?;
        if line >= self.height || column >= self.width {
            return None;
        }
        row.checked_add_signed(down * self.width as isize + right)
    }
}

/// The weight by taps: `[k * k, d]`.
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

/// The convolution, or with `back` what its gradient is: the same with the kernel turned.
fn convolved(
    x: Matrix<'_>,
    taps: &Taps,
    grid: Grid,
    bias: Option<&[f32]>,
    back: bool,
) -> FlexTensor {
    let (rows, width) = (x.rows, taps.width);
    let mut y = vec![0.0; rows * width];
    let per_task = task_rows(width);
    y.par_chunks_mut((per_task * width).max(1))
        .enumerate()
        .for_each(|(task, y)| {
            for (i, y) in y.chunks_exact_mut(width.max(1)).enumerate() {
                if let Some(bias) = bias {
                    y.copy_from_slice(bias);
                }
                for tap in 0..taps.count {
                    if let Some(row) = grid.neighbor(task * per_task + i, tap, back) {
                        add_product(y, taps.tap(tap), x.row(row));
                    }
                }
            }
        });
    tensor_of(y, [rows, width])
}

fn backward(
    [x, weight, _]: [Option<FlexTensor>; 3],
    grid: Grid,
    grad: FlexTensor,
    [for_x, for_weight, for_bias]: [bool; 3],
    _waiting: &mut [Option<FlexTensor>; 3],
) -> [Option<FlexTensor>; 3] {
    let grad = dense_rows(&grad);
    let grad = Matrix::of(&grad);
    let dbias = for_bias.then(|| column_sums(grad));
    let Some(weight) = weight else {
        return [None, None, dbias];
    };
    let taps = Taps::of(&weight);
    let dx = for_x.then(|| convolved(grad, &taps, grid, None, true));
    let dweight = x.filter(|_| for_weight).map(|x| {
        let x = dense_rows(&x);
        let by_tap = weight_gradient(Matrix::of(&x), grad, grid, taps.count);
        let by_channel = Matrix::new(&by_tap, taps.count, taps.width).t().to_rows();
        tensor_of(by_channel, [taps.width, taps.count])
    });
    [dx, dweight, dbias]
}

/// `[k * k, d]`: blocks of rows first, then the blocks in order, so that the sum does not depend on
/// the threads.
fn weight_gradient(x: Matrix<'_>, grad: Matrix<'_>, grid: Grid, count: usize) -> Vec<f32> {
    let (rows, width) = (grad.rows, grad.cols);
    let per_task = task_rows(width);
    let of_block = |own: Range<usize>| {
        let mut sums = vec![0.0; count * width];
        for row in own {
            for (tap, sums) in sums.chunks_exact_mut(width.max(1)).enumerate() {
                if let Some(other) = grid.neighbor(row, tap, false) {
                    add_product(sums, x.row(other), grad.row(row));
                }
            }
        }
        sums
    };
    let starts: Vec<usize> = (0..rows).step_by(per_task).collect();
    let blocks: Vec<Vec<f32>> = starts
        .into_par_iter()
        .map(|start| of_block(start..(start + per_task).min(rows)))
        .collect();
    let mut sum = vec![0.0; count * width];
    for block in blocks {
        let pairs = sum.iter_mut().zip(block);
        pairs.for_each(|(sum, value)| *sum += value);
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
