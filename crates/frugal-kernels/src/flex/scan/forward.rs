//! The recurrence from front to back.

use std::ops::Range;

use super::inputs::{Block, CHUNK, Channels, Inputs, gate, lanes};
use crate::flex::matrix::SharedMatrix;
use crate::simd::{Isa, LANES, Lanes, exp_lanes, multiversion};

/// One block of channels of one sequence.
#[derive(Clone)]
pub(super) struct Task {
    pub(super) sequence: usize,
    pub(super) rows: Range<usize>,
    pub(super) block: usize,
    /// Where its first chunk's state is among all that are kept.
    pub(super) first_chunk: usize,
}

multiversion!(
    pub(super) fn run(
        task: &Task,
        inputs: &Inputs<'_>,
        h: &mut [Block],
        y: &SharedMatrix<'_>,
        kept: Option<&SharedMatrix<'_>>,
    ) = run_body
);

/// Writes the outputs of a task's channels and the states at the beginning of each chunk; `h` is
/// then the state behind the last token.
#[inline(always)]
fn run_body<I: Isa>(
    task: &Task,
    inputs: &Inputs<'_>,
    h: &mut [Block],
    y: &SharedMatrix<'_>,
    kept: Option<&SharedMatrix<'_>>,
) {
    let at = inputs.channels(task.block);
    let a = inputs.decay(task.block);
    let (skip, bias) = (inputs.skip::<I>(at), inputs.delta_bias::<I>(at));
    inputs.begin(task.sequence, at, h);
    for (i, token) in task.rows.clone().enumerate() {
        if let (Some(kept), 0) = (kept, i % CHUNK) {
            put_state(kept, (task.first_chunk + i / CHUNK) * h.len(), at, h);
        }
        let step = inputs.step::<I>(token, at, bias);
        let input = step.delta.mul(step.x);
        let (b, c) = (inputs.b.row(token), inputs.c.row(token));
        let mut sum = step.x.mul(skip);
        if let [a] = a {
            let decay = exp_lanes(step.delta.mul(I::Lanes::load(a)));
            for ((h, b), c) in h.iter_mut().zip(b).zip(c) {
                let next = decay.mul_add(I::Lanes::load(h), input.mul(I::Lanes::splat(*b)));
                next.store(h);
                sum = next.mul_add(I::Lanes::splat(*c), sum);
            }
        } else {
            for (((h, a), b), c) in h.iter_mut().zip(a).zip(b).zip(c) {
                let decay = exp_lanes(step.delta.mul(I::Lanes::load(a)));
                let next = decay.mul_add(I::Lanes::load(h), input.mul(I::Lanes::splat(*b)));
                next.store(h);
                sum = next.mul_add(I::Lanes::splat(*c), sum);
            }
        }
        if let Some(z) = inputs.z {
            let [value, _] = gate(lanes::<I>(z.row(token), at));
            sum = sum.mul(value);
        }
        let mut out = [0.0; LANES];
        sum.store(&mut out);
        put(y, token, at, &out);
    }
}

/// Writes a block of a row.
#[inline(always)]
pub(super) fn put(to: &SharedMatrix<'_>, row: usize, at: Channels, values: &Block) {
    // A length that is known to the compiler is a move instead of a call.
    // SAFETY: each task has channels of its own, or a sequence of its own.
    unsafe {
        if at.count == LANES {
            to.write(row, at.first, values);
        } else {
            to.write(row, at.first, &values[..at.count]);
        }
    }
}

/// Writes the states of a block, one row for each number of a state.
pub(super) fn put_state(to: &SharedMatrix<'_>, first_row: usize, at: Channels, h: &[Block]) {
    for (n, h) in h.iter().enumerate() {
        put(to, first_row + n, at, h);
    }
}
