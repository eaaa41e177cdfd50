//! Text to token ids and back: a `tokenizers` tokenizer together with what Hugging Face keeps
//! beside it.

mod added;
mod bounds;
mod class;
mod cut;
mod files;
mod stop;
mod stop_text;
mod stream;
mod train;
mod words;

use std::path::PathBuf;
use std::sync::Arc;

use thiserror::Error;
use tokenizers::processors::PostProcessorWrapper;
use tokenizers::processors::sequence::Sequence;
use tokenizers::processors::template::TemplateProcessing;
use tokenizers::{EncodeInput, Encoding, PostProcessor, Tokenizer};

use crate::caught::caught;
use crate::data::{Conversation, Message};
use crate::fs::FileError;
use crate::template::{ChatTemplate, TemplateError};

pub use crate::tokenizer_settings::TokenizerSettings;
pub use cut::CutText;
use stop::TurnEnd;
pub use stop_text::StopStream;
pub use stream::TextStream;
pub use train::train_bpe;
pub use words::CutWords;

/// A tokenizer that cannot be loaded, used or written.
#[derive(Debug, Error)]
pub enum TokenizerError {
    /// A file that cannot be read or written.
    #[error(transparent)]
    File(#[from] FileError),
    /// The folder has no `tokenizer.json`.
    #[error(
        "{}: no tokenizer.json; with Python, `AutoTokenizer.from_pretrained(MODEL).save_pretrained(FOLDER)` writes one", folder.display()
    )]
    Missing {
        /// The folder.
        folder: PathBuf,
    },
    /// A file that is not what its name says.
    #[error("{}: {reason}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A special token that the vocabulary lacks.
    #[error("{name} is {token:?}, which is not in the vocabulary of the tokenizer")]
    UnknownToken {
        /// `bos_token` or `eos_token`.
        name: &'static str,
        /// The token.
        token: String,
    },
    /// The tokenizer refused the text or the ids.
    #[error("the tokenizer cannot {action}: {reason}")]
    Failed {
        /// What was tried.
        action: &'static str,
        /// Why it failed.
        reason: String,
    },
    /// The chat template does not compile.
    #[error(transparent)]
    Template(#[from] TemplateError),
}

impl TokenizerError {
    fn failed(action: &'static str) -> impl FnOnce(tokenizers::Error) -> Self {
        move |e| Self::Failed {
            action,
            reason: e.to_string(),
        }
    }

    pub(crate) fn panicked(action: &'static str) -> impl FnOnce(String) -> Self {
        move |reason| Self::Failed {
            action,
            reason: format!("its settings contradict each other ({reason})"),
        }
    }
}

/// Bytes above which a text is cut before it is tokenized, if it is cut anyway.
const HUGE_TEXT: usize = 1 << 20;

/// A tokenizer with its special tokens and chat template. Cheap to clone.
#[derive(Clone, Debug)]
pub struct TextTokenizer {
    tokenizer: Arc<Tokenizer>,
    settings: TokenizerSettings,
    template: Option<ChatTemplate>,
    bos_id: Option<u32>,
    /// What every format of a model says about its ends, before the chat template's is added.
    eos_id: Option<u32>,
    turn_end: Option<TurnEnd>,
    eos_ids: Vec<u32>,
    pad_id: u32,
}

/// Ids of a text with the place each came from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Spans {
    /// Token ids.
    pub ids: Vec<u32>,
    /// For each id the bytes `start..end` of the text; `(0, 0)` for a token that was added.
    pub offsets: Vec<(usize, usize)>,
    /// 0 for the first text, 1 for the second.
    pub token_type_ids: Vec<u32>,
}

impl From<Encoding> for Spans {
    fn from(e: Encoding) -> Self {
        Self {
            ids: e.get_ids().to_vec(),
            offsets: e.get_offsets().to_vec(),
            token_type_ids: e.get_type_ids().to_vec(),
        }
    }
}

impl TextTokenizer {
    /// Joins a tokenizer and its settings. Padding and truncation that the tokenizer file asks for
    /// are switched off: batches are padded, and long texts refused or cut, where they are encoded.
    ///
    /// # Errors
    /// When `bos_token` or `eos_token` is not in the vocabulary, or the chat template does not
    /// compile.
    pub fn new(
        mut tokenizer: Tokenizer,
        settings: TokenizerSettings,
    ) -> Result<Self, TokenizerError> {
        tokenizer.with_padding(None);
        tokenizer
            .with_truncation(None)
            .map_err(TokenizerError::failed("switch off truncation"))?;
        let id_of = |name, token: &Option<String>| {
            let Some(token) = token else { return Ok(None) };
            let id = tokenizer.token_to_id(token);
            id.map(Some).ok_or_else(|| TokenizerError::UnknownToken {
                name,
                token: token.clone(),
            })
        };
        let bos_id = id_of("bos_token", &settings.bos_token)?;
        let eos_id = id_of("eos_token", &settings.eos_token)?;
        add_special_tokens(&mut tokenizer, &settings, bos_id, eos_id)?;
        let template = settings
            .chat_template
            .as_deref()
            .map(|source| ChatTemplate::new(source, &settings))
            .transpose()?;
        let turn_end = template
            .as_ref()
            .and_then(|t| stop::turn_end(t, &tokenizer));
        let eos_ids = stop::stop_ids(eos_id, &settings.eos_token_ids, turn_end.as_ref());
        let pad_id = settings
            .pad_token
            .as_ref()
            .and_then(|t| tokenizer.token_to_id(t))
            .or(eos_ids.first().copied())
            .unwrap_or(0);
        Ok(Self {
            tokenizer: Arc::new(tokenizer),
            settings,
            template,
            bos_id,
            eos_id,
            turn_end,
            eos_ids,
            pad_id,
        })
    }

    /// Token ids of a text. With `add_special_tokens` the post-processor adds what the model
    /// expects around it.
    ///
    /// # Errors
    /// When the tokenizer fails, for example on a character it can neither spell nor replace.
    pub fn encode(&self, text: &str, add_special_tokens: bool) -> Result<Vec<u32>, TokenizerError> {
        Ok(self.encode_spans(text, add_special_tokens)?.ids)
    }

    /// As [`Self::encode`], with the place in the text that each token came from.
    ///
    /// # Errors
    /// As [`Self::encode`].
    pub fn encode_spans(
        &self,
        text: &str,
        add_special_tokens: bool,
    ) -> Result<Spans, TokenizerError> {
        Ok(self.encoding(text.into(), add_special_tokens)?.into())
    }

    /// One text, or two, as an encoder reads them: special tokens around them and a token type for
    /// each id, which is 0 where the tokenizer gives the model none.
    ///
    /// # Errors
    /// As [`Self::encode`].
    pub fn encode_pair(&self, text: &str, pair: Option<&str>) -> Result<Spans, TokenizerError> {
        let input: EncodeInput = match pair {
            Some(pair) => (text, pair).into(),
            None => text.into(),
        };
        let mut spans = Spans::from(self.encoding(input, true)?);
        if !self.settings.token_types {
            spans.token_type_ids.fill(0);
        }
        Ok(spans)
    }

    /// What the tokenizer makes of a text, or of two; its panics are errors.
    fn encoding(&self, input: EncodeInput, special: bool) -> Result<Encoding, TokenizerError> {
        let encode = || self.tokenizer.encode(input, special);
        caught(encode)
            .map_err(TokenizerError::panicked("encode the text"))?
            .map_err(TokenizerError::failed("encode the text"))
    }

    /// The beginning of a text that holds at least so many tokens: of a text of many megabytes only
    /// what is used is tokenized. Texts of up to a megabyte are left whole.
    pub fn head<'t>(&self, text: &'t str, tokens: usize) -> &'t str {
        if text.len() <= HUGE_TEXT {
            return text;
        }
        // Some tokens more, because the last ones may come out otherwise where a text is cut.
        let room = tokens
            .saturating_add(64)
            .saturating_mul(self.longest_token());
        let mut end = text.len().min(room.max(HUGE_TEXT));
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        &text[..end]
    }

    /// Bytes of the longest token, as the vocabulary spells it.
    fn longest_token(&self) -> usize {
        let vocab = self.tokenizer.get_vocab(true);
        vocab.keys().map(String::len).max().unwrap_or(1)
    }

    /// Text of token ids.
    ///
    /// # Errors
    /// When the decoder of the tokenizer fails.
    pub fn decode(&self, ids: &[u32], skip_special_tokens: bool) -> Result<String, TokenizerError> {
        caught(|| self.tokenizer.decode(ids, skip_special_tokens))
            .map_err(TokenizerError::panicked("decode the ids"))?
            .map_err(TokenizerError::failed("decode the ids"))
    }

    /// Id of the first token of a sequence.
    pub fn bos_id(&self) -> Option<u32> {
        self.bos_id
    }

    /// Ids that end a sequence, that of `eos_token` first, then those of the model's files, then
    /// the one that the chat template writes after an answer.
    pub fn eos_ids(&self) -> &[u32] {
        &self.eos_ids
    }

    /// The id that the chat template writes after an answer, where it is one token.
    pub fn turn_end_id(&self) -> Option<u32> {
        match self.turn_end {
            Some(TurnEnd::Token(id)) => Some(id),
            _ => None,
        }
    }

    /// A text that ends an answer: the chat template's mark, where the vocabulary has no token for
    /// it and spells it.
    pub fn turn_end_text(&self) -> Option<&str> {
        match &self.turn_end {
            Some(TurnEnd::Text(text)) => Some(text),
            _ => None,
        }
    }

    /// Id that fills short sequences of a batch: the pad token, else the end of sequence, else 0.
    /// It may be the id of the end of sequence, so what is padding must be told from lengths and
    /// never from this id.
    pub fn pad_id(&self) -> u32 {
        self.pad_id
    }

    /// Number of tokens, added ones included. The embedding of the model may have more rows.
    pub fn vocab_size(&self) -> usize {
        self.tokenizer.get_vocab_size(true)
    }

    /// The token as the vocabulary spells it.
    pub fn token(&self, id: u32) -> Option<String> {
        self.tokenizer.id_to_token(id)
    }

    /// Id of a token, spelled as in the vocabulary.
    pub fn id(&self, token: &str) -> Option<u32> {
        self.tokenizer.token_to_id(token)
    }

    /// Whether the token has a meaning of its own and is no text.
    pub fn is_special(&self, id: u32) -> bool {
        self.tokenizer
            .get_added_vocabulary()
            .is_special_token(&self.token(id).unwrap_or_default())
    }

    /// How many tokens are added around one text, or around two.
    pub fn added_tokens(&self, pair: bool) -> usize {
        self.tokenizer
            .get_post_processor()
            .map_or(0, |p| p.added_tokens(pair))
    }

    /// Special tokens and the like.
    pub fn settings(&self) -> &TokenizerSettings {
        &self.settings
    }

    /// The tokenizer itself.
    pub fn inner(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// Whether [`Self::render_chat`] can work.
    pub fn has_chat_template(&self) -> bool {
        self.template.is_some()
    }

    /// The compiled chat template.
    pub fn chat_template(&self) -> Option<&ChatTemplate> {
        self.template.as_ref()
    }

    /// Replaces the chat template.
    ///
    /// # Errors
    /// When it does not compile.
    pub fn set_chat_template(&mut self, source: &str) -> Result<(), TemplateError> {
        let template = ChatTemplate::new(source, &self.settings)?;
        self.turn_end = stop::turn_end(&template, &self.tokenizer);
        self.template = Some(template);
        self.settings.chat_template = Some(source.to_owned());
        self.set_stop_ids();
        Ok(())
    }

    /// Adds ids that end a sequence, as a `generation_config.json` beside an adapter lists them.
    pub fn add_eos_ids(&mut self, ids: &[u32]) {
        self.settings.eos_token_ids.extend(ids);
        self.set_stop_ids();
    }

    fn set_stop_ids(&mut self) {
        let listed = &self.settings.eos_token_ids;
        self.eos_ids = stop::stop_ids(self.eos_id, listed, self.turn_end.as_ref());
    }

    /// Fixes what `strftime_now` in the chat template answers, in seconds since 1970 (UTC), so that
    /// a run can be repeated.
    pub fn set_template_clock(&mut self, unix_seconds: i64) {
        if let Some(template) = &mut self.template {
            template.set_clock(unix_seconds);
        }
    }

    /// A conversation as the model was trained to read it. Encode the result without adding special
    /// tokens: the template has written them.
    ///
    /// # Errors
    /// When there is no template, or it refuses the conversation.
    pub fn render_chat(
        &self,
        messages: &[Message],
        add_generation_prompt: bool,
    ) -> Result<String, TemplateError> {
        self.template
            .as_ref()
            .ok_or(TemplateError::Missing)?
            .render(messages, add_generation_prompt)
    }

    /// As [`Self::render_chat`], with the conversation's tools and other variables; a key that the
    /// template never names is refused.
    ///
    /// # Errors
    /// As [`Self::render_chat`], and a key that would be dropped.
    pub fn render_conversation(
        &self,
        conversation: &Conversation,
    ) -> Result<String, TemplateError> {
        let template = self.template.as_ref().ok_or(TemplateError::Missing)?;
        template.check_used(conversation)?;
        template.render_with(&conversation.messages, &conversation.variables, false)
    }

    /// SHA-256 of the chat template's source, in hexadecimal.
    pub fn sha256(&self) -> Option<String> {
        self.template.as_ref().map(ChatTemplate::sha256)
    }
}

/// Appends BOS and EOS to the post-processor where the settings ask for them and it does not add
/// them yet, so that a saved `tokenizer.json` does the same in other tools.
fn add_special_tokens(
    tokenizer: &mut Tokenizer,
    settings: &TokenizerSettings,
    bos_id: Option<u32>,
    eos_id: Option<u32>,
) -> Result<(), TokenizerError> {
    if !settings.add_bos_token && !settings.add_eos_token {
        return Ok(());
    }
    let sample = caught(|| tokenizer.encode("a", true))
        .map_err(TokenizerError::panicked("encode the text"))?
        .map_err(TokenizerError::failed("encode the text"))?;
    let (first, last) = (
        sample.get_ids().first().copied(),
        sample.get_ids().last().copied(),
    );
    let bos = settings
        .bos_token
        .as_ref()
        .zip(bos_id)
        .filter(|(_, id)| settings.add_bos_token && first != Some(*id));
    let eos = settings
        .eos_token
        .as_ref()
        .zip(eos_id)
        .filter(|(_, id)| settings.add_eos_token && last != Some(*id));
    if bos.is_none() && eos.is_none() {
        return Ok(());
    }
    let failed = |e: String| TokenizerError::Failed {
        action: "add special tokens",
        reason: e,
    };
    let piece = |token: Option<(&String, u32)>, kind: u8| token.map(|(t, _)| format!("{t}:{kind}"));
    let part = |text: &str, kind: u8| -> Vec<String> {
        [
            piece(bos, kind),
            Some(format!("{text}:{kind}")),
            piece(eos, kind),
        ]
        .into_iter()
        .flatten()
        .collect()
    };
    let template = TemplateProcessing::builder()
        .try_single(part("$A", 0))
        .and_then(|b| b.try_pair([part("$A", 0), part("$B", 1)].concat()))
        .map_err(|e| failed(e.to_string()))?
        .special_tokens(
            [bos, eos]
                .into_iter()
                .flatten()
                .map(|(t, id)| (t.clone(), id))
                .collect::<Vec<_>>(),
        )
        .build()
        .map_err(|e| failed(e.to_string()))?;
    let template = PostProcessorWrapper::Template(template);
    let processor = match tokenizer.get_post_processor().cloned() {
        Some(existing) => PostProcessorWrapper::Sequence(Sequence::new(vec![existing, template])),
        None => template,
    };
    tokenizer.with_post_processor(Some(processor));
    Ok(())
}

#[cfg(test)]
mod tests;
