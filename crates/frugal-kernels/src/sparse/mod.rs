//! Linear layers whose frozen weight has many zeros.

mod matrix;

use std::sync::Arc;

use burn::tensor::Tensor;

pub(crate) use matrix::BLOCK;
pub use matrix::Sparse;

use crate::flex;

/// A linear layer with a sparse weight: `x · weightᵀ + bias`, as `torch.nn.functional.linear` of
/// the dense matrix; no gradient is formed for the weight.
///
/// # Shapes
/// x: `[tokens, in] -> [tokens, out]`; weight: `[out, in]`; bias: `[out]`
///
/// # Panics
/// When the shapes do not fit together.
pub fn sparse_linear(x: Tensor<2>, weight: &Arc<Sparse>, bias: Option<Tensor<1>>) -> Tensor<2> {
    crate::linear::check(&x, weight.dims(), bias.as_ref());
    flex::sparse_linear(&x, weight, bias.as_ref()).unwrap_or_else(|| {
        crate::portable::linear(x.clone(), weight.dense(&x.device().inner()), bias)
    })
}
