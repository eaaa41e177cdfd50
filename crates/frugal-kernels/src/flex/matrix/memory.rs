//! Memory that is written before it is read.

use std::mem::MaybeUninit;

use rayon::prelude::*;

use super::view_mut::MatrixMut;
use crate::simd::TASK;

/// A matrix, row by row, written by `fill`; see [`build`].
///
/// # Safety
/// `fill` must write every element before it reads it.
pub(crate) unsafe fn build_matrix(
    rows: usize,
    cols: usize,
    fill: impl FnOnce(MatrixMut<'_>),
) -> Vec<f32> {
    let write = |out: &mut [MaybeUninit<f32>]| {
        let data = out.as_mut_ptr().cast();
        // SAFETY: the memory has `rows * cols` elements and is borrowed for the call.
        fill(unsafe { MatrixMut::from_raw(data, rows, cols) });
    };
    // SAFETY: passed on to the caller.
    unsafe { build(rows * cols, write) }
}

/// A vector of zeros, cleared by all threads.
pub(crate) fn zeros(len: usize) -> Vec<f32> {
    let clear =
        |part: &mut [MaybeUninit<f32>]| part.iter_mut().for_each(|value| _ = value.write(0.0));
    // SAFETY: the parts are all of it.
    unsafe { build(len, |out| out.par_chunks_mut(TASK).for_each(clear)) }
}

/// A vector of `len` elements written by `fill`; spares clearing memory that is overwritten anyway.
///
/// # Safety
/// `fill` must write every element.
pub(crate) unsafe fn build(len: usize, fill: impl FnOnce(&mut [MaybeUninit<f32>])) -> Vec<f32> {
    let mut data = Vec::with_capacity(len);
    fill(&mut data.spare_capacity_mut()[..len]);
    // SAFETY: the capacity is at least `len` and the caller promises that `fill` wrote all of it.
    unsafe { data.set_len(len) };
    data
}
