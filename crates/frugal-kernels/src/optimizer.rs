//! Optimiser arithmetic on plain slices.

use rayon::prelude::*;

use crate::simd::{Isa, TASK as CHUNK, multiversion};

/// The numbers of one AdamW step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamWStep {
    /// Learning rate of this step.
    pub lr: f64,
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the denominator, outside the square root.
    pub eps: f64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
    /// Which step this is, counting from 1.
    pub step: u64,
    /// Factor on the gradient, for clipping; 1 for none.
    pub grad_scale: f32,
}

/// One AdamW step in place (Loshchilov and Hutter, *Decoupled Weight Decay Regularization*, arXiv
/// 1711.05101, algorithm 2), with the order of operations of `torch.optim.AdamW`.
///
/// # Shapes
/// param, grad, exp_avg, exp_avg_sq: one length
///
/// # Panics
/// When the lengths differ or `step` is 0.
pub fn adamw_step(
    param: &mut [f32],
    grad: &[f32],
    exp_avg: &mut [f32],
    exp_avg_sq: &mut [f32],
    h: &AdamWStep,
) {
    check(
        [param.len(), grad.len(), exp_avg.len(), exp_avg_sq.len()],
        h,
    );
    let coefficients = Coefficients::new(h);
    param
        .par_chunks_mut(CHUNK)
        .zip(exp_avg.par_chunks_mut(CHUNK))
        .zip(exp_avg_sq.par_chunks_mut(CHUNK))
        .zip(grad.par_chunks(CHUNK))
        .for_each(|(((param, exp_avg), exp_avg_sq), grad)| {
            step(param, exp_avg, exp_avg_sq, grad, coefficients)
        });
}

/// Lengths of parameters, gradients and both moments are one, and there is a step.
pub(crate) fn check([parameters, gradients, exp_avg, exp_avg_sq]: [usize; 4], h: &AdamWStep) {
    assert!(
        gradients == parameters && exp_avg == parameters && exp_avg_sq == parameters,
        "adamw: {parameters} parameters, {gradients} gradients, {exp_avg} and {exp_avg_sq} moments"
    );
    assert!(h.step > 0, "adamw: steps count from 1");
}

/// The numbers that all elements of one step share.
#[derive(Clone, Copy)]
pub(crate) struct Coefficients {
    decay: f32,
    step_size: f32,
    bias2_sqrt: f32,
    weight1: f32,
    beta2: f32,
    weight2: f32,
    eps: f32,
    grad_scale: f32,
}

impl Coefficients {
    pub(crate) fn new(h: &AdamWStep) -> Self {
        let bias1 = 1.0 - h.beta1.powf(h.step as f64);
        let bias2 = 1.0 - h.beta2.powf(h.step as f64);
        Self {
            decay: (1.0 - h.lr * h.weight_decay) as f32,
            step_size: (h.lr / bias1) as f32,
            bias2_sqrt: bias2.sqrt() as f32,
            weight1: (1.0 - h.beta1) as f32,
            beta2: h.beta2 as f32,
            weight2: (1.0 - h.beta2) as f32,
            eps: h.eps as f32,
            grad_scale: h.grad_scale,
        }
    }
}

multiversion!(
    pub(crate) fn step(param: &mut [f32], exp_avg: &mut [f32], exp_avg_sq: &mut [f32], grad: &[f32], c: Coefficients) = step_body
);

/// Without fused multiply-adds, so that training gives the same numbers on every instruction set.
#[inline(always)]
fn step_body<I: Isa>(
    param: &mut [f32],
    exp_avg: &mut [f32],
    exp_avg_sq: &mut [f32],
    grad: &[f32],
    c: Coefficients,
) {
    for (((p, m), v), g) in param.iter_mut().zip(exp_avg).zip(exp_avg_sq).zip(grad) {
        let g = g * c.grad_scale;
        *m += c.weight1 * (g - *m);
        *v = c.beta2 * *v + c.weight2 * g * g;
        let denominator = v.sqrt() / c.bias2_sqrt + c.eps;
        *p = *p * c.decay - c.step_size * *m / denominator;
    }
}

/// The sum of the squares of a gradient, in double precision.
///
/// # Shapes
/// grad: any length
pub fn grad_norm_sq(grad: &[f32]) -> f64 {
    let partial: Vec<f64> = grad.par_chunks(CHUNK).map(squares).collect();
    partial.iter().sum()
}

multiversion!(fn squares(chunk: &[f32]) -> f64 = squares_body);

#[inline(always)]
fn squares_body<I: Isa>(chunk: &[f32]) -> f64 {
    let mut lanes = [0.0f64; 8];
    let (blocks, rest) = chunk.as_chunks::<8>();
    for block in blocks {
        for (lane, &g) in lanes.iter_mut().zip(block) {
            *lane += f64::from(g) * f64::from(g);
        }
    }
    let rest: f64 = rest.iter().map(|&g| f64::from(g) * f64::from(g)).sum();
    lanes.iter().sum::<f64>() + rest
}
