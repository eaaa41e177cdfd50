//! Telling which labels a text has, of which there may be several, or none.

use burn::prelude::*;
use burn::tensor::activation::relu;
use frugal_core::metrics::MultiLabelReport;
use frugal_nn::{ModelError, to_vec};
use serde::{Deserialize, Serialize};

use super::Objective;
use super::batch::{Forward, MicroBatch, ModelParts};
use super::label_weights::LabelWeights;
use super::meter::{Evaluation, Meter, Metric, named};
use crate::{Target, Tokenized};

/// Settings of [`MultiLabel`].
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MultiLabelConfig {
    /// How much it counts that a label holds, in relation to that it does not; `balanced` is the
    /// examples without it for each one with it.
    #[serde(alias = "class_weights")]
    pub pos_weight: Option<LabelWeights>,
}

/// Binary cross-entropy of each label, as `torch.nn.BCEWithLogitsLoss`: the mean is over examples
/// and labels.
#[derive(Clone, Debug, Default)]
pub struct MultiLabel {
    /// Its settings.
    pub config: MultiLabelConfig,
    /// The weight of each label; empty where all weigh 1.
    pos_weight: Vec<f32>,
}

impl MultiLabel {
    /// With these settings.
    pub fn new(config: MultiLabelConfig) -> Self {
        Self {
            config,
            pos_weight: Vec::new(),
        }
    }

    /// The loss of each row's labels, summed.
    fn sum(&self, logits: Tensor<2>, examples: &[&Tokenized], weighted: bool) -> Tensor<1> {
        let [rows, labels] = logits.dims();
        let device = logits.device();
        let (mut holds, mut lacks) = (vec![0.0f32; rows * labels], vec![1.0f32; rows * labels]);
        for (row, example) in examples.iter().enumerate() {
            for &class in classes_of(example) {
                let weight = self.pos_weight.get(class).filter(|_| weighted);
                holds[row * labels + class] = weight.copied().unwrap_or(1.0);
                lacks[row * labels + class] = 0.0;
            }
        }
        let matrix =
            |values| Tensor::<2>::from_data(TensorData::new(values, [rows, labels]), &device);
        // ln(1 + e^-|x|), which both -ln σ(x) and -ln σ(-x) have beside a part of x.
        let common = logits.clone().abs().neg().exp().log1p();
        let of_one = common.clone() + relu(-logits.clone());
        let of_none = common + relu(logits);
        (of_one * matrix(holds) + of_none * matrix(lacks)).sum()
    }
}

fn classes_of(example: &Tokenized) -> &[usize] {
    match &example.labels {
        Target::Classes(classes) => classes,
        _ => &[],
    }
}

/// Examples without a label for each one with it; 1 for a label that does not occur.
fn balanced(labels: usize, train: &[Tokenized]) -> Vec<f32> {
    let mut counts = vec![0usize; labels];
    for class in train.iter().flat_map(classes_of) {
        counts[*class] += 1;
    }
    let weight = |count: usize| match count {
        0 => 1.0,
        _ => ((train.len() - count) as f64 / count as f64) as f32,
    };
    counts.into_iter().map(weight).collect()
}

impl Objective for MultiLabel {
    fn name(&self) -> &'static str {
        "multi_label"
    }

    fn check_model(&self, model: ModelParts<'_>) -> Result<(), String> {
        model.needs_head("multi-label classification needs a classification")
    }

    fn check_example(&self, model: ModelParts<'_>, example: &Tokenized) -> Result<(), String> {
        let Target::Classes(classes) = &example.labels else {
            return Err("it has no list of labels, which multi-label classification needs".into());
        };
        let labels = model.outputs();
        if let Some(class) = classes.iter().find(|class| **class >= labels) {
            return Err(format!("label {class}, but the head has {labels} labels"));
        }
        match classes.windows(2).find(|pair| pair[0] >= pair[1]) {
            Some(pair) => Err(format!("label {} comes twice or out of order", pair[1])),
            None => Ok(()),
        }
    }

    fn fit(&mut self, model: ModelParts<'_>, train: &[Tokenized]) -> Result<(), String> {
        if let Some(weights) = &self.config.pos_weight {
            let balanced = || balanced(model.outputs(), train);
            self.pos_weight = weights.for_labels(model.labels(), balanced)?;
        }
        Ok(())
    }

    fn num_targets(&self, model: ModelParts<'_>, _example: &Tokenized) -> f64 {
        model.outputs() as f64
    }

    fn loss(
        &self,
        examples: &[&Tokenized],
        forward: &mut Forward<'_>,
    ) -> Result<Tensor<1>, ModelError> {
        let logits = MicroBatch::new(examples).head_logits(forward)?;
        Ok(self.sum(logits, examples, forward.mode.is_train()))
    }

    fn metrics(&self) -> &'static [Metric] {
        const METRICS: &[Metric] = &[
            Metric::larger("macro_f1"),
            Metric::larger("micro_f1"),
            Metric::larger("subset_accuracy"),
            Metric::smaller("loss"),
        ];
        METRICS
    }

    fn meter<'a>(&'a self, model: ModelParts<'a>) -> Box<dyn Meter + 'a> {
        Box::new(LabelsMeter {
            objective: self,
            labels: model.labels(),
            loss: 0.0,
            gold: Vec::new(),
            predicted: Vec::new(),
            logits: Vec::new(),
        })
    }
}

struct LabelsMeter<'a> {
    objective: &'a MultiLabel,
    labels: &'a [String],
    loss: f64,
    gold: Vec<Vec<bool>>,
    predicted: Vec<Vec<bool>>,
    logits: Vec<Vec<f32>>,
}

impl Meter for LabelsMeter<'_> {
    fn add(
        &mut self,
        examples: &[&Tokenized],
        forward: &mut Forward<'_>,
    ) -> Result<(), ModelError> {
        let logits = MicroBatch::new(examples).head_logits(forward)?;
        let labels = logits.dims()[1];
        let values = to_vec(logits.clone());
        // A probability above one half.
        let holds = |row: &[f32]| row.iter().map(|x| *x > 0.0).collect();
        let rows = values.chunks(labels);
        self.predicted.extend(rows.clone().map(holds));
        self.logits.extend(rows.map(<[f32]>::to_vec));
        for example in examples {
            let mut gold = vec![false; labels];
            classes_of(example).iter().for_each(|&c| gold[c] = true);
            self.gold.push(gold);
        }
        self.loss += f64::from(to_vec(self.objective.sum(logits, examples, false))[0]);
        Ok(())
    }

    fn finish(self: Box<Self>) -> Evaluation {
        let (targets, labels) = (self.gold.len(), self.labels.len());
        let report = MultiLabelReport::new(&self.gold, &self.predicted, self.labels)
            .expect("every example was checked against the labels");
        let metrics = [
            ("macro_f1", report.macro_f1),
            ("micro_f1", report.micro_f1),
            ("subset_accuracy", report.subset_accuracy),
            ("loss", self.loss / (targets * labels) as f64),
        ];
        Evaluation {
            metrics: named(metrics),
            labels: Some(report),
            logits: self.logits,
            targets,
            ..Evaluation::default()
        }
    }
}
