//! The weighted sum of several adapters' changes.

use burn::prelude::*;

use crate::error::ModelError;
use crate::layers::{Conv, Embedding, Linear, Norm, Param};
use crate::layout::SequenceLayout;
use crate::seam::attention::AttentionControl;
use crate::seam::hooks::{
    ConvChange, LinearChange, NoAdapter, NormChange, ParamChange, Pass, RouterTraining, Rows,
    SubLayer, SubLayerIo,
};

/// Several adapters cannot each say how the tokens of one batch see each other.
pub(super) fn refuse_control<'p, 'a: 'p>(
    parts: impl Iterator<Item = &'p mut Box<dyn Pass + 'a>>,
    layout: &SequenceLayout,
) -> Result<Option<AttentionControl>, ModelError> {
    for part in parts {
        if part.attention(layout)?.is_some() {
            return Err(ModelError::Attention {
                reason: "an adapter that says how tokens see each other cannot share a pass with other adapters: run its sequences in a batch of their own".into(),
            });
        }
    }
    Ok(None)
}

/// `base + Σ wᵢ (adaptedᵢ − base)`.
///
/// Its parts leave positions, prefixes and the order of blocks alone
/// ([`Adapter::supports_mixed_batch`]); all other hooks are forwarded.
pub(super) struct CombinedPass<'a> {
    pub parts: Vec<(Box<dyn Pass + 'a>, f32)>,
}

impl CombinedPass<'_> {
    fn combine<const D: usize>(
        &mut self,
        plain: Tensor<D>,
        mut adapted: impl FnMut(&mut dyn Pass) -> Tensor<D>,
    ) -> Tensor<D> {
        self.parts
            .iter_mut()
            .fold(plain.clone(), |sum, (pass, weight)| {
                let change = adapted(pass.as_mut()) - plain.clone();
                sum + change * *weight
            })
    }
}

impl Pass for CombinedPass<'_> {
    fn embed(&mut self, hidden_states: Tensor<2>, layout: &mut SequenceLayout) -> Tensor<2> {
        self.combine(hidden_states.clone(), |pass| {
            pass.embed(hidden_states.clone(), layout)
        })
    }

    fn embedding(&mut self, base: &Embedding, ids: &[u32]) -> Tensor<2> {
        self.embedding_rows(base, ids, Rows::Tokens)
    }

    fn embedding_rows(&mut self, base: &Embedding, ids: &[u32], rows: Rows) -> Tensor<2> {
        self.combine(base.forward(ids), |pass| {
            pass.embedding_rows(base, ids, rows)
        })
    }

    fn linear_change(&mut self, base: &Linear) -> LinearChange {
        let none = |(pass, _): &mut (Box<dyn Pass>, f32)| {
            matches!(pass.linear_change(base), LinearChange::None)
        };
        LinearChange::opaque_if(!self.parts.iter_mut().all(none))
    }

    fn linear(&mut self, base: &Linear, x: Tensor<2>) -> Tensor<2> {
        self.linear_rows(base, x, Rows::Tokens)
    }

    fn linear_rows(&mut self, base: &Linear, x: Tensor<2>, rows: Rows) -> Tensor<2> {
        self.combine(base.forward(x.clone()), |pass| {
            pass.linear_rows(base, x.clone(), rows)
        })
    }

    fn norm_change(&mut self, _base: &Norm) -> NormChange {
        NormChange::Opaque
    }

    fn norm(&mut self, base: &Norm, x: Tensor<2>) -> Tensor<2> {
        self.norm_rows(base, x, Rows::Tokens)
    }

    fn norm_rows(&mut self, base: &Norm, x: Tensor<2>, rows: Rows) -> Tensor<2> {
        self.combine(NoAdapter.norm(base, x.clone()), |pass| {
            pass.norm_rows(base, x.clone(), rows)
        })
    }

    fn conv_change(&mut self, base: &Conv) -> ConvChange {
        let none = |(pass, _): &mut (Box<dyn Pass>, f32)| {
            matches!(pass.conv_change(base), ConvChange::None)
        };
        if self.parts.iter_mut().all(none) {
            return ConvChange::None;
        }
        let (weight, bias) = self.conv(base, Rows::Tokens);
        ConvChange::Parameters(weight, bias)
    }

    fn conv(&mut self, base: &Conv, rows: Rows) -> (Tensor<2>, Option<Tensor<1>>) {
        let weight = self.combine(base.weight.clone(), |pass| pass.conv(base, rows).0);
        let zeros = |of: &Tensor<1>| Tensor::zeros(of.dims(), &of.device());
        // A convolution without a bias may get one.
        let plain = base.bias.clone().or_else(|| {
            let given = |(pass, _): &mut (Box<dyn Pass>, f32)| pass.conv(base, rows).1;
            self.parts.iter_mut().find_map(given).as_ref().map(zeros)
        });
        let bias = plain.map(|plain| {
            self.combine(plain.clone(), |pass| {
                pass.conv(base, rows).1.unwrap_or_else(|| plain.clone())
            })
        });
        (weight, bias)
    }

    fn param_change(&mut self, base: &Param) -> ParamChange {
        let none = |(pass, _): &mut (Box<dyn Pass>, f32)| {
            matches!(pass.param_change(base), ParamChange::None)
        };
        if self.parts.iter_mut().all(none) {
            return ParamChange::None;
        }
        ParamChange::Value(self.param(base, Rows::Tokens))
    }

    fn param(&mut self, base: &Param, rows: Rows) -> Tensor<2> {
        self.combine(base.value.clone(), |pass| pass.param(base, rows))
    }

    fn attention(
        &mut self,
        layout: &SequenceLayout,
    ) -> Result<Option<AttentionControl>, ModelError> {
        refuse_control(self.parts.iter_mut().map(|(pass, _)| pass), layout)
    }

    fn beside_attention(&mut self, layer: usize, q: &Tensor<2>, scale: f32) -> Option<Tensor<2>> {
        self.parts
            .iter_mut()
            .filter_map(|(pass, weight)| Some(pass.beside_attention(layer, q, scale)? * *weight))
            .reduce(|sum, added| sum + added)
    }

    fn before_sub_layer(&mut self, layer: usize, kind: SubLayer, input: &Tensor<2>) {
        for (pass, _) in &mut self.parts {
            pass.before_sub_layer(layer, kind, input);
        }
    }

    fn sub_layer(&mut self, io: SubLayerIo<'_>) -> Tensor<2> {
        self.combine(io.output.clone(), |pass| pass.sub_layer(io.clone()))
    }

    fn after_block(&mut self, layer: usize, hidden_states: &Tensor<2>) {
        for (pass, _) in &mut self.parts {
            pass.after_block(layer, hidden_states);
        }
    }

    fn router_logits(
        &mut self,
        layer: usize,
        logits: &Tensor<2>,
        training: RouterTraining,
    ) -> Option<Tensor<2>> {
        let mut parts = self.parts.iter_mut();
        parts.find_map(|(pass, _)| pass.router_logits(layer, logits, training))
    }

    fn router(
        &mut self,
        layer: usize,
        probabilities: &Tensor<2>,
        chosen: &[usize],
        aux_loss_coef: f64,
    ) {
        for (pass, _) in &mut self.parts {
            pass.router(layer, probabilities, chosen, aux_loss_coef);
        }
    }

    fn trains_model(&self) -> bool {
        self.parts.iter().any(|(pass, _)| pass.trains_model())
    }

    fn model_loss(&mut self, term: Tensor<1>) {
        for (pass, _) in &mut self.parts {
            pass.model_loss(term.clone());
        }
    }

    fn balance(&mut self, bias: &Param, load: &[usize], rate: f64) {
        for (pass, _) in &mut self.parts {
            pass.balance(bias, load, rate);
        }
    }

    fn drop_path(&mut self, layer: usize, rate: f64, sequences: usize) -> Option<Vec<f32>> {
        let mut parts = self.parts.iter_mut();
        parts.find_map(|(pass, _)| pass.drop_path(layer, rate, sequences))
    }

    fn batch_statistics(&mut self, running: [&Param; 2], of_batch: [Tensor<1>; 2], momentum: f64) {
        for (pass, _) in &mut self.parts {
            pass.batch_statistics(running, of_batch.clone(), momentum);
        }
    }

    fn needs_token_rows(&self) -> bool {
        self.parts.iter().any(|(pass, _)| pass.needs_token_rows())
    }

    fn take_error(&mut self) -> Option<ModelError> {
        self.parts
            .iter_mut()
            .find_map(|(pass, _)| pass.take_error())
    }

    fn auxiliary_loss(&mut self) -> Option<Tensor<1>> {
        self.parts
            .iter_mut()
            .filter_map(|(pass, weight)| Some(pass.auxiliary_loss()? * *weight))
            .reduce(|sum, loss| sum + loss)
    }
}
