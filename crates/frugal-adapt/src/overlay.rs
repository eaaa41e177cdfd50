//! What an adapter file trains beside its method: copies of the base's own modules
//! (`modules_to_save`), its biases (`bias`), and rows of its tables (`trainable_token_indices`).
//!
//! The method acts on a base whose parameters are these.

mod values;

use std::collections::BTreeMap;

use burn::prelude::*;
use frugal_nn::seam::derived_cache::DerivedCache;
use frugal_nn::{
    AdaptError, Adapter, AttentionControl, AttentionScores, BlockAction, BuildContext, Conv,
    ConvChange, Embedding, GradientSum, KeyValue, Linear, LinearChange, MergedLinear, Mode, Norm,
    NormChange, Param, ParamChange, Parameter, Pass, RouterTraining, Rows, SequenceLayout, SiteId,
    SiteKind, StepContext, SubLayer, SubLayerIo, Weight,
};
use serde_json::{Map, Value};

use crate::methods::sparse::trainable_tokens::TrainableTokens;
use values::values_of;
pub(crate) use values::{Wanted, matrix_of, stored_shape};

/// Trained copies of one site's own parameters.
#[derive(Clone, Default)]
struct Saved {
    /// In the layout of files: transposed for GPT-2, without the offset of Gemma's norms.
    weight: Option<Parameter>,
    bias: Option<Parameter>,
    transposed: bool,
}

/// A method on a base with trained parameters of its own.
pub(crate) struct Overlay {
    inner: Box<dyn Adapter>,
    /// Indexed by site.
    saved: Vec<Saved>,
    tokens: Vec<TrainableTokens>,
    fields: Map<String, Value>,
}

impl Overlay {
    /// Copies the base's parameters.
    ///
    /// # Errors
    /// Token ids outside a table.
    pub fn new(
        inner: Box<dyn Adapter>,
        wanted: Wanted,
        context: &BuildContext<'_>,
    ) -> Result<Self, AdaptError> {
        let mut saved = vec![Saved::default(); context.sites.len()];
        let mut values = values_of(context, &wanted);
        for id in &wanted.modules {
            saved[id.index()] = module(context, *id, values.remove(id).unwrap_or_default());
        }
        for (id, key) in wanted.biases {
            let info = context.sites.info(id);
            let value = values.remove(&id).and_then(|(_, bias)| bias);
            let value = value.unwrap_or_else(|| vec![0.0; info.d_out]);
            saved[id.index()].bias =
                Some(Parameter::new(key, &[info.d_out], value, &context.device));
        }
        let mut tokens = Vec::new();
        let named: Vec<SiteId> = wanted.tokens.iter().map(|(id, _)| *id).collect();
        for (id, ids) in wanted.tokens {
            tokens.push(TrainableTokens::beside(id, ids, &named, context)?);
        }
        Ok(Self {
            inner,
            saved,
            tokens,
            fields: wanted.fields,
        })
    }

    fn saved(&self, site: SiteId) -> Option<&Saved> {
        self.saved
            .get(site.index())
            .filter(|s| s.weight.is_some() || s.bias.is_some())
    }

    fn tokens_at(&self, site: SiteId) -> Option<&TrainableTokens> {
        self.tokens.iter().find(|tokens| tokens.acts_on(site))
    }

    fn touches(&self, site: SiteId) -> bool {
        self.saved(site).is_some() || self.tokens_at(site).is_some()
    }

    /// The linear layer with its trained parameters.
    fn linear(&self, base: &Linear, mode: Mode) -> Option<Linear> {
        let saved = self.saved(base.site)?;
        let mut linear = base.clone();
        if let Some(weight) = &saved.weight {
            let weight = weight.get::<2>(mode);
            linear.weight = Weight::Dense(if saved.transposed {
                weight.transpose()
            } else {
                weight
            });
        }
        if let Some(bias) = &saved.bias {
            linear.bias = Some(bias.get::<1>(mode));
        }
        Some(linear)
    }

    fn embedding(&self, base: &Embedding, mode: Mode) -> Option<Embedding> {
        let weight = self.saved(base.site)?.weight.as_ref()?;
        Some(Embedding {
            site: base.site,
            weight: Weight::Dense(weight.get::<2>(mode)),
        })
    }

    fn norm(&self, base: &Norm, mode: Mode) -> Option<Norm> {
        let saved = self.saved(base.site)?;
        let mut norm = base.clone();
        if let Some(weight) = &saved.weight {
            norm.weight = weight.get::<1>(mode) + base.stored_offset;
        }
        if let Some(bias) = &saved.bias {
            norm.bias = Some(bias.get::<1>(mode));
        }
        Some(norm)
    }

    fn conv(&self, base: &Conv, mode: Mode) -> Option<Conv> {
        let saved = self.saved(base.site)?;
        let mut conv = base.clone();
        if let Some(weight) = &saved.weight {
            let weight = weight.get::<3>(mode);
            let [d, _, k] = weight.dims();
            conv.weight = weight.reshape([d, k]);
        }
        if let Some(bias) = &saved.bias {
            conv.bias = Some(bias.get::<1>(mode));
        }
        Some(conv)
    }

    fn param(&self, base: &Param, mode: Mode) -> Option<Param> {
        let value = self.saved(base.site)?.weight.as_ref()?;
        Some(Param {
            site: base.site,
            value: matrix_of(value, mode),
        })
    }
}

fn module(
    context: &BuildContext<'_>,
    id: SiteId,
    (weight, bias): (Vec<f32>, Option<Vec<f32>>),
) -> Saved {
    let info = context.sites.info(id);
    let shape = stored_shape(context.sites, id);
    let len: usize = shape.iter().product();
    let weight = if weight.len() == len {
        weight
    } else {
        vec![0.0; len]
    };
    let parameter = |name: String, shape: &[usize], values| {
        Parameter::new(name, shape, values, &context.device)
    };
    let bias = info
        .has_bias
        .then(|| bias.unwrap_or_else(|| vec![0.0; info.d_out]));
    Saved {
        weight: Some(parameter(info.weight_name(), &shape, weight)),
        bias: bias.map(|values| parameter(format!("{}.bias", info.path), &[info.d_out], values)),
        transposed: info.kind == SiteKind::Conv1d,
    }
}

struct OverlayPass<'a> {
    overlay: &'a Overlay,
    inner: Box<dyn Pass + 'a>,
    mode: Mode,
}

impl Pass for OverlayPass<'_> {
    fn embed(&mut self, hidden_states: Tensor<2>, layout: &mut SequenceLayout) -> Tensor<2> {
        self.inner.embed(hidden_states, layout)
    }

    fn embedding(&mut self, base: &Embedding, ids: &[u32]) -> Tensor<2> {
        if let Some(tokens) = self.overlay.tokens_at(base.site) {
            // A method may look at the ids.
            self.inner.embedding(base, ids);
            return tokens.pass(self.mode).embedding(base, ids);
        }
        match self.overlay.embedding(base, self.mode) {
            Some(own) => self.inner.embedding(&own, ids),
            None => self.inner.embedding(base, ids),
        }
    }

    fn linear(&mut self, base: &Linear, x: Tensor<2>) -> Tensor<2> {
        if let Some(tokens) = self.overlay.tokens_at(base.site) {
            return tokens.pass(self.mode).linear(base, x);
        }
        match self.overlay.linear(base, self.mode) {
            Some(own) => self.inner.linear(&own, x),
            None => self.inner.linear(base, x),
        }
    }

    fn linear_rows(&mut self, base: &Linear, x: Tensor<2>, rows: Rows) -> Tensor<2> {
        if let Some(tokens) = self.overlay.tokens_at(base.site) {
            return tokens.pass(self.mode).linear_rows(base, x, rows);
        }
        match self.overlay.linear(base, self.mode) {
            Some(own) => self.inner.linear_rows(&own, x, rows),
            None => self.inner.linear_rows(base, x, rows),
        }
    }

    fn linear_change(&mut self, base: &Linear) -> LinearChange {
        if let Some(tokens) = self.overlay.tokens_at(base.site) {
            return tokens.pass(self.mode).linear_change(base);
        }
        let Some(own) = self.overlay.linear(base, self.mode) else {
            return self.inner.linear_change(base);
        };
        match self.inner.linear_change(&own) {
            // The caller adds the base's bias.
            _ if own.bias.is_some() => LinearChange::Opaque,
            LinearChange::None => LinearChange::Weight(own.weight.dense()),
            LinearChange::Weight(weight) => LinearChange::Weight(weight),
            LinearChange::LowRank(_) | LinearChange::Opaque => LinearChange::Opaque,
        }
    }

    fn embedding_rows(&mut self, base: &Embedding, ids: &[u32], rows: Rows) -> Tensor<2> {
        if let Some(tokens) = self.overlay.tokens_at(base.site) {
            self.inner.embedding_rows(base, ids, rows);
            return tokens.pass(self.mode).embedding_rows(base, ids, rows);
        }
        match self.overlay.embedding(base, self.mode) {
            Some(own) => self.inner.embedding_rows(&own, ids, rows),
            None => self.inner.embedding_rows(base, ids, rows),
        }
    }

    fn norm_rows(&mut self, base: &Norm, x: Tensor<2>, rows: Rows) -> Tensor<2> {
        match self.overlay.norm(base, self.mode) {
            Some(own) => self.inner.norm_rows(&own, x, rows),
            None => self.inner.norm_rows(base, x, rows),
        }
    }

    fn norm(&mut self, base: &Norm, x: Tensor<2>) -> Tensor<2> {
        match self.overlay.norm(base, self.mode) {
            Some(own) => self.inner.norm(&own, x),
            None => self.inner.norm(base, x),
        }
    }

    fn norm_change(&mut self, base: &Norm) -> NormChange {
        let Some(own) = self.overlay.norm(base, self.mode) else {
            return self.inner.norm_change(base);
        };
        match self.inner.norm_change(&own) {
            NormChange::None => {
                let (weight, bias) = own.values();
                NormChange::Parameters(weight, bias)
            }
            change => change,
        }
    }

    fn conv_change(&mut self, base: &Conv) -> ConvChange {
        let Some(own) = self.overlay.conv(base, self.mode) else {
            return self.inner.conv_change(base);
        };
        match self.inner.conv_change(&own) {
            ConvChange::None => {
                let (weight, bias) = own.values();
                ConvChange::Parameters(weight, bias)
            }
            change => change,
        }
    }

    fn conv(&mut self, base: &Conv, rows: Rows) -> (Tensor<2>, Option<Tensor<1>>) {
        match self.overlay.conv(base, self.mode) {
            Some(own) => self.inner.conv(&own, rows),
            None => self.inner.conv(base, rows),
        }
    }

    fn param_change(&mut self, base: &Param) -> ParamChange {
        let Some(own) = self.overlay.param(base, self.mode) else {
            return self.inner.param_change(base);
        };
        match self.inner.param_change(&own) {
            ParamChange::None => ParamChange::Value(own.value),
            change => change,
        }
    }

    fn param(&mut self, base: &Param, rows: Rows) -> Tensor<2> {
        match self.overlay.param(base, self.mode) {
            Some(own) => self.inner.param(&own, rows),
            None => self.inner.param(base, rows),
        }
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

impl Adapter for Overlay {
    fn method(&self) -> &'static str {
        self.inner.method()
    }

    fn parameters(&self) -> Vec<&Parameter> {
        let saved = self
            .saved
            .iter()
            .flat_map(|s| s.weight.iter().chain(&s.bias));
        let tokens = self.tokens.iter().flat_map(|t| t.parameters());
        self.inner
            .parameters()
            .into_iter()
            .chain(saved)
            .chain(tokens)
            .collect()
    }

    fn parameters_mut(&mut self) -> Vec<&mut Parameter> {
        let saved = self
            .saved
            .iter_mut()
            .flat_map(|s| s.weight.iter_mut().chain(&mut s.bias));
        let tokens = self.tokens.iter_mut().flat_map(|t| t.parameters_mut());
        self.inner
            .parameters_mut()
            .into_iter()
            .chain(saved)
            .chain(tokens)
            .collect()
    }

    fn probes(&self) -> Vec<&Parameter> {
        self.inner.probes()
    }

    fn wants_examples(&self) -> bool {
        self.inner.wants_examples()
    }

    fn after_example(&mut self, targets: usize, gradients: &mut GradientSum) {
        self.inner.after_example(targets, gradients);
    }

    fn pass(&self, mode: Mode) -> Box<dyn Pass + '_> {
        Box::new(OverlayPass {
            overlay: self,
            inner: self.inner.pass(mode),
            mode,
        })
    }

    fn cached_pass<'a>(&'a self, kept: &'a DerivedCache) -> Box<dyn Pass + 'a> {
        Box::new(OverlayPass {
            overlay: self,
            inner: self.inner.cached_pass(kept),
            mode: Mode::Eval,
        })
    }

    fn peft_config(&self) -> Map<String, Value> {
        let mut config = self.inner.peft_config();
        config.extend(self.fields.clone());
        config
    }

    fn weight_delta(&self, base: &Linear) -> Result<Option<Tensor<2>>, AdaptError> {
        let merged = self.merged_linear(base)?;
        Ok(merged.map(|merged| merged.weight - base.weight.dense()))
    }

    fn merged_factors(&self, base: &Linear) -> Option<[Tensor<2>; 2]> {
        match self.tokens_at(base.site).is_some() || self.linear(base, Mode::Eval).is_some() {
            true => None,
            false => self.inner.merged_factors(base),
        }
    }

    fn merged_linear(&self, base: &Linear) -> Result<Option<MergedLinear>, AdaptError> {
        if let Some(tokens) = self.tokens_at(base.site) {
            return tokens.merged_linear(base);
        }
        let Some(own) = self.linear(base, Mode::Eval) else {
            return self.inner.merged_linear(base);
        };
        let merged = self.inner.merged_linear(&own)?;
        Ok(Some(merged.unwrap_or_else(|| MergedLinear {
            weight: own.weight.dense(),
            bias: own.bias,
        })))
    }

    fn materializes_weight(&self, base: &Linear) -> bool {
        !self.touches(base.site) && self.inner.materializes_weight(base)
    }

    fn materializes_embedding(&self, base: &Embedding) -> bool {
        !self.touches(base.site) && self.inner.materializes_embedding(base)
    }

    fn unmerged_linear(&self, merged: &Linear) -> Result<Option<MergedLinear>, AdaptError> {
        if !self.touches(merged.site) {
            return self.inner.unmerged_linear(merged);
        }
        Err(AdaptError::Unsupported {
            method: self.method(),
            action: "be taken out again",
            reason: "it replaced parameters of the base; load the base model".into(),
        })
    }

    fn merged_embedding(&self, base: &Embedding) -> Option<Tensor<2>> {
        if let Some(tokens) = self.tokens_at(base.site) {
            return tokens.merged_embedding(base);
        }
        let Some(own) = self.embedding(base, Mode::Eval) else {
            return self.inner.merged_embedding(base);
        };
        let merged = self.inner.merged_embedding(&own);
        Some(merged.unwrap_or_else(|| own.weight.dense()))
    }

    fn merged_norm(&self, base: &Norm) -> Option<(Tensor<1>, Option<Tensor<1>>)> {
        let Some(own) = self.norm(base, Mode::Eval) else {
            return self.inner.merged_norm(base);
        };
        self.inner.merged_norm(&own).or_else(|| Some(own.values()))
    }

    fn merged_conv(&self, base: &Conv) -> Option<(Tensor<2>, Option<Tensor<1>>)> {
        let Some(own) = self.conv(base, Mode::Eval) else {
            return self.inner.merged_conv(base);
        };
        self.inner.merged_conv(&own).or_else(|| Some(own.values()))
    }

    fn merged_param(&self, base: &Param) -> Option<Tensor<2>> {
        let Some(own) = self.param(base, Mode::Eval) else {
            return self.inner.merged_param(base);
        };
        self.inner.merged_param(&own).or(Some(own.value))
    }

    fn before_step(&mut self, context: &StepContext, gradients: &mut GradientSum) {
        self.inner.before_step(context, gradients);
    }

    fn after_step(&mut self, context: &StepContext) {
        self.inner.after_step(context);
    }

    fn state(&self) -> BTreeMap<String, Vec<f32>> {
        self.inner.state()
    }

    fn restore(&mut self, state: &BTreeMap<String, Vec<f32>>) -> Result<(), String> {
        self.inner.restore(state)
    }

    fn to_inference(&self) -> Option<Box<dyn Adapter>> {
        let inner = self.inner.to_inference()?;
        Some(Box::new(Self {
            inner,
            saved: self.saved.clone(),
            tokens: self.tokens.clone(),
            fields: self.fields.clone(),
        }))
    }

    fn is_complete(&self) -> bool {
        self.inner.is_complete()
    }

    fn needs_trainer(&self) -> bool {
        self.inner.needs_trainer()
    }

    fn supports_mixed_batch(&self) -> bool {
        self.inner.supports_mixed_batch()
    }
}
