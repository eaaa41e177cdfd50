//! What forward and backward pass read, block of channels by block of channels.

use burn::backend::flex::FlexTensor;

use crate::flex::matrix::Matrix;
use crate::flex::tensor::{contiguous, dense_rows, values};
use crate::simd::{Isa, LANES, Lanes, sigmoid_lanes, softplus_lanes};

/// Tokens between the states that the forward pass keeps for the backward pass.
pub(super) const CHUNK: usize = 32;

/// A number for each channel of a block.
pub(super) type Block = [f32; LANES];

/// Number of inputs of the operation.
pub(super) const INPUTS: usize = 9;

/// The inputs in memory that the loops can read.
pub(super) struct Dense {
    x: FlexTensor,
    delta: FlexTensor,
    b: FlexTensor,
    c: FlexTensor,
    d: Option<FlexTensor>,
    z: Option<FlexTensor>,
    bias: Option<FlexTensor>,
    initial: Option<FlexTensor>,
    /// `a` by blocks of channels, `[blocks, decays]`; 0 beyond the last channel.
    decay: Vec<Block>,
    decays: usize,
}

/// Views of them.
#[derive(Clone, Copy)]
pub(super) struct Inputs<'a> {
    pub(super) x: Matrix<'a>,
    delta: Matrix<'a>,
    pub(super) b: Matrix<'a>,
    pub(super) c: Matrix<'a>,
    d: Option<&'a [f32]>,
    pub(super) z: Option<Matrix<'a>>,
    bias: Option<&'a [f32]>,
    pub(super) initial: Option<Matrix<'a>>,
    decay: &'a [Block],
    pub(super) softplus: bool,
    pub(super) d_state: usize,
    /// Numbers of `a` for a channel: as many as of the state, or one for all of them.
    pub(super) decays: usize,
}

impl Dense {
    /// In the order x, delta, a, b, c, d, z, delta_bias, initial state; `None` where one that is
    /// always given is absent.
    pub(super) fn of(inputs: &[Option<FlexTensor>; INPUTS]) -> Option<Self> {
        let [x, delta, a, b, c, d, z, bias, initial] = inputs;
        let rows = |tensor: &Option<FlexTensor>| tensor.as_ref().map(dense_rows);
        let vector = |tensor: &Option<FlexTensor>| tensor.as_ref().map(contiguous);
        let a = rows(a)?;
        let a = Matrix::of(&a);
        let blocks = a.rows.div_ceil(LANES);
        let mut decay = vec![[0.0; LANES]; blocks * a.cols];
        for channel in 0..a.rows {
            let block = &mut decay[channel / LANES * a.cols..][..a.cols];
            for (lanes, value) in block.iter_mut().zip(a.row(channel)) {
                lanes[channel % LANES] = *value;
            }
        }
        Some(Self {
            x: rows(x)?,
            delta: rows(delta)?,
            b: rows(b)?,
            c: rows(c)?,
            d: vector(d),
            z: rows(z),
            bias: vector(bias),
            initial: rows(initial),
            decay,
            decays: a.cols,
        })
    }

    pub(super) fn view(&self, softplus: bool) -> Inputs<'_> {
        Inputs {
            x: Matrix::of(&self.x),
            delta: Matrix::of(&self.delta),
            b: Matrix::of(&self.b),
            c: Matrix::of(&self.c),
            d: self.d.as_ref().map(values),
            z: self.z.as_ref().map(Matrix::of),
            bias: self.bias.as_ref().map(values),
            initial: self.initial.as_ref().map(Matrix::of),
            decay: &self.decay,
            softplus,
            d_state: Matrix::of(&self.b).cols,
            decays: self.decays,
        }
    }
}

/// The channels of a block.
#[derive(Clone, Copy)]
pub(super) struct Channels {
    pub(super) first: usize,
    pub(super) count: usize,
}

/// What one token means for a block.
pub(super) struct Step<L> {
    pub(super) x: L,
    /// Before the softplus.
    pub(super) raw: L,
    pub(super) delta: L,
}

impl<'a> Inputs<'a> {
    pub(super) fn channels(&self, block: usize) -> Channels {
        let first = block * LANES;
        Channels {
            first,
            count: LANES.min(self.x.cols - first),
        }
    }

    /// `a` of a block, `[decays]`.
    pub(super) fn decay(&self, block: usize) -> &'a [Block] {
        &self.decay[block * self.decays..][..self.decays]
    }

    #[inline(always)]
    pub(super) fn skip<I: Isa>(&self, at: Channels) -> I::Lanes {
        self.d.map_or(I::Lanes::splat(0.0), |d| lanes::<I>(d, at))
    }

    #[inline(always)]
    pub(super) fn delta_bias<I: Isa>(&self, at: Channels) -> I::Lanes {
        self.bias
            .map_or(I::Lanes::splat(0.0), |bias| lanes::<I>(bias, at))
    }

    #[inline(always)]
    pub(super) fn step<I: Isa>(
        &self,
        token: usize,
        at: Channels,
        bias: I::Lanes,
    ) -> Step<I::Lanes> {
        let raw = lanes::<I>(self.delta.row(token), at).add(bias);
        Step {
            x: lanes::<I>(self.x.row(token), at),
            raw,
            delta: if self.softplus {
                softplus_lanes(raw)
            } else {
                raw
            },
        }
    }

    /// The state that a sequence begins with.
    pub(super) fn begin(&self, sequence: usize, at: Channels, h: &mut [Block]) {
        match self.initial {
            None => h.fill([0.0; LANES]),
            Some(initial) => {
                for (n, h) in h.iter_mut().enumerate() {
                    let row = initial.row(sequence * self.d_state + n);
                    *h = [0.0; LANES];
                    h[..at.count].copy_from_slice(&row[at.first..at.first + at.count]);
                }
            }
        }
    }
}

/// The entries of a row for a block; 0 beyond the last channel.
#[inline(always)]
pub(super) fn lanes<I: Isa>(row: &[f32], at: Channels) -> I::Lanes {
    let values = &row[at.first..at.first + at.count];
    match values.first_chunk() {
        Some(values) => I::Lanes::load(values),
        None => I::Lanes::load_part(values),
    }
}

/// Value and slope of `z * sigmoid(z)`.
#[inline(always)]
pub(super) fn gate<L: Lanes>(z: L) -> [L; 2] {
    let one = L::splat(1.0);
    let s = sigmoid_lanes(z);
    let rest = s.mul_add(L::splat(-1.0), one);
    [z.mul(s), s.mul(z.mul_add(rest, one))]
}
