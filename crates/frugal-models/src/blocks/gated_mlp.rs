//! The gated feed-forward layer: `down(act(gate(x)) * up(x))`.

use burn::prelude::*;
use frugal_nn::{Linear, Pass};

use crate::config::Activation;

/// `down(act(gate(x)) ⊙ up(x))`.
pub(crate) fn gated_mlp(
    activation: Activation,
    [gate_proj, up_proj, down_proj]: [&Linear; 3],
    x: Tensor<2>,
    pass: &mut dyn Pass,
) -> Tensor<2> {
    let gate = pass.linear(gate_proj, x.clone());
    let up = pass.linear(up_proj, x);
    let hidden = match activation {
        Activation::Silu => frugal_kernels::swiglu(gate, up),
        Activation::GeluTanh => frugal_kernels::geglu_tanh(gate, up),
        Activation::Gelu => frugal_kernels::gelu(gate) * up,
        Activation::Relu => burn::tensor::activation::relu(gate) * up,
    };
    pass.linear(down_proj, hidden)
}
