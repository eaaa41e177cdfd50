//! Sums of two tensors.

use std::mem::MaybeUninit;

use burn::backend::flex::FlexTensor;
use rayon::prelude::*;

use super::matrix::build;
use super::tensor::{contiguous, is_writable, shaped, values};
use crate::simd::{Isa, TASK, multiversion};

/// The sum of two gradients of one shape, in the memory of one of them where nothing else reads it.
pub(super) fn sum(a: FlexTensor, b: FlexTensor) -> FlexTensor {
    let (mut into, other) = if is_writable(&a) { (a, b) } else { (b, a) };
    let other = contiguous(&other);
    if !is_writable(&into) {
        return added(&contiguous(&into), &other);
    }
    let pieces = into
        .storage_mut()
        .par_chunks_mut(TASK)
        .zip(values(&other).par_chunks(TASK));
    pieces.for_each(|(into, other)| add_to(into, other));
    into
}

/// The sum of two contiguous tensors of one shape.
pub(super) fn added(x: &FlexTensor, y: &FlexTensor) -> FlexTensor {
    let (values_x, values_y) = (values(x), values(y));
    let fill = |out: &mut [MaybeUninit<f32>]| {
        let inputs = values_x.par_chunks(TASK).zip(values_y.par_chunks(TASK));
        out.par_chunks_mut(TASK)
            .zip(inputs)
            .for_each(|(out, (x, y))| write_sum(out, x, y));
    };
    assert_eq!(
        values_x.len(),
        values_y.len(),
        "a sum of tensors of one shape"
    );
    // SAFETY: the pieces cover the output, and each is written whole.
    shaped(
        unsafe { build(values_x.len(), fill) },
        x.layout().shape().clone(),
    )
}

multiversion!(pub(super) fn write_sum(out: &mut [MaybeUninit<f32>], x: &[f32], y: &[f32]) = write_sum_body);

#[inline(always)]
fn write_sum_body<I: Isa>(out: &mut [MaybeUninit<f32>], x: &[f32], y: &[f32]) {
    for ((out, x), y) in out.iter_mut().zip(x).zip(y) {
        out.write(x + y);
    }
}

multiversion!(fn add_to(into: &mut [f32], other: &[f32]) = add_to_body);

#[inline(always)]
fn add_to_body<I: Isa>(into: &mut [f32], other: &[f32]) {
    into.iter_mut()
        .zip(other)
        .for_each(|(into, other)| *into += other);
}
