//! Passes that take what a method forms of its parameters from those before.

use burn::prelude::*;

use crate::layers::{Conv, Embedding, Linear, Norm, Param, lookup};
use crate::layout::SequenceLayout;
use crate::seam::adapter::{Adapter, MergedLinear};
use crate::seam::attention::{AttentionControl, AttentionScores};
use crate::seam::derived_cache::DerivedCache;
use crate::seam::hooks::{
    BlockAction, ConvChange, KeyValue, LinearChange, NormChange, ParamChange, Pass, RouterTraining,
    Rows, SubLayer, SubLayerIo,
};

/// Hooks for one pass without gradients.
pub(super) fn cached<'a>(adapter: &'a dyn Adapter, kept: &'a DerivedCache) -> Box<dyn Pass + 'a> {
    Box::new(CachedPass {
        adapter,
        kept,
        inner: adapter.cached_pass(kept),
    })
}

/// An adapter, or none, over the passes of an evaluation on one backbone: whole weights that it
/// forms ([`Adapter::materializes_weight`]) are formed once.
pub struct Fixed<'a> {
    adapter: Option<&'a dyn Adapter>,
    kept: DerivedCache,
}

impl<'a> Fixed<'a> {
    /// The adapter, which does not change as long as it is borrowed.
    pub fn new(adapter: Option<&'a dyn Adapter>) -> Self {
        Self {
            adapter,
            kept: DerivedCache::default(),
        }
    }

    /// Hooks for the next pass.
    pub fn pass(&self) -> Box<dyn Pass + '_> {
        match self.adapter {
            Some(adapter) => cached(adapter, &self.kept),
            None => Box::new(crate::seam::hooks::NoAdapter),
        }
    }
}

/// One pass that takes formed weights from those kept.
struct CachedPass<'a> {
    adapter: &'a dyn Adapter,
    kept: &'a DerivedCache,
    inner: Box<dyn Pass + 'a>,
}

impl CachedPass<'_> {
    fn linear_of(&self, base: &Linear) -> Option<MergedLinear> {
        if !self.adapter.materializes_weight(base) {
            return None;
        }
        self.kept.keep(base.site, || {
            self.adapter.merged_linear(base).ok().flatten()
        })
    }
}

impl Pass for CachedPass<'_> {
    fn embedding(&mut self, base: &Embedding, ids: &[u32]) -> Tensor<2> {
        let table = if self.adapter.materializes_embedding(base) {
            self.kept
                .keep(base.site, || self.adapter.merged_embedding(base))
        } else {
            None
        };
        table.map_or_else(
            || self.inner.embedding(base, ids),
            |table| lookup(table, ids),
        )
    }

    fn linear(&mut self, base: &Linear, x: Tensor<2>) -> Tensor<2> {
        match self.linear_of(base) {
            Some(MergedLinear { weight, bias }) => frugal_kernels::linear(x, weight, bias),
            None => self.inner.linear(base, x),
        }
    }

    fn linear_change(&mut self, base: &Linear) -> LinearChange {
        match self.linear_of(base) {
            // Merging leaves the bias as it is wherever a whole weight is kept.
            Some(merged) => LinearChange::Weight(merged.weight),
            None => self.inner.linear_change(base),
        }
    }

    fn linear_rows(&mut self, base: &Linear, x: Tensor<2>, rows: Rows) -> Tensor<2> {
        match self.linear_of(base) {
            Some(MergedLinear { weight, bias }) => frugal_kernels::linear(x, weight, bias),
            None => self.inner.linear_rows(base, x, rows),
        }
    }

    fn embedding_rows(&mut self, base: &Embedding, ids: &[u32], rows: Rows) -> Tensor<2> {
        self.inner.embedding_rows(base, ids, rows)
    }

    fn embed(&mut self, hidden_states: Tensor<2>, layout: &mut SequenceLayout) -> Tensor<2> {
        self.inner.embed(hidden_states, layout)
    }

    fn norm(&mut self, base: &Norm, x: Tensor<2>) -> Tensor<2> {
        self.inner.norm(base, x)
    }

    fn norm_change(&mut self, base: &Norm) -> NormChange {
        self.inner.norm_change(base)
    }

    fn norm_rows(&mut self, base: &Norm, x: Tensor<2>, rows: Rows) -> Tensor<2> {
        self.inner.norm_rows(base, x, rows)
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

    fn attention(
        &mut self,
        layout: &SequenceLayout,
    ) -> Result<Option<AttentionControl>, crate::error::ModelError> {
        self.inner.attention(layout)
    }

    fn attention_scores(&mut self, scores: AttentionScores) {
        self.inner.attention_scores(scores);
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

    fn take_error(&mut self) -> Option<crate::error::ModelError> {
        self.inner.take_error()
    }

    fn auxiliary_loss(&mut self) -> Option<Tensor<1>> {
        self.inner.auxiliary_loss()
    }
}
