//! The row arithmetic of attention.

use std::ops::Range;

use super::super::scratch::Scratch;
use crate::attention::AttentionSpec;
use crate::simd::{Isa, dot, exp, max, mul_add, multiversion, sum, tanh};

/// The running softmax of one query.
#[derive(Clone, Copy, Debug)]
pub(super) struct Running {
    /// The largest score so far.
    pub(super) max: f32,
    /// The sum of `e^(score - max)` so far.
    pub(super) sum: f32,
}

impl Running {
    pub(super) const EMPTY: Self = Self {
        max: f32::NEG_INFINITY,
        sum: 0.0,
    };

    /// The logarithm of the sum of exponentials.
    pub(super) fn lse(&self) -> f32 {
        self.max + self.sum.ln()
    }
}

/// Turns the visible scores of a row into `e^(score - max)`, the others into 0, and returns the
/// factor that brings what was summed before to the new maximum. The bias is that of the whole row.
pub(super) fn online_softmax(
    row: &mut [f32],
    visible: Range<usize>,
    softcap: Option<f32>,
    bias: Option<&[f32]>,
    running: &mut Running,
) -> f32 {
    row[..visible.start].fill(0.0);
    row[visible.end..].fill(0.0);
    if visible.is_empty() {
        return 1.0;
    }
    let scores = &mut row[visible.clone()];
    if let Some(cap) = softcap {
        cap_scores(scores, cap);
    }
    if let Some(bias) = bias {
        add_row(scores, &bias[visible]);
    }
    exponentials(scores, running)
}

multiversion!(fn cap_scores(scores: &mut [f32], cap: f32) = cap_scores_body);

#[inline(always)]
fn cap_scores_body<I: Isa>(scores: &mut [f32], cap: f32) {
    let inverse = cap.recip();
    for score in scores {
        *score = cap * tanh::<I>(*score * inverse);
    }
}

multiversion!(fn exponentials(scores: &mut [f32], running: &mut Running) -> f32 = exponentials_body);

#[inline(always)]
fn exponentials_body<I: Isa>(scores: &mut [f32], running: &mut Running) -> f32 {
    let max = max::<I>(scores).max(running.max);
    if max == f32::NEG_INFINITY {
        // A bias has hidden all keys so far.
        scores.fill(0.0);
        return 1.0;
    }
    for score in &mut *scores {
        *score = exp::<I>(*score - max);
    }
    let factor = exp::<I>(running.max - max);
    running.sum = mul_add::<I>(running.sum, factor, sum::<I>(scores));
    running.max = max;
    factor
}

/// The parts of the backward pass that belong to one row.
#[derive(Clone, Copy, Debug)]
pub(super) struct RowState {
    pub(super) lse: f32,
    /// The sum over the row of output times its gradient.
    pub(super) delta: f32,
}

/// A row's bias, and where its gradient is added.
pub(super) type RowBias<'a> = (Option<&'a [f32]>, Option<&'a mut [f32]>);

/// From scores and the gradient of the weights: `scores` becomes the weights, `grads` the gradient
/// of the products of query and keys, both 0 where the query sees nothing.
pub(super) fn softmax_backward(
    scores: &mut [f32],
    grads: &mut [f32],
    visible: Range<usize>,
    state: RowState,
    spec: &AttentionSpec,
    (bias, bias_grad): RowBias,
) {
    for row in [&mut *scores, &mut *grads] {
        row[..visible.start].fill(0.0);
        row[visible.end..].fill(0.0);
    }
    let (scores, grads) = (&mut scores[visible.clone()], &mut grads[visible.clone()]);
    let slopes = spec.softcap.map(|cap| {
        cap_scores(scores, cap);
        let mut slopes = Scratch::new(scores.len());
        slopes
            .iter_mut()
            .zip(&*scores)
            .for_each(|(slope, score)| *slope = 1.0 - (score / cap) * (score / cap));
        slopes
    });
    if let Some(bias) = bias {
        add_row(scores, &bias[visible.clone()]);
    }
    match bias_grad {
        None => weights_and_gradients(scores, grads, state, spec.scale),
        Some(bias_grad) => {
            weights_and_gradients(scores, grads, state, 1.0);
            add_row(&mut bias_grad[visible], grads);
            scale_row(grads, spec.scale);
        }
    }
    if let Some(slopes) = slopes {
        grads
            .iter_mut()
            .zip(&*slopes)
            .for_each(|(grad, slope)| *grad *= slope);
    }
}

multiversion!(fn weights_and_gradients(scores: &mut [f32], grads: &mut [f32], state: RowState, scale: f32) = weights_and_gradients_body);

#[inline(always)]
fn weights_and_gradients_body<I: Isa>(
    scores: &mut [f32],
    grads: &mut [f32],
    state: RowState,
    scale: f32,
) {
    for (score, grad) in scores.iter_mut().zip(grads) {
        let weight = exp::<I>(*score - state.lse);
        *score = weight;
        *grad = weight * (*grad - state.delta) * scale;
    }
}

multiversion!(pub(super) fn scale_row(row: &mut [f32], factor: f32) = scale_row_body);

#[inline(always)]
fn scale_row_body<I: Isa>(row: &mut [f32], factor: f32) {
    for value in row {
        *value *= factor;
    }
}

multiversion!(fn add_row(row: &mut [f32], values: &[f32]) = add_row_body);

#[inline(always)]
fn add_row_body<I: Isa>(row: &mut [f32], values: &[f32]) {
    for (sum, value) in row.iter_mut().zip(values) {
        *sum += value;
    }
}

multiversion!(pub(super) fn dot_product(a: &[f32], b: &[f32]) -> f32 = dot);
