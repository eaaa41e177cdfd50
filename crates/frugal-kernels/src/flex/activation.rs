//! Activations of the feed-forward block; the backward recomputes them, in the memory of the
//! gradient it is given.

use std::mem::MaybeUninit;

use burn::backend::flex::FlexTensor;
use burn::tensor::Tensor;
use rayon::prelude::*;

use super::matrix::build;
use super::record::{Op, Operand, present, record};
use super::tensor::{contiguous, owned, tensor_of, values};
use crate::save_policy::Cost;
use crate::simd::{Isa, TASK, exp, mul_add, multiversion, sigmoid};

/// One activation: the function of a slice, and its gradient.
pub(crate) trait Activation: 'static {
    /// Writes `f(x)`.
    fn forward(out: &mut [MaybeUninit<f32>], x: &[f32]);
    /// Makes the gradient of `f(x)` that of x: `f'(x) * grad`.
    fn backward(grad: &mut [f32], x: &[f32]);
    /// Writes `f(gate) * up`.
    fn gated(out: &mut [MaybeUninit<f32>], gate: &[f32], up: &[f32]);
    /// Makes the gradient of `f(gate) * up` that of up, `f(gate) * grad`, and writes that of gate,
    /// `f'(gate) * up * grad`.
    fn gated_backward(dgate: &mut [MaybeUninit<f32>], grad: &mut [f32], gate: &[f32], up: &[f32]);
}

/// Implements [`Activation`] from a function that gives the value and the slope at a point.
macro_rules! activation {
    ($(#[$doc:meta])* $name:ident, $value_and_slope:ident) => {
        $(#[$doc])*
        pub(crate) struct $name;

        const _: () = {
            multiversion!(fn forward(out: &mut [MaybeUninit<f32>], x: &[f32]) = forward_body);
            multiversion!(fn backward(grad: &mut [f32], x: &[f32]) = backward_body);
            multiversion!(fn gated(out: &mut [MaybeUninit<f32>], gate: &[f32], up: &[f32]) = gated_body);
            multiversion!(
                fn gated_backward(dgate: &mut [MaybeUninit<f32>], grad: &mut [f32], gate: &[f32], up: &[f32]) = gated_backward_body
            );

            #[inline(always)]
            fn forward_body<I: Isa>(out: &mut [MaybeUninit<f32>], x: &[f32]) {
                for (out, x) in out.iter_mut().zip(x) {
                    out.write($value_and_slope::<I>(*x).0);
                }
            }

            #[inline(always)]
            fn backward_body<I: Isa>(grad: &mut [f32], x: &[f32]) {
                for (grad, x) in grad.iter_mut().zip(x) {
                    *grad *= $value_and_slope::<I>(*x).1;
                }
            }

            #[inline(always)]
            fn gated_body<I: Isa>(out: &mut [MaybeUninit<f32>], gate: &[f32], up: &[f32]) {
                for ((out, gate), up) in out.iter_mut().zip(gate).zip(up) {
                    out.write($value_and_slope::<I>(*gate).0 * up);
                }
            }

            #[inline(always)]
            fn gated_backward_body<I: Isa>(dgate: &mut [MaybeUninit<f32>], grad: &mut [f32], gate: &[f32], up: &[f32]) {
                for ((dgate, grad), (gate, up)) in dgate.iter_mut().zip(grad).zip(gate.iter().zip(up)) {
                    let (value, slope) = $value_and_slope::<I>(*gate);
                    dgate.write(slope * up * *grad);
                    *grad *= value;
                }
            }

            impl Activation for $name {
                fn forward(out: &mut [MaybeUninit<f32>], x: &[f32]) {
                    forward(out, x);
                }
                fn backward(grad: &mut [f32], x: &[f32]) {
                    backward(grad, x);
                }
                fn gated(out: &mut [MaybeUninit<f32>], gate: &[f32], up: &[f32]) {
                    gated(out, gate, up);
                }
                fn gated_backward(dgate: &mut [MaybeUninit<f32>], grad: &mut [f32], gate: &[f32], up: &[f32]) {
                    gated_backward(dgate, grad, gate, up);
                }
            }
        };
    };
}

activation!(
    /// `x * sigmoid(x)`.
    Silu,
    silu_at
);
activation!(
    /// GELU by the error function.
    Gelu,
    gelu_at
);
activation!(
    /// GELU by its tanh approximation.
    GeluTanh,
    gelu_tanh_at
);

#[inline(always)]
fn silu_at<I: Isa>(x: f32) -> (f32, f32) {
    let s = sigmoid::<I>(x);
    (x * s, s * mul_add::<I>(x, 1.0 - s, 1.0))
}

#[inline(always)]
fn gelu_tanh_at<I: Isa>(x: f32) -> (f32, f32) {
    // (1 + tanh(u)) / 2 = sigmoid(2 u); beyond 12 the sigmoid is 0 or 1, and x^3 stays finite.
    const C: f32 = 1.595_769;
    let z = x.clamp(-12.0, 12.0);
    let square = z * z;
    let s = sigmoid::<I>(C * z * mul_add::<I>(square, 0.044_715, 1.0));
    let inner_slope = C * mul_add::<I>(square, 3.0 * 0.044_715, 1.0);
    (x * s, mul_add::<I>(z * s * (1.0 - s), inner_slope, s))
}

#[inline(always)]
fn gelu_at<I: Isa>(x: f32) -> (f32, f32) {
    // erfc(z) = e^(-z^2) t P(t) with t = 1 / (1 + z / 2): P is the polynomial whose largest
    // relative error for z up to 14.2 is smallest, 4.5e-8. One exponential serves value and slope,
    // and only the small tail is computed, so nothing cancels.
    const INVERSE_SQRT_2PI: f32 = 0.398_942_3;
    let z = x.abs().min(20.0) * std::f32::consts::FRAC_1_SQRT_2;
    let t = 1.0 / mul_add::<I>(0.5, z, 1.0);
    // Written out: as a loop over the coefficients it keeps the compiler from vectorising over x.
    let p = mul_add::<I>(-0.059_386_365, t, 0.286_123_54);
    let p = mul_add::<I>(p, t, -0.490_405_68);
    let p = mul_add::<I>(p, t, 0.281_732_7);
    let p = mul_add::<I>(p, t, -0.029_148_286);
    let p = mul_add::<I>(p, t, 0.203_752_49);
    let p = mul_add::<I>(p, t, 0.242_835_1);
    let p = mul_add::<I>(p, t, 0.282_412_1);
    let p = mul_add::<I>(p, t, 0.282_084_35);
    let gauss = exp::<I>(-z * z);
    let tail = 0.5 * t * p * gauss;
    let phi = if x < 0.0 { tail } else { 1.0 - tail };
    (
        x * phi,
        mul_add::<I>(x.clamp(-20.0, 20.0) * INVERSE_SQRT_2PI, gauss, phi),
    )
}

/// `f(x)`, element by element.
pub(crate) fn activation<A: Activation>(x: &Tensor<2>) -> Option<Tensor<2>> {
    let x = Operand::new(x)?;
    let op = Op {
        cost: Cost::Light,
        reads: |wanted| wanted,
        forward: |[x]: &[Option<FlexTensor>; 1], _| {
            let x = contiguous(present(x));
            (
                like(
                    &x,
                    map(values(&x), |out, range| A::forward(out, &values(&x)[range])),
                ),
                (),
            )
        },
        backward: |[x], (), grad, _, _| {
            [x.map(|x| {
                let (x, mut grad) = (contiguous(&x), owned(grad));
                let pieces = grad
                    .storage_mut()
                    .par_chunks_mut(TASK)
                    .zip(values(&x).par_chunks(TASK));
                pieces.for_each(|(grad, x)| A::backward(grad, x));
                grad
            })]
        },
    };
    Some(record([Some(&x)], op))
}

/// `f(gate) * up`, element by element.
pub(crate) fn gated<A: Activation>(gate: &Tensor<2>, up: &Tensor<2>) -> Option<Tensor<2>> {
    let (gate, up) = (Operand::new(gate)?, Operand::new(up)?);
    let op = Op {
        cost: Cost::Light,
        reads: |[for_gate, for_up]| [for_gate || for_up, for_gate],
        forward: |[gate, up]: &[Option<FlexTensor>; 2], _| {
            let (gate, up) = (contiguous(present(gate)), contiguous(present(up)));
            let y = map(values(&gate), |out, range| {
                A::gated(out, &values(&gate)[range.clone()], &values(&up)[range])
            });
            (like(&gate, y), ())
        },
        backward: |[gate, up], (), grad, [_, for_up], _| {
            let Some(gate) = gate else {
                return [None, None];
            };
            let gate = contiguous(&gate);
            match up {
                Some(up) => {
                    let mut grad = owned(grad);
                    let dgate = gated_backward::<A>(
                        values(&gate),
                        values(&contiguous(&up)),
                        grad.storage_mut(),
                    );
                    [Some(like(&gate, dgate)), for_up.then_some(grad)]
                }
                None => {
                    let grad = contiguous(&grad);
                    let dup = map(values(&gate), |out, range| {
                        A::gated(out, &values(&gate)[range.clone()], &values(&grad)[range])
                    });
                    [None, Some(like(&gate, dup))]
                }
            }
        },
    };
    Some(record([Some(&gate), Some(&up)], op))
}

fn like(tensor: &FlexTensor, data: Vec<f32>) -> FlexTensor {
    let shape = tensor.layout().shape();
    tensor_of(data, [shape[0], shape[1]])
}

/// A vector as long as `x`, filled piece by piece.
fn map(
    x: &[f32],
    fill: impl Fn(&mut [MaybeUninit<f32>], std::ops::Range<usize>) + Sync,
) -> Vec<f32> {
    // SAFETY: the chunks cover the output, and the activations write each element of a chunk.
    unsafe {
        build(x.len(), |out| {
            out.par_chunks_mut(TASK).enumerate().for_each(|(i, out)| {
                let start = i * TASK;
                let end = start + out.len();
                fill(out, start..end);
            });
        })
    }
}

/// The gradient of gate; that of up takes the place of `grad`.
fn gated_backward<A: Activation>(gate: &[f32], up: &[f32], grad: &mut [f32]) -> Vec<f32> {
    assert!(
        up.len() == gate.len() && grad.len() == gate.len(),
        "the gradient of a gated activation is of its shape"
    );
    // SAFETY: the pieces cover the output, and each is written whole.
    unsafe {
        build(gate.len(), |dgate| {
            let inputs = gate.par_chunks(TASK).zip(up.par_chunks(TASK));
            let pieces = dgate
                .par_chunks_mut(TASK)
                .zip(grad.par_chunks_mut(TASK))
                .zip(inputs);
            pieces.for_each(|((dgate, grad), (gate, up))| A::gated_backward(dgate, grad, gate, up));
        })
    }
}
