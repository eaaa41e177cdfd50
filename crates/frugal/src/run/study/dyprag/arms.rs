//! The arms: what is in the prompt, and what in the weights.

use std::collections::BTreeMap;
use std::time::Instant;

use frugal_decode::{CacheType, GenerateConfig, SamplerConfig};
use frugal_eval::rag::{exact_match, token_f1};
use frugal_retrieve::parametric::{
    DocumentWeights, FastWeights, FeedForward, Merge, Prompts, merge, short_answer,
};

use super::super::{Outcome, StudyError};
use super::data::{Case, Data};
use super::setting::failed;
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

/// F1 of each question of each arm by its label, over all seeds, in the same order in every arm.
#[derive(Default)]
pub(super) struct PerQuestion(BTreeMap<String, Vec<f64>>);

impl PerQuestion {
    /// Judges what is claimed of a data set, question by question.
    pub(super) fn judge(&self, data: &str, outcome: &mut Outcome) {
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
            let of = |arm| self.0.get(&format!("{data}: {arm}"));
            let (Some(better), Some(than)) = (of(better), of(than)) else {
                continue;
            };
            let differences: Vec<f64> = better.iter().zip(than).map(|(a, b)| a - b).collect();
            let claim = format!("{data}: {claim} (F1, question by question)");
            outcome.judge_differences(claim, &differences);
        }
    }
}

/// What arms are measured with.
pub(super) struct Bench<'a> {
    pub opened: &'a Opened,
    pub places: &'a FeedForward,
    pub trained: &'a Trained,
    pub data: &'a Data,
}

impl Bench<'_> {
    /// Answers every question.
    pub(super) fn measure(
        &self,
        arm: Arm,
        seed: u64,
        outcome: &mut Outcome,
        questions: &mut PerQuestion,
    ) -> Result<(), StudyError> {
        let label = self.data.label(arm.name);
        let has_trained = self.data.cases.iter().any(|case| case.is_trained);
        let (mut f1, mut exact, mut reworded) = (Vec::new(), Vec::new(), Vec::new());
        let (mut tokens, mut seconds) = (Vec::new(), Vec::new());
        for case in &self.data.cases {
            let begin = Instant::now();
            let (answer, prompt) = self.answer(arm, case)?;
            seconds.push(begin.elapsed().as_secs_f64());
            tokens.push(prompt as f64);
            let scores = case.answers.iter().map(|right| token_f1(&answer, right));
            let score = scores.fold(0.0, f64::max);
            if has_trained && !case.is_trained {
                reworded.push(score);
                continue;
            }
            f1.push(score);
            let is_exact = case.answers.iter().any(|right| exact_match(&answer, right));
            exact.push(f64::from(u8::from(is_exact)));
        }
        let all = questions.0.entry(label.clone()).or_default();
        all.extend(&f1);
        for (measure, values) in [
            ("F1", f1),
            ("exact match", exact),
            ("F1, reworded", reworded),
            ("bytes/document", self.bytes(arm)),
            ("prompt tokens", tokens),
            ("s/answer", seconds),
        ] {
            if !values.is_empty() {
                let mean = values.iter().sum::<f64>() / values.len() as f64;
                outcome.add(&label, measure, seed, mean);
            }
        }
        Ok(())
    }

    /// Bytes that are stored of each held-out document: its file of parameters, its text, or both.
    fn bytes(&self, arm: Arm) -> Vec<f64> {
        let documents = &self.data.documents[..self.data.held_out];
        let needs_text = arm.text || matches!(arm.weights, Weights::Translated | Weights::Wrong);
        let of = documents.iter().map(|document| {
            let stored = match arm.weights {
                Weights::Trained => self.trained.store.bytes(&document.id, &document.text()),
                _ => None,
            };
            let text = if needs_text { document.text().len() } else { 0 };
            stored.unwrap_or(0) as f64 + text as f64
        });
        of.collect()
    }

    /// The parameters of a document in an arm.
    fn weights(&self, arm: Arm, number: usize) -> Result<DocumentWeights, StudyError> {
        let document = &self.data.documents[number];
        match arm.weights {
            Weights::Trained => {
                let found = self.trained.store.get(&document.id, &document.text());
                let found = found.map_err(failed)?;
                found.ok_or_else(|| {
                    let gone = std::io::Error::other("the parameters of a document are gone");
                    StudyError::arm(arm.name, gone)
                })
            }
            Weights::Mean => Ok(self.trained.mean.clone()),
            Weights::None | Weights::Translated | Weights::Wrong => {
                translated(self.opened, &self.trained.translator, &document.text())
            }
        }
    }

    fn change(&self, arm: Arm, case: &Case) -> Result<Option<FastWeights>, StudyError> {
        let config = self.trained.store.config().parameters;
        let documents: Vec<usize> = match arm.weights {
            Weights::None => return Ok(None),
            // One mean, however many documents a question has.
            Weights::Mean => vec![0],
            Weights::Trained | Weights::Translated => case.documents.clone(),
            Weights::Wrong => {
                let others = (0..self.data.documents.len())
                    .map(|step| (case.documents[0] + 1 + step) % self.data.documents.len())
                    .filter(|other| !case.documents.contains(other));
                others.take(case.documents.len()).collect()
            }
        };
        let found = documents
            .iter()
            .map(|&number| self.weights(arm, number))
            .collect::<Result<Vec<_>, _>>()?;
        let found: Vec<&DocumentWeights> = found.iter().collect();
        let merged = merge(&found, Merge::Sum).map_err(failed)?;
        let scale = match arm.weights {
            Weights::Translated | Weights::Wrong => config.translated_scale(),
            _ => config.scale(),
        };
        let change = FastWeights::new(self.places, &merged, scale);
        change.map(Some).map_err(failed)
    }

    /// The answer to a question, and the tokens of its prompt.
    fn answer(&self, arm: Arm, case: &Case) -> Result<(String, usize), StudyError> {
        let change = self.change(arm, case)?;
        let tokenizer = self.opened.files.tokenizer().map_err(failed)?;
        let passages: Vec<(&str, &str)> = match arm.text {
            true => case
                .documents
                .iter()
                .map(|&number| &self.data.documents[number])
                .map(|document| (document.title.as_str(), document.passage.as_str()))
                .collect(),
            false => Vec::new(),
        };
        let prompt = Prompts::new(tokenizer)
            .asked(&Prompts::text(&case.question, &passages))
            .map_err(failed)?;
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
