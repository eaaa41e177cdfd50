//! NEFTune: noise on the input embeddings while training.
//!
//! The output of the token embedding of a sequence of L tokens of width d gets uniform noise within
//! ±α/√(L·d). Padding does not count, since there is none: L is the sequence's own length.
//!
//! Jain et al.: NEFTune: Noisy Embeddings Improve Instruction Finetuning, 2023, arXiv 2310.05914.

use burn::prelude::*;
use burn::tensor::TensorData;
use frugal_nn::{
    AttentionControl, AttentionScores, BlockAction, Conv, ConvChange, Embedding, KeyValue, Linear,
    LinearChange, Norm, NormChange, Param, ParamChange, Pass, RouterTraining, Rows, SequenceLayout,
    SubLayer, SubLayerIo, named_rng,
};
use rand::Rng;

/// A training pass of an adapter with noise on its input.
pub(super) struct NoisyPass<'a> {
    pub(super) inner: Box<dyn Pass + 'a>,
    pub(super) alpha: f64,
    /// Decides the noise.
    pub(super) seed: u64,
}

/// Noise `[tokens, d]` for sequences of these lengths, row by row.
fn noise(lengths: &[usize], d: usize, alpha: f64, seed: u64) -> Vec<f32> {
    let mut rng = named_rng(seed, "neftune");
    let mut values = Vec::with_capacity(lengths.iter().sum::<usize>() * d);
    for &length in lengths {
        let bound = (alpha / ((length * d) as f64).sqrt()) as f32;
        values.extend((0..length * d).map(|_| bound * (2.0 * rng.random::<f32>() - 1.0)));
    }
    values
}

impl Pass for NoisyPass<'_> {
    fn embed(&mut self, hidden_states: Tensor<2>, layout: &mut SequenceLayout) -> Tensor<2> {
        let [tokens, d] = hidden_states.dims();
        let values = noise(&layout.lengths(), d, self.alpha, self.seed);
        let noise = Tensor::from_data(
            TensorData::new(values, [tokens, d]),
            &hidden_states.device(),
        );
        // Virtual tokens that the method puts in front get none.
        self.inner.embed(hidden_states + noise, layout)
    }

    fn embedding(&mut self, base: &Embedding, ids: &[u32]) -> Tensor<2> {
        self.inner.embedding(base, ids)
    }

    fn linear(&mut self, base: &Linear, x: Tensor<2>) -> Tensor<2> {
        self.inner.linear(base, x)
    }

    fn linear_change(&mut self, base: &Linear) -> LinearChange {
        self.inner.linear_change(base)
    }

    fn linear_rows(&mut self, base: &Linear, x: Tensor<2>, rows: Rows) -> Tensor<2> {
        self.inner.linear_rows(base, x, rows)
    }

    fn embedding_rows(&mut self, base: &Embedding, ids: &[u32], rows: Rows) -> Tensor<2> {
        self.inner.embedding_rows(base, ids, rows)
    }

    fn norm_rows(&mut self, base: &Norm, x: Tensor<2>, rows: Rows) -> Tensor<2> {
        self.inner.norm_rows(base, x, rows)
    }

    fn norm(&mut self, base: &Norm, x: Tensor<2>) -> Tensor<2> {
        self.inner.norm(base, x)
    }

    fn norm_change(&mut self, base: &Norm) -> NormChange {
        self.inner.norm_change(base)
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

    fn attention(
        &mut self,
        layout: &SequenceLayout,
    ) -> Result<Option<AttentionControl>, frugal_nn::ModelError> {
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

    fn take_error(&mut self) -> Option<frugal_nn::ModelError> {
        self.inner.take_error()
    }

    fn auxiliary_loss(&mut self) -> Option<Tensor<1>> {
        self.inner.auxiliary_loss()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The paper's bound for each sequence, and the spread of a uniform distribution, bound/√3.
    #[test]
    fn noise_is_uniform_within_the_bound_of_its_own_sequence() {
        let (d, alpha) = (64, 5.0);
        let lengths = [100, 25];
        let values = noise(&lengths, d, alpha, 7);
        assert_eq!(values.len(), 125 * d);
        // 5 / √(100 · 64) and 5 / √(25 · 64).
        for (part, bound) in [(&values[..100 * d], 0.0625), (&values[100 * d..], 0.125)] {
            let n = part.len() as f64;
            let largest = part.iter().fold(0.0_f32, |m, x| m.max(x.abs()));
            assert!(f64::from(largest) <= bound && f64::from(largest) > 0.99 * bound);
            let mean = part.iter().map(|x| f64::from(*x)).sum::<f64>() / n;
            let spread = (part.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>() / n).sqrt();
            assert!(mean.abs() < 0.05 * bound, "{mean}");
            assert!(
                (spread / bound - 1.0 / 3.0_f64.sqrt()).abs() < 0.02,
                "{spread}"
            );
        }
        assert_eq!(values, noise(&lengths, d, alpha, 7));
        assert_ne!(values, noise(&lengths, d, alpha, 8));
    }
}
