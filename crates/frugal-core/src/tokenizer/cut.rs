//! Texts that are cut to a number of tokens.

use tokenizers::{Encoding, TruncationParams, truncate_encodings};

use super::{TextTokenizer, TokenizerError};
use crate::caught::caught;

/// A text, or two, in at most so many tokens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CutText {
    /// Ids of the tokens, special ones included.
    pub ids: Vec<u32>,
    /// Segment of each token, 0 for the first text and 1 for the second; empty where all are 0 and
    /// where the tokenizer gives the model none.
    pub type_ids: Vec<u32>,
    /// Tokens before it was cut, special ones included.
    pub length: usize,
}

impl TextTokenizer {
    /// One text, or two, with special tokens, cut at the end where it has more than `max_length`
    /// tokens: of two texts the longer one first. No special token is lost.
    ///
    /// # Errors
    /// As [`TextTokenizer::encode`].
    pub fn encode_cut(
        &self,
        text: &str,
        pair: Option<&str>,
        max_length: usize,
    ) -> Result<CutText, TokenizerError> {
        let head = |text| self.head(text, max_length);
        self.cut(head(text), pair.map(head), max_length)
    }

    /// As [`TextTokenizer::encode_cut`], of texts that are tokenized whole.
    ///
    /// # Errors
    /// As [`TextTokenizer::encode`].
    pub(crate) fn cut(
        &self,
        text: &str,
        pair: Option<&str>,
        max_length: usize,
    ) -> Result<CutText, TokenizerError> {
        let cut = || -> tokenizers::Result<CutText> {
            let inner = self.inner();
            let first = inner.encode(text, false)?;
            let second = pair.map(|pair| inner.encode(pair, false)).transpose()?;
            let added = self.added_tokens(second.is_some());
            let length = first.len() + second.as_ref().map_or(0, |s| s.len()) + added;
            let limit = TruncationParams {
                max_length: max_length.saturating_sub(added),
                ..TruncationParams::default()
            };
            let (mut first, mut second) = truncate_encodings(first, second, &limit)?;
            first.take_overflowing();
            second.as_mut().map(Encoding::take_overflowing);
            let encoding = inner.post_process(first, second, true)?;
            let type_ids = encoding.get_type_ids();
            let told = self.settings().token_types && type_ids.iter().any(|id| *id != 0);
            Ok(CutText {
                ids: encoding.get_ids().to_vec(),
                type_ids: if told { type_ids.to_vec() } else { Vec::new() },
                length,
            })
        };
        caught(cut)
            .map_err(TokenizerError::panicked("encode the text"))?
            .map_err(TokenizerError::failed("encode the text"))
    }
}
