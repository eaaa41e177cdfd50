//! Decoding token by token.

use super::{TextTokenizer, TokenizerError};

/// A character is at most four bytes, so at most four byte tokens; when more are pending the bytes
/// are simply not UTF-8.
const PENDING: usize = 8;

/// Turns ids that arrive one by one into text, holding back bytes until they form whole characters.
///
/// A token is decoded together with the ones before it, because decoders treat the start of a text
/// in their own way (they drop its leading space, for example).
#[derive(Clone, Debug)]
pub struct TextStream<'a> {
    tokenizer: &'a TextTokenizer,
    /// Ids of the last chunk that was handed out, then those not handed out yet.
    ids: Vec<u32>,
    /// How many of `ids` were handed out.
    done: usize,
}

impl TextTokenizer {
    /// A decoder for ids that arrive one by one. Special tokens are left out.
    pub fn stream(&self) -> TextStream<'_> {
        TextStream::new(self)
    }
}

impl<'a> TextStream<'a> {
    fn new(tokenizer: &'a TextTokenizer) -> Self {
        Self {
            tokenizer,
            ids: Vec::new(),
            done: 0,
        }
    }

    /// Takes one more id and returns the text it completes, if any.
    ///
    /// # Errors
    /// When the decoder of the tokenizer fails.
    pub fn push(&mut self, id: u32) -> Result<Option<String>, TokenizerError> {
        self.ids.push(id);
        self.take(self.ids.len() - self.done > PENDING)
    }

    /// Returns what is still held back; bytes that form no character become U+FFFD.
    ///
    /// # Errors
    /// When the decoder of the tokenizer fails.
    pub fn finish(mut self) -> Result<Option<String>, TokenizerError> {
        self.take(true)
    }

    fn take(&mut self, all: bool) -> Result<Option<String>, TokenizerError> {
        let before = self.tokenizer.decode(&self.ids[..self.done], true)?;
        let now = self.tokenizer.decode(&self.ids, true)?;
        let new = now
            .strip_prefix(&before)
            .unwrap_or(if all { &now } else { "" });
        if new.is_empty() || (new.ends_with(char::REPLACEMENT_CHARACTER) && !all) {
            return Ok(None);
        }
        let new = new.to_owned();
        self.ids.drain(..self.done);
        self.done = self.ids.len();
        Ok(Some(new))
    }
}
