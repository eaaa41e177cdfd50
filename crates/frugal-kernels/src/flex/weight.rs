//! Frozen weights of linear layers, dense or packed.

use std::sync::Arc;

use burn::backend::flex::FlexTensor;
use burn::tensor::Tensor;

use super::matrix::{Matrix, MatrixMut, Threads, build_matrix};
use super::record::Operand;
use super::tensor::{take_writable, tensor_of, values};
use super::{dense, packed};
use crate::packed::Packed;

/// A weight `[out, in]` as the public functions are given it.
pub(crate) enum Weight<'a> {
    /// Single precision; may want a gradient.
    Dense(&'a Tensor<2>),
    /// A few bits; never wants one.
    Packed(&'a Arc<Packed>),
}

impl Weight<'_> {
    /// As an input, or as a constant of the operation; `None` when it is dense and not on Flex.
    pub(super) fn split(&self) -> Option<(Option<Operand>, Option<Arc<Packed>>)> {
        match self {
            Self::Dense(weight) => Some((Some(Operand::new(weight)?), None)),
            Self::Packed(packed) => Some((None, Some((*packed).clone()))),
        }
    }
}

/// A weight `[out, in]` inside an operation.
#[derive(Clone, Copy)]
pub(super) enum Base<'a> {
    Dense(&'a FlexTensor),
    Packed(&'a Packed),
}

impl<'a> Base<'a> {
    /// The two halves of [`Weight::split`] again.
    pub(super) fn new(dense: Option<&'a FlexTensor>, packed: Option<&'a Arc<Packed>>) -> Self {
        match packed {
            Some(packed) => Self::Packed(packed),
            None => Self::Dense(dense.expect("a weight is dense or packed")),
        }
    }

    /// `[out, in]`.
    pub(super) fn dims(&self) -> [usize; 2] {
        match self {
            Self::Dense(weight) => [weight.layout().shape()[0], weight.layout().shape()[1]],
            Self::Packed(weight) => weight.dims(),
        }
    }

    /// `x · weightᵀ + bias + l · bᵀ` of a low-rank pair `(l, bᵀ)`.
    pub(super) fn affine(
        &self,
        x: &FlexTensor,
        bias: Option<&FlexTensor>,
        low_rank: Option<(Matrix<'_>, Matrix<'_>)>,
    ) -> Vec<f32> {
        match self {
            Self::Dense(weight) => dense::affine(
                Matrix::of(x),
                Matrix::of(weight),
                bias.map(values),
                low_rank,
            ),
            Self::Packed(weight) => {
                packed::affine(Matrix::of(x), weight, bias.map(values), low_rank)
            }
        }
    }

    /// `out = x · weightᵀ`.
    pub(super) fn product(&self, out: &mut MatrixMut<'_>, x: Matrix<'_>) {
        match self {
            Self::Dense(weight) => out.set(x, Matrix::of(weight).t(), 1.0, Threads::All),
            Self::Packed(weight) => packed::product(out, x, weight),
        }
    }

    /// `out = dy · weight`.
    pub(super) fn transposed_product(&self, out: &mut MatrixMut<'_>, dy: Matrix<'_>) {
        match self {
            Self::Dense(weight) => out.set(dy, Matrix::of(weight), 1.0, Threads::All),
            Self::Packed(weight) => packed::transposed_product(out, dy, weight, None),
        }
    }

    /// `dy · weight + l · a` of a low-rank pair `(l, a)`, added to the gradient that waits where
    /// that can be done on the way.
    pub(super) fn input_gradient(
        &self,
        dy: Matrix<'_>,
        low_rank: Option<(Matrix<'_>, Matrix<'_>)>,
        waiting: &mut Option<FlexTensor>,
    ) -> FlexTensor {
        let width = self.dims()[1];
        if let Self::Dense(weight) = self
            && let Some(mut dx) = take_writable(waiting)
        {
            MatrixMut::new(dx.storage_mut(), dy.rows, width).sum_of(
                dy,
                Matrix::of(weight),
                low_rank,
                true,
            );
            return dx;
        }
        // SAFETY: the product writes every element, and only then is the other added.
        let dx = unsafe {
            build_matrix(dy.rows, width, |mut out| match self {
                Self::Dense(weight) => out.sum_of(dy, Matrix::of(weight), low_rank, false),
                Self::Packed(weight) => packed::transposed_product(&mut out, dy, weight, low_rank),
            })
        };
        tensor_of(dx, [dy.rows, width])
    }
}
