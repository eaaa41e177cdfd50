//! Texts that come as words.

use std::borrow::Cow;

use tokenizers::{InputSequence, PreTokenizerWrapper, TruncationParams, truncate_encodings};

use super::{TextTokenizer, TokenizerError};
use crate::caught::caught;

/// The words of a text in at most so many tokens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CutWords {
    /// Ids of the tokens, special ones included.
    pub ids: Vec<u32>,
    /// Segment of each token; empty where all are 0 and where the tokenizer gives the model none.
    pub type_ids: Vec<u32>,
    /// The word of each token, from 0; none for special ones.
    pub words: Vec<Option<u32>>,
    /// Tokens before it was cut, special ones included.
    pub length: usize,
}

impl TextTokenizer {
    /// Words, each tokenized by itself, with special tokens, cut at the end where they have more
    /// than `max_length` tokens: `is_split_into_words=True` of transformers. The classes of GPT-2
    /// and RoBERTa read each word as behind a space, which there takes `add_prefix_space=True`; other
    /// byte-level tokenizers join words without one.
    ///
    /// # Errors
    /// As [`TextTokenizer::encode`].
    pub fn cut_words(
        &self,
        words: &[String],
        max_length: usize,
    ) -> Result<CutWords, TokenizerError> {
        let cut = || -> tokenizers::Result<CutWords> {
            let inner = self.inner();
            let spaced =
                self.settings().spaced_words && inner.get_pre_tokenizer().is_some_and(lacks_space);
            let word = |word: &String| -> Cow<'_, str> {
                if spaced && !word.is_empty() && !word.starts_with(' ') {
                    format!(" {word}").into()
                } else {
                    word.clone().into()
                }
            };
            let words: Vec<Cow<'_, str>> = words.iter().map(word).collect();
            let first = inner.encode(InputSequence::PreTokenizedCow(words.into()), false)?;
            let added = self.added_tokens(false);
            let length = first.len() + added;
            let limit = TruncationParams {
                max_length: max_length.saturating_sub(added),
                ..TruncationParams::default()
            };
            let (mut first, _) = truncate_encodings(first, None, &limit)?;
            first.take_overflowing();
            let encoding = inner.post_process(first, None, true)?;
            let type_ids = encoding.get_type_ids();
            let told = self.settings().token_types && type_ids.iter().any(|id| *id != 0);
            Ok(CutWords {
                ids: encoding.get_ids().to_vec(),
                type_ids: if told { type_ids.to_vec() } else { Vec::new() },
                words: encoding.get_word_ids().to_vec(),
                length,
            })
        };
        caught(cut)
            .map_err(TokenizerError::panicked("encode the words"))?
            .map_err(TokenizerError::failed("encode the words"))
    }
}

/// Whether words are spelled in bytes and nothing puts a space in front of them.
fn lacks_space(pre_tokenizer: &PreTokenizerWrapper) -> bool {
    match pre_tokenizer {
        PreTokenizerWrapper::ByteLevel(bytes) => !bytes.add_prefix_space,
        PreTokenizerWrapper::Sequence(steps) => {
            let all = steps.as_ref();
            let bytes =
                |step: &&PreTokenizerWrapper| matches!(step, PreTokenizerWrapper::ByteLevel(_));
            all.iter().any(|step| bytes(&step)) && all.iter().filter(bytes).all(lacks_space)
        }
        _ => false,
    }
}
