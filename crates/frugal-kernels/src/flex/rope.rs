//! Rotary position embedding; the backward turns the other way, so only the tables are kept.

use std::mem::MaybeUninit;

use burn::backend::flex::FlexTensor;
use burn::tensor::Tensor;
use rayon::prelude::*;

use super::matrix::{Matrix, build};
use super::record::{Op, Operand, present, record};
use super::tensor::{dense_rows, tensor_of};
use crate::save_policy::Cost;
use crate::simd::{Isa, mul_add, multiversion, task_rows};

/// [`rope`](crate::rope) on Flex. The tables are constants: tracked ones are left to the portable
/// form.
pub(crate) fn rope(
    x: &Tensor<2>,
    cos: &Tensor<2>,
    sin: &Tensor<2>,
    head_dim: usize,
) -> Option<Tensor<2>> {
    let (x, cos, sin) = (Operand::new(x)?, Operand::new(cos)?, Operand::new(sin)?);
    if cos.is_tracked() || sin.is_tracked() {
        return None;
    }
    let (cos, sin) = (dense_rows(&cos.tensor), dense_rows(&sin.tensor));
    let op = Op {
        // Nothing in it is heavy, but its input would have to be kept instead of its output.
        cost: Cost::Heavy,
        reads: |_| [false],
        forward: move |[x]: &[Option<FlexTensor>; 1], _| {
            let y = rotated(&dense_rows(present(x)), &cos, &sin, head_dim, 1.0);
            (y, (cos.clone(), sin.clone(), head_dim))
        },
        backward: |_, (cos, sin, head_dim), grad, [for_x], _| {
            [for_x.then(|| rotated(&dense_rows(&grad), &cos, &sin, head_dim, -1.0))]
        },
    };
    Some(record([Some(&x)], op))
}

fn rotated(
    x: &FlexTensor,
    cos: &FlexTensor,
    sin: &FlexTensor,
    head_dim: usize,
    direction: f32,
) -> FlexTensor {
    let (x, cos, sin) = (Matrix::of(x), Matrix::of(cos), Matrix::of(sin));
    let (tokens, width) = (x.rows, x.cols);
    let per_task = task_rows(width);
    let fill = |out: &mut [MaybeUninit<f32>]| {
        out.par_chunks_mut((per_task * width).max(1))
            .enumerate()
            .for_each(|(task, out)| {
                let (start, count) = (task * per_task, out.len() / width);
                rotate_rows(
                    out,
                    x.narrow_rows(start, count),
                    cos.narrow_rows(start, count),
                    sin.narrow_rows(start, count),
                    head_dim,
                    direction,
                );
            });
    };
    // SAFETY: the tasks cover the output and each head of each row is written whole.
    tensor_of(unsafe { build(tokens * width, fill) }, [tokens, width])
}

multiversion!(
    fn rotate_rows(
        out: &mut [MaybeUninit<f32>],
        x: Matrix<'_>,
        cos: Matrix<'_>,
        sin: Matrix<'_>,
        head_dim: usize,
        direction: f32,
    ) = rotate_rows_body
);

#[inline(always)]
fn rotate_rows_body<I: Isa>(
    out: &mut [MaybeUninit<f32>],
    x: Matrix,
    cos: Matrix,
    sin: Matrix,
    head_dim: usize,
    direction: f32,
) {
    let half = head_dim / 2;
    for (i, out) in out.chunks_exact_mut(x.cols).enumerate() {
        let (cos, sin) = (&cos.row(i)[..half], &sin.row(i)[..half]);
        for (out, x) in out
            .chunks_exact_mut(head_dim)
            .zip(x.row(i).chunks_exact(head_dim))
        {
            let (out_first, out_second) = out.split_at_mut(half);
            let (first, second) = x.split_at(half);
            for j in 0..half {
                let s = sin[j] * direction;
                out_first[j].write(mul_add::<I>(first[j], cos[j], -(second[j] * s)));
                out_second[j].write(mul_add::<I>(second[j], cos[j], first[j] * s));
            }
        }
    }
}
