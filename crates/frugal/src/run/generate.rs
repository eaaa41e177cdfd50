//! Continuing texts: prompts in, texts out as they are written.

use std::sync::Arc;

use frugal_core::data::Message;
use frugal_core::tokenizer::{StopStream, TextTokenizer, TokenizerError};
use frugal_decode::{CacheType, FinishReason, GenerateConfig, Next, SamplerConfig, generate_until};
use frugal_nn::{ActiveAdapters, AdapterSet};

use super::{Opened, RunError};

/// A text to continue.
#[derive(Clone, Debug)]
pub struct Prompt {
    /// The text, or with a chat template the message.
    pub text: String,
    /// Name of the adapter that continues it; `None` for the model as it is.
    pub adapter: Option<String>,
}

/// What is continued, and how.
#[derive(Clone, Debug)]
pub struct GenerateRequest {
    /// The texts, which are continued together.
    pub prompts: Vec<Prompt>,
    /// Whether each is a message to an assistant, written by the chat template.
    pub chat: bool,
    /// Instructions in front of each message; only with a chat template.
    pub system: Option<String>,
    /// Texts that end an answer and are not part of it. The model's own ends hold besides.
    pub stop: Vec<String>,
    /// Most tokens to add to each.
    pub max_tokens: usize,
    /// How tokens are chosen.
    pub sampler: SamplerConfig,
    /// Decides the choices.
    pub seed: u64,
    /// How keys and values of earlier tokens are held.
    pub cache_type: CacheType,
}

/// A part of an answer, as it is written.
#[derive(Clone, Copy, Debug)]
pub struct Piece<'a> {
    /// Number of the prompt.
    pub prompt: usize,
    /// The token that was chosen; none for what is left at the end.
    pub token: Option<u32>,
    /// What is certain to belong to the answer by now; may be empty.
    pub text: &'a str,
}

/// An answer.
#[derive(Clone, Debug)]
pub struct Continued {
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// New tokens, without the one that ended the sequence.
    pub tokens: Vec<u32>,
    /// Their text, up to a text to stop at.
    pub text: String,
    /// Why it ended.
    pub finish: FinishReason,
}

/// Continues all prompts together; `on_piece` sees each answer as it is written, and ends everything
/// by returning false.
///
/// # Errors
/// Adapters that classify or that there are not, a chat template that there is not, prompts that are
/// empty or too long.
pub fn generate(
    opened: &Opened,
    request: &GenerateRequest,
    on_piece: &mut dyn FnMut(Piece<'_>) -> bool,
) -> Result<Vec<Continued>, RunError> {
    generate_by(opened, &opened.adapters, request, on_piece)
}

/// The same with these adapters in place of the model's own.
pub(super) fn generate_by(
    opened: &Opened,
    adapters: &Arc<AdapterSet>,
    request: &GenerateRequest,
    on_piece: &mut dyn FnMut(Piece<'_>) -> bool,
) -> Result<Vec<Continued>, RunError> {
    request.sampler.validate()?;
    opened.refuse_classifiers()?;
    let tokenizer = opened.files.tokenizer()?;
    let encoded = request
        .prompts
        .iter()
        .map(|prompt| encode(&prompt.text, tokenizer, request, opened.files.name()))
        .collect::<Result<Vec<_>, _>>()?;
    let config = GenerateConfig {
        max_tokens: request.max_tokens,
        sampler: request.sampler.clone(),
        eos_token_ids: tokenizer.eos_ids().to_vec(),
        seed: request.seed,
        cache_type: request.cache_type,
    };
    continue_tokens(
        opened,
        (adapters, &choice(&request.prompts)),
        &encoded,
        &config,
        &request.stop,
        on_piece,
    )
}

/// Continues prompts in tokens as these adapters have it, up to one of the texts to stop at.
pub(super) fn continue_tokens(
    opened: &Opened,
    (adapters, choice): (&Arc<AdapterSet>, &ActiveAdapters),
    prompts: &[Vec<u32>],
    config: &GenerateConfig,
    stop: &[String],
    on_piece: &mut dyn FnMut(Piece<'_>) -> bool,
) -> Result<Vec<Continued>, RunError> {
    let tokenizer = opened.files.tokenizer()?;
    let stops = stop_texts(tokenizer, stop);
    let mut answers = vec![AnswerText::new(tokenizer, &stops); prompts.len()];
    let mut failed = None;
    let mut on_token = |prompt: usize, token: u32| {
        let answer = &mut answers[prompt];
        let text = match answer.push(token) {
            Ok(text) => text,
            Err(error) => {
                failed = Some(error);
                return Next::Nothing;
            }
        };
        let token = Some(token);
        let goes_on = on_piece(Piece {
            prompt,
            token,
            text: &text,
        });
        match (goes_on, answer.is_stopped()) {
            (false, _) => Next::Nothing,
            (true, true) => Next::Others,
            (true, false) => Next::Sequence,
        }
    };
    let found = generate_until(
        &opened.backbone,
        adapters,
        choice,
        prompts,
        config,
        &mut on_token,
    )?;
    if let Some(error) = failed {
        return Err(error.into());
    }
    let mut continued = Vec::with_capacity(found.len());
    for (prompt, (found, answer)) in found.into_iter().zip(answers).enumerate() {
        let (text, rest) = answer.finish()?;
        let token = None;
        on_piece(Piece {
            prompt,
            token,
            text: &rest,
        });
        continued.push(Continued {
            prompt_tokens: prompts[prompt].len(),
            tokens: found.tokens,
            text,
            finish: found.finish,
        });
    }
    Ok(continued)
}

/// One choice for all, or one for each.
fn choice(prompts: &[Prompt]) -> ActiveAdapters {
    let mut names = prompts.iter().map(|prompt| prompt.adapter.clone());
    let first = names.next().flatten();
    if prompts.iter().all(|prompt| prompt.adapter == first) {
        return first.map_or(ActiveAdapters::Base, ActiveAdapters::One);
    }
    ActiveAdapters::PerSequence(
        prompts
            .iter()
            .map(|prompt| prompt.adapter.clone())
            .collect(),
    )
}

fn encode(
    prompt: &str,
    tokenizer: &TextTokenizer,
    request: &GenerateRequest,
    model: &str,
) -> Result<Vec<u32>, RunError> {
    if !request.chat && request.system.is_none() {
        return Ok(tokenizer.encode(prompt, true)?);
    }
    if !tokenizer.has_chat_template() {
        return Err(RunError::Invalid(format!(
            "`{model}` has no chat template: it was not made for conversations"
        )));
    }
    let system = request
        .system
        .iter()
        .map(|text| Message::new("system", text));
    let messages: Vec<Message> = system.chain([Message::new("user", prompt)]).collect();
    Ok(tokenizer.encode(&tokenizer.render_chat(&messages, true)?, false)?)
}

/// The texts that end an answer, with the mark of a chat template that the vocabulary has no token
/// for.
pub(super) fn stop_texts(tokenizer: &TextTokenizer, given: &[String]) -> Arc<[String]> {
    let own = tokenizer.turn_end_text().map(str::to_owned);
    given.iter().cloned().chain(own).collect()
}

/// The text of an answer as it is written, up to a text to stop at.
#[derive(Clone)]
pub(super) struct AnswerText<'a> {
    stream: StopStream<'a>,
    text: String,
}

impl<'a> AnswerText<'a> {
    pub(super) fn new(tokenizer: &'a TextTokenizer, stops: &[String]) -> Self {
        Self {
            stream: StopStream::new(tokenizer, stops),
            text: String::new(),
        }
    }

    /// Takes one more token and gives the text that is certain by now.
    pub(super) fn push(&mut self, token: u32) -> Result<String, TokenizerError> {
        let text = self.stream.push(token)?.unwrap_or_default();
        self.text.push_str(&text);
        Ok(text)
    }

    pub(super) fn is_stopped(&self) -> bool {
        self.stream.is_stopped()
    }

    /// The whole text, and the part of it that was held back.
    pub(super) fn finish(self) -> Result<(String, String), TokenizerError> {
        let rest = self.stream.finish()?.unwrap_or_default();
        Ok((self.text + &rest, rest))
    }
}
