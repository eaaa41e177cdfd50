//! The ways of tokens to the experts of a mixture and back.

use std::mem::MaybeUninit;
use std::sync::Arc;

use burn::backend::flex::FlexTensor;
use burn::tensor::Tensor;
use rayon::prelude::*;

use super::matrix::{Matrix, build, zeros};
use super::record::{Op, Operand, present, record};
use super::tensor::{dense_rows, take_writable, tensor_of};
use crate::save_policy::Cost;
use crate::simd::{Isa, dot, multiversion, task_rows};

/// In `places` of [`combine_rows`](crate::combine_rows): nothing.
pub const NO_ROW: u32 = u32::MAX;

/// [`gather_rows`](crate::gather_rows) on Flex.
pub(crate) fn gather_rows(x: &Tensor<2>, rows: &Arc<[u32]>) -> Option<Tensor<2>> {
    let x = Operand::new(x)?;
    let rows = rows.clone();
    let op = Op {
        cost: Cost::Light,
        reads: |_| [false],
        forward: move |[x]: &[Option<FlexTensor>; 1], _| {
            let x = dense_rows(present(x));
            let tokens = Matrix::of(&x).rows;
            (gathered(&x, &rows), (rows.clone(), tokens))
        },
        backward: |_, (rows, tokens): (Arc<[u32]>, usize), grad, [for_x], waiting| {
            [for_x.then(|| scattered(&dense_rows(&grad), &rows, tokens, &mut waiting[0]))]
        },
    };
    Some(record([Some(&x)], op))
}

fn gathered(x: &FlexTensor, rows: &[u32]) -> FlexTensor {
    let x = Matrix::of(x);
    let (count, d) = (rows.len(), x.cols);
    let per_task = task_rows(d);
    let fill = |out: &mut [MaybeUninit<f32>]| {
        out.par_chunks_mut((per_task * d).max(1))
            .zip(rows.par_chunks(per_task))
            .for_each(|(out, rows)| {
                for (out, &row) in out.chunks_exact_mut(d.max(1)).zip(rows) {
                    out.write_copy_of_slice(x.row(row as usize));
                }
            });
    };
    // SAFETY: the tasks cover the output, and each row is written whole.
    tensor_of(unsafe { build(count * d, fill) }, [count, d])
}

/// The gradient added to the rows that it is of, beside what has come so far.
fn scattered(
    grad: &FlexTensor,
    rows: &[u32],
    tokens: usize,
    waiting: &mut Option<FlexTensor>,
) -> FlexTensor {
    let grad = Matrix::of(grad);
    let d = grad.cols;
    let mut into =
        take_writable(waiting).unwrap_or_else(|| tensor_of(zeros(tokens * d), [tokens, d]));
    let data = into.storage_mut::<f32>();
    // A row may be there twice, so this is one task.
    for (i, &row) in rows.iter().enumerate() {
        let into = &mut data[row as usize * d..][..d];
        into.iter_mut()
            .zip(grad.row(i))
            .for_each(|(into, grad)| *into += grad);
    }
    into
}

/// [`combine_rows`](crate::combine_rows) on Flex.
pub(crate) fn combine_rows(
    y: &Tensor<2>,
    weights: &Tensor<2>,
    places: &Arc<[u32]>,
) -> Option<Tensor<2>> {
    let (y, weights) = (Operand::new(y)?, Operand::new(weights)?);
    let places = places.clone();
    let op = Op {
        // Both inputs would have to be kept instead.
        cost: Cost::Never,
        reads: |[for_y, for_weights]| [for_weights, for_y],
        forward: move |[y, weights]: &[Option<FlexTensor>; 2], _| {
            let (y, weights) = (dense_rows(present(y)), dense_rows(present(weights)));
            let (rows, k) = (Matrix::of(&y).rows, Matrix::of(&weights).cols);
            (combined(&y, &weights, &places), (places.clone(), rows, k))
        },
        backward: |[y, weights],
                   (places, rows, k): (Arc<[u32]>, usize, usize),
                   grad,
                   [for_y, for_weights],
                   _| {
            let grad = dense_rows(&grad);
            let of_y = for_y.then(|| spread(&grad, &dense_rows(present(&weights)), &places, rows));
            let of_weights =
                for_weights.then(|| products(&grad, &dense_rows(present(&y)), &places, k));
            [of_y, of_weights]
        },
    };
    Some(record([Some(&y), Some(&weights)], op))
}

fn combined(y: &FlexTensor, weights: &FlexTensor, places: &[u32]) -> FlexTensor {
    let (y, weights) = (Matrix::of(y), Matrix::of(weights));
    let (tokens, k, d) = (weights.rows, weights.cols, y.cols);
    let mut out = zeros(tokens * d);
    let per_task = task_rows(d);
    out.par_chunks_mut((per_task * d).max(1))
        .enumerate()
        .for_each(|(task, out)| {
            for (i, out) in out.chunks_exact_mut(d.max(1)).enumerate() {
                let token = task * per_task + i;
                let own = &places[token * k..][..k];
                for (&place, &weight) in own.iter().zip(weights.row(token)) {
                    if place != NO_ROW {
                        out.iter_mut()
                            .zip(y.row(place as usize))
                            .for_each(|(out, y)| *out += weight * y);
                    }
                }
            }
        });
    tensor_of(out, [tokens, d])
}

/// The gradient of y: that of the row's token, by its weight.
fn spread(grad: &FlexTensor, weights: &FlexTensor, places: &[u32], rows: usize) -> FlexTensor {
    let (grad, weights) = (Matrix::of(grad), Matrix::of(weights));
    let (k, d) = (weights.cols, grad.cols);
    let mut slot_of = vec![0; rows];
    for (slot, &place) in places.iter().enumerate() {
        if place != NO_ROW {
            slot_of[place as usize] = slot;
        }
    }
    let per_task = task_rows(d);
    let fill = |out: &mut [MaybeUninit<f32>]| {
        out.par_chunks_mut((per_task * d).max(1))
            .zip(slot_of.par_chunks(per_task))
            .for_each(|(out, slots)| {
                for (out, &slot) in out.chunks_exact_mut(d.max(1)).zip(slots) {
                    let weight = weights.row(slot / k)[slot % k];
                    for (out, grad) in out.iter_mut().zip(grad.row(slot / k)) {
                        out.write(weight * grad);
                    }
                }
            });
    };
    // SAFETY: the tasks cover the output, and each row is written whole.
    tensor_of(unsafe { build(rows * d, fill) }, [rows, d])
}

/// The gradient of the weights: the products of each row with the gradient of its token.
fn products(grad: &FlexTensor, y: &FlexTensor, places: &[u32], k: usize) -> FlexTensor {
    let (grad, y) = (Matrix::of(grad), Matrix::of(y));
    let tokens = grad.rows;
    let mut out = vec![0.0; tokens * k];
    let per_task = task_rows(grad.cols);
    out.par_chunks_mut((per_task * k).max(1))
        .enumerate()
        .for_each(|(task, out)| write_products(out, task * per_task * k, grad, y, places, k));
    tensor_of(out, [tokens, k])
}

multiversion!(
    fn write_products(
        out: &mut [f32],
        first: usize,
        grad: Matrix<'_>,
        y: Matrix<'_>,
        places: &[u32],
        k: usize,
    ) = write_products_body
);

#[inline(always)]
fn write_products_body<I: Isa>(
    out: &mut [f32],
    first: usize,
    grad: Matrix,
    y: Matrix,
    places: &[u32],
    k: usize,
) {
    for (i, out) in out.iter_mut().enumerate() {
        let slot = first + i;
        if places[slot] != NO_ROW {
            *out = dot::<I>(grad.row(slot / k), y.row(places[slot] as usize));
        }
    }
}
