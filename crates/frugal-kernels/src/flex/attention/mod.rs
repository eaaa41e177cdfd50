//! Tiled attention: the score matrix exists one tile at a time, and the backward recomputes it from
//! the logarithm of each row's sum of exponentials.

mod backward;
mod bias;
mod cached;
mod forward;
mod softmax;
mod task;

use burn::backend::flex::FlexTensor;
use burn::tensor::Tensor;

use super::matrix::Matrix;
use super::record::{Op, Operand, present, record};
use super::tensor::{contiguous, dense_rows, tensor_of, untracked};
use crate::attention::{AttentionSpec, ScoreBias};
use crate::cache::KeyValues;
use crate::save_policy::Cost;
use backward::Saved;
use bias::Bias;

/// [`attention`](crate::attention()) and [`biased_attention`](crate::biased_attention) on Flex.
pub(crate) fn attention(
    q: &Tensor<2>,
    k: &Tensor<2>,
    v: &Tensor<2>,
    bias: Option<&ScoreBias>,
    spec: &AttentionSpec,
) -> Option<Tensor<2>> {
    let (q, k, v) = (Operand::new(q)?, Operand::new(k)?, Operand::new(v)?);
    let bias = match bias {
        None => None,
        Some(ScoreBias::Keys(bias)) => Some(Operand::new(bias)?),
        Some(ScoreBias::Positions(bias)) => Some(Operand::new(bias)?),
    };
    let spec = spec.clone();
    let op = Op {
        cost: Cost::Never,
        reads: |wanted| [wanted.contains(&true); 4],
        forward: move |[q, k, v, bias]: &[Option<FlexTensor>; 4], _| {
            let [q, k, v] = [q, k, v].map(|input| dense_rows(present(input)));
            let bias = bias.as_ref().map(contiguous);
            let bias = Bias::of(bias.as_ref());
            let (output, lse) =
                forward::forward(Matrix::of(&q), Matrix::of(&k), Matrix::of(&v), bias, &spec);
            (
                output.clone(),
                Saved {
                    output,
                    lse: lse.into(),
                    spec: spec.clone(),
                },
            )
        },
        backward: |[q, k, v, bias], saved, grad, wanted, _| {
            let inputs = [q, k, v].each_ref().map(|input| dense_rows(present(input)));
            let bias = bias.as_ref().map(contiguous);
            backward::backward(
                &inputs,
                Bias::of(bias.as_ref()),
                &saved,
                &dense_rows(&grad),
                wanted,
            )
        },
    };
    Some(record([Some(&q), Some(&k), Some(&v), bias.as_ref()], op))
}

/// [`cached_attention`](crate::cached_attention) on Flex.
pub(crate) fn cached_attention(
    q: &Tensor<2>,
    cached: &[&KeyValues],
    spec: &AttentionSpec,
) -> Option<Tensor<2>> {
    let q = Operand::new(q)?;
    if q.is_tracked() {
        return None;
    }
    let rows = dense_rows(&q.tensor);
    let rows = Matrix::of(&rows);
    let output = cached::attend(rows, cached, spec);
    Some(untracked(tensor_of(output, [rows.rows, rows.cols])))
}
