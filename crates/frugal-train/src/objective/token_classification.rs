//! Telling the label of each token, as for named entities.

use burn::prelude::*;
use frugal_core::encode::IGNORE_INDEX;
use frugal_core::metrics::EntityReport;
use frugal_nn::{ModelError, select_rows, to_vec};

use super::Objective;
use super::batch::{Forward, MicroBatch, ModelParts};
use super::classification::largest;
use super::cross_entropy::cross_entropy;
use super::meter::{Evaluation, Meter, Metric, named};
use crate::{Target, Tokenized};

/// Cross-entropy of the labels of tokens, as transformers' `*ForTokenClassification` classes have
/// it: the mean is over the tokens with a label, of all examples of a step together.
///
/// Measured as seqeval does: `f1`, `precision` and `recall` of whole entities, `accuracy` of tokens.
#[derive(Clone, Copy, Debug, Default)]
pub struct TokenClassification {
    /// Share of the target probability that is spread evenly over the labels.
    pub label_smoothing: f64,
}

fn classes_of(example: &Tokenized) -> &[i32] {
    match &example.labels {
        Target::Tags { classes, .. } => classes,
        _ => &[],
    }
}

/// Rows of the tokens with a label, and these.
fn labelled(examples: &[&Tokenized]) -> (Vec<usize>, Vec<i32>) {
    let all = examples.iter().flat_map(|example| classes_of(example));
    let labelled = all.enumerate().filter(|(_, class)| **class != IGNORE_INDEX);
    labelled.map(|(row, class)| (row, *class)).unzip()
}

fn loss_of(logits: Tensor<2>, examples: &[&Tokenized], label_smoothing: f64) -> Tensor<1> {
    let (rows, classes) = labelled(examples);
    cross_entropy(select_rows(logits, &rows), &classes, label_smoothing)
}

impl Objective for TokenClassification {
    fn name(&self) -> &'static str {
        "token_classification"
    }

    fn check_model(&self, model: ModelParts<'_>) -> Result<(), String> {
        match model.head {
            Some(head) if head.config().labels_tokens() => Ok(()),
            Some(_) => Err(
                "token classification needs a head that labels every token, and this one labels whole texts".into(),
            ),
            None => Err("token classification needs a head that labels every token".into()),
        }
    }

    fn check_example(&self, model: ModelParts<'_>, example: &Tokenized) -> Result<(), String> {
        let Target::Tags { classes, words } = &example.labels else {
            return Err("it has no label for each token, which token classification needs".into());
        };
        let (tokens, labels) = (example.input_ids.len(), model.outputs());
        if classes.len() != tokens || words.len() != tokens {
            return Err(format!("{} labels for {tokens} tokens", classes.len()));
        }
        let known = |class: &i32| {
            *class == IGNORE_INDEX || usize::try_from(*class).is_ok_and(|class| class < labels)
        };
        match classes.iter().find(|class| !known(class)) {
            Some(class) => Err(format!("label {class}, but the head has {labels} labels")),
            None => Ok(()),
        }
    }

    fn num_targets(&self, _model: ModelParts<'_>, example: &Tokenized) -> f64 {
        example.trained() as f64
    }

    fn loss(
        &self,
        examples: &[&Tokenized],
        forward: &mut Forward<'_>,
    ) -> Result<Tensor<1>, ModelError> {
        let logits = MicroBatch::new(examples).head_logits(forward)?;
        let smoothing = match forward.mode.is_train() {
            true => self.label_smoothing,
            false => 0.0,
        };
        Ok(loss_of(logits, examples, smoothing))
    }

    fn metrics(&self) -> &'static [Metric] {
        const METRICS: &[Metric] = &[
            Metric::larger("f1"),
            Metric::larger("precision"),
            Metric::larger("recall"),
            Metric::larger("accuracy"),
            Metric::smaller("loss"),
        ];
        METRICS
    }

    fn meter<'a>(&'a self, model: ModelParts<'a>) -> Box<dyn Meter + 'a> {
        Box::new(TagMeter {
            labels: model.labels(),
            loss: 0.0,
            gold: Vec::new(),
            predicted: Vec::new(),
            logits: Vec::new(),
        })
    }
}

struct TagMeter<'a> {
    labels: &'a [String],
    loss: f64,
    gold: Vec<Vec<&'a str>>,
    predicted: Vec<Vec<&'a str>>,
    logits: Vec<Vec<f32>>,
}

impl Meter for TagMeter<'_> {
    fn add(
        &mut self,
        examples: &[&Tokenized],
        forward: &mut Forward<'_>,
    ) -> Result<(), ModelError> {
        let logits = MicroBatch::new(examples).head_logits(forward)?;
        let labels = self.labels.len();
        let values = to_vec(logits.clone());
        let mut rest = values.as_slice();
        for example in examples {
            let (own, others) = rest.split_at(example.len() * labels);
            rest = others;
            let (mut gold, mut predicted) = (Vec::new(), Vec::new());
            for (class, logits) in classes_of(example).iter().zip(own.chunks(labels)) {
                if let Some(label) = usize::try_from(*class)
                    .ok()
                    .and_then(|c| self.labels.get(c))
                {
                    gold.push(label.as_str());
                    predicted.push(self.labels[largest(logits)].as_str());
                }
            }
            self.gold.push(gold);
            self.predicted.push(predicted);
            self.logits.push(own.to_vec());
        }
        self.loss += f64::from(to_vec(loss_of(logits, examples, 0.0))[0]);
        Ok(())
    }

    fn finish(self: Box<Self>) -> Evaluation {
        let report = EntityReport::new(&self.gold, &self.predicted)
            .expect("every example was checked to have a label");
        let metrics = [
            ("f1", report.f1),
            ("precision", report.precision),
            ("recall", report.recall),
            ("accuracy", report.accuracy),
            ("loss", self.loss / report.words as f64),
        ];
        Evaluation {
            metrics: named(metrics),
            entities: report.kinds,
            logits: self.logits,
            targets: report.words,
            ..Evaluation::default()
        }
    }
}
