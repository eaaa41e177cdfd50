//! A pass with the trained weights in place of the model's.

use std::sync::PoisonError;

use burn::prelude::*;
use frugal_nn::{
    Conv, ConvChange, Embedding, Linear, LinearChange, Mode, Norm, NormChange, Param, ParamChange,
    Parameter, Pass, RouterTraining, lookup, named_rng, standard_normal,
};

use super::Full;
use crate::support::model_training::{MeanLoss, drop_path};

struct FullPass<'a> {
    adapter: &'a Full,
    mode: Mode,
    /// The load losses of the blocks so far.
    load: MeanLoss,
    /// The losses of the routers' logits.
    logits: MeanLoss,
    /// The terms of the model's own training so far.
    terms: Option<Tensor<1>>,
}

impl Full {
    /// A pass with its weights.
    pub(super) fn pass_of(&self, mode: Mode) -> Box<dyn Pass + '_> {
        Box::new(FullPass {
            adapter: self,
            mode,
            load: MeanLoss::default(),
            logits: MeanLoss::default(),
            terms: None,
        })
    }
}

impl FullPass<'_> {
    fn vector(&self, parameter: Option<&Parameter>) -> Option<Tensor<1>> {
        parameter.map(|p| p.get::<1>(self.mode))
    }
}

impl Pass for FullPass<'_> {
    fn embedding(&mut self, base: &Embedding, ids: &[u32]) -> Tensor<2> {
        match self.adapter.weight(base.site) {
            Some(weight) => lookup(weight.get::<2>(self.mode), ids),
            None => base.forward(ids),
        }
    }

    fn linear(&mut self, base: &Linear, x: Tensor<2>) -> Tensor<2> {
        if let Some(layer) = self.adapter.layer(base.site) {
            let bias = self.vector(self.adapter.bias(base.site));
            return layer.forward(x, bias, self.mode);
        }
        let x = match self.adapter.first(base.site) {
            Some(first) => frugal_kernels::linear(x, first.get::<2>(self.mode), None),
            None => x,
        };
        match self.adapter.weight(base.site) {
            Some(weight) => frugal_kernels::linear(
                x,
                weight.get::<2>(self.mode),
                self.vector(self.adapter.bias(base.site)),
            ),
            None => base.forward(x),
        }
    }

    fn linear_change(&mut self, base: &Linear) -> LinearChange {
        let bias = self.adapter.bias(base.site).is_some();
        if self.adapter.first(base.site).is_some() {
            return LinearChange::Opaque;
        }
        if let Some(layer) = self.adapter.layer(base.site) {
            return match layer.is_weight() && !bias {
                true => LinearChange::Weight(layer.weight(self.mode)),
                false => LinearChange::Opaque,
            };
        }
        match self.adapter.weight(base.site) {
            None => LinearChange::opaque_if(bias),
            Some(_) if bias => LinearChange::Opaque,
            Some(weight) => LinearChange::Weight(weight.get::<2>(self.mode)),
        }
    }

    /// Noise on the logits, and `mean (log Σ exp)²` of them without it (ST-MoE, arXiv 2202.08906,
    /// equation 5).
    fn router_logits(
        &mut self,
        layer: usize,
        logits: &Tensor<2>,
        training: RouterTraining,
    ) -> Option<Tensor<2>> {
        let Mode::Train { seed } = self.mode else {
            return None;
        };
        if training.z_loss_coef != 0.0 {
            let largest = logits.clone().max_dim(1).detach();
            let log_sum = (logits.clone() - largest.clone()).exp().sum_dim(1).log() + largest;
            let loss = (log_sum.clone() * log_sum).mean() * training.z_loss_coef;
            self.logits.add(loss);
        }
        if training.noise_std == 0.0 {
            return Some(logits.clone());
        }
        let mut rng = named_rng(seed, &format!("router noise {layer}"));
        let draw = || training.noise_std as f32 * standard_normal(&mut rng);
        let shape = logits.dims();
        let noise: Vec<f32> = std::iter::repeat_with(draw)
            .take(shape.iter().product())
            .collect();
        let device = logits.device().inner();
        Some(logits.clone() + Tensor::from_data(TensorData::new(noise, shape), &device))
    }

    /// `E Σ f P`, 1 under an even load: `f` is the share of the tokens' choices that fell on an
    /// expert, `P` its mean probability (Switch Transformers, arXiv 2101.03961, equations 4 to 6).
    fn router(
        &mut self,
        _layer: usize,
        probabilities: &Tensor<2>,
        chosen: &[usize],
        aux_loss_coef: f64,
    ) {
        if !self.mode.is_train() || aux_loss_coef == 0.0 {
            return;
        }
        let experts = probabilities.dims()[1];
        let mut share = vec![0.0f32; experts];
        chosen
            .iter()
            .for_each(|&e| share[e] += 1.0 / chosen.len() as f32);
        let share = Tensor::<2>::from_data(
            TensorData::new(share, [1, experts]),
            &probabilities.device().inner(),
        );
        let loss =
            (probabilities.clone().mean_dim(0) * share).sum() * (aux_loss_coef * experts as f64);
        self.load.add(loss);
    }

    fn trains_model(&self) -> bool {
        self.mode.is_train()
    }

    fn model_loss(&mut self, term: Tensor<1>) {
        self.terms = Some(match self.terms.take() {
            Some(sum) => sum + term,
            None => term,
        });
    }

    fn balance(&mut self, bias: &Param, load: &[usize], rate: f64) {
        let loads = self.adapter.loads.lock();
        let mut loads = loads.unwrap_or_else(PoisonError::into_inner);
        let (sum, last) = loads.entry(bias.site).or_default();
        sum.resize(load.len(), 0);
        sum.iter_mut().zip(load).for_each(|(sum, n)| *sum += n);
        *last = rate;
    }

    fn drop_path(&mut self, layer: usize, rate: f64, sequences: usize) -> Option<Vec<f32>> {
        match self.mode {
            Mode::Train { seed } => drop_path(seed, layer, rate, sequences),
            Mode::Eval => None,
        }
    }

    fn batch_statistics(&mut self, running: [&Param; 2], of_batch: [Tensor<1>; 2], momentum: f64) {
        self.adapter.statistics.add(running, of_batch, momentum);
    }

    fn auxiliary_loss(&mut self) -> Option<Tensor<1>> {
        [self.load.take(), self.logits.take(), self.terms.take()]
            .into_iter()
            .flatten()
            .reduce(|sum, term| sum + term)
    }

    fn conv_change(&mut self, base: &Conv) -> ConvChange {
        match self.adapter.conv(base, self.mode) {
            Some((weight, bias)) => ConvChange::Parameters(weight, bias),
            None => ConvChange::None,
        }
    }

    fn param_change(&mut self, base: &Param) -> ParamChange {
        match self.adapter.param(base, self.mode) {
            Some(value) => ParamChange::Value(value),
            None => ParamChange::None,
        }
    }

    fn norm_change(&mut self, base: &Norm) -> NormChange {
        let (weight, bias) = base.values();
        NormChange::Parameters(
            self.vector(self.adapter.weight(base.site))
                .unwrap_or(weight),
            self.vector(self.adapter.bias(base.site)).or(bias),
        )
    }
}
