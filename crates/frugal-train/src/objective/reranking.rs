//! Objectives over the scores of a cross-encoder: what they have in common.

use std::collections::BTreeMap;

use burn::prelude::*;
use frugal_core::metrics::RegressionReport;
use frugal_nn::{ModelError, to_vec};

use super::{Evaluation, Forward, Meter, Metric, MicroBatch, ModelParts, Objective};
use crate::{Target, Tokenized};

/// A loss over the scores of the texts of queries.
pub trait ListLoss: Send + Sync {
    /// Its name in the registry.
    fn name(&self) -> &'static str;

    /// Whether a list with these labels is an example for it.
    ///
    /// # Errors
    /// What is missing or too much.
    fn check(&self, labels: &[f32]) -> Result<(), String>;

    /// What a list counts in the mean that is the loss of a step.
    fn num_targets(&self, labels: &[f32]) -> f64;

    /// The loss of lists that stand one after another, as a mean times what they count; `scores` is
    /// `[texts, 1]`.
    fn loss(&self, scores: Tensor<2>, lists: &[&[f32]]) -> Tensor<1>;
}

/// An objective over the scores of a cross-encoder.
pub struct Reranking<L> {
    /// The loss.
    pub loss: L,
}

fn labels(example: &Tokenized) -> &[f32] {
    match &example.labels {
        Target::Texts { scores, .. } => scores,
        _ => &[],
    }
}

impl<L: ListLoss> Reranking<L> {
    fn of(&self, scores: Tensor<2>, examples: &[&Tokenized]) -> Tensor<1> {
        let lists: Vec<&[f32]> = examples.iter().map(|e| labels(e)).collect();
        self.loss.loss(scores, &lists)
    }
}

impl<L: ListLoss> Objective for Reranking<L> {
    fn name(&self) -> &'static str {
        self.loss.name()
    }

    fn check_model(&self, model: ModelParts<'_>) -> Result<(), String> {
        match model.outputs() {
            1 => Ok(()),
            0 => Err(format!("`{}` needs a head with one output", self.name())),
            outputs => Err(format!(
                "`{}` needs a head with one output, this one has {outputs}",
                self.name()
            )),
        }
    }

    fn check_example(&self, _model: ModelParts<'_>, example: &Tokenized) -> Result<(), String> {
        let Target::Texts { lengths, scores } = &example.labels else {
            return Err(format!(
                "it is one text, but `{}` learns from the texts of a query",
                self.name()
            ));
        };
        if lengths.contains(&0) || lengths.iter().sum::<usize>() != example.input_ids.len() {
            return Err("a text has no tokens, or the lengths do not add up".into());
        }
        if lengths.len() != scores.len() {
            return Err(format!(
                "it has {} texts and {} labels: each text needs one",
                lengths.len(),
                scores.len()
            ));
        }
        if scores.iter().any(|score| !score.is_finite()) {
            return Err("a label is no number".into());
        }
        self.loss.check(scores)
    }

    fn num_targets(&self, _model: ModelParts<'_>, example: &Tokenized) -> f64 {
        self.loss.num_targets(labels(example))
    }

    fn loss(
        &self,
        examples: &[&Tokenized],
        forward: &mut Forward<'_>,
    ) -> Result<Tensor<1>, ModelError> {
        let scores = MicroBatch::new(examples).head_logits(forward)?;
        Ok(self.of(scores, examples))
    }

    fn loss_of_outputs(&self, examples: &[&Tokenized], outputs: Tensor<2>) -> Option<Tensor<1>> {
        Some(self.of(outputs, examples))
    }

    fn metrics(&self) -> &'static [Metric] {
        const METRICS: &[Metric] = &[
            Metric::larger("mrr@10"),
            Metric::larger("ndcg@10"),
            Metric::larger("spearman"),
            Metric::smaller("loss"),
        ];
        METRICS
    }

    fn meter<'a>(&'a self, model: ModelParts<'a>) -> Box<dyn Meter + 'a> {
        Box::new(ListMeter {
            objective: self,
            model,
            loss: 0.0,
            targets: 0.0,
            lists: Vec::new(),
        })
    }
}

/// Labels and scores of each list.
struct ListMeter<'a, L> {
    objective: &'a Reranking<L>,
    model: ModelParts<'a>,
    loss: f64,
    targets: f64,
    lists: Vec<(Vec<f32>, Vec<f32>)>,
}

impl<L: ListLoss> Meter for ListMeter<'_, L> {
    fn add(
        &mut self,
        examples: &[&Tokenized],
        forward: &mut Forward<'_>,
    ) -> Result<(), ModelError> {
        let scores = MicroBatch::new(examples).head_logits(forward)?;
        let sum = self.objective.of(scores.clone(), examples);
        self.loss += f64::from(to_vec(sum)[0]);
        let targets = examples
            .iter()
            .map(|e| self.objective.num_targets(self.model, e));
        self.targets += targets.sum::<f64>();
        let scores = to_vec(scores);
        let mut rest = scores.as_slice();
        for example in examples {
            let labels = labels(example);
            let (own, later) = rest.split_at(labels.len());
            self.lists.push((labels.to_vec(), own.to_vec()));
            rest = later;
        }
        Ok(())
    }

    fn finish(self: Box<Self>) -> Evaluation {
        // A list of one, and one without a text that answers, cannot be put in order.
        let ordered = |labels: &[f32]| labels.len() > 1 && labels.iter().any(|label| *label > 0.0);
        let lists = self.lists.iter().filter(|(labels, _)| ordered(labels));
        let found: Vec<[f64; 2]> = lists
            .map(|(labels, scores)| quality(labels, scores))
            .collect();
        let mean = |at: usize| match found.len() {
            0 => 0.0,
            n => found.iter().map(|x| x[at]).sum::<f64>() / n as f64,
        };
        let flat = |of: fn(&(Vec<f32>, Vec<f32>)) -> &Vec<f32>| -> Vec<f64> {
            let values = self.lists.iter().flat_map(of);
            values.map(|value| f64::from(*value)).collect()
        };
        let report = RegressionReport::new(&flat(|(labels, _)| labels), &flat(|(_, s)| s), 1);
        let metrics = [
            ("mrr@10", mean(0)),
            ("ndcg@10", mean(1)),
            ("spearman", report.map_or(0.0, |report| report.spearman)),
            ("loss", self.loss / self.targets.max(1.0)),
        ];
        let logits = self.lists.iter().flat_map(|(_, scores)| scores);
        Evaluation {
            metrics: BTreeMap::from(metrics.map(|(name, value)| (name.to_owned(), value))),
            logits: logits.map(|score| vec![*score]).collect(),
            targets: self.lists.len(),
            ..Evaluation::default()
        }
    }
}

/// Reciprocal rank and nDCG at 10 of one list; texts of equal scores in the order of the labels,
/// the lowest first.
fn quality(labels: &[f32], scores: &[f32]) -> [f64; 2] {
    let mut order: Vec<usize> = (0..labels.len()).collect();
    order.sort_by(|&a, &b| {
        let by_score = scores[b].total_cmp(&scores[a]);
        by_score.then(labels[a].total_cmp(&labels[b]))
    });
    let mut ideal: Vec<f32> = labels.to_vec();
    ideal.sort_by(|a, b| b.total_cmp(a));
    let dcg = |labels: &mut dyn Iterator<Item = f32>| -> f64 {
        let gains = labels.take(10).enumerate();
        gains
            .map(|(i, label)| f64::from(label.max(0.0)) / ((i + 2) as f64).log2())
            .sum()
    };
    let first = order.iter().take(10).position(|&i| labels[i] > 0.0);
    let best = dcg(&mut ideal.into_iter());
    [
        first.map_or(0.0, |rank| 1.0 / (rank + 1) as f64),
        dcg(&mut order.iter().map(|&i| labels[i])) / best,
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orders_of_a_list_are_scored_as_by_trec_eval() {
        // The first query of the worked example of trec_eval's measures, cut to the judged texts
        // that were found: order d2, d4, d1, d3 with grades 0, 0, 2, 1.
        let found = quality(&[0.0, 0.0, 2.0, 1.0], &[3.0, 2.5, 2.0, 1.0]);
        assert!((found[0] - 1.0 / 3.0).abs() < 1e-9);
        assert!((found[1] - 1.430_677 / 2.630_930).abs() < 1e-6, "{found:?}");
    }
}
