//! Linear layers, plain and with a low-rank correction.

use std::sync::Arc;

use burn::backend::flex::FlexTensor;
use burn::tensor::Tensor;

use super::dense::{column_sums, matrix_tensor, rows, scaled_low};
use super::matrix::Matrix;
use super::record::{Op, Operand, present, record};
use super::tensor::tensor_of;
use super::weight::{Base, Weight};
use crate::packed::Packed;
use crate::save_policy::Cost;

/// [`linear`](crate::linear) on Flex.
pub(crate) fn linear(
    x: &Tensor<2>,
    weight: &Weight<'_>,
    bias: Option<&Tensor<1>>,
) -> Option<Tensor<2>> {
    let (x, (weight, packed), bias) = (Operand::new(x)?, weight.split()?, Operand::optional(bias)?);
    let op = Op {
        cost: Cost::Heavy,
        reads: |[for_x, for_weight, _]| [for_weight, for_x, false],
        forward: move |[x, weight, bias]: &[Option<FlexTensor>; 3], _| {
            let x = present(x);
            let weight = Base::new(weight.as_ref(), packed.as_ref());
            (
                tensor_of(
                    weight.affine(x, bias.as_ref(), None),
                    [rows(x), weight.dims()[0]],
                ),
                packed.clone(),
            )
        },
        backward: |[x, weight, _],
                   packed: Option<Arc<Packed>>,
                   dy,
                   [for_x, _, for_bias],
                   [waiting, ..]| {
            let dy = Matrix::of(&dy);
            let dx = for_x.then(|| {
                Base::new(weight.as_ref(), packed.as_ref()).input_gradient(dy, None, waiting)
            });
            let dweight = x.map(|x| matrix_tensor(dy.t(), Matrix::of(&x), 1.0));
            [dx, dweight, for_bias.then(|| column_sums(dy))]
        },
    };
    Some(record([Some(&x), weight.as_ref(), bias.as_ref()], op))
}

/// [`lora_linear`](crate::lora_linear) on Flex.
pub(crate) fn lora_linear(
    x: &Tensor<2>,
    weight: &Weight<'_>,
    bias: Option<&Tensor<1>>,
    a: &Tensor<2>,
    b: &Tensor<2>,
    scale: f32,
) -> Option<Tensor<2>> {
    let (x, (weight, packed), bias) = (Operand::new(x)?, weight.split()?, Operand::optional(bias)?);
    let (a, b) = (Operand::new(a)?, Operand::new(b)?);
    let op = Op {
        cost: Cost::Heavy,
        reads: |[for_x, for_weight, _, for_a, _]| {
            [for_weight || for_a, for_x, false, for_x, for_x || for_a]
        },
        forward: move |[x, weight, bias, a, b]: &[Option<FlexTensor>; 5], wanted: [bool; 5]| {
            let (x, a, b) = (present(x), present(a), present(b));
            let weight = Base::new(weight.as_ref(), packed.as_ref());
            let shape = [rows(x), weight.dims()[0]];
            // Kept for the gradient of b.
            let low = tensor_of(
                scaled_low(Matrix::of(x), Matrix::of(a), scale),
                [shape[0], rows(a)],
            );
            let y = weight.affine(
                x,
                bias.as_ref(),
                Some((Matrix::of(&low), Matrix::of(b).t())),
            );
            let saved = LoraSaved {
                packed: packed.clone(),
                scale,
                low: wanted[4].then_some(low),
            };
            (tensor_of(y, shape), saved)
        },
        backward: |[x, weight, _, a, b],
                   saved: LoraSaved,
                   dy,
                   [for_x, for_weight, for_bias, for_a, _],
                   [waiting, ..]| {
            let dy = Matrix::of(&dy);
            let db = saved
                .low
                .map(|low| matrix_tensor(dy.t(), Matrix::of(&low), 1.0));
            let dlow = b.map(|b| matrix_tensor(dy, Matrix::of(&b), saved.scale));
            let dlow = dlow.as_ref().map(Matrix::of);
            let da = dlow
                .zip(x.as_ref())
                .filter(|_| for_a)
                .map(|(dlow, x)| matrix_tensor(dlow.t(), Matrix::of(x), 1.0));
            let low_rank = a.as_ref().map(Matrix::of);
            let base = for_x.then(|| Base::new(weight.as_ref(), saved.packed.as_ref()));
            let dx = base.map(|base| base.input_gradient(dy, dlow.zip(low_rank), waiting));
            let dweight = x
                .filter(|_| for_weight)
                .map(|x| matrix_tensor(dy.t(), Matrix::of(&x), 1.0));
            [dx, dweight, for_bias.then(|| column_sums(dy)), da, db]
        },
    };
    Some(record(
        [Some(&x), weight.as_ref(), bias.as_ref(), Some(&a), Some(&b)],
        op,
    ))
}

#[derive(Clone, Debug)]
struct LoraSaved {
    packed: Option<Arc<Packed>>,
    scale: f32,
    /// `scale * x · aᵀ`.
    low: Option<FlexTensor>,
}
