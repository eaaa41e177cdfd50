//! Texts that are cut to a number of tokens.

use tokenizers::{Encoding, TruncationParams, truncate_encodings};

use super::{TextTokenizer, TokenizerError};
use crate::caught::caught;

/// A text, or two, in at most so many tokens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CutText {
    /// Ids of the tokens, special ones included.
    pub ids: Vec<u32>,
    /// 0 for the first text, 1 for the second.
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
        let cut = || -> tokenizers::Result<CutText> {
            let inner = self.inner();
            let text = self.head(text, max_length);
            let first = inner.encode(text, false)?;
            let second = pair
                .map(|pair| inner.encode(self.head(pair, max_length), false))
                .transpose()?;
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
            Ok(CutText {
                ids: encoding.get_ids().to_vec(),
                type_ids: if self.settings().gives_token_types() {
                    encoding.get_type_ids().to_vec()
                } else {
                    vec![0; encoding.len()]
                },
                length,
            })
        };
        caught(cut)
            .map_err(TokenizerError::panicked("encode the text"))?
            .map_err(TokenizerError::failed("encode the text"))
    }
}
