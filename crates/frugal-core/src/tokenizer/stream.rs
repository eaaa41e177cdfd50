//! Decoding token by token.

use super::{TextTokenizer, TokenizerError};

/// A character is at most four bytes, so at most three of its bytes can be there without it; each
/// shows as one U+FFFD at most.
const PENDING: usize = 3;
/// Ids that are decoded together when bytes that are no characters go on and on.
const WINDOW: usize = 32;

/// Turns ids that arrive one by one into text, holding back bytes until they form whole characters.
///
/// A token is decoded together with the ones before it, because decoders treat the start of a text
/// in their own way (they drop its leading space, for example).
#[derive(Clone, Debug)]
pub struct TextStream<'a> {
    tokenizer: &'a TextTokenizer,
    /// Ids that are decoded together: those of the last whole piece that was handed out, and later
    /// ones.
    ids: Vec<u32>,
    /// Where that piece ends.
    whole: usize,
    /// What was handed out of the text of `ids`.
    given: String,
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
            whole: 0,
            given: String::new(),
        }
    }

    /// Takes one more id and returns the text it completes, if any.
    ///
    /// # Errors
    /// When the decoder of the tokenizer fails.
    pub fn push(&mut self, id: u32) -> Result<Option<String>, TokenizerError> {
        self.ids.push(id);
        self.take(PENDING)
    }

    /// Returns what is still held back; bytes that form no character become U+FFFD.
    ///
    /// # Errors
    /// When the decoder of the tokenizer fails.
    pub fn finish(mut self) -> Result<Option<String>, TokenizerError> {
        self.take(0)
    }

    /// Hands out what has come, but for that many U+FFFD at its end, which later bytes may change.
    fn take(&mut self, pending: usize) -> Result<Option<String>, TokenizerError> {
        let text = self.tokenizer.decode(&self.ids, true)?;
        let settled = without_end(&text, pending);
        let new = match settled.strip_prefix(self.given.as_str()) {
            Some(new) => new.to_owned(),
            None if self.given.starts_with(settled) => String::new(),
            // Decoders of single bytes write U+FFFD for whole characters too while the bytes behind
            // them are no character yet.
            None if settled.len() < text.len() && self.ids.len() <= 2 * WINDOW => {
                return Ok(None);
            }
            // A decoder that takes back what it wrote: what was handed out stays.
            None => settled.chars().skip(self.given.chars().count()).collect(),
        };
        // Special tokens are no text: what stands before them still tells how the next one begins.
        if settled.len() == text.len() && !new.is_empty() {
            self.forget(self.whole, pending)?;
            self.whole = self.ids.len();
        } else if self.ids.len() > 2 * WINDOW {
            self.forget(self.ids.len() - WINDOW, pending)?;
            self.whole = 0;
        } else if self.given.len() < settled.len() {
            self.given = settled.to_owned();
        }
        Ok(Some(new).filter(|new| !new.is_empty()))
    }

    /// Drops the first ids. What is left of the text was handed out but for what is pending.
    fn forget(&mut self, ids: usize, pending: usize) -> Result<(), TokenizerError> {
        self.ids.drain(..ids);
        let text = self.tokenizer.decode(&self.ids, true)?;
        self.given = without_end(&text, pending).to_owned();
        Ok(())
    }
}

/// The text without up to `count` U+FFFD at its end.
fn without_end(text: &str, count: usize) -> &str {
    (0..count).fold(text, |text, _| {
        text.strip_suffix(char::REPLACEMENT_CHARACTER)
            .unwrap_or(text)
    })
}
