//! Everything that a mode needs to answer.

use std::path::PathBuf;
use std::sync::Arc;

use frugal_decode::{CacheType, GenerateConfig, SamplerConfig};
use frugal_retrieve::parametric::{FastWeights, Merge};
use frugal_retrieve::rag::{
    CorrectiveOptions, Passage, PromptError, PromptOptions, Stages, build_prompt, cite,
};
use frugal_retrieve::{Collection, RetrieveError, SearchOptions};

use super::answer::AskAnswer;
use super::grader::Grader;
use super::perk_options::PerkAsk;
use crate::run::changed::generate_changed;
use crate::run::generate::generate_by;
use crate::run::{Continued, GenerateRequest, Opened, Prompt, Rerank, Reranker, RunError};
use frugal_core::data::Message;
use frugal_nn::AdapterSet;

/// Most tokens of a prompt where neither the model nor the caller says less: what a small model
/// reads in seconds on a processor.
const USUAL_CONTEXT: usize = 2048;
/// What follows the question where a model has no chat template.
const ANSWER: &str = "\nAnswer:";
/// What ends an answer: the next question, and there an empty line.
const NEXT_QUESTION: &str = "\nQuestion:";
const EMPTY_LINE: &str = "\n\n";
/// What ends the sentence that an answer from parameters is.
const LINE_END: &str = "\n";

/// How questions are answered.
#[derive(Clone, Debug)]
pub struct AskOptions {
    /// How the index is searched. `top_k` is how many passages the model is given.
    pub search: SearchOptions,
    /// Passages that are reranked, where there is a reranker.
    pub rerank_depth: usize,
    /// Most tokens of a prompt; otherwise what the model has room for, but at most 2048.
    pub context_tokens: Option<usize>,
    /// Most tokens of an answer.
    pub max_tokens: usize,
    /// How tokens are chosen.
    pub sampler: SamplerConfig,
    /// Decides the choices.
    pub seed: u64,
    /// Texts that end an answer. The model's own ends hold besides.
    pub stop: Vec<String>,
    /// How keys and values of earlier tokens are held.
    pub cache_type: CacheType,
    /// Who grades passages, in modes that do.
    pub grader: Grader,
    /// The corrective loop, in modes that have it; `keep` is `search.top_k`.
    pub corrective: CorrectiveOptions,
    /// Documents as parameters, in modes that have them.
    pub parametric: ParametricSettings,
    /// How passages are written into an adapter, in the mode that does.
    pub perk: Option<PerkAsk>,
}

/// How documents' parameters answer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ParametricSettings {
    /// Folder that [`parametrize`](crate::run::parametrize()) filled.
    pub parameters: Option<PathBuf>,
    /// Whether the passages are in the prompt too.
    pub combine: bool,
    /// How several documents become one change.
    pub merge: Merge,
}

impl Default for AskOptions {
    fn default() -> Self {
        Self {
            search: SearchOptions {
                top_k: 3,
                ..SearchOptions::default()
            },
            rerank_depth: 20,
            context_tokens: None,
            max_tokens: 120,
            sampler: SamplerConfig {
                temperature: 0.0,
                frequency_penalty: 0.3,
                ..SamplerConfig::default()
            },
            seed: 0,
            stop: Vec::new(),
            cache_type: CacheType::default(),
            grader: Grader::default(),
            corrective: CorrectiveOptions::default(),
            parametric: ParametricSettings::default(),
            perk: None,
        }
    }
}

/// A model, an index and how they answer.
pub struct Ask<'a> {
    opened: &'a Opened,
    collection: &'a Collection,
    reranker: Option<&'a Reranker>,
    options: &'a AskOptions,
    on_text: &'a mut dyn FnMut(&str) -> bool,
    stages: Stages,
}

impl<'a> Ask<'a> {
    /// `on_text` sees an answer as it is written, and ends it by returning false.
    ///
    /// # Errors
    /// A sampler that cannot draw, adapters that classify, a grader without its model, no passages.
    pub fn new(
        opened: &'a Opened,
        collection: &'a Collection,
        reranker: Option<&'a Reranker>,
        options: &'a AskOptions,
        on_text: &'a mut dyn FnMut(&str) -> bool,
    ) -> Result<Self, RunError> {
        options.sampler.validate()?;
        opened.refuse_classifiers()?;
        if options.search.top_k == 0 {
            return Err(RunError::Invalid(
                "no passages to answer from: `top_k` is 0".into(),
            ));
        }
        if options.grader == Grader::Reranker && reranker.is_none() {
            return Err(RunError::Invalid(
                "grading by the reranker needs one: name it with `--rerank`".into(),
            ));
        }
        Ok(Self {
            opened,
            collection,
            reranker,
            options,
            on_text,
            stages: Stages::default(),
        })
    }

    /// The model.
    pub fn opened(&self) -> &'a Opened {
        self.opened
    }

    /// The index.
    pub fn collection(&self) -> &'a Collection {
        self.collection
    }

    /// The cross-encoder, if there is one.
    pub fn reranker(&self) -> Option<&'a Reranker> {
        self.reranker
    }

    /// How questions are answered.
    pub fn options(&self) -> &'a AskOptions {
        self.options
    }

    /// Where stages are timed.
    pub fn stages(&mut self) -> &mut Stages {
        &mut self.stages
    }

    pub(super) fn take_stages(&mut self) -> Stages {
        std::mem::take(&mut self.stages)
    }

    /// The best passages for a query, reranked if there is a reranker: `search.top_k` of them.
    ///
    /// # Errors
    /// A search or a reranker that fails.
    pub fn retrieve(&mut self, query: &str) -> Result<Vec<Passage>, RunError> {
        self.retrieve_more(query, self.options.search.top_k)
    }

    /// The same with another number.
    ///
    /// # Errors
    /// As [`Self::retrieve`].
    pub fn retrieve_more(&mut self, query: &str, wanted: usize) -> Result<Vec<Passage>, RunError> {
        let collection = self.collection;
        let mut search = self.options.search.clone();
        search.top_k = match self.reranker {
            Some(_) => wanted.max(self.options.rerank_depth),
            None => wanted,
        };
        let found = self
            .stages
            .time("search", || -> Result<Vec<Passage>, RetrieveError> {
                let hits = collection.search(&[query], &search)?.into_iter().flatten();
                let mut found = Vec::new();
                for hit in hits {
                    let document = collection.document(&hit.id)?;
                    found.extend(document.map(|document| Passage::of(document, hit.score)));
                }
                Ok(found)
            });
        let mut found = found?;
        if let Some(reranker) = self.reranker {
            let texts: Vec<String> = found.iter().map(titled).collect();
            let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
            let scores = self
                .stages
                .time("rerank", || reranker.scores(query, &texts, &mut |_| true))?;
            for (passage, score) in found.iter_mut().zip(scores) {
                passage.score = f64::from(score);
            }
            found.sort_by(|a, b| b.score.total_cmp(&a.score));
        }
        found.truncate(wanted);
        Ok(found)
    }

    /// Whether the model is spoken to by a chat template.
    ///
    /// # Errors
    /// A model without a tokenizer.
    pub fn is_chat(&self) -> Result<bool, RunError> {
        Ok(self.opened.files.tokenizer()?.has_chat_template())
    }

    /// The tokens of a message as the model reads it: by its chat template, or with what a model
    /// without one continues.
    ///
    /// # Errors
    /// A template that refuses the message, a text that the tokenizer cannot spell.
    pub fn encode(&self, message: &str) -> Result<Vec<u32>, RunError> {
        let tokenizer = self.opened.files.tokenizer()?;
        if tokenizer.has_chat_template() {
            let text = tokenizer.render_chat(&[Message::new("user", message)], true)?;
            return Ok(tokenizer.encode(&text, false)?);
        }
        Ok(tokenizer.encode(&format!("{message}{ANSWER}"), true)?)
    }

    /// Tokens that a prompt may have beside the longest answer.
    pub(super) fn budget(&self) -> Result<usize, RunError> {
        let limit = self.opened.backbone.info().max_sequence;
        let longest = self.options.max_tokens;
        let room = limit.saturating_sub(longest);
        let invalid = |text: String| Err(RunError::Invalid(text));
        match self.options.context_tokens {
            _ if room == 0 => invalid(format!(
                "an answer of {longest} tokens leaves no room for a question in the model's {limit}: lower `--max-tokens`"
            )),
            Some(asked) if asked > room => invalid(format!(
                "a prompt of {asked} tokens and an answer of {longest} are more than the model's {limit}: lower `--context-tokens` or `--max-tokens`"
            )),
            asked => Ok(asked.unwrap_or(room.min(USUAL_CONTEXT))),
        }
    }

    /// Continues a message, as the model is spoken to, with the adapter of the model if there is one.
    ///
    /// # Errors
    /// Whatever goes wrong while generating.
    pub fn generate(&mut self, message: &str) -> Result<Continued, RunError> {
        let chat = self.is_chat()?;
        let mut stop = self.options.stop.clone();
        stop.push(NEXT_QUESTION.to_owned());
        let text = if chat {
            message.to_owned()
        } else {
            stop.push(EMPTY_LINE.to_owned());
            format!("{message}{ANSWER}")
        };
        let names = self.opened.adapters.names();
        let request = GenerateRequest {
            prompts: vec![Prompt {
                text,
                adapter: names.first().map(|name| (*name).to_owned()),
            }],
            chat,
            system: None,
            stop,
            max_tokens: self.options.max_tokens,
            sampler: self.options.sampler.clone(),
            seed: self.options.seed,
            cache_type: self.options.cache_type,
        };
        let (opened, on_text) = (self.opened, &mut self.on_text);
        let found = self.stages.time("generate", || {
            crate::run::generate(opened, &request, &mut |piece| on_text(piece.text))
        })?;
        let first = found.into_iter().next();
        first.ok_or_else(|| RunError::Invalid("nothing was generated".into()))
    }

    /// Continues a text as it is with the only adapter of this set in place of the model's own.
    ///
    /// # Errors
    /// Whatever goes wrong while generating.
    pub(super) fn generate_by(
        &mut self,
        adapters: &Arc<AdapterSet>,
        text: String,
    ) -> Result<crate::run::Continued, RunError> {
        let mut stop = self.options.stop.clone();
        stop.push(EMPTY_LINE.to_owned());
        let request = GenerateRequest {
            prompts: vec![Prompt {
                text,
                adapter: adapters.names().first().map(|name| (*name).to_owned()),
            }],
            chat: false,
            system: None,
            stop,
            max_tokens: self.options.max_tokens,
            sampler: self.options.sampler.clone(),
            seed: self.options.seed,
            cache_type: self.options.cache_type,
        };
        let (opened, on_text) = (self.opened, &mut self.on_text);
        let found = self.stages.time("generate", || {
            generate_by(opened, adapters, &request, &mut |piece| on_text(piece.text))
        })?;
        let first = found.into_iter().next();
        first.ok_or_else(|| RunError::Invalid("nothing was generated".into()))
    }

    /// Answers from these passages, as many as have room, and says which of them the answer rests on.
    /// Without passages nothing is generated: a model would answer from memory.
    ///
    /// # Errors
    /// A question without room, and whatever goes wrong while generating.
    pub fn answer_from(
        &mut self,
        question: &str,
        passages: &[Passage],
    ) -> Result<AskAnswer, RunError> {
        if passages.is_empty() {
            return Ok(AskAnswer {
                queries: vec![question.to_owned()],
                notes: vec!["no passage was found to answer from".into()],
                ..AskAnswer::default()
            });
        }
        let options = PromptOptions::within(self.budget()?);
        let built = self.build(question, passages, &options)?;
        let continued = self.generate(&built.text)?;
        let answer = continued.text.trim().to_owned();
        Ok(AskAnswer {
            citations: cite(&answer, &built.used),
            answer,
            passages: built.used,
            queries: vec![question.to_owned()],
            left_out: built.dropped,
            prompt_tokens: continued.prompt_tokens,
            tokens: continued.tokens.len(),
            finish: Some(continued.finish),
            notes: built.notes,
            ..AskAnswer::default()
        })
    }

    /// The text of a question with as many passages as have room.
    pub(super) fn build(
        &self,
        question: &str,
        passages: &[Passage],
        options: &PromptOptions,
    ) -> Result<Built, RunError> {
        let built = {
            let mut count = |text: &str| Ok(self.encode(text)?.len());
            build_prompt(question, passages, options, &mut count)
        };
        let built = built.map_err(|error| match error {
            PromptError::Count(error) => error,
            other => RunError::Invalid(other.to_string()),
        })?;
        if built.passages.is_empty() {
            return Err(RunError::Invalid(format!(
                "no passage has room in a prompt of {} tokens: raise `--context-tokens`, or index smaller pieces",
                options.budget
            )));
        }
        let used: Vec<Passage> = built
            .passages
            .iter()
            .map(|used| Passage {
                text: used.text.clone(),
                ..passages[used.index].clone()
            })
            .collect();
        let mut notes = Vec::new();
        if built.dropped > 0 {
            notes.push(format!(
                "{} of {} passages had no room in {} tokens",
                built.dropped,
                passages.len(),
                options.budget
            ));
        }
        let cut = built.passages.iter().find(|used| used.cut);
        notes.extend(cut.map(|used| format!("passage {} was cut to fit", used.index + 1)));
        Ok(Built {
            text: built.text,
            used,
            dropped: built.dropped,
            notes,
        })
    }

    /// Continues a prompt in tokens, whose answer has begun already, under a change of the model.
    pub(super) fn generate_changed(
        &mut self,
        change: FastWeights,
        prompt: Vec<u32>,
    ) -> Result<Continued, RunError> {
        let tokenizer = self.opened.files.tokenizer()?;
        let config = GenerateConfig {
            max_tokens: self.options.max_tokens,
            sampler: self.options.sampler.clone(),
            eos_token_ids: tokenizer.eos_ids().to_vec(),
            seed: self.options.seed,
            cache_type: self.options.cache_type,
        };
        let mut stop = self.options.stop.clone();
        stop.push(LINE_END.to_owned());
        let (opened, on_text) = (self.opened, &mut self.on_text);
        self.stages.time("generate", || {
            generate_changed(opened, Some(change), prompt, &config, &stop, on_text)
        })
    }
}

/// A prompt with the passages in it, and what there is to say of them.
pub(super) struct Built {
    pub text: String,
    pub used: Vec<Passage>,
    pub dropped: usize,
    pub notes: Vec<String>,
}

/// Title and text as one, as they are indexed.
pub(super) fn titled(passage: &Passage) -> String {
    format!("{} {}", passage.title, passage.text)
        .trim()
        .to_owned()
}
