//! A conversation with a model, of which only what is new is computed.

use std::sync::Arc;

use frugal_core::data::Message;
use frugal_core::tokenizer::TextTokenizer;
use frugal_decode::{CacheType, DecodeError, Sampler, SequenceId, Session, StateOptions};
use frugal_nn::Backbone;

use super::generate::{AnswerText, stop_texts};
use super::{Opened, RunError};

/// Tokens that a conversation may differ in at its end from what was computed, so that layers with a
/// sliding window need not begin anew: what a template makes of a finished answer.
const REWINDABLE: usize = 256;

/// How answers are written.
#[derive(Clone, Debug, Default)]
pub struct ConversationOptions {
    /// Most tokens of an answer.
    pub max_tokens: usize,
    /// Texts that end an answer. The model's own ends hold besides.
    pub stop: Vec<String>,
    /// How keys and values of earlier tokens are held.
    pub cache_type: CacheType,
}

/// What an answer took.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answered {
    /// Tokens that were written.
    pub tokens: usize,
    /// Oldest turns that were dropped because the conversation no longer fitted the model.
    pub forgotten: usize,
}

/// A conversation.
pub struct Conversation {
    session: Session,
    sequence: SequenceId,
    backbone: Arc<dyn Backbone>,
    tokenizer: TextTokenizer,
    max_tokens: usize,
    stops: Arc<[String]>,
    messages: Vec<Message>,
}

impl Conversation {
    /// A conversation in which nothing was said, with the first adapter if there is one; `tokenizer`
    /// is the model's, perhaps with another chat template.
    ///
    /// # Errors
    /// Adapters that classify, a tokenizer without a chat template, a model that cannot generate.
    pub fn new(
        opened: &Opened,
        tokenizer: TextTokenizer,
        options: &ConversationOptions,
    ) -> Result<Self, RunError> {
        opened.refuse_classifiers()?;
        if !tokenizer.has_chat_template() {
            return Err(RunError::Invalid(format!(
                "`{}` has no chat template: it was not made for conversations",
                opened.files.name()
            )));
        }
        let state = StateOptions {
            cache_type: options.cache_type,
            rewindable: REWINDABLE,
        };
        let mut session = Session::new(opened.backbone.clone(), opened.adapters.clone(), state)?;
        Ok(Self {
            sequence: session.add(opened.choice())?,
            session,
            backbone: opened.backbone.clone(),
            max_tokens: options.max_tokens,
            stops: stop_texts(&tokenizer, &options.stop),
            tokenizer,
            messages: Vec::new(),
        })
    }

    /// Forgets everything and begins with these instructions.
    pub fn start(&mut self, system: Option<&str>) {
        self.messages = system
            .iter()
            .map(|text| Message::new("system", *text))
            .collect();
    }

    /// Forgets what was said, but not the instructions.
    pub fn reset(&mut self) {
        self.messages.retain(|m| m.role == "system");
    }

    /// What was said.
    pub fn messages(&self) -> &[Message] {
        &self.messages
    }

    /// Answers a message; `on_text` sees the answer as it is written, and ends it by returning false.
    /// A message that cannot be answered does not become part of the conversation.
    ///
    /// # Errors
    /// Messages that are too long for the model, and whatever goes wrong while computing.
    pub fn answer(
        &mut self,
        message: &str,
        sampler: &mut Sampler,
        on_text: &mut dyn FnMut(&str) -> bool,
    ) -> Result<Answered, RunError> {
        let before = self.messages.clone();
        self.messages.push(Message::new("user", message));
        let answered = self.prompt().and_then(|(prompt, forgotten)| {
            let (text, tokens) = self.write(&prompt, sampler, on_text)?;
            self.messages.push(Message::new("assistant", text));
            Ok(Answered { tokens, forgotten })
        });
        if answered.is_err() {
            self.messages = before;
        }
        answered
    }

    fn write(
        &mut self,
        prompt: &[u32],
        sampler: &mut Sampler,
        on_text: &mut dyn FnMut(&str) -> bool,
    ) -> Result<(String, usize), RunError> {
        let mut logits = self.session.rewind_to(self.sequence, prompt)?;
        let mut answer = AnswerText::new(&self.tokenizer, &self.stops);
        let mut generated = Vec::new();
        while generated.len() < self.max_tokens {
            let token = sampler.next(&mut logits, prompt, &generated);
            if self.tokenizer.eos_ids().contains(&token) {
                break;
            }
            generated.push(token);
            let goes_on = on_text(&answer.push(token)?);
            if !goes_on || answer.is_stopped() || self.session.remaining(self.sequence)? == 0 {
                break;
            }
            if generated.len() < self.max_tokens {
                logits = self.session.append_to(self.sequence, &[token])?;
            }
        }
        let (text, rest) = answer.finish()?;
        on_text(&rest);
        Ok((text, generated.len()))
    }

    /// Token ids of the conversation, whose oldest turns are dropped when it no longer fits, and how
    /// many were.
    fn prompt(&mut self) -> Result<(Vec<u32>, usize), RunError> {
        let limit = self.backbone.info().max_sequence;
        let mut forgotten = 0;
        loop {
            let text = self.tokenizer.render_chat(&self.messages, true)?;
            let ids = self.tokenizer.encode(&text, false)?;
            if ids.len() + self.max_tokens.min(limit / 4) <= limit {
                return Ok((ids, forgotten));
            }
            let first = usize::from(self.messages[0].role == "system");
            if self.messages.len() <= first + 1 {
                return Err(RunError::Invalid(format!(
                    "the message has {} tokens, too many for the model's {limit}",
                    ids.len()
                )));
            }
            // A question and its answer.
            self.messages.drain(first..first + 2);
            forgotten += 1;
        }
    }
}

impl From<DecodeError> for RunError {
    fn from(error: DecodeError) -> Self {
        match error {
            DecodeError::Model(error) => Self::Model(error),
            DecodeError::Adapt(error) => Self::Adapt(error),
            other => Self::Decode(other),
        }
    }
}
