//! The mixer of Mamba-2: one projection, a causal convolution over inputs and state projections, a
//! selective scan whose channels share decays and steps by heads, and a gated norm.
//!
//! Dao and Gu, *Transformers are SSMs: Generalized Models and Efficient Algorithms Through Structured
//! State Space Duality*, 2024, arXiv 2405.21060, section 7 and figure 6; names as in Hugging Face's
//! `Mamba2Mixer`.

use burn::prelude::*;
use frugal_kernels::{SelectiveScan, causal_conv1d_state, rms_norm, swiglu};
use frugal_nn::layers::Norm;
use frugal_nn::state::DecodeState;
use frugal_nn::{Conv, Frozen, Linear, ModelError, Param, Pass, Rows, SequenceLayout};

use crate::activation::Activation;
use crate::blocks::mixer_decoder::Mixer;
use crate::blocks::recurrence::{StateSizes, begun, convolve, remember, scan};
use crate::weights::WeightLoader;

/// Sizes of a mixer.
#[derive(Clone, Copy, Debug)]
pub struct Mixer2Sizes {
    /// Heads, which share a decay and a step.
    pub heads: usize,
    /// Channels of a head.
    pub head_dim: usize,
    /// Groups of heads, which share what goes into the state and comes out of it.
    pub groups: usize,
    /// Numbers that each channel remembers.
    pub state: usize,
    /// Taps of the convolution.
    pub taps: usize,
}

impl Mixer2Sizes {
    /// Channels of the recurrence.
    pub fn inner(&self) -> usize {
        self.heads * self.head_dim
    }

    /// Channels of the convolution.
    pub fn convolved(&self) -> usize {
        self.inner() + 2 * self.groups * self.state
    }
}

/// One mixer.
pub struct Mamba2Mixer {
    sizes: Mixer2Sizes,
    activation: Activation,
    in_proj: Linear,
    conv1d: Conv,
    dt_bias: Param,
    a_log: Param,
    d: Param,
    norm: Norm,
    out_proj: Linear,
}

impl Mamba2Mixer {
    /// The mixer under `path`.
    ///
    /// # Errors
    /// Whatever reading a tensor gives.
    pub fn load(
        loader: &mut WeightLoader<'_>,
        path: &str,
        sizes: Mixer2Sizes,
        activation: Activation,
        eps: f64,
    ) -> Result<Self, ModelError> {
        let p = |name: &str| format!("{path}.{name}");
        Ok(Self {
            sizes,
            activation,
            in_proj: loader.linear(&p("in_proj"))?,
            conv1d: loader.conv(&p("conv1d"))?,
            dt_bias: loader.param(&p("dt_bias"))?,
            a_log: loader.param(&p("A_log"))?,
            d: loader.param(&p("D"))?,
            norm: loader.rms_norm(&p("norm"), eps, 0.0)?,
            out_proj: loader.linear(&p("out_proj"))?,
        })
    }

    /// A number of each head for each of its channels: `[rows, heads]` to `[rows, inner]`.
    fn by_channel(&self, heads: Tensor<2>) -> Tensor<2> {
        let [rows, count] = heads.dims();
        heads
            .reshape([rows, count, 1])
            .repeat_dim(2, self.sizes.head_dim)
            .reshape([rows, self.sizes.inner()])
    }

    /// The scan of one group of heads, of what is that of all of them.
    fn of_group(&self, all: &SelectiveScan, group: usize) -> SelectiveScan {
        let (width, state) = (self.sizes.inner() / self.sizes.groups, self.sizes.state);
        let channels = |t: &Tensor<2>| t.clone().narrow(1, group * width, width);
        let states = |t: &Tensor<2>| t.clone().narrow(1, group * state, state);
        SelectiveScan {
            x: channels(&all.x),
            delta: channels(&all.delta),
            b: states(&all.b),
            c: states(&all.c),
            initial_state: all.initial_state.as_ref().map(channels),
            ..all.clone()
        }
    }

    /// The same with decays, steps and what goes past the recurrence as the pass has them.
    fn with_parameters(
        &self,
        scan: SelectiveScan,
        group: usize,
        rows: Rows,
        pass: &mut dyn Pass,
    ) -> SelectiveScan {
        let (inner, width) = (self.sizes.inner(), self.sizes.inner() / self.sizes.groups);
        let mut own = |param: &Param| {
            let heads = pass.param(param, rows).reshape([1, self.sizes.heads]);
            let channels = self.by_channel(heads).reshape([inner]);
            channels.narrow(0, group * width, width)
        };
        SelectiveScan {
            a: own(&self.a_log).exp().neg().reshape([width, 1]),
            d: Some(own(&self.d)),
            delta_bias: Some(own(&self.dt_bias)),
            ..scan
        }
    }

    /// `norm(y silu(gate))`, by groups of channels.
    fn gated_norm(&self, gate: Tensor<2>, y: Tensor<2>, pass: &mut dyn Pass) -> Tensor<2> {
        let gated = swiglu(gate, y);
        let ([tokens, inner], groups) = (gated.dims(), self.sizes.groups);
        if groups == 1 {
            return pass.norm(&self.norm, gated);
        }
        let device = gated.device();
        let width = inner / groups;
        let normed = rms_norm(
            gated.reshape([tokens * groups, width]),
            Tensor::ones([width], &device),
            self.norm.eps,
        );
        // The norm of ones is the gain, whatever a method makes of it.
        let gain = pass.norm(&self.norm, Tensor::ones([tokens, inner], &device));
        normed.reshape([tokens, inner]) * gain * (1.0 + self.norm.eps).sqrt()
    }
}

impl Mixer for Mamba2Mixer {
    fn forward(
        &self,
        layer: usize,
        layout: &SequenceLayout,
        x: Tensor<2>,
        pass: &mut dyn Pass,
        cache: Option<&mut DecodeState>,
    ) -> Tensor<2> {
        let sizes = self.sizes;
        let (inner, convolved, device) = (sizes.inner(), sizes.convolved(), x.device().inner());
        let remembered = StateSizes {
            conv: [sizes.taps - 1, convolved],
            scan: [sizes.state, inner],
        };
        let all = pass.linear(&self.in_proj, x);
        let part = |from: usize, width: usize| all.clone().narrow(1, from, width);
        let (gate, x) = (part(0, inner), part(inner, convolved));
        let delta = self.by_channel(part(inner + convolved, sizes.heads));
        let before = cache
            .as_deref()
            .map(|cache| begun(layer, layout, remembered, cache, &device))
            .unwrap_or_default();
        let conv_state = cache.as_ref().map(|_| {
            let cu = &layout.cu_seqlens;
            causal_conv1d_state(x.clone(), before.conv.clone(), sizes.taps, cu)
        });
        let x = convolve(&self.conv1d, self.activation, layout, x, before.conv, pass);
        let projected = sizes.groups * sizes.state;
        let part = |from: usize, width: usize| x.clone().narrow(1, from, width);
        let inputs = SelectiveScan {
            x: part(0, inner),
            delta,
            // By group, as the pass has it.
            a: Tensor::zeros([inner / sizes.groups, 1], &device),
            b: part(inner, projected),
            c: part(inner + projected, projected),
            d: None,
            z: None,
            delta_bias: None,
            softplus: true,
            initial_state: before.scan,
            cu_seqlens: layout.cu_seqlens.clone(),
        };
        let params = [&self.a_log, &self.d, &self.dt_bias];
        let (mut outputs, mut states) = (Vec::new(), Vec::new());
        for group in 0..sizes.groups {
            let with_state = cache.is_some();
            let own = self.of_group(&inputs, group);
            let (y, state) = scan(own, &params, with_state, pass, |own, rows, pass| {
                self.with_parameters(own, group, rows, pass)
            });
            outputs.push(y);
            states.extend(state);
        }
        let y = Tensor::cat(outputs, 1);
        if let (Some(cache), Some(conv)) = (cache, conv_state) {
            let state = Tensor::cat(states, 1);
            remember(layer, layout, remembered, [conv, state], cache);
        }
        let y = self.gated_norm(gate, y, pass);
        pass.linear(&self.out_proj, y)
    }

    fn visit_weights(&self, visit: &mut dyn FnMut(Frozen<'_>)) {
        visit(Frozen::Linear(&self.in_proj));
        visit(Frozen::Conv(&self.conv1d));
        for param in [&self.dt_bias, &self.a_log, &self.d] {
            visit(Frozen::Param(param));
        }
        visit(Frozen::Norm(&self.norm));
        visit(Frozen::Linear(&self.out_proj));
    }
}
