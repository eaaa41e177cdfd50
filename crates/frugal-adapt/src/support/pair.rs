//! The low-rank pair of one linear layer or embedding.

use burn::prelude::*;
use frugal_nn::{Mode, Parameter};

/// The low-rank pair of one layer or table.
pub(crate) struct Pair {
    pub path: String,
    /// `[r, d_in]`; of a table `[r, rows]`.
    pub a: Parameter,
    /// `[d_out, r]`.
    pub b: Parameter,
    /// Bias on `B`, `[d_out]`.
    pub b_bias: Option<Parameter>,
    pub scale: f32,
}

impl Pair {
    pub fn parameters(&self) -> impl Iterator<Item = &Parameter> {
        [Some(&self.a), Some(&self.b), self.b_bias.as_ref()]
            .into_iter()
            .flatten()
    }

    pub fn parameters_mut(&mut self) -> impl Iterator<Item = &mut Parameter> {
        [Some(&mut self.a), Some(&mut self.b), self.b_bias.as_mut()]
            .into_iter()
            .flatten()
    }

    /// `s B A`, `[d_out, d_in]`.
    pub fn delta(&self, mode: Mode) -> Tensor<2> {
        self.b.get::<2>(mode).matmul(self.a.get::<2>(mode)) * self.scale
    }

    pub fn scaled_b_bias(&self, mode: Mode) -> Option<Tensor<1>> {
        self.b_bias
            .as_ref()
            .map(|bias| bias.get::<1>(mode) * self.scale)
    }
}
