//! The gated feed-forward layer: `down(act(gate(x)) * up(x))`.

use burn::prelude::*;
use frugal_nn::{Frozen, Linear, ModelError, Pass, RouterState};

use crate::activation::Activation;
use crate::architecture::ModelConfig;
use crate::blocks::sites::Sites;
use crate::weights::WeightLoader;

/// What follows attention in a block.
pub trait FeedForward: Send + Sync {
    /// `[tokens, d_model]` to the same.
    fn forward(&self, layer: usize, x: Tensor<2>, pass: &mut dyn Pass) -> Tensor<2>;
    /// [`FeedForward::forward`] where routers hand something from block to block, of which a layer
    /// without a router takes no notice.
    fn forward_routed(
        &self,
        layer: usize,
        x: Tensor<2>,
        _routing: &mut RouterState,
        pass: &mut dyn Pass,
    ) -> Tensor<2> {
        self.forward(layer, x, pass)
    }
    /// Visits all weights.
    fn visit_weights(&self, visit: &mut dyn FnMut(Frozen<'_>));
}

/// The gated feed-forward layer of one block.
pub struct GatedMlp {
    activation: Activation,
    /// Gate, up and down projection.
    maps: [Linear; 3],
}

impl GatedMlp {
    /// Its sites under `path`.
    pub fn sites(sites: &mut Sites, c: &ModelConfig, bias: bool, layer: usize, path: &str) {
        let (d, ff) = (c.hidden_size, c.intermediate_size);
        sites.linear(format!("{path}.gate_proj"), layer, [d, ff], bias);
        sites.linear(format!("{path}.up_proj"), layer, [d, ff], bias);
        sites.output(format!("{path}.down_proj"), layer, [ff, d], bias);
    }

    /// Takes the weights under `path`.
    ///
    /// # Errors
    /// Whatever reading a tensor gives.
    pub fn load(
        activation: Activation,
        loader: &mut WeightLoader<'_>,
        path: &str,
    ) -> Result<Self, ModelError> {
        let mut linear = |name: &str| loader.linear(&format!("{path}.{name}"));
        Ok(Self {
            activation,
            maps: [
                linear("gate_proj")?,
                linear("up_proj")?,
                linear("down_proj")?,
            ],
        })
    }
}

impl FeedForward for GatedMlp {
    fn forward(&self, _layer: usize, x: Tensor<2>, pass: &mut dyn Pass) -> Tensor<2> {
        gated_mlp(self.activation, self.maps.each_ref(), x, pass)
    }

    fn visit_weights(&self, visit: &mut dyn FnMut(Frozen<'_>)) {
        self.maps.iter().for_each(|l| visit(Frozen::Linear(l)));
    }
}

/// `down(act(gate(x)) ⊙ up(x))`.
pub(crate) fn gated_mlp(
    activation: Activation,
    [gate_proj, up_proj, down_proj]: [&Linear; 3],
    x: Tensor<2>,
    pass: &mut dyn Pass,
) -> Tensor<2> {
    let gate = pass.linear(gate_proj, x.clone());
    let up = pass.linear(up_proj, x);
    pass.linear(down_proj, gate_by(activation, gate, up))
}

/// `act(gate) ⊙ up`.
pub(crate) fn gate_by(activation: Activation, gate: Tensor<2>, up: Tensor<2>) -> Tensor<2> {
    match activation {
        Activation::Silu => frugal_kernels::swiglu(gate, up),
        Activation::GeluTanh => frugal_kernels::geglu_tanh(gate, up),
        Activation::Gelu => frugal_kernels::gelu(gate) * up,
        Activation::Relu => burn::tensor::activation::relu(gate) * up,
    }
}
