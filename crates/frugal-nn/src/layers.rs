//! Frozen parts of a backbone: linear layers, tables, norms, convolutions and bare parameters, on the
//! plain device.

use std::sync::Arc;

use burn::prelude::*;
use frugal_kernels::{LowRankRows, Packed, Sparse};

use crate::site::SiteId;

/// A frozen weight matrix `[d_out, d_in]`, or a table `[rows, d]`.
#[derive(Clone, Debug)]
pub enum Weight {
    /// Dense f32.
    Dense(Tensor<2>),
    /// In a few bits per element.
    Packed {
        /// The codes.
        packed: Arc<Packed>,
        /// Where its products are computed.
        device: Device,
        /// What the rounding lost, where it was asked for.
        correction: Option<Arc<Correction>>,
    },
    /// Without the elements that are zero.
    Sparse {
        /// The others, and where they are.
        sparse: Arc<Sparse>,
        /// Where its products are computed.
        device: Device,
    },
    /// The product `R L` of two thin matrices.
    Factored(Arc<Factored>),
}

/// Two thin matrices in place of one.
#[derive(Clone, Debug)]
pub struct Factored {
    /// `[rank, d_in]`.
    pub l: Weight,
    /// `[d_out, rank]`.
    pub r: Weight,
}

impl Weight {
    /// The dense matrix `[d_out, d_in]`; unpacked anew at each call where it is packed.
    pub fn dense(&self) -> Tensor<2> {
        match self {
            Self::Dense(weight) => weight.clone(),
            Self::Packed { packed, device, .. } => packed.dense(device),
            Self::Sparse { sparse, device } => sparse.dense(device),
            Self::Factored(factors) => factors.r.dense().matmul(factors.l.dense()),
        }
    }

    /// `x Wᵀ + b`: `[tokens, d_in]` to `[tokens, d_out]`.
    fn linear(&self, x: Tensor<2>, bias: Option<Tensor<1>>) -> Tensor<2> {
        match self {
            Self::Dense(weight) => frugal_kernels::linear(x, weight.clone(), bias),
            Self::Packed { packed, .. } => frugal_kernels::quantized_linear(x, packed, bias),
            Self::Sparse { sparse, .. } => frugal_kernels::sparse_linear(x, sparse, bias),
            Self::Factored(factors) => factors.r.linear(factors.l.linear(x, None), bias),
        }
    }

    /// Rows `ids` of a table: `[tokens, d]`. The ids were checked against the table by the caller.
    pub fn rows(&self, ids: &[u32]) -> Tensor<2> {
        match self {
            Self::Dense(weight) => lookup(weight.clone(), ids),
            Self::Packed { packed, device, .. } => packed.select(ids, device),
            Self::Sparse { .. } | Self::Factored(_) => lookup(self.dense(), ids),
        }
    }

    /// `[d_out, d_in]`.
    pub fn dims(&self) -> [usize; 2] {
        match self {
            Self::Dense(weight) => weight.dims(),
            Self::Packed { packed, .. } => packed.dims(),
            Self::Sparse { sparse, .. } => sparse.dims(),
            Self::Factored(factors) => [factors.r.dims()[0], factors.l.dims()[1]],
        }
    }

    /// Bytes held in memory.
    pub fn bytes(&self) -> usize {
        match self {
            Self::Dense(weight) => weight.dims().iter().product::<usize>() * size_of::<f32>(),
            Self::Packed { packed, .. } => packed.bytes(),
            Self::Sparse { sparse, .. } => sparse.bytes(),
            Self::Factored(factors) => factors.l.bytes() + factors.r.bytes(),
        }
    }

    /// What its rounding lost, where it was read so.
    pub fn correction(&self) -> Option<&Correction> {
        match self {
            Self::Packed { correction, .. } => correction.as_deref(),
            Self::Dense(_) | Self::Sparse { .. } | Self::Factored(_) => None,
        }
    }

    /// What its form is called, if it is not dense.
    pub fn format(&self) -> Option<&str> {
        match self {
            Self::Dense(_) => None,
            Self::Packed { packed, .. } => Some(packed.format()),
            Self::Sparse { .. } => Some("sparse"),
            // Dense factors are trained and merged like dense weights.
            Self::Factored(factors) => factors.l.format().or(factors.r.format()),
        }
    }
}

/// What the rounding of a weight `[d_out, d_in]` lost, as far as its rank goes: `B A` is added to
/// the rounded weight.
#[derive(Clone, Debug, PartialEq)]
pub struct Correction {
    /// Rank.
    pub rank: usize,
    /// `[rank, d_in]`, row by row; the rows are of equal length with the columns of `b`.
    pub a: Vec<f32>,
    /// `[d_out, rank]`, row by row.
    pub b: Vec<f32>,
}

/// A frozen linear layer `y = x Wᵀ + b`.
#[derive(Clone, Debug)]
pub struct Linear {
    /// Where it sits.
    pub site: SiteId,
    /// `[d_out, d_in]`.
    pub weight: Weight,
    /// `[d_out]`.
    pub bias: Option<Tensor<1>>,
}

impl Linear {
    /// `[tokens, d_in]` to `[tokens, d_out]`.
    pub fn forward(&self, x: Tensor<2>) -> Tensor<2> {
        self.weight.linear(x, self.bias.clone())
    }

    /// The same with `scale · B A` added to the weight: a `[r, d_in]`, b `[d_out, r]`.
    pub fn forward_low_rank(
        &self,
        x: Tensor<2>,
        a: Tensor<2>,
        b: Tensor<2>,
        scale: f32,
    ) -> Tensor<2> {
        let bias = self.bias.clone();
        match &self.weight {
            Weight::Dense(weight) => {
                frugal_kernels::lora_linear(x, weight.clone(), bias, a, b, scale)
            }
            Weight::Packed { packed, .. } => {
                frugal_kernels::quantized_lora_linear(x, packed, bias, a, b, scale)
            }
            Weight::Sparse { .. } | Weight::Factored(_) => {
                let low =
                    frugal_kernels::linear(frugal_kernels::linear(x.clone(), a, None), b, None);
                self.weight.linear(x, bias) + low * scale
            }
        }
    }

    /// The same with a low-rank change of its own for each of several ranges of rows.
    pub fn forward_low_rank_rows(&self, x: Tensor<2>, pairs: &[LowRankRows]) -> Tensor<2> {
        let bias = self.bias.clone();
        match &self.weight {
            Weight::Dense(weight) => {
                frugal_kernels::multi_lora_linear(x, weight.clone(), bias, pairs)
            }
            Weight::Packed { packed, .. } => {
                frugal_kernels::quantized_multi_lora_linear(x, packed, bias, pairs)
            }
            Weight::Sparse { .. } | Weight::Factored(_) => {
                let change = |LowRankRows { rows, a, b, scale }: &LowRankRows| {
                    let low =
                        frugal_kernels::linear(x.clone().slice(rows.clone()), a.clone(), None);
                    (
                        rows.clone(),
                        frugal_kernels::linear(low, b.clone(), None) * *scale,
                    )
                };
                let changes: Vec<_> = pairs.iter().map(change).collect();
                let y = self.weight.linear(x, bias);
                changes.into_iter().fold(y, |y, (rows, change)| {
                    let part = y.clone().slice(rows.clone()) + change;
                    y.slice_assign([rows], part)
                })
            }
        }
    }
}

/// A frozen table of rows.
#[derive(Clone, Debug)]
pub struct Embedding {
    /// Where it sits.
    pub site: SiteId,
    /// `[rows, d]`.
    pub weight: Weight,
}

impl Embedding {
    /// Rows of `ids`: `[tokens, d]`. The ids were checked against the table by the caller.
    pub fn forward(&self, ids: &[u32]) -> Tensor<2> {
        self.weight.rows(ids)
    }
}

/// Rows `ids` of `table`: `[tokens, d]`.
pub fn lookup(table: Tensor<2>, ids: &[u32]) -> Tensor<2> {
    let device = table.device().inner();
    let ids: Vec<i64> = ids.iter().map(|&id| i64::from(id)).collect();
    let indices = Tensor::<1, Int>::from_data(TensorData::from(ids.as_slice()), &device);
    table.select(0, indices)
}

/// A frozen depth-wise convolution over time: every channel by itself.
#[derive(Clone, Debug)]
pub struct Conv {
    /// Where it sits.
    pub site: SiteId,
    /// `[d, k]`, the tap of the oldest token first; files have `[d, 1, k]`.
    pub weight: Tensor<2>,
    /// `[d]`.
    pub bias: Option<Tensor<1>>,
}

impl Conv {
    /// Weight and bias.
    pub fn values(&self) -> (Tensor<2>, Option<Tensor<1>>) {
        (self.weight.clone(), self.bias.clone())
    }
}

/// A frozen tensor that belongs to no layer: what a recurrence decays by, what goes past it.
#[derive(Clone, Debug)]
pub struct Param {
    /// Where it sits.
    pub site: SiteId,
    /// `[d_out, d_in]`; of what files have as a vector `[d_out, 1]`.
    pub value: Tensor<2>,
}

/// A frozen normalisation.
#[derive(Clone, Debug)]
pub struct Norm {
    /// Where it sits.
    pub site: SiteId,
    /// Gain, `[d]`.
    pub weight: Tensor<1>,
    /// `[d]`; present for layer norm.
    pub bias: Option<Tensor<1>>,
    /// Added to the variance.
    pub eps: f64,
    /// Layer norm (subtract the mean) or root-mean-square norm.
    pub center: bool,
    /// What files subtract from the gain (1 for Gemma).
    pub stored_offset: f32,
}

impl Norm {
    /// Gain and bias.
    pub fn values(&self) -> (Tensor<1>, Option<Tensor<1>>) {
        (self.weight.clone(), self.bias.clone())
    }

    /// `[rows, d]` to the same, with this gain and bias.
    pub fn apply(&self, x: Tensor<2>, weight: Tensor<1>, bias: Option<Tensor<1>>) -> Tensor<2> {
        if self.center {
            frugal_kernels::layer_norm(x, weight, bias, self.eps)
        } else {
            frugal_kernels::rms_norm(x, weight, self.eps)
        }
    }

    /// `x + y`, both `[rows, d]`, and its normalisation with this gain and bias.
    pub fn apply_to_sum(
        &self,
        x: Tensor<2>,
        y: Tensor<2>,
        weight: Tensor<1>,
        bias: Option<Tensor<1>>,
    ) -> [Tensor<2>; 2] {
        if self.center {
            frugal_kernels::add_layer_norm(x, y, weight, bias, self.eps)
        } else {
            frugal_kernels::add_rms_norm(x, y, weight, self.eps)
        }
    }
}
