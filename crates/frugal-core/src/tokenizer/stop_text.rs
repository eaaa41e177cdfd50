//! Texts that end a generation.

use super::{TextStream, TextTokenizer, TokenizerError};

/// Text of ids that arrive one by one, up to the first of some texts; what may be the beginning of
/// one is held back until that is known.
#[derive(Clone, Debug)]
pub struct StopStream<'a> {
    stream: TextStream<'a>,
    stops: Vec<String>,
    held: String,
    stopped: bool,
}

impl<'a> StopStream<'a> {
    /// Stops at any of these texts; empty ones are left out.
    pub fn new(tokenizer: &'a TextTokenizer, stops: &[String]) -> Self {
        Self {
            stream: tokenizer.stream(),
            stops: stops.iter().filter(|s| !s.is_empty()).cloned().collect(),
            held: String::new(),
            stopped: false,
        }
    }

    /// Takes one more id and returns the text that is certain by now, if any.
    ///
    /// # Errors
    /// When the decoder of the tokenizer fails.
    pub fn push(&mut self, id: u32) -> Result<Option<String>, TokenizerError> {
        if self.stopped {
            return Ok(None);
        }
        let new = self.stream.push(id)?.unwrap_or_default();
        self.held.push_str(&new);
        Ok(self.release())
    }

    /// Whether one of the texts has come.
    pub fn is_stopped(&self) -> bool {
        self.stopped
    }

    /// Returns what is still held back, up to a text to stop at.
    ///
    /// # Errors
    /// When the decoder of the tokenizer fails.
    pub fn finish(mut self) -> Result<Option<String>, TokenizerError> {
        if self.stopped {
            return Ok(None);
        }
        let rest = self.stream.clone().finish()?.unwrap_or_default();
        self.held.push_str(&rest);
        let text = cut(&self.held, &self.stops).to_owned();
        Ok((!text.is_empty()).then_some(text))
    }

    fn release(&mut self) -> Option<String> {
        let before = cut(&self.held, &self.stops).len();
        let text = if before < self.held.len() {
            self.stopped = true;
            let text = self.held[..before].to_owned();
            self.held.clear();
            text
        } else {
            let kept = self.begun();
            let rest = self.held.split_off(self.held.len() - kept);
            std::mem::replace(&mut self.held, rest)
        };
        (!text.is_empty()).then_some(text)
    }

    /// Bytes at the end that one of the texts begins with.
    fn begun(&self) -> usize {
        let begins = |stop: &String| {
            let longest = stop.len().min(self.held.len());
            let ends = |n: &usize| stop.is_char_boundary(*n) && self.held.ends_with(&stop[..*n]);
            (1..=longest).rev().find(ends).unwrap_or(0)
        };
        self.stops.iter().map(begins).max().unwrap_or(0)
    }
}

/// The text up to the first of the texts to stop at.
fn cut<'t>(text: &'t str, stops: &[String]) -> &'t str {
    let first = stops.iter().filter_map(|stop| text.find(stop)).min();
    &text[..first.unwrap_or(text.len())]
}
