//! The arms: what is in the prompt, and what in the weights.

use std::collections::BTreeMap;
use std::time::Instant;

use frugal_decode::{CacheType, GenerateConfig, SamplerConfig};
use frugal_eval::rag::{exact_match, token_f1};
use frugal_retrieve::parametric::{
    DocumentWeights, FastWeights, FeedForward, Item, Prompts, short_answer,
};

use super::super::{Outcome, StudyError};
use super::passages::Invented;
use super::setting::{self, failed};
use super::train::{DYPRAG, PRAG, Trained, translated};
use crate::run::Opened;
use crate::run::changed::generate_changed;

/// Most tokens of an answer.
const ANSWER: usize = 16;

/// What is in the weights.
#[derive(Clone, Copy, PartialEq)]
enum Weights {
    None,
    Trained,
    Translated,
    /// The translator fed the passage of another document.
    Wrong,
    Mean,
}

/// An arm.
#[derive(Clone, Copy, PartialEq)]
pub(super) struct Arm {
    name: &'static str,
    weights: Weights,
    /// Whether the passage is in the prompt.
    text: bool,
}

const CLOSED: &str = "closed book";
const RAG: &str = "RAG";
const PRAG_COMBINE: &str = "PRAG-combine";
const DYPRAG_COMBINE: &str = "DyPRAG-combine";
const WRONG: &str = "DyPRAG, wrong passage";
const MEAN: &str = "mean of documents";

const fn arm(name: &'static str, weights: Weights, text: bool) -> Arm {
    Arm {
        name,
        weights,
        text,
    }
}

/// All arms.
pub(super) const ARMS: [Arm; 8] = [
    arm(CLOSED, Weights::None, false),
    arm(RAG, Weights::None, true),
    arm(PRAG, Weights::Trained, false),
    arm(PRAG_COMBINE, Weights::Trained, true),
    arm(DYPRAG, Weights::Translated, false),
    arm(DYPRAG_COMBINE, Weights::Translated, true),
    arm(MEAN, Weights::Mean, false),
    arm(WRONG, Weights::Wrong, false),
];

impl Arm {
    pub(super) fn name(self) -> &'static str {
        self.name
    }
}

/// F1 of each question of each arm, over all seeds, in the same order in every arm.
#[derive(Default)]
pub(super) struct PerQuestion(BTreeMap<&'static str, Vec<f64>>);

impl PerQuestion {
    /// Judges what is claimed, question by question.
    pub(super) fn judge(&self, outcome: &mut Outcome) {
        let claims = [
            (
                "parameters that were trained on a document answer better than the model alone",
                PRAG,
                CLOSED,
            ),
            (
                "parameters and text together answer better than the text",
                PRAG_COMBINE,
                RAG,
            ),
            (
                "parameters and text together answer better than the parameters",
                PRAG_COMBINE,
                PRAG,
            ),
            (
                "trained parameters answer better than translated ones",
                PRAG,
                DYPRAG,
            ),
            (
                "translated parameters of unseen passages answer better than the model alone",
                DYPRAG,
                CLOSED,
            ),
            (
                "translated parameters answer better than the mean of the trained ones (control)",
                DYPRAG,
                MEAN,
            ),
            (
                "translated parameters answer better than those of another passage (control)",
                DYPRAG,
                WRONG,
            ),
            (
                "translated parameters and text together answer better than the text",
                DYPRAG_COMBINE,
                RAG,
            ),
        ];
        for (claim, better, than) in claims {
            let of = |arm| self.0.get(arm).map_or(&[] as &[f64], Vec::as_slice);
            let pairs = of(better).iter().zip(of(than));
            let differences: Vec<f64> = pairs.map(|(a, b)| a - b).collect();
            outcome.judge_differences(format!("{claim}: F1, question by question"), &differences);
        }
    }
}

/// What arms are measured with.
pub(super) struct Bench<'a> {
    pub opened: &'a Opened,
    pub places: &'a FeedForward,
    pub trained: &'a Trained,
    pub documents: &'a [Invented],
    pub items: usize,
}

impl Bench<'_> {
    /// Answers every question of every document.
    pub(super) fn measure(
        &self,
        arm: Arm,
        seed: u64,
        outcome: &mut Outcome,
        questions: &mut PerQuestion,
    ) -> Result<(), StudyError> {
        let (mut f1, mut exact, mut reworded) = (Vec::new(), Vec::new(), Vec::new());
        let (mut tokens, mut seconds, mut bytes) = (Vec::new(), Vec::new(), Vec::new());
        for (number, invented) in self.documents.iter().enumerate() {
            let document = &invented.document;
            let asked = document.items.iter().take(self.items);
            for (item, is_reworded) in asked
                .map(|item| (item, false))
                .chain([(&invented.reworded, true)])
            {
                let begin = Instant::now();
                let (answer, prompt) = self.answer(arm, number, item)?;
                seconds.push(begin.elapsed().as_secs_f64());
                tokens.push(prompt as f64);
                let score = token_f1(&answer, &item.answer);
                if is_reworded {
                    reworded.push(score);
                } else {
                    f1.push(score);
                    exact.push(f64::from(u8::from(exact_match(&answer, &item.answer))));
                }
            }
            let stored = match arm.weights {
                Weights::Trained => self.trained.store.bytes(&document.id, &document.text()),
                _ => Some(0),
            };
            let text = match arm.weights {
                // What the translator reads is stored as text.
                Weights::Translated | Weights::Wrong => true,
                _ => arm.text,
            };
            let text = if text { document.passage.len() } else { 0 };
            bytes.push(stored.unwrap_or(0) as f64 + text as f64);
        }
        questions.0.entry(arm.name).or_default().extend(&f1);
        for (measure, values) in [
            ("F1", f1),
            ("exact match", exact),
            ("F1, reworded", reworded),
            ("bytes/document", bytes),
            ("prompt tokens", tokens),
            ("s/answer", seconds),
        ] {
            let mean = values.iter().sum::<f64>() / values.len().max(1) as f64;
            outcome.add(arm.name, measure, seed, mean);
        }
        Ok(())
    }

    fn change(&self, arm: Arm, number: usize) -> Result<Option<FastWeights>, StudyError> {
        let document = &self.documents[number].document;
        let config = self.trained.store.config().parameters;
        let (weights, scale): (DocumentWeights, f32) = match arm.weights {
            Weights::None => return Ok(None),
            Weights::Mean => (self.trained.mean.clone(), config.scale()),
            Weights::Trained => {
                let found = self.trained.store.get(&document.id, &document.text());
                let found = found.map_err(failed)?;
                let gone =
                    || StudyError::arm(arm.name, std::io::Error::other("parameters are gone"));
                (found.ok_or_else(gone)?, config.scale())
            }
            Weights::Translated | Weights::Wrong => {
                let read = match arm.weights {
                    Weights::Wrong => (number + 1) % self.documents.len(),
                    _ => number,
                };
                let text = match self.documents.len() {
                    // Where there is but one document, any other text is wrong.
                    1 if arm.weights == Weights::Wrong => "Another text.".to_owned(),
                    _ => self.documents[read].document.text(),
                };
                let weights = translated(self.opened, &self.trained.translator, &text)?;
                (weights, config.translated_scale())
            }
        };
        FastWeights::new(self.places, &weights, scale)
            .map(Some)
            .map_err(failed)
    }

    /// The answer to a question, and the tokens of its prompt.
    fn answer(&self, arm: Arm, number: usize, item: &Item) -> Result<(String, usize), StudyError> {
        let failed = |error| StudyError::arm(arm.name, error);
        let change = self.change(arm, number)?;
        let tokenizer = self.opened.files.tokenizer().map_err(setting::failed)?;
        let passage = ("", self.documents[number].document.passage.as_str());
        let passages = if arm.text { &[passage][..] } else { &[] };
        let prompt = Prompts::new(tokenizer)
            .asked(&Prompts::text(&item.question, passages))
            .map_err(setting::failed)?;
        let config = GenerateConfig {
            max_tokens: ANSWER,
            sampler: SamplerConfig {
                temperature: 0.0,
                ..SamplerConfig::default()
            },
            eos_token_ids: tokenizer.eos_ids().to_vec(),
            seed: 0,
            cache_type: CacheType::F32,
        };
        let mut text = String::new();
        let found = generate_changed(self.opened, change, prompt, &config, &[], &mut |more| {
            text.push_str(more);
            !text.trim_start().contains(['.', ',', '\n'])
        })
        .map_err(failed)?;
        Ok((short_answer(&text).to_owned(), found.prompt_tokens))
    }
}
