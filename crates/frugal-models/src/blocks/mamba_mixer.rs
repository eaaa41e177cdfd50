//! The mixer of Mamba: a causal convolution and a selective scan between two projections.
//!
//! Gu and Dao, *Mamba: Linear-Time Sequence Modeling with Selective State Spaces*, 2023, arXiv
//! 2312.00752, section 3.4 and figure 3; names as in Hugging Face's `MambaMixer`.

use burn::prelude::*;
use frugal_kernels::{SelectiveScan, causal_conv1d_state};
use frugal_nn::state::DecodeState;
use frugal_nn::{Conv, Frozen, Linear, ModelError, Param, ParamChange, Pass, SequenceLayout};

use crate::activation::Activation;
use crate::blocks::mixer_decoder::Mixer;
use crate::blocks::recurrence::{StateSizes, begun, convolve, remember, scan};
use crate::weights::WeightLoader;

/// Sizes of a mixer.
#[derive(Clone, Copy, Debug)]
pub struct MixerSizes {
    /// Channels of the recurrence.
    pub inner: usize,
    /// Numbers that each channel remembers.
    pub state: usize,
    /// Taps of the convolution.
    pub taps: usize,
    /// Width from which the steps are projected.
    pub rank: usize,
}

/// One mixer.
pub struct MambaMixer {
    sizes: MixerSizes,
    activation: Activation,
    in_proj: Linear,
    conv1d: Conv,
    x_proj: Linear,
    dt_proj: Linear,
    a_log: Param,
    d: Param,
    out_proj: Linear,
    /// `-exp(A_log)` of the base.
    a: Tensor<2>,
}

impl MambaMixer {
    /// The mixer under `path`.
    ///
    /// # Errors
    /// Whatever reading a tensor gives.
    pub fn load(
        loader: &mut WeightLoader<'_>,
        path: &str,
        sizes: MixerSizes,
        activation: Activation,
    ) -> Result<Self, ModelError> {
        let p = |name: &str| format!("{path}.{name}");
        let a_log = loader.param(&p("A_log"))?;
        Ok(Self {
            sizes,
            activation,
            in_proj: loader.linear(&p("in_proj"))?,
            conv1d: loader.conv(&p("conv1d"))?,
            x_proj: loader.linear(&p("x_proj"))?,
            dt_proj: loader.linear(&p("dt_proj"))?,
            a: decay(a_log.value.clone()),
            a_log,
            d: loader.param(&p("D"))?,
            out_proj: loader.linear(&p("out_proj"))?,
        })
    }
}

impl Mixer for MambaMixer {
    fn forward(
        &self,
        layer: usize,
        layout: &SequenceLayout,
        x: Tensor<2>,
        pass: &mut dyn Pass,
        cache: Option<&mut DecodeState>,
    ) -> Tensor<2> {
        let MixerSizes {
            inner,
            state,
            taps,
            rank,
        } = self.sizes;
        let remembered = StateSizes {
            conv: [taps - 1, inner],
            scan: [state, inner],
        };
        let both = pass.linear(&self.in_proj, x);
        let (x, z) = (
            both.clone().narrow(1, 0, inner),
            both.narrow(1, inner, inner),
        );
        let before = cache
            .as_deref()
            .map(|cache| begun(layer, layout, remembered, cache, &self.a.device()))
            .unwrap_or_default();
        let conv_state = cache
            .as_ref()
            .map(|_| causal_conv1d_state(x.clone(), before.conv.clone(), taps, &layout.cu_seqlens));
        let x = convolve(&self.conv1d, self.activation, layout, x, before.conv, pass);
        let projected = pass.linear(&self.x_proj, x.clone());
        let part = |from: usize, width: usize| projected.clone().narrow(1, from, width);
        let delta = pass.linear(&self.dt_proj, part(0, rank));
        let inputs = SelectiveScan {
            x,
            delta,
            a: self.a.clone(),
            b: part(rank, state),
            c: part(rank + state, state),
            d: None,
            z: Some(z),
            delta_bias: None,
            softplus: true,
            initial_state: before.scan,
            cu_seqlens: layout.cu_seqlens.clone(),
        };
        let params = [&self.a_log, &self.d];
        let with_state = cache.is_some();
        let (y, scan_state) = scan(inputs, &params, with_state, pass, |inputs, rows, pass| {
            let a = match pass.param_change(&self.a_log) {
                ParamChange::None => self.a.clone(),
                _ => decay(pass.param(&self.a_log, rows)),
            };
            let d = pass.param(&self.d, rows).reshape([inner]);
            SelectiveScan {
                a,
                d: Some(d),
                ..inputs
            }
        });
        if let (Some(cache), Some(conv), Some(scan)) = (cache, conv_state, scan_state) {
            remember(layer, layout, remembered, [conv, scan], cache);
        }
        pass.linear(&self.out_proj, y)
    }

    fn visit_weights(&self, visit: &mut dyn FnMut(Frozen<'_>)) {
        visit(Frozen::Linear(&self.in_proj));
        visit(Frozen::Conv(&self.conv1d));
        for linear in [&self.x_proj, &self.dt_proj] {
            visit(Frozen::Linear(linear));
        }
        visit(Frozen::Param(&self.a_log));
        visit(Frozen::Param(&self.d));
        visit(Frozen::Linear(&self.out_proj));
    }
}

/// `-exp(A_log)`.
fn decay(a_log: Tensor<2>) -> Tensor<2> {
    a_log.exp().neg()
}
