//! Objectives over vectors of texts: what they have in common.

use std::sync::Arc;

use burn::prelude::*;
use frugal_nn::{Mode, ModelError, named_rng, no_grad, to_vec};
use rand::Rng;
use serde::Deserialize;
use serde_json::{Map, Value};

use super::embedding_meter::VectorMeter;
use super::readout::{MeanOfTokens, Readout};
use super::text_sets::{TextSet, TextSets};
use super::vector_loss::{Kind, VectorLoss};
use super::{Forward, Meter, Metric, MicroBatch, MicroStep, ModelParts, Objective, StepError};
use crate::{Target, Tokenized};

/// Settings that all losses over vectors have.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct EmbeddingConfig {
    /// Examples that the model computes together, where a batch is larger: the gradient is that of
    /// the whole batch with the memory of this many examples (GradCache); 0 for all at once.
    pub mini_batch_size: usize,
    /// Widths to which vectors may be cut later (Matryoshka); empty for the whole vectors alone.
    pub matryoshka_dims: Vec<usize>,
    /// What the loss of each width counts; 1 if absent.
    pub matryoshka_weights: Vec<f64>,
}

impl EmbeddingConfig {
    const KEYS: [&'static str; 3] = ["mini_batch_size", "matryoshka_dims", "matryoshka_weights"];

    /// Takes its settings out of those of an objective.
    ///
    /// # Errors
    /// Values of another kind; weights that do not go with the widths.
    pub fn take(settings: &mut Map<String, Value>) -> Result<Self, String> {
        let own = Self::KEYS.iter().filter_map(|key| {
            let value = settings.shift_remove(*key)?;
            Some(((*key).to_owned(), value))
        });
        let own = Value::Object(own.collect());
        let config: Self = serde_json::from_value(own).map_err(|e| e.to_string())?;
        let (dims, weights) = (&config.matryoshka_dims, &config.matryoshka_weights);
        if dims.contains(&0) {
            return Err("`matryoshka_dims`: a width is at least 1".into());
        }
        if !weights.is_empty() && weights.len() != dims.len() {
            return Err(format!(
                "`matryoshka_weights`: {} given for {} `matryoshka_dims`",
                weights.len(),
                dims.len()
            ));
        }
        if weights.iter().any(|w| !w.is_finite() || *w < 0.0) {
            return Err("`matryoshka_weights`: each must be at least 0".into());
        }
        Ok(config)
    }
}

/// An objective over vectors of texts.
pub struct Embedding<L> {
    loss: L,
    config: EmbeddingConfig,
    readout: Arc<dyn Readout>,
    batch_size: usize,
}

impl<L: VectorLoss> Embedding<L> {
    /// With vectors that are the mean of their tokens until [`Objective::set_readout`] says
    /// otherwise; `batch_size` is that of training, by which the loss is measured too.
    pub fn new(loss: L, config: EmbeddingConfig, batch_size: usize) -> Self {
        Self {
            loss,
            config,
            readout: Arc::new(MeanOfTokens),
            batch_size: batch_size.max(1),
        }
    }

    /// Vectors `[texts, dimension]`, by example.
    fn vectors(
        &self,
        examples: &[&Tokenized],
        forward: &mut Forward<'_>,
    ) -> Result<Tensor<2>, ModelError> {
        let (hidden, layout) = MicroBatch::new(examples).hidden_states(forward)?;
        Ok(self.readout.vectors(hidden, &layout))
    }

    /// The loss of vectors, at each of the widths.
    fn of(&self, examples: &TextSets<'_>) -> Tensor<1> {
        let dims = &self.config.matryoshka_dims;
        let weight = |i: usize| self.config.matryoshka_weights.get(i).copied();
        let parts = dims.iter().enumerate().map(|(i, dimension)| {
            self.loss.loss(&examples.truncated(*dimension)) * weight(i).unwrap_or(1.0)
        });
        parts
            .reduce(|sum, part| sum + part)
            .unwrap_or_else(|| self.loss.loss(examples))
    }

    fn of_examples(&self, examples: &[&Tokenized], vectors: Tensor<2>) -> Tensor<1> {
        let sets: Vec<TextSet> = examples.iter().map(|e| TextSet::of(e)).collect();
        self.of(&TextSets {
            vectors,
            sets: &sets,
        })
    }

    /// The gradient of a batch in parts: vectors without a graph, the slope of the loss at them,
    /// and the parts once more, each with its share of the slope (Gao et al. 2021, GradCache).
    fn accumulate_in_parts(&self, step: &mut MicroStep<'_>) -> Result<f64, StepError> {
        let examples = step.examples;
        let parts: Vec<&[&Tokenized]> = examples.chunks(self.config.mini_batch_size).collect();
        let Mode::Train { seed } = step.mode() else {
            return Err(StepError::NonFinite);
        };
        let mode_of = |part: usize| Mode::Train {
            seed: named_rng(seed, &format!("part {part}")).random(),
        };
        let mut vectors = Vec::with_capacity(parts.len());
        for (i, part) in parts.iter().enumerate() {
            let mut pass = step.pass(mode_of(i));
            let work = || step.forward(pass.as_mut(), mode_of(i), |f| self.vectors(part, f));
            let found = no_grad(work)?;
            if let Some(source) = pass.take_error() {
                return Err(StepError::Forward(source));
            }
            vectors.push(found.inner());
        }
        let leaf = Tensor::cat(vectors, 0).autodiff().require_grad();
        let loss = self.of_examples(examples, leaf.clone()) / step.targets;
        let value = to_vec(loss.clone().inner())[0];
        if !value.is_finite() {
            return Err(StepError::NonFinite);
        }
        let gradients = loss.backward();
        let Some(slope) = leaf.grad(&gradients) else {
            return Ok(f64::from(value));
        };
        drop(gradients);
        let (mut start, width) = (0, slope.dims()[1]);
        let mut auxiliary = 0.0;
        for (i, part) in parts.iter().enumerate() {
            let mut pass = step.pass(mode_of(i));
            let found = step.forward(pass.as_mut(), mode_of(i), |f| self.vectors(part, f))?;
            let end = start + found.dims()[0];
            let share = slope.clone().slice([start..end, 0..width]);
            auxiliary +=
                step.backward_part((found * Tensor::from_inner(share)).sum(), pass, parts.len())?;
            start = end;
        }
        Ok(f64::from(value) + auxiliary)
    }
}

impl<L: VectorLoss> Objective for Embedding<L> {
    fn name(&self) -> &'static str {
        self.loss.name()
    }

    fn set_readout(&mut self, readout: Arc<dyn Readout>) {
        self.readout = readout;
    }

    fn check_model(&self, model: ModelParts<'_>) -> Result<(), String> {
        if model.head.is_some() {
            return Err(format!(
                "`{}` learns vectors of texts, and has no use for a head",
                self.name()
            ));
        }
        let width = self.readout.dimension(model.backbone.info().hidden_size);
        match self.config.matryoshka_dims.iter().find(|d| **d > width) {
            None => Ok(()),
            Some(dimension) => Err(format!(
                "`matryoshka_dims`: {dimension} given, but the vectors have {width} numbers"
            )),
        }
    }

    fn check_example(&self, _model: ModelParts<'_>, example: &Tokenized) -> Result<(), String> {
        let Target::Texts { lengths, scores } = &example.labels else {
            return Err(format!(
                "it is one text, but `{}` learns from several that belong together",
                self.name()
            ));
        };
        if lengths.contains(&0) || lengths.iter().sum::<usize>() != example.input_ids.len() {
            return Err("a text has no tokens, or the lengths do not add up".into());
        }
        if scores.iter().any(|score| !score.is_finite()) {
            return Err("a score is no number".into());
        }
        self.loss.check(lengths.len(), scores)
    }

    fn needs_others(&self, example: &Tokenized) -> bool {
        match &example.labels {
            Target::Texts { lengths, .. } => self.loss.needs_others(lengths.len()),
            _ => false,
        }
    }

    fn num_targets(&self, _model: ModelParts<'_>, _example: &Tokenized) -> f64 {
        1.0
    }

    fn loss(
        &self,
        examples: &[&Tokenized],
        forward: &mut Forward<'_>,
    ) -> Result<Tensor<1>, ModelError> {
        let vectors = self.vectors(examples, forward)?;
        Ok(self.of_examples(examples, vectors))
    }

    fn loss_of_outputs(&self, examples: &[&Tokenized], outputs: Tensor<2>) -> Option<Tensor<1>> {
        Some(self.of_examples(examples, outputs))
    }

    fn accumulate(&self, step: &mut MicroStep<'_>) -> Result<f64, StepError> {
        let at_once = self.config.mini_batch_size;
        if at_once > 0 && step.examples.len() > at_once {
            return self.accumulate_in_parts(step);
        }
        let mode = step.mode();
        let (mut pass, examples) = (step.pass(mode), step.examples);
        let sum = step.forward(pass.as_mut(), mode, |forward| self.loss(examples, forward))?;
        step.backward(sum, pass)
    }

    fn metrics(&self) -> &'static [Metric] {
        const RANKED: &[Metric] = &[
            Metric::larger("accuracy@1"),
            Metric::larger("mrr@10"),
            Metric::larger("ndcg@10"),
            Metric::smaller("loss"),
        ];
        const SCORED: &[Metric] = &[
            Metric::larger("pearson"),
            Metric::larger("spearman"),
            Metric::smaller("loss"),
        ];
        match self.loss.kind() {
            Kind::Ranked | Kind::Taught => RANKED,
            Kind::Scored => SCORED,
        }
    }

    fn meter<'a>(&'a self, _model: ModelParts<'a>) -> Box<dyn Meter + 'a> {
        Box::new(VectorMeter::new(
            &self.loss,
            self.batch_size,
            Box::new(|examples, forward| self.vectors(examples, forward)),
            Box::new(|sets| self.of(sets)),
        ))
    }
}
