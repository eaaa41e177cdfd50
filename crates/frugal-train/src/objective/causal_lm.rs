//! Predicting the target token at every position that has one.

use burn::prelude::*;
use frugal_kernels::{
    CrossEntropyOptions, IGNORE_INDEX, linear_cross_entropy, quantized_cross_entropy,
};
use frugal_nn::{LinearChange, ModelError, Rows, Weight, select_rows, to_vec};

use super::Objective;
use super::batch::{Forward, MicroBatch, ModelParts};
use super::cross_entropy::cross_entropy;
use super::meter::{Evaluation, Meter, Metric, named};
use crate::{Target, Tokenized};

/// Rows of vocabulary logits that are formed at a time in an evaluation.
pub(super) const LOGIT_ROWS: usize = 256;

/// Language modelling.
#[derive(Clone, Copy, Debug, Default)]
pub struct CausalLm {
    /// Share of the target probability that is spread evenly over the vocabulary.
    pub label_smoothing: f64,
}

impl Objective for CausalLm {
    fn name(&self) -> &'static str {
        "causal_lm"
    }

    fn check_model(&self, model: ModelParts<'_>) -> Result<(), String> {
        if model.backbone.lm_head().is_some() {
            return Ok(());
        }
        let why = model.backbone.info().why_no_head();
        Err(format!(
            "{why}; to train without one, give labels and a classification head"
        ))
    }

    fn check_example(&self, model: ModelParts<'_>, example: &Tokenized) -> Result<(), String> {
        let (tokens, vocab) = (example.input_ids.len(), model.backbone.info().vocab_size);
        let targets = match &example.labels {
            Target::Tokens(targets) => targets,
            Target::Class(_) => {
                return Err("it has a class, but language modelling needs target tokens".into());
            }
            Target::Preference { .. } => {
                return Err("it has a better and a worse answer, of which `dpo` learns: give `--set train.objective.name=dpo`".into());
            }
            _ => return Err("it has no target tokens, which language modelling needs".into()),
        };
        if targets.len() != tokens {
            return Err(format!("{} targets for {tokens} tokens", targets.len()));
        }
        let bad = targets
            .iter()
            .find(|&&t| t != IGNORE_INDEX && !(0..vocab as i64).contains(&i64::from(t)));
        bad.map_or(Ok(()), |t| {
            Err(format!("target {t} is outside the vocabulary of {vocab}"))
        })
    }

    fn num_targets(&self, _model: ModelParts<'_>, example: &Tokenized) -> f64 {
        example.trained() as f64
    }

    fn loss(
        &self,
        examples: &[&Tokenized],
        forward: &mut Forward<'_>,
    ) -> Result<Tensor<1>, ModelError> {
        let (hidden_states, _) = MicroBatch::new(examples).hidden_states(forward)?;
        Ok(self.loss_of(examples, hidden_states, forward))
    }

    fn loss_of_hidden(
        &self,
        examples: &[&Tokenized],
        hidden_states: Tensor<2>,
        forward: &mut Forward<'_>,
    ) -> Option<Tensor<1>> {
        Some(self.loss_of(examples, hidden_states, forward))
    }

    fn metrics(&self) -> &'static [Metric] {
        const METRICS: &[Metric] = &[Metric::smaller("perplexity"), Metric::smaller("loss")];
        METRICS
    }

    fn meter<'a>(&'a self, _model: ModelParts<'a>) -> Box<dyn Meter + 'a> {
        Box::new(TokenMeter {
            objective: *self,
            loss: 0.0,
            targets: 0,
        })
    }
}

impl CausalLm {
    fn loss_of(
        &self,
        examples: &[&Tokenized],
        hidden_states: Tensor<2>,
        forward: &mut Forward<'_>,
    ) -> Tensor<1> {
        let mut targets = Vec::with_capacity(hidden_states.dims()[0]);
        for example in examples {
            if let Target::Tokens(of_example) = &example.labels {
                targets.extend(of_example);
            }
        }
        let (smoothing, max_rows) = if forward.mode.is_train() {
            (self.label_smoothing, usize::MAX)
        } else {
            (0.0, LOGIT_ROWS)
        };
        token_loss(hidden_states, &targets, forward, smoothing, max_rows)
    }
}

struct TokenMeter {
    objective: CausalLm,
    loss: f64,
    targets: usize,
}

impl Meter for TokenMeter {
    fn add(
        &mut self,
        examples: &[&Tokenized],
        forward: &mut Forward<'_>,
    ) -> Result<(), ModelError> {
        let sum = self.objective.loss(examples, forward)?;
        self.loss += f64::from(to_vec(sum)[0]);
        self.targets += examples.iter().map(|e| e.trained()).sum::<usize>();
        Ok(())
    }

    fn finish(self: Box<Self>) -> Evaluation {
        let loss = self.loss / self.targets as f64;
        Evaluation {
            metrics: named([("perplexity", loss.exp()), ("loss", loss)]),
            targets: self.targets,
            ..Evaluation::default()
        }
    }
}

/// Forms at most `max_rows` rows of logits at a time.
pub(super) fn token_loss(
    hidden_states: Tensor<2>,
    targets: &[i32],
    Forward { model, pass, .. }: &mut Forward<'_>,
    label_smoothing: f64,
    max_rows: usize,
) -> Tensor<1> {
    let backbone = model.backbone;
    let head = backbone
        .lm_head()
        .expect("a run checks first that the model has an output head");
    let rows: Vec<usize> = (0..targets.len())
        .filter(|&i| targets[i] != IGNORE_INDEX)
        .collect();
    let options = CrossEntropyOptions {
        label_smoothing: label_smoothing as f32,
        logit_softcap: backbone
            .info()
            .final_logit_softcapping
            .map(|cap| cap as f32),
        ..CrossEntropyOptions::default()
    };
    let change = pass.linear_change(head);
    let packed = match (&head.weight, &change) {
        (Weight::Packed { packed, .. }, LinearChange::None) => Some(packed),
        _ => None,
    };
    let weight = if packed.is_some() {
        None
    } else {
        change.weight(head)
    };
    let parts = rows.chunks(max_rows.max(1)).map(|rows| {
        let targets: Vec<i32> = rows.iter().map(|&i| targets[i]).collect();
        let hidden_states = select_rows(hidden_states.clone(), rows);
        // The path by `logits` scales by itself.
        let scaled = |states| backbone.info().scaled_for_head(states);
        if let Some(packed) = packed {
            return quantized_cross_entropy(
                scaled(hidden_states),
                packed,
                head.bias.clone(),
                &targets,
                &options,
            );
        }
        match &weight {
            Some(weight) => linear_cross_entropy(
                scaled(hidden_states),
                weight.clone(),
                head.bias.clone(),
                &targets,
                &options,
            ),
            None => {
                let logits = backbone
                    .logits(hidden_states, Rows::Chosen, *pass)
                    .expect("the output head was there just before");
                cross_entropy(logits, &targets, label_smoothing)
            }
        }
    });
    parts
        .reduce(|sum, part| sum + part)
        .expect("batches without any target are not made")
}
