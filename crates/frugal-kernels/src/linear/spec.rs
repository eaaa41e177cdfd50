//! What a linear layer may be given besides its weight.

use std::ops::Range;

use burn::tensor::Tensor;

/// A low-rank correction `scale · (x · aᵀ) · bᵀ` of some rows of x: a `[r, in]`, b `[out, r]`.
#[derive(Clone, Debug)]
pub struct LowRankRows {
    /// The rows.
    pub rows: Range<usize>,
    /// `[r, in]`.
    pub a: Tensor<2>,
    /// `[out, r]`.
    pub b: Tensor<2>,
    /// Factor on the correction.
    pub scale: f32,
}
