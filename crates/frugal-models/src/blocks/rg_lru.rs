//! The recurrent block of Griffin and Hawk: a gated branch beside a convolution and a real-gated linear
//! recurrent unit (RG-LRU), in the place of attention.
//!
//! De et al., *Griffin: Mixing Gated Linear Recurrences with Local Attention for Efficient Language
//! Models*, 2024, arXiv 2402.19427, section 2.4 and equations 1 to 4; names and arithmetic as in Hugging
//! Face's `RecurrentGemmaRecurrentBlock`, whose gates are block-diagonal:
//!
//! `r = sigmoid(W_a x)`, `i = sigmoid(W_x x)`, `log a = -8 r softplus(Λ)`,
//! `h[t] = a[t] ⊙ h[t - 1] + √(1 - a[t]²) ⊙ (i[t] ⊙ x[t])`, and `h = i ⊙ x` at the first token of a text.
//! The derivative of the root is held below 1000 as there.

use burn::prelude::*;
use burn::tensor::activation::{relu, sigmoid};
use frugal_kernels::causal_conv1d_state;
use frugal_nn::state::{DecodeState, LayerState};
use frugal_nn::{
    AttentionControl, Conv, Frozen, Linear, ModelError, Param, ParamChange, Pass, RotaryTable,
    Rows, SiteKind,
};

use crate::activation::Activation;
use crate::blocks::attention::{Attend, SelfAttention};
use crate::blocks::checks::activate;
use crate::blocks::prefix::{Directions, TwoWays, check_prefix_only, remembered};
use crate::blocks::recurrence::convolve_plain;
use crate::blocks::sites::Sites;
use crate::weights::WeightLoader;

/// Largest derivative of the root that gates the input.
const MAX_SQRT_GRADIENT: f32 = 1000.0;

/// Sizes of a recurrent block.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RgLruSpec {
    /// Channels of the recurrence.
    pub width: usize,
    /// Taps of the convolution.
    pub taps: usize,
    /// Blocks that the gates are made of.
    pub gate_blocks: usize,
    /// Non-linearity of the gated branch.
    pub activation: Activation,
    /// Which channels run backwards.
    pub two_ways: TwoWays,
}

/// The block in front of one feed-forward layer.
pub(crate) struct RecurrentBlock {
    spec: RgLruSpec,
    /// Channels that run backwards.
    reverse: usize,
    linear_y: Linear,
    linear_x: Linear,
    conv_1d: Conv,
    /// Λ.
    recurrent_param: Param,
    input_gate: [Param; 2],
    recurrent_gate: [Param; 2],
    linear_out: Linear,
}

/// Weight and bias of a gate.
const INPUT_GATE: [&str; 2] = ["input_gate_weight", "input_gate_bias"];
const RECURRENT_GATE: [&str; 2] = ["recurrent_gate_weight", "recurrent_gate_bias"];

impl RecurrentBlock {
    /// Its sites under `path`, of a residual stream of this width.
    pub fn sites(sites: &mut Sites, spec: &RgLruSpec, layer: usize, path: &str, hidden: usize) {
        let p = |name: &str| format!("{path}.{name}");
        let (width, blocks) = (spec.width, spec.gate_blocks);
        let of_block = width / blocks;
        sites.linear(p("linear_y"), layer, [hidden, width], true);
        sites.linear(p("linear_x"), layer, [hidden, width], true);
        let kind = SiteKind::Conv;
        sites.add(p("conv_1d"), kind, Some(layer), [spec.taps, width], true);
        let (lru, param) = (format!("{path}.rg_lru"), SiteKind::Param);
        let mut add = |name: &str, size, blocks, is_vector| {
            let site = sites.add(format!("{lru}.{name}"), param, Some(layer), size, false);
            (site.blocks, site.is_vector) = (blocks, is_vector);
        };
        add("recurrent_param", [1, width], None, true);
        for [weight, bias] in [INPUT_GATE, RECURRENT_GATE] {
            add(weight, [of_block, width], Some(blocks), false);
            add(bias, [of_block, blocks], None, false);
        }
        sites.output(p("linear_out"), layer, [width, hidden], true);
    }

    /// Takes the weights under `path` of block `layer`.
    ///
    /// # Errors
    /// Whatever reading a tensor gives.
    pub fn load(
        spec: RgLruSpec,
        loader: &mut WeightLoader<'_>,
        path: &str,
        layer: usize,
    ) -> Result<Self, ModelError> {
        let p = |name: &str| format!("{path}.{name}");
        let mut gate = |[weight, bias]: [&str; 2]| {
            let mut param = |name: &str| loader.param(&format!("{path}.rg_lru.{name}"));
            Ok::<_, ModelError>([param(weight)?, param(bias)?])
        };
        let (input_gate, recurrent_gate) = (gate(INPUT_GATE)?, gate(RECURRENT_GATE)?);
        Ok(Self {
            reverse: spec.two_ways.of_block(layer),
            spec,
            linear_y: loader.linear(&p("linear_y"))?,
            linear_x: loader.linear(&p("linear_x"))?,
            conv_1d: loader.conv(&p("conv_1d"))?,
            recurrent_param: loader.param(&p("rg_lru.recurrent_param"))?,
            input_gate,
            recurrent_gate,
            linear_out: loader.linear(&p("linear_out"))?,
        })
    }

    /// The three values that the recurrence takes of these rows: log of the decay, decay, gated input.
    fn gates(&self, x: Tensor<2>, rows: Rows, pass: &mut dyn Pass) -> [Tensor<2>; 3] {
        let mut gate = |[weight, bias]: &[Param; 2]| {
            let (weight, bias) = (pass.param(weight, rows), pass.param(bias, rows));
            sigmoid(by_blocks(x.clone(), weight, bias))
        };
        let (input, recurrent) = (gate(&self.input_gate), gate(&self.recurrent_gate));
        let speed = pass.param(&self.recurrent_param, rows);
        let speed = log_one_plus_exp(speed.reshape([1, self.spec.width]));
        let log = recurrent * speed * -8.0;
        [log.clone(), log.exp(), x * input]
    }

    /// [`RecurrentBlock::gates`] of all rows, sequence by sequence where the pass has parameters of
    /// its own for each.
    fn gates_of_batch(&self, cu: &[usize], x: Tensor<2>, pass: &mut dyn Pass) -> [Tensor<2>; 3] {
        let params = self.params();
        let mut changes = params.iter().map(|param| pass.param_change(param));
        if !changes.any(|change| matches!(change, ParamChange::BySequence)) {
            return self.gates(x, Rows::Tokens, pass);
        }
        let mut parts = [(); 3].map(|()| Vec::new());
        for (sequence, w) in cu.windows(2).enumerate() {
            let own = x.clone().slice(w[0]..w[1]);
            let found = self.gates(own, Rows::OfSequence(sequence), pass);
            parts
                .iter_mut()
                .zip(found)
                .for_each(|(all, part)| all.push(part));
        }
        parts.map(|parts| Tensor::cat(parts, 0))
    }

    fn params(&self) -> [&Param; 5] {
        let ([a, b], [c, d]) = (&self.input_gate, &self.recurrent_gate);
        [&self.recurrent_param, a, b, c, d]
    }
}

impl SelfAttention for RecurrentBlock {
    fn forward(
        &self,
        at: &Attend<'_>,
        _rotary: &RotaryTable,
        x: Tensor<2>,
        pass: &mut dyn Pass,
        cache: Option<&mut DecodeState>,
    ) -> Tensor<2> {
        let RgLruSpec { width, taps, .. } = self.spec;
        let (layer, layout, cu) = (at.layer, at.layout, &at.layout.cu_seqlens);
        let y = activate(self.spec.activation, pass.linear(&self.linear_y, x.clone()));
        let x = pass.linear(&self.linear_x, x);
        let before = |part: usize, size: [usize; 2]| {
            let cache = cache.as_deref()?;
            remembered(layer, layout, part, size, cache, &x.device().inner())
        };
        let forward = width - self.reverse;
        let (conv, initial) = (before(0, [taps - 1, width]), before(1, [1, forward]));
        let conv_state = cache
            .as_ref()
            .map(|_| causal_conv1d_state(x.clone(), conv.clone(), taps, cu));
        let x = convolve_plain(&self.conv_1d, layout, x, conv, pass);
        let [log, a, gated] = self.gates_of_batch(cu, x, pass);
        let directions = Directions::new(layout, self.reverse, at.control);
        let begins = directions.begins(width, &gated.device().inner());
        let root = bounded_sqrt((log * 2.0).exp().neg() + 1.0);
        // Where nothing comes before, all of the input goes in.
        let scale = root * (begins.clone().neg() + 1.0) + begins;
        let (h, last) = directions.run([a, gated * scale], initial);
        if let (Some(cache), Some(conv)) = (cache, conv_state) {
            for sequence in 0..layout.sequences() {
                let conv = match taps - 1 {
                    0 => conv.clone(),
                    rows => conv.clone().narrow(0, sequence * rows, rows),
                };
                let state = last.clone().narrow(0, sequence, 1);
                cache.set_recurrent(layer, sequence, vec![conv, state]);
            }
        }
        pass.linear(&self.linear_out, h * y)
    }

    fn visit_weights(&self, visit: &mut dyn FnMut(Frozen<'_>)) {
        for linear in [&self.linear_y, &self.linear_x] {
            visit(Frozen::Linear(linear));
        }
        visit(Frozen::Conv(&self.conv_1d));
        self.params()
            .into_iter()
            .for_each(|param| visit(Frozen::Param(param)));
        visit(Frozen::Linear(&self.linear_out));
    }

    fn new_state(&self, _window: Option<usize>) -> LayerState {
        LayerState::recurrent()
    }

    fn takes_control(&self) -> bool {
        self.spec.two_ways.reverse_size > 0
    }

    fn check_control(&self, control: &AttentionControl) -> Result<(), String> {
        check_prefix_only(control, self.spec.two_ways)
    }
}

/// `x` `[tokens, blocks * n]`, each block of it times its own block of `weight` `[blocks * n, n]`, plus
/// `bias` `[blocks, n]`.
fn by_blocks(x: Tensor<2>, weight: Tensor<2>, bias: Tensor<2>) -> Tensor<2> {
    let ([tokens, width], [blocks, n]) = (x.dims(), bias.dims());
    let x = x.reshape([tokens, blocks, n]).swap_dims(0, 1);
    let y = x.matmul(weight.reshape([blocks, n, n])) + bias.reshape([blocks, 1, n]);
    y.swap_dims(0, 1).reshape([tokens, width])
}

/// `√x`, whose derivative is at most [`MAX_SQRT_GRADIENT`].
fn bounded_sqrt(x: Tensor<2>) -> Tensor<2> {
    let value = x.clone().detach();
    let least = 1.0 / (MAX_SQRT_GRADIENT * MAX_SQRT_GRADIENT);
    let slope = (value.clone() * 4.0).clamp_min(least).sqrt().recip();
    // The second term is 0; it alone has a gradient.
    value.clone().sqrt() + (x - value) * slope
}

/// `ln(1 + e^x)` without overflow.
fn log_one_plus_exp(x: Tensor<2>) -> Tensor<2> {
    relu(x.clone()) + (x.abs() * -1.0).exp().log1p()
}
