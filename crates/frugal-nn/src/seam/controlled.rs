//! A pass of any adapter whose attention is controlled from outside.

use burn::prelude::*;

use crate::error::ModelError;
use crate::layers::{Conv, Embedding, Linear, Norm, Param};
use crate::layout::SequenceLayout;
use crate::seam::attention::{AttentionControl, AttentionScores};
use crate::seam::hooks::{
    BlockAction, ConvChange, KeyValue, LinearChange, NormChange, ParamChange, Pass, RouterTraining,
    Rows, SubLayer, SubLayerIo,
};

/// Another pass with this control of attention; keeps the scores that it asks for.
pub struct ControlledPass<'a> {
    inner: &'a mut dyn Pass,
    control: AttentionControl,
    scores: Vec<AttentionScores>,
}

impl<'a> ControlledPass<'a> {
    /// Acts for one pass over a batch that the control was made for.
    pub fn new(inner: &'a mut dyn Pass, control: AttentionControl) -> Self {
        Self {
            inner,
            control,
            scores: Vec::new(),
        }
    }

    /// The scores that came, by sequence.
    pub fn into_scores(self) -> Vec<AttentionScores> {
        self.scores
    }
}

impl Pass for ControlledPass<'_> {
    fn attention(
        &mut self,
        layout: &SequenceLayout,
    ) -> Result<Option<AttentionControl>, ModelError> {
        if self.inner.attention(layout)?.is_some() {
            return Err(ModelError::Attention {
                reason: "the adapter and its caller both say how tokens see each other".into(),
            });
        }
        Ok(Some(self.control.clone()))
    }

    fn attention_scores(&mut self, scores: AttentionScores) {
        self.scores.push(scores);
    }

    fn embed(&mut self, hidden_states: Tensor<2>, layout: &mut SequenceLayout) -> Tensor<2> {
        self.inner.embed(hidden_states, layout)
    }

    fn embedding(&mut self, base: &Embedding, ids: &[u32]) -> Tensor<2> {
        self.inner.embedding(base, ids)
    }

    fn embedding_rows(&mut self, base: &Embedding, ids: &[u32], rows: Rows) -> Tensor<2> {
        self.inner.embedding_rows(base, ids, rows)
    }

    fn linear_change(&mut self, base: &Linear) -> LinearChange {
        self.inner.linear_change(base)
    }

    fn linear(&mut self, base: &Linear, x: Tensor<2>) -> Tensor<2> {
        self.inner.linear(base, x)
    }

    fn linear_rows(&mut self, base: &Linear, x: Tensor<2>, rows: Rows) -> Tensor<2> {
        self.inner.linear_rows(base, x, rows)
    }

    fn norm_change(&mut self, base: &Norm) -> NormChange {
        self.inner.norm_change(base)
    }

    fn norm(&mut self, base: &Norm, x: Tensor<2>) -> Tensor<2> {
        self.inner.norm(base, x)
    }

    fn norm_rows(&mut self, base: &Norm, x: Tensor<2>, rows: Rows) -> Tensor<2> {
        self.inner.norm_rows(base, x, rows)
    }

    fn add_norm(&mut self, base: &Norm, x: Tensor<2>, residual: Tensor<2>) -> [Tensor<2>; 2] {
        self.inner.add_norm(base, x, residual)
    }

    fn conv_change(&mut self, base: &Conv) -> ConvChange {
        self.inner.conv_change(base)
    }

    fn conv(&mut self, base: &Conv, rows: Rows) -> (Tensor<2>, Option<Tensor<1>>) {
        self.inner.conv(base, rows)
    }

    fn param_change(&mut self, base: &Param) -> ParamChange {
        self.inner.param_change(base)
    }

    fn param(&mut self, base: &Param, rows: Rows) -> Tensor<2> {
        self.inner.param(base, rows)
    }

    fn key_value(&mut self, layer: usize) -> Option<KeyValue> {
        self.inner.key_value(layer)
    }

    fn beside_attention(&mut self, layer: usize, q: &Tensor<2>, scale: f32) -> Option<Tensor<2>> {
        self.inner.beside_attention(layer, q, scale)
    }

    fn prefix_length(&self) -> usize {
        self.inner.prefix_length()
    }

    fn before_sub_layer(&mut self, layer: usize, kind: SubLayer, input: &Tensor<2>) {
        self.inner.before_sub_layer(layer, kind, input);
    }

    fn sub_layer(&mut self, io: SubLayerIo<'_>) -> Tensor<2> {
        self.inner.sub_layer(io)
    }

    fn before_block(&mut self, layer: usize, hidden_states: &Tensor<2>) -> BlockAction {
        self.inner.before_block(layer, hidden_states)
    }

    fn after_block(&mut self, layer: usize, hidden_states: &Tensor<2>) {
        self.inner.after_block(layer, hidden_states);
    }

    fn router_logits(
        &mut self,
        layer: usize,
        logits: &Tensor<2>,
        training: RouterTraining,
    ) -> Option<Tensor<2>> {
        self.inner.router_logits(layer, logits, training)
    }

    fn router(
        &mut self,
        layer: usize,
        probabilities: &Tensor<2>,
        chosen: &[usize],
        aux_loss_coef: f64,
    ) {
        self.inner
            .router(layer, probabilities, chosen, aux_loss_coef);
    }

    fn trains_model(&self) -> bool {
        self.inner.trains_model()
    }

    fn model_loss(&mut self, term: Tensor<1>) {
        self.inner.model_loss(term);
    }

    fn balance(&mut self, bias: &Param, load: &[usize], rate: f64) {
        self.inner.balance(bias, load, rate);
    }

    fn drop_path(&mut self, layer: usize, rate: f64, sequences: usize) -> Option<Vec<f32>> {
        self.inner.drop_path(layer, rate, sequences)
    }

    fn batch_statistics(&mut self, running: [&Param; 2], of_batch: [Tensor<1>; 2], momentum: f64) {
        self.inner.batch_statistics(running, of_batch, momentum);
    }

    fn needs_token_rows(&self) -> bool {
        self.inner.needs_token_rows()
    }

    fn auxiliary_loss(&mut self) -> Option<Tensor<1>> {
        self.inner.auxiliary_loss()
    }

    fn take_error(&mut self) -> Option<ModelError> {
        self.inner.take_error()
    }
}
