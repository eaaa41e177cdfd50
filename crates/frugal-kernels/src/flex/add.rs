//! Sums of two tensors: the residual stream of a model, and gradients.

use std::mem::MaybeUninit;

use burn::backend::flex::FlexTensor;
use burn::tensor::Tensor;
use rayon::prelude::*;

use super::matrix::build;
use super::record::{Op, Operand, contiguous, is_writable, present, record, shaped, values};
use crate::memory::Cost;
use crate::simd::{Isa, TASK, multiversion};

/// [`add`](crate::add) on Flex.
pub(crate) fn add(x: &Tensor<2>, y: &Tensor<2>) -> Option<Tensor<2>> {
    let (x, y) = (Operand::new(x)?, Operand::new(y)?);
    Some(record([Some(&x), Some(&y)], op()))
}

/// The sum is kept where it is read later, and not computed again: both terms would have to be kept
/// instead.
pub(super) fn op() -> Op<
    impl Fn(&[Option<FlexTensor>; 2], [bool; 2]) -> (FlexTensor, ()) + Clone + Send + 'static,
    (),
    2,
> {
    Op {
        cost: Cost::Never,
        reads: |_| [false; 2],
        forward: |[x, y]: &[Option<FlexTensor>; 2], _: [bool; 2]| {
            (added(&contiguous(present(x)), &contiguous(present(y))), ())
        },
        backward: |_, (), grad, [for_x, for_y], _| {
            [for_x.then(|| grad.clone()), for_y.then_some(grad)]
        },
    }
}

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

fn added(x: &FlexTensor, y: &FlexTensor) -> FlexTensor {
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
