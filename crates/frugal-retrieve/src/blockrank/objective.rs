//! What is minimised to teach a model in-context ranking: `L = L_NTP + λ · L_aux`.
//!
//! `L_NTP` is the cross-entropy of the answer's tokens, from the bracket on; `L_aux` the contrastive
//! loss on the attention of one layer. An example counts once, whatever the length of its answer.

use std::collections::BTreeMap;

use burn::prelude::*;
use burn::tensor::activation::log_softmax;
use frugal_nn::{ControlledPass, Input, ModelError, Rows, select_rows, to_vec};
use frugal_train::objective::{Forward, Meter, Metric};
use frugal_train::{Evaluation, ModelParts, Objective, Target, Tokenized};

use super::blocks::{BlockPrompt, BlockPrompts};
use super::options::BlockRankOptions;
use super::score::{contrastive_loss, document_scores};
use crate::error::RetrieveError;

/// In-context ranking by block attention.
#[derive(Clone, Debug, Default)]
pub struct BlockRankObjective {
    options: BlockRankOptions,
}

impl BlockRankObjective {
    /// With these settings.
    ///
    /// # Errors
    /// A setting that cannot be.
    pub fn new(options: BlockRankOptions) -> Result<Self, String> {
        options.validate()?;
        Ok(Self { options })
    }

    /// An example: a query, documents in the order in which they are shown (they should be shuffled)
    /// and the numbers of those that answer it.
    ///
    /// # Errors
    /// Texts that the tokenizer cannot spell, no positive document or one that there is not.
    pub fn example(
        prompts: &BlockPrompts<'_>,
        query: &str,
        documents: &[&str],
        positives: &[usize],
    ) -> Result<Tokenized, RetrieveError> {
        if positives.is_empty() || positives.iter().any(|&p| p >= documents.len()) {
            return Err(RetrieveError::BlockRank(format!(
                "the positives {positives:?} are not among {} documents",
                documents.len()
            )));
        }
        let BlockPrompt {
            mut ids,
            mut lengths,
            ..
        } = prompts.prompt(query, documents)?;
        let answer = prompts.answer(positives)?;
        lengths.push(answer.len());
        ids.extend(answer);
        let score = |i| f32::from(u8::from(positives.contains(&i)));
        Ok(Tokenized {
            input_ids: ids,
            token_type_ids: Vec::new(),
            labels: Target::Texts {
                lengths,
                scores: (0..documents.len()).map(score).collect(),
            },
        })
    }

    fn run(
        &self,
        examples: &[&Tokenized],
        forward: &mut Forward<'_>,
    ) -> Result<Ranked, ModelError> {
        let refused = |reason| ModelError::Attention { reason };
        let parts = examples.iter().map(|example| Parts::of(example));
        let parts = parts.collect::<Result<Vec<_>, _>>().map_err(refused)?;
        let backbone = forward.model.backbone;
        let info = backbone.info();
        let layer = self.options.layer_of(info).map_err(refused)?;
        let offset = self.options.offset_of(info);
        let prompts: Vec<&BlockPrompt> = parts.iter().map(|part| &part.prompt).collect();
        let control = BlockPrompt::control(&prompts, layer, offset, info).map_err(refused)?;
        let ids: Vec<u32> = examples.iter().flat_map(|e| e.input_ids.clone()).collect();
        let lengths: Vec<usize> = examples.iter().map(|e| e.input_ids.len()).collect();
        let input = Input::new(&ids, &lengths);

        let mut pass = ControlledPass::new(&mut *forward.pass, control);
        let state = backbone.stem(&input, &mut pass)?;
        let state = backbone.blocks(0..layer + 1, state, &mut pass, None)?;
        let hidden = match self.options.next_token {
            false => None,
            true => {
                let rest = layer + 1..info.num_hidden_layers;
                let state = backbone.blocks(rest, state, &mut pass, None)?;
                Some(backbone.readout(state, &mut pass))
            }
        };
        let values = pass.into_scores();
        if values.len() != parts.len() {
            return Err(refused(format!(
                "block {layer}, whose attention ranks, was skipped by the adapter"
            )));
        }
        let mut scores = Vec::with_capacity(parts.len());
        let mut auxiliary = Vec::with_capacity(parts.len());
        for (values, part) in values.into_iter().zip(&parts) {
            let of = document_scores(values.values, &part.prompt.lengths).map_err(refused)?;
            let loss = contrastive_loss(of.clone(), &part.positives, self.options.temperature);
            auxiliary.push(loss.map_err(refused)? * self.options.auxiliary_weight);
            scores.push(of);
        }
        let mut loss = Tensor::cat(auxiliary, 0);
        if let Some(hidden) = hidden {
            loss = loss + next_token_losses(hidden, &parts, examples, forward)?;
        }
        Ok(Ranked {
            losses: loss,
            scores,
            positives: parts.into_iter().map(|part| part.positives).collect(),
        })
    }
}

/// What a pass over some examples gives.
struct Ranked {
    /// `[examples]`.
    losses: Tensor<1>,
    /// `[documents]` of each.
    scores: Vec<Tensor<1>>,
    positives: Vec<Vec<usize>>,
}

/// An example taken apart.
struct Parts {
    prompt: BlockPrompt,
    positives: Vec<usize>,
    answer: usize,
}

impl Parts {
    fn of(example: &Tokenized) -> Result<Self, String> {
        let wrong = || "it is no prompt of documents with an answer".to_owned();
        let Target::Texts { lengths, scores } = &example.labels else {
            return Err(wrong());
        };
        let [instruction, documents @ .., question, answer] = lengths.as_slice() else {
            return Err(wrong());
        };
        let total = lengths.iter().sum::<usize>();
        if documents.is_empty() || scores.len() != documents.len() || *question < 2 {
            return Err(wrong());
        }
        if total != example.input_ids.len() || lengths.contains(&0) {
            return Err(format!(
                "blocks of {lengths:?} tokens do not make up {} tokens",
                example.input_ids.len()
            ));
        }
        let positives: Vec<usize> = (0..scores.len()).filter(|&i| scores[i] > 0.0).collect();
        if positives.is_empty() {
            return Err("none of its documents is the answer".into());
        }
        let bracket = total - answer - 1;
        let mut blocks = vec![*instruction];
        blocks.extend(documents);
        blocks.push(question + answer);
        Ok(Self {
            prompt: BlockPrompt {
                ids: example.input_ids.clone(),
                lengths: blocks,
                signals: vec![bracket - 1, bracket],
            },
            positives,
            answer: *answer,
        })
    }
}

/// Mean cross-entropy of each example's answer, `[examples]`: the bracket and what follows it.
fn next_token_losses(
    hidden: Tensor<2>,
    parts: &[Parts],
    examples: &[&Tokenized],
    forward: &mut Forward<'_>,
) -> Result<Tensor<1>, ModelError> {
    let (mut rows, mut targets, mut start) = (Vec::new(), Vec::<i64>::new(), 0);
    for (part, example) in parts.iter().zip(examples) {
        let tokens = example.input_ids.len();
        for position in tokens - part.answer - 1..tokens {
            rows.push(start + position - 1);
            targets.push(i64::from(example.input_ids[position]));
        }
        start += tokens;
    }
    let backbone = forward.model.backbone;
    let device = backbone.device().clone();
    let logits = backbone
        .logits(select_rows(hidden, &rows), Rows::Chosen, forward.pass)
        .ok_or_else(|| ModelError::Attention {
            reason: backbone.info().why_no_head(),
        })?;
    let count = targets.len();
    let targets = Tensor::<2, Int>::from_data(TensorData::new(targets, [count, 1]), &device);
    let losses = -log_softmax(logits, 1).gather(1, targets);
    let mut first = 0;
    let means = parts.iter().map(|part| {
        let own = losses.clone().narrow(0, first, part.answer + 1);
        first += part.answer + 1;
        own.mean()
    });
    Ok(Tensor::cat(means.collect(), 0))
}

impl Objective for BlockRankObjective {
    fn name(&self) -> &'static str {
        "blockrank"
    }

    fn check_model(&self, model: ModelParts<'_>) -> Result<(), String> {
        let info = model.backbone.info();
        self.options.layer_of(info)?;
        if self.options.next_token && model.backbone.lm_head().is_none() {
            return Err(info.why_no_head());
        }
        Ok(())
    }

    fn check_example(&self, model: ModelParts<'_>, example: &Tokenized) -> Result<(), String> {
        let info = model.backbone.info();
        let prompt = Parts::of(example)?.prompt;
        let layer = self.options.layer_of(info)?;
        BlockPrompt::control(&[&prompt], layer, self.options.offset_of(info), info).map(|_| ())
    }

    fn num_targets(&self, _model: ModelParts<'_>, _example: &Tokenized) -> f64 {
        1.0
    }

    fn loss(
        &self,
        examples: &[&Tokenized],
        forward: &mut Forward<'_>,
    ) -> Result<Tensor<1>, ModelError> {
        Ok(self.run(examples, forward)?.losses.sum())
    }

    fn metrics(&self) -> &'static [Metric] {
        const METRICS: &[Metric] = &[
            Metric::larger("mrr"),
            Metric::larger("precision_at_1"),
            Metric::smaller("loss"),
        ];
        METRICS
    }

    fn meter<'a>(&'a self, _model: ModelParts<'a>) -> Box<dyn Meter + 'a> {
        Box::new(RankMeter {
            objective: self,
            loss: 0.0,
            reciprocal_ranks: Vec::new(),
        })
    }
}

struct RankMeter<'a> {
    objective: &'a BlockRankObjective,
    loss: f64,
    reciprocal_ranks: Vec<f64>,
}

impl Meter for RankMeter<'_> {
    fn add(
        &mut self,
        examples: &[&Tokenized],
        forward: &mut Forward<'_>,
    ) -> Result<(), ModelError> {
        let ranked = self.objective.run(examples, forward)?;
        self.loss += f64::from(to_vec(ranked.losses.sum())[0]);
        for (scores, positives) in ranked.scores.into_iter().zip(&ranked.positives) {
            let scores = to_vec(scores);
            let best = positives
                .iter()
                .map(|&p| scores[p])
                .fold(f32::NEG_INFINITY, f32::max);
            // A tie counts against the positive.
            let ahead = |i: &usize| !positives.contains(i) && scores[*i] >= best;
            let rank = 1 + (0..scores.len()).filter(ahead).count();
            self.reciprocal_ranks.push(1.0 / rank as f64);
        }
        Ok(())
    }

    fn finish(self: Box<Self>) -> Evaluation {
        let count = self.reciprocal_ranks.len();
        let mean = |sum: f64| sum / count as f64;
        let first = self.reciprocal_ranks.iter().filter(|&&r| r == 1.0).count();
        Evaluation {
            metrics: BTreeMap::from([
                ("loss".to_owned(), mean(self.loss)),
                ("mrr".to_owned(), mean(self.reciprocal_ranks.iter().sum())),
                ("precision_at_1".to_owned(), mean(first as f64)),
            ]),
            targets: count,
            ..Evaluation::default()
        }
    }
}
