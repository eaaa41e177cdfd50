//! Giving a number for a text, or several.

use burn::prelude::*;
use frugal_core::metrics::RegressionReport;
use frugal_nn::{ModelError, to_vec};

use super::Objective;
use super::batch::{Forward, MicroBatch, ModelParts};
use super::meter::{Evaluation, Meter, Metric, named};
use crate::{Target, Tokenized};

/// The mean of squared differences over examples and outputs, as
/// `problem_type = "regression"` of transformers.
#[derive(Clone, Copy, Debug, Default)]
pub struct Regression;

fn values_of(example: &Tokenized) -> &[f32] {
    match &example.labels {
        Target::Values(values) => values,
        _ => &[],
    }
}

fn squares(outputs: Tensor<2>, examples: &[&Tokenized]) -> Tensor<1> {
    let gold: Vec<f32> = examples
        .iter()
        .flat_map(|e| values_of(e))
        .copied()
        .collect();
    let gold = TensorData::new(gold, outputs.dims());
    let gold = Tensor::<2>::from_data(gold, &outputs.device());
    let difference = outputs - gold;
    (difference.clone() * difference).sum()
}

impl Objective for Regression {
    fn name(&self) -> &'static str {
        "regression"
    }

    fn check_model(&self, model: ModelParts<'_>) -> Result<(), String> {
        model.needs_head("regression needs a")
    }

    fn check_example(&self, model: ModelParts<'_>, example: &Tokenized) -> Result<(), String> {
        let Target::Values(values) = &example.labels else {
            return Err("it has no number, which regression needs".into());
        };
        let outputs = model.outputs();
        if values.len() != outputs {
            return Err(format!(
                "it has {} numbers, but the head has {outputs} outputs",
                values.len()
            ));
        }
        match values.iter().find(|value| !value.is_finite()) {
            Some(value) => Err(format!("{value} is no number to learn")),
            None => Ok(()),
        }
    }

    fn num_targets(&self, model: ModelParts<'_>, _example: &Tokenized) -> f64 {
        model.outputs() as f64
    }

    fn loss(
        &self,
        examples: &[&Tokenized],
        forward: &mut Forward<'_>,
    ) -> Result<Tensor<1>, ModelError> {
        let outputs = MicroBatch::new(examples).head_logits(forward)?;
        Ok(squares(outputs, examples))
    }

    fn metrics(&self) -> &'static [Metric] {
        const METRICS: &[Metric] = &[
            Metric::smaller("mae"),
            Metric::smaller("mse"),
            Metric::larger("pearson"),
            Metric::larger("spearman"),
            Metric::smaller("loss"),
        ];
        METRICS
    }

    fn meter<'a>(&'a self, model: ModelParts<'a>) -> Box<dyn Meter + 'a> {
        Box::new(ValueMeter {
            outputs: model.outputs(),
            loss: 0.0,
            gold: Vec::new(),
            predicted: Vec::new(),
        })
    }
}

struct ValueMeter {
    outputs: usize,
    loss: f64,
    /// Output by output of one example after another.
    gold: Vec<f64>,
    predicted: Vec<f64>,
}

impl Meter for ValueMeter {
    fn add(
        &mut self,
        examples: &[&Tokenized],
        forward: &mut Forward<'_>,
    ) -> Result<(), ModelError> {
        let outputs = MicroBatch::new(examples).head_logits(forward)?;
        self.predicted
            .extend(to_vec(outputs.clone()).into_iter().map(f64::from));
        let gold = examples.iter().flat_map(|e| values_of(e));
        self.gold.extend(gold.map(|value| f64::from(*value)));
        self.loss += f64::from(to_vec(squares(outputs, examples))[0]);
        Ok(())
    }

    fn finish(self: Box<Self>) -> Evaluation {
        let report = RegressionReport::new(&self.gold, &self.predicted, self.outputs)
            .expect("every example was checked to have a number for each output");
        let metrics = [
            ("mae", report.mae),
            ("mse", report.mse),
            ("pearson", report.pearson),
            ("spearman", report.spearman),
            ("loss", self.loss / self.gold.len() as f64),
        ];
        let single = self.predicted.iter().map(|value| *value as f32);
        let values: Vec<f32> = single.collect();
        Evaluation {
            logits: values.chunks(self.outputs).map(<[f32]>::to_vec).collect(),
            metrics: named(metrics),
            targets: self.gold.len() / self.outputs,
            ..Evaluation::default()
        }
    }
}
