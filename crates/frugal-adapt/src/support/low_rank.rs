//! The forward step that methods with a low-rank path share.

use burn::prelude::*;
use frugal_nn::{Linear, Mode};

use crate::support::dropout::dropout;

/// How the input of a low-rank path is dropped.
pub(crate) struct Dropping<'a> {
    /// Probability of dropping an element.
    pub p: f64,
    /// Only training passes drop.
    pub mode: Mode,
    /// Names the layer in the random stream.
    pub path: &'a str,
}

/// `base(x) + scale · dropout(x) Aᵀ Bᵀ`: x `[tokens, d_in]`, a `[r, d_in]`, b `[d_out, r]`, result
/// `[tokens, d_out]`.
pub(crate) fn forward(
    base: &Linear,
    x: Tensor<2>,
    a: Tensor<2>,
    b: Tensor<2>,
    scale: f32,
    dropping: &Dropping<'_>,
) -> Tensor<2> {
    let Dropping { p, mode, path } = *dropping;
    match mode {
        Mode::Train { seed } if p > 0.0 => {
            let dropped = dropout(x.clone(), p, seed, path);
            base.forward(x)
                + frugal_kernels::linear(frugal_kernels::linear(dropped, a, None), b, None) * scale
        }
        _ => base.forward_low_rank(x, a, b, scale),
    }
}
