//! The seam: one forward pass of an adapter over a frozen backbone.
//!
//! A backbone calls these hooks wherever a method may act and names no method. Every hook is a
//! no-op unless a method overrides it. State that lives for one forward pass (routers, per-sequence
//! choices) belongs in the object that implements [`Pass`]; what is trained belongs in the adapter.
//!
//! Objects that stand in front of other passes (several adapters at once, what is kept between
//! passes) forward every hook, or are refused where they are made.

use burn::prelude::*;

use crate::error::ModelError;
use crate::layers::{Conv, Embedding, Linear, Norm, Param};
use crate::layout::SequenceLayout;
use crate::seam::attention::{AttentionControl, AttentionScores};

/// One of the two sub-layers of a block; some architectures have the first alone
/// ([`BackboneInfo::is_attention_only`](crate::BackboneInfo::is_attention_only)).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SubLayer {
    /// Self-attention, or what mixes tokens in its place: a state space model.
    Attention,
    /// Feed-forward.
    Mlp,
}

/// Whether a block runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlockAction {
    /// As usual.
    Run,
    /// The hidden states pass by.
    Skip,
}

/// What the rows of a linear layer's input are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rows {
    /// One for each token of the layout, in order.
    Tokens,
    /// So many for each token, in order: heads, or blocks of them.
    PerToken(usize),
    /// One for each sequence, in order: pooled states, last tokens.
    Sequences,
    /// All of one sequence.
    OfSequence(usize),
    /// Of no sequence in particular; a pass of several adapters cannot tell whose they are.
    Chosen,
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

/// What a linear layer becomes under a method.
///
/// One answer serves all who ask: the loss that fuses with the output head, sequences with
/// different adapters that share a product with the base, modules that are not ours.
#[derive(Clone, Debug)]
pub enum LinearChange {
    /// The base's own layer.
    None,
    /// The base's own layer with this change of its weight, and nothing else.
    LowRank(LowRankChange),
    /// The layer with this weight `[d_out, d_in]` and the base's bias.
    Weight(Tensor<2>),
    /// Something else; [`Pass::linear`] computes it.
    Opaque,
}

impl LinearChange {
    /// [`LinearChange::None`] where nothing is changed, [`LinearChange::Opaque`] otherwise.
    pub fn opaque_if(changed: bool) -> Self {
        if changed { Self::Opaque } else { Self::None }
    }

    /// The weight `[d_out, d_in]`, where the layer is known to be no more than that and the base's
    /// bias, and no product is needed to form it.
    pub fn weight(self, base: &Linear) -> Option<Tensor<2>> {
        match self {
            Self::None => Some(base.weight.dense()),
            Self::Weight(weight) => Some(weight),
            Self::LowRank(_) | Self::Opaque => None,
        }
    }
}

/// What a normalisation becomes under a method.
#[derive(Clone, Debug)]
pub enum NormChange {
    /// The base's own gain and bias.
    None,
    /// The same arithmetic with this gain and bias, `[d]` each.
    Parameters(Tensor<1>, Option<Tensor<1>>),
    /// Something else; [`Pass::norm`] computes it.
    Opaque,
}

impl NormChange {
    /// Gain and bias, where that is all.
    pub fn values(self, base: &Norm) -> Option<(Tensor<1>, Option<Tensor<1>>)> {
        match self {
            Self::None => Some(base.values()),
            Self::Parameters(weight, bias) => Some((weight, bias)),
            Self::Opaque => None,
        }
    }
}

/// What a depth-wise convolution becomes under a method.
#[derive(Clone, Debug)]
pub enum ConvChange {
    /// The base's own weight and bias.
    None,
    /// These, `[d, k]` and `[d]`.
    Parameters(Tensor<2>, Option<Tensor<1>>),
    /// Others for each sequence: [`Pass::conv`] says which.
    BySequence,
}

/// What a bare parameter becomes under a method.
#[derive(Clone, Debug)]
pub enum ParamChange {
    /// The base's own value.
    None,
    /// This one, `[d_out, d_in]`.
    Value(Tensor<2>),
    /// Another for each sequence: [`Pass::param`] says which.
    BySequence,
}

/// A sub-layer that has just run: its place, and tensors `[tokens, d_model]`.
#[derive(Clone)]
pub struct SubLayerIo<'a> {
    /// Block number.
    pub layer: usize,
    /// Which sub-layer.
    pub kind: SubLayer,
    /// What it read (after the norm in front of it, if there is one).
    pub input: &'a Tensor<2>,
    /// What it gives, before the residual sum.
    pub output: Tensor<2>,
    /// The residual stream that the output is added to.
    pub residual: &'a Tensor<2>,
    /// The norm that the sum goes through at once, in models that normalise behind the sum.
    pub norm_behind: Option<&'a Norm>,
}

/// What happens at a router while it is trained, as the model's configuration has it.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct RouterTraining {
    /// Standard deviation of the Gaussian noise on the logits.
    pub noise_std: f64,
    /// Weight of the mean over tokens of `(log Σ exp(logits))²` in the training loss (ST-MoE, arXiv
    /// 2202.08906, equation 5), itself a mean over the blocks.
    pub z_loss_coef: f64,
}

/// Hooks of one forward pass.
pub trait Pass {
    /// Input embeddings `[tokens, d_model]` on their way to the first block; may put positions in
    /// front of each sequence, and then updates the layout by [`SequenceLayout::prepend`].
    fn embed(&mut self, hidden_states: Tensor<2>, _layout: &mut SequenceLayout) -> Tensor<2> {
        hidden_states
    }

    /// Rows of an embedding for these ids: `[tokens, d]`.
    fn embedding(&mut self, base: &Embedding, ids: &[u32]) -> Tensor<2> {
        base.forward(ids)
    }

    /// [`Pass::embedding`] where the ids are something else than those of the tokens.
    fn embedding_rows(&mut self, base: &Embedding, ids: &[u32], _rows: Rows) -> Tensor<2> {
        self.embedding(base, ids)
    }

    /// What [`Pass::linear`] makes of this layer.
    fn linear_change(&mut self, _base: &Linear) -> LinearChange {
        LinearChange::None
    }

    /// A linear layer, `[tokens, d_in]` to `[tokens, d_out]`. A method whose
    /// [`Pass::linear_change`] says [`LinearChange::Opaque`] computes it here.
    ///
    /// # Panics
    /// If a method says `Opaque` and has no `linear` of its own: a broken invariant.
    fn linear(&mut self, base: &Linear, x: Tensor<2>) -> Tensor<2> {
        match self.linear_change(base) {
            LinearChange::None => base.forward(x),
            LinearChange::LowRank(LowRankChange { a, b, scale }) => {
                base.forward_low_rank(x, a, b, scale)
            }
            LinearChange::Weight(weight) => frugal_kernels::linear(x, weight, base.bias.clone()),
            LinearChange::Opaque => unreachable!("an opaque change comes with its own `linear`"),
        }
    }

    /// [`Pass::linear`] where the rows of `x` are something else than tokens.
    fn linear_rows(&mut self, base: &Linear, x: Tensor<2>, _rows: Rows) -> Tensor<2> {
        self.linear(base, x)
    }

    /// What [`Pass::norm`] makes of this normalisation.
    fn norm_change(&mut self, _base: &Norm) -> NormChange {
        NormChange::None
    }

    /// A normalisation over the last dimension of `[rows, d]`. A method whose
    /// [`Pass::norm_change`] says [`NormChange::Opaque`] computes it here.
    ///
    /// # Panics
    /// If a method says `Opaque` and has no `norm` of its own: a broken invariant.
    fn norm(&mut self, base: &Norm, x: Tensor<2>) -> Tensor<2> {
        match self.norm_change(base).values(base) {
            Some((weight, bias)) => base.apply(x, weight, bias),
            None => unreachable!("an opaque change comes with its own `norm`"),
        }
    }

    /// [`Pass::norm`] where the rows of `x` are something else than tokens.
    fn norm_rows(&mut self, base: &Norm, x: Tensor<2>, _rows: Rows) -> Tensor<2> {
        self.norm(base, x)
    }

    /// The residual stream and what a sub-layer adds to it, both `[tokens, d_model]`: their sum,
    /// and [`Pass::norm`] of it. Not for methods to change.
    fn add_norm(&mut self, base: &Norm, x: Tensor<2>, residual: Tensor<2>) -> [Tensor<2>; 2] {
        if let Some((weight, bias)) = self.norm_change(base).values(base) {
            return base.apply_to_sum(x, residual, weight, bias);
        }
        let sum = frugal_kernels::add(x, residual);
        [sum.clone(), self.norm(base, sum)]
    }

    /// What this convolution becomes, for the whole batch.
    fn conv_change(&mut self, _base: &Conv) -> ConvChange {
        ConvChange::None
    }

    /// Weight and bias of this convolution for these rows. A caller that gets
    /// [`ConvChange::BySequence`] asks for one sequence at a time.
    ///
    /// # Panics
    /// If a method says `BySequence` and has no `conv` of its own: a broken invariant.
    fn conv(&mut self, base: &Conv, _rows: Rows) -> (Tensor<2>, Option<Tensor<1>>) {
        match self.conv_change(base) {
            ConvChange::None => base.values(),
            ConvChange::Parameters(weight, bias) => (weight, bias),
            ConvChange::BySequence => unreachable!("such a change comes with its own `conv`"),
        }
    }

    /// What this bare parameter becomes, for the whole batch.
    fn param_change(&mut self, _base: &Param) -> ParamChange {
        ParamChange::None
    }

    /// The value of this bare parameter for these rows. A caller that gets
    /// [`ParamChange::BySequence`] asks for one sequence at a time.
    ///
    /// # Panics
    /// If a method says `BySequence` and has no `param` of its own: a broken invariant.
    fn param(&mut self, base: &Param, _rows: Rows) -> Tensor<2> {
        match self.param_change(base) {
            ParamChange::None => base.value.clone(),
            ParamChange::Value(value) => value,
            ParamChange::BySequence => unreachable!("such a change comes with its own `param`"),
        }
    }

    /// Keys and values in front of every sequence of block `layer`.
    fn key_value(&mut self, _layer: usize) -> Option<KeyValue> {
        None
    }

    /// What is added to what the heads of block `layer` give, `[tokens, heads * head_dim]`, in front of the
    /// output projection; `q` are the queries as they meet the keys, of the same shape, and `scale` is
    /// the factor on their products.
    fn beside_attention(
        &mut self,
        _layer: usize,
        _q: &Tensor<2>,
        _scale: f32,
    ) -> Option<Tensor<2>> {
        None
    }

    /// Number of positions that [`Pass::key_value`] stands for; the tokens' positions start after
    /// them.
    fn prefix_length(&self) -> usize {
        0
    }

    /// How the tokens of a batch of this layout see each other, where it is otherwise than the
    /// architecture has it; asked once, before the first block.
    ///
    /// # Errors
    /// What cannot be combined.
    fn attention(
        &mut self,
        _layout: &SequenceLayout,
    ) -> Result<Option<AttentionControl>, ModelError> {
        Ok(None)
    }

    /// Attention scores that [`AttentionControl::score_rows`] asked for, sequence by sequence.
    fn attention_scores(&mut self, _scores: AttentionScores) {}

    /// Before a sub-layer computes, with what it reads `[tokens, d_model]`.
    fn before_sub_layer(&mut self, _layer: usize, _kind: SubLayer, _input: &Tensor<2>) {}

    /// After a sub-layer: what is added to the residual stream, `[tokens, d_model]`.
    fn sub_layer(&mut self, io: SubLayerIo<'_>) -> Tensor<2> {
        io.output
    }

    /// Before block `layer`, with the residual stream `[tokens, d_model]`.
    fn before_block(&mut self, _layer: usize, _hidden_states: &Tensor<2>) -> BlockAction {
        BlockAction::Run
    }

    /// After block `layer`, with the residual stream `[tokens, d_model]`.
    fn after_block(&mut self, _layer: usize, _hidden_states: &Tensor<2>) {}

    /// At a mixture of experts, before the softmax: the logits `[tokens, experts]` that the router
    /// goes on with, where the pass trains it; `None` where the pass does not, so that nothing is
    /// done that belongs to training.
    fn router_logits(
        &mut self,
        _layer: usize,
        _logits: &Tensor<2>,
        _training: RouterTraining,
    ) -> Option<Tensor<2>> {
        None
    }

    /// At a mixture of experts: the router's probabilities `[tokens, experts]`, the experts of each
    /// token `[tokens * experts_per_token]`, and the weight that the model gives to the loss which
    /// keeps the load even, a mean over the blocks.
    fn router(
        &mut self,
        _layer: usize,
        _probabilities: &Tensor<2>,
        _chosen: &[usize],
        _aux_loss_coef: f64,
    ) {
    }

    /// Whether this pass trains the model itself, so that routers choose as their training has it and
    /// [`Pass::model_loss`] and [`Pass::balance`] are wanted. Passes that train something beside the
    /// model compute it as it will be used.
    fn trains_model(&self) -> bool {
        false
    }

    /// A term `[1]` that the model's own training adds to the loss, weighted; asked for only where
    /// [`Pass::trains_model`] says so.
    fn model_loss(&mut self, _term: Tensor<1>) {}

    /// How many tokens each choice of a router got whose load a bias `[choices]` keeps even without a
    /// loss: behind the step the bias moves by `rate` towards the choices that got less than the mean
    /// (arXiv 2408.15664, algorithm 1).
    fn balance(&mut self, _bias: &Param, _load: &[usize], _rate: f64) {}

    /// In front of what branch `layer` adds to its residual stream, where the pass trains the model: a
    /// factor for each of so many sequences, 0 where the branch is left out and `1 / (1 - rate)`
    /// elsewhere (stochastic depth, Huang et al., arXiv 1603.09382). `None` where nothing is left out.
    fn drop_path(&mut self, _layer: usize, _rate: f64, _sequences: usize) -> Option<Vec<f32>> {
        None
    }

    /// Mean and variance `[d]` of a batch, where the pass trains the model: behind the step the values
    /// that stand for them outside of training move towards these by `momentum` (batch normalisation,
    /// Ioffe and Szegedy, arXiv 1502.03167).
    fn batch_statistics(
        &mut self,
        _running: [&Param; 2],
        _of_batch: [Tensor<1>; 2],
        _momentum: f64,
    ) {
    }

    /// Whether [`Pass::linear`] must see every token's row, in order, because it tells sequences
    /// apart by their rows. Others see, in blocks that leave tokens out, the rows of the tokens that
    /// are in: in all hooks of a block alike.
    fn needs_token_rows(&self) -> bool {
        false
    }

    /// After the pass: a term `[1]` to add to the training loss (balance of experts, orthogonality,
    /// distillation).
    fn auxiliary_loss(&mut self) -> Option<Tensor<1>> {
        None
    }

    /// After the pass: what went wrong in a model that it ran beside this one (a teacher).
    fn take_error(&mut self) -> Option<ModelError> {
        None
    }
}

/// The backbone as it is.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoAdapter;

impl Pass for NoAdapter {}
