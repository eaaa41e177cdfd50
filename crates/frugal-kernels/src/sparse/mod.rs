//! Linear layers whose frozen weight has many zeros.

mod matrix;

use std::sync::Arc;

use burn::tensor::Tensor;

pub(crate) use matrix::BLOCK;
pub use matrix::Sparse;

use crate::flex;

/// `x · weightᵀ + bias` with a sparse weight `[out, in]`: x `[tokens, in]`, result `[tokens, out]`;
/// no gradient is formed for the weight.
///
/// # Panics
/// When the shapes do not fit together.
pub fn sparse_linear(x: Tensor<2>, weight: &Arc<Sparse>, bias: Option<Tensor<1>>) -> Tensor<2> {
    crate::linear::check(&x, weight.dims(), bias.as_ref());
    flex::sparse_linear(&x, weight, bias.as_ref()).unwrap_or_else(|| {
        crate::portable::linear(x.clone(), weight.dense(&x.device().inner()), bias)
    })
}
