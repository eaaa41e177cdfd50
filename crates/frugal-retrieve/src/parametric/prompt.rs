//! What a document is trained on, and how questions are put to the model.

use frugal_core::data::Message;
use frugal_core::tokenizer::TextTokenizer;
use frugal_kernels::IGNORE_INDEX;
use frugal_nn::BackboneInfo;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::config::EncodeOptions;
use super::error::ParametricError;
use crate::rag::render;

/// What the model is told beside passages.
pub const WITH_PASSAGES: &str =
    "Answer the question from the passages below and from what you know.";
/// What it is told without.
pub const WITHOUT_PASSAGES: &str = "Answer the question from what you know.";
/// How every answer begins.
pub const ANSWER_START: &str = "The answer is";
/// What follows the question where a model has no chat template.
const ANSWER: &str = "\nAnswer:";

/// A question about a document.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Item {
    /// The question.
    pub question: String,
    /// Its answer, a few words.
    pub answer: String,
}

/// A document with what was made of it (stage A).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AugmentedDocument {
    /// Its identifier.
    pub id: String,
    /// Its title; may be empty.
    pub title: String,
    /// Its text.
    pub passage: String,
    /// The same said otherwise; without it a question is asked of the passage alone.
    pub rewrite: Option<String>,
    /// Questions about it.
    pub items: Vec<Item>,
}

impl AugmentedDocument {
    /// Title and text as one: what the translator reads.
    pub fn text(&self) -> String {
        format!("{} {}", self.title, self.passage).trim().to_owned()
    }

    fn refused(&self, reason: String) -> ParametricError {
        ParametricError::Document {
            id: self.id.clone(),
            reason,
        }
    }
}

/// A sequence of tokens to learn.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sequence {
    /// Ids of the tokens.
    pub ids: Vec<u32>,
    /// For each position the id that it must predict, or -100.
    pub targets: Vec<i32>,
}

impl Sequence {
    /// Prompt and answer; of the prompt's tokens as targets only if `label_prompt`.
    pub fn new(prompt: &[u32], answer: &[u32], label_prompt: bool) -> Self {
        let ids = [prompt, answer].concat();
        let first = if label_prompt { 1 } else { prompt.len() };
        let target = |i: usize| match ids.get(i + 1) {
            Some(&next) if i + 1 >= first => i32::try_from(next).unwrap_or(IGNORE_INDEX),
            _ => IGNORE_INDEX,
        };
        Self {
            targets: (0..ids.len()).map(target).collect(),
            ids,
        }
    }

    /// Positions that are learnt.
    pub fn trained(&self) -> usize {
        let trained = |target: &&i32| **target != IGNORE_INDEX;
        self.targets.iter().filter(trained).count()
    }

    /// Refuses a sequence that nothing can be learnt from by this model.
    pub(super) fn check(&self, info: &BackboneInfo) -> Result<(), ParametricError> {
        let vocab = info.vocab_size;
        let refused = |reason: String| Err(ParametricError::Sequence(reason));
        if let Some(reason) = too_long("one", self.ids.len(), info.max_sequence) {
            return refused(reason);
        }
        let (ids, targets) = (self.ids.len(), self.targets.len());
        if ids != targets {
            return refused(format!("one has {targets} targets for {ids} tokens"));
        }
        let known = |target: i32| usize::try_from(target).is_ok_and(|target| target < vocab);
        let targets = self.targets.iter().filter(|t| **t != IGNORE_INDEX);
        match targets.clone().find(|target| !known(**target)) {
            Some(target) => refused(format!(
                "target {target} is outside the vocabulary of {vocab}"
            )),
            None if targets.count() == 0 => refused("one has no target".into()),
            None => Ok(()),
        }
    }
}

/// What to say of a text with more tokens than a model has positions.
pub(super) fn too_long(what: &str, tokens: usize, positions: usize) -> Option<String> {
    (tokens > positions).then(|| {
        format!(
            "{what} has {tokens} tokens, and the model has {positions} positions: index smaller pieces \
             (`frugal index --chunk`)"
        )
    })
}

/// SHA-256 of sequences: what a document was trained on, as the model reads it. Another question,
/// answer, rewrite, tokenizer or chat template gives another.
pub fn digest(sequences: &[Sequence]) -> String {
    let mut hash = Sha256::new();
    for sequence in sequences {
        hash.update((sequence.ids.len() as u64).to_le_bytes());
        let ids = sequence.ids.iter().map(|id| id.to_le_bytes());
        ids.for_each(|bytes| hash.update(bytes));
        let targets = sequence.targets.iter().map(|target| target.to_le_bytes());
        targets.for_each(|bytes| hash.update(bytes));
    }
    hash.finalize().iter().map(|b| format!("{b:02x}")).collect()
}

/// Sequences of a document with `items` questions: `2⌈n/2⌉ + ⌊n/2⌋`.
pub fn num_sequences(items: usize) -> usize {
    2 * items.div_ceil(2) + items / 2
}

/// Prompts in a model's tokens.
#[derive(Clone, Copy)]
pub struct Prompts<'t> {
    tokenizer: &'t TextTokenizer,
    /// Most tokens that the model reads.
    positions: usize,
}

impl<'t> Prompts<'t> {
    /// For the model of a tokenizer, however long.
    pub fn new(tokenizer: &'t TextTokenizer) -> Self {
        Self {
            tokenizer,
            positions: usize::MAX,
        }
    }

    /// The same for a model with so many positions: [`sequences`] refuses longer ones.
    #[must_use]
    pub fn within(self, positions: usize) -> Self {
        Self { positions, ..self }
    }

    /// What `sequences` would give of a document before there are questions about it: its passage in
    /// the prompt, with nothing to learn.
    ///
    /// # Errors
    /// A passage that the model has no room for, what the tokenizer refuses.
    pub fn passage(&self, document: &AugmentedDocument) -> Result<Sequence, ParametricError> {
        let passage = [(document.title.as_str(), document.passage.as_str())];
        let prompt = self.message(&Self::text("", &passage))?;
        match too_long("its prompt", prompt.len(), self.positions) {
            Some(reason) => Err(document.refused(reason)),
            None => Ok(Sequence::new(&prompt, &[], false)),
        }
    }

    /// Tokens of a message as the model reads it, by its chat template if it has one.
    ///
    /// # Errors
    /// A template that refuses the message, a text that the tokenizer cannot spell.
    pub fn message(&self, text: &str) -> Result<Vec<u32>, ParametricError> {
        if self.tokenizer.has_chat_template() {
            let text = self
                .tokenizer
                .render_chat(&[Message::new("user", text)], true)?;
            return Ok(self.tokenizer.encode(&text, false)?);
        }
        Ok(self.tokenizer.encode(&format!("{text}{ANSWER}"), true)?)
    }

    /// Tokens of what the model says after its prompt.
    fn said(&self, text: &str) -> Result<Vec<u32>, ParametricError> {
        let space = if self.tokenizer.has_chat_template() {
            ""
        } else {
            " "
        };
        Ok(self.tokenizer.encode(&format!("{space}{text}"), false)?)
    }

    /// The text of a question with passages (title and text), or without any.
    pub fn text(question: &str, passages: &[(&str, &str)]) -> String {
        let instructions = match passages {
            [] => WITHOUT_PASSAGES,
            _ => WITH_PASSAGES,
        };
        render(instructions, question, passages)
    }

    /// Tokens of a message, and of the beginning of the answer to it.
    ///
    /// # Errors
    /// As [`Prompts::message`].
    pub fn asked(&self, message: &str) -> Result<Vec<u32>, ParametricError> {
        let mut ids = self.message(message)?;
        ids.extend(self.said(ANSWER_START)?);
        Ok(ids)
    }
}

/// What a document is trained on, in order: of the first half of its questions (the larger one), each
/// with the passage and with its rewrite in the prompt; of the others, each without any.
///
/// # Errors
/// A document without text or questions, a sequence over the limit or the model's positions, what the
/// tokenizer refuses.
pub fn sequences(
    document: &AugmentedDocument,
    prompts: Prompts<'_>,
    options: &EncodeOptions,
) -> Result<Vec<Sequence>, ParametricError> {
    let refused = |reason| document.refused(reason);
    if document.passage.trim().is_empty() {
        return Err(refused("it has no text".into()));
    }
    if document.items.is_empty() {
        return Err(refused("there is no question about it".into()));
    }
    let mut found = Vec::with_capacity(num_sequences(document.items.len()));
    for (number, item) in document.items.iter().enumerate() {
        let (question, answer) = (item.question.trim(), item.answer.trim());
        if question.is_empty() || answer.is_empty() {
            return Err(refused(format!(
                "question {} or its answer is empty",
                number + 1
            )));
        }
        let answer = prompts.said(&format!("{ANSWER_START} {answer}."))?;
        let contexts: Vec<Option<&str>> = match number < document.items.len().div_ceil(2) {
            true => std::iter::once(Some(document.passage.as_str()))
                .chain(document.rewrite.as_deref().map(Some))
                .collect(),
            false => vec![None],
        };
        for context in contexts {
            let passage = context.map(|text| (document.title.as_str(), text));
            let prompt = prompts.message(&Prompts::text(question, passage.as_slice()))?;
            let sequence = Sequence::new(&prompt, &answer, options.label_prompt);
            let tokens = sequence.ids.len();
            if let Some(reason) = too_long("a training sequence", tokens, prompts.positions) {
                return Err(refused(reason));
            }
            if tokens > options.max_tokens {
                return Err(refused(format!(
                    "a training sequence has {tokens} tokens, more than {}: index smaller pieces (`frugal index --chunk`)",
                    options.max_tokens
                )));
            }
            found.push(sequence);
        }
    }
    Ok(found)
}

/// The answer proper of a continuation, as the official evaluation cuts it: up to the first period,
/// comma or line end.
pub fn short_answer(text: &str) -> &str {
    let end = text.trim_start().find(['.', ',', '\n']);
    let text = text.trim_start();
    text[..end.unwrap_or(text.len())].trim()
}
