//! A linear layer whose weight is something else while it is trained.

use burn::prelude::*;
use frugal_nn::{Mode, Parameter};

/// What stands in the place of a weight `[d_out, d_in]`.
pub(crate) trait Layer: Send + Sync {
    /// What it holds, trained or not, in a fixed order.
    fn parameters(&self) -> Vec<&Parameter>;

    /// The same, to update.
    fn parameters_mut(&mut self) -> Vec<&mut Parameter>;

    /// The output `[rows, d_out]` for an input `[rows, d_in]`.
    fn forward(&self, x: Tensor<2>, bias: Option<Tensor<1>>, mode: Mode) -> Tensor<2>;

    /// The weight `[d_out, d_in]`.
    fn weight(&self, mode: Mode) -> Tensor<2>;

    /// Whether [`Layer::forward`] is no more than a product with [`Layer::weight`].
    fn is_weight(&self) -> bool {
        false
    }

    /// Begins anew without changing the weight beyond rounding; `seed` decides what is drawn.
    fn restart(&mut self, seed: u64);

    /// Bytes that it holds beside its parameters.
    fn other_bytes(&self) -> u64 {
        0
    }
}
