//! A new byte-level BPE tokenizer from text.

use tokenizers::models::TrainerWrapper;
use tokenizers::models::bpe::{BPE, BpeTrainerBuilder};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::{AddedToken, Tokenizer};

use super::{TextTokenizer, TokenizerError, TokenizerSettings};

/// Trains a byte-level BPE tokenizer, as GPT-2 has one: it can spell any text, and the same texts
/// in the same order give the same tokenizer. `vocab_size` counts the 256 bytes and the special
/// tokens, whose ids come first. The first special token becomes BOS, EOS and pad.
///
/// # Errors
/// When `vocab_size` has no room for the bytes and the special tokens, or training fails.
pub fn train_bpe(
    texts: impl Iterator<Item = String> + Send,
    vocab_size: usize,
    special_tokens: &[&str],
) -> Result<TextTokenizer, TokenizerError> {
    let least = 256 + special_tokens.len();
    if vocab_size < least {
        let reason = format!(
            "a vocabulary of {vocab_size} has no room for 256 bytes and {} special tokens",
            special_tokens.len()
        );
        return Err(TokenizerError::Failed {
            action: "be trained",
            reason,
        });
    }
    let mut tokenizer = Tokenizer::new(BPE::default());
    let byte_level = ByteLevel::new(false, false, true);
    tokenizer
        .with_pre_tokenizer(Some(byte_level))
        .with_decoder(Some(byte_level))
        .with_post_processor(Some(byte_level));
    let trainer = BpeTrainerBuilder::new()
        .vocab_size(vocab_size)
        // A merge seen once says nothing about the language.
        .min_frequency(2)
        .show_progress(false)
        .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
        .special_tokens(
            special_tokens
                .iter()
                .map(|t| AddedToken::from(*t, true))
                .collect(),
        )
        .build();
    tokenizer
        .train(&mut TrainerWrapper::from(trainer), texts)
        .map_err(TokenizerError::failed("be trained"))?;
    let first = special_tokens.first().map(|t| (*t).to_owned());
    let settings = TokenizerSettings {
        bos_token: first.clone(),
        eos_token: first.clone(),
        pad_token: first,
        ..TokenizerSettings::default()
    };
    TextTokenizer::new(tokenizer, settings)
}
