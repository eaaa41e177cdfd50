//! The seam: one forward pass of an adapter over a frozen backbone.
//!
//! A backbone calls these hooks wherever a method may act and names no method. Every hook is a
//! no-op unless a method overrides it. State that lives for one forward pass (routers, per-sequence
//! choices) belongs in the object that implements [`Pass`]; what is trained belongs in the adapter.

use burn::prelude::*;

use crate::layers::{Embedding, Linear, Norm};
use crate::layout::SequenceLayout;

/// The half of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SubLayer {
    /// Self-attention.
    Attention,
    /// Feed-forward.
    Mlp,
}

/// Whether a block runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Enter {
    /// As usual.
    Run,
    /// The hidden states pass by.
    Skip,
}

/// Keys and values that a method puts in front of every sequence of a layer: each
/// `[positions, kv_heads * head_dim]` for all sequences, or
/// `[sequences * positions, kv_heads * head_dim]` where every sequence has its own.
#[derive(Clone, Debug)]
pub struct KeyValue {
    /// Keys, used as they are (no rotary rotation).
    pub key: Tensor<2>,
    /// Values.
    pub value: Tensor<2>,
}

/// A low-rank change `scale · b a` of a weight: a `[r, d_in]`, b `[d_out, r]`.
#[derive(Clone, Debug)]
pub struct LowRankChange {
    /// `[r, d_in]`.
    pub a: Tensor<2>,
    /// `[d_out, r]`.
    pub b: Tensor<2>,
    /// Factor on the product.
    pub scale: f32,
}

/// Hooks of one forward pass.
pub trait Pass {
    /// Input embeddings `[tokens, d_model]` on their way to the first block; may put positions in
    /// front of each sequence, and then updates the layout by [`SequenceLayout::prepend`].
    fn embed(&mut self, hidden_states: Tensor<2>, _layout: &mut SequenceLayout) -> Tensor<2> {
        hidden_states
    }

    /// Rows of a table for these ids: `[tokens, d]`.
    fn embedding(&mut self, base: &Embedding, ids: &[u32]) -> Tensor<2> {
        base.forward(ids)
    }

    /// A linear map, `[tokens, d_in]` to `[tokens, d_out]`: call the base, add to it, scale it or
    /// replace it.
    fn linear(&mut self, base: &Linear, x: Tensor<2>) -> Tensor<2> {
        base.forward(x)
    }

    /// The weight `[d_out, d_in]` that [`Pass::linear`] amounts to at this map, where the method
    /// keeps it a plain matrix product without changing the bias; `None` where it does more. Lets
    /// the loss fuse with the output head.
    fn plain_weight(&mut self, base: &Linear) -> Option<Tensor<2>> {
        Some(base.weight.dense())
    }

    /// The weight `[d_out, d_in]` of what [`Pass::linear`] makes of this map, in the gradient
    /// graph, where a method can say it for less than a product with the identity.
    fn effective_weight(&mut self, _base: &Linear) -> Option<Tensor<2>> {
        None
    }

    /// Whether [`Pass::linear`] is the base's own map here. Then the loss can fuse with an output
    /// head that is packed; false is always safe, and costs memory where the head is packed.
    fn leaves_alone(&mut self, _base: &Linear) -> bool {
        false
    }

    /// The change of the weight where [`Pass::linear`] is the base's own map with this one added,
    /// and nothing else. Lets sequences with different adapters share one product with the base.
    fn low_rank(&mut self, _base: &Linear) -> Option<LowRankChange> {
        None
    }

    /// A normalisation over the last dimension of `[rows, d]`.
    fn norm(&mut self, base: &Norm, x: Tensor<2>) -> Tensor<2> {
        let (weight, bias) = self.plain_norm(base).unwrap_or_else(|| base.values());
        base.apply(x, weight, bias)
    }

    /// Gain and bias `[d]` of a normalisation where the method keeps it one; a method for which
    /// [`Pass::norm`] does more gives `None`. Lets the norm fuse with the sum in front of it.
    fn plain_norm(&mut self, base: &Norm) -> Option<(Tensor<1>, Option<Tensor<1>>)> {
        Some(base.values())
    }

    /// The residual stream and what a sub-layer adds to it, both `[tokens, d_model]`: their sum,
    /// and [`Pass::norm`] of it. Not for methods to change.
    fn add_norm(&mut self, base: &Norm, x: Tensor<2>, residual: Tensor<2>) -> [Tensor<2>; 2] {
        if let Some((weight, bias)) = self.plain_norm(base) {
            return base.apply_to_sum(x, residual, weight, bias);
        }
        let sum = frugal_kernels::add(x, residual);
        [sum.clone(), self.norm(base, sum)]
    }

    /// Keys and values in front of every sequence of block `layer`.
    fn key_value(&mut self, _layer: usize) -> Option<KeyValue> {
        None
    }

    /// Number of positions that [`Pass::key_value`] stands for; the tokens' positions start after
    /// them.
    fn prefix_length(&self) -> usize {
        0
    }

    /// Around a sub-layer: its input (after the norm) and its output (before the residual sum),
    /// both `[tokens, d_model]`; returns what is added to the residual stream.
    fn around(
        &mut self,
        _layer: usize,
        _part: SubLayer,
        _input: &Tensor<2>,
        output: Tensor<2>,
    ) -> Tensor<2> {
        output
    }

    /// Before block `layer`, with the residual stream `[tokens, d_model]`.
    fn enter(&mut self, _layer: usize, _hidden_states: &Tensor<2>) -> Enter {
        Enter::Run
    }

    /// After block `layer`, with the residual stream `[tokens, d_model]`.
    fn tap(&mut self, _layer: usize, _hidden_states: &Tensor<2>) {}

    /// At a mixture of experts: the router's probabilities `[tokens, experts]`, the experts of each
    /// token `[tokens * experts_per_token]`, and the weight that the model gives to the loss which
    /// keeps the load even.
    fn route(
        &mut self,
        _layer: usize,
        _probabilities: &Tensor<2>,
        _chosen: &[usize],
        _aux_loss_coef: f64,
    ) {
    }

    /// Whether [`Pass::linear`] must see every token's row, in order, because it tells sequences
    /// apart by their rows.
    fn rows_are_tokens(&self) -> bool {
        false
    }

    /// After the pass: a term `[1]` to add to the training loss (balance of experts, orthogonality,
    /// distillation).
    fn auxiliary_loss(&mut self) -> Option<Tensor<1>> {
        None
    }
}

/// The backbone as it is.
#[derive(Clone, Copy, Debug, Default)]
pub struct Plain;

impl Pass for Plain {
    fn leaves_alone(&mut self, _base: &Linear) -> bool {
        true
    }
}
