//! What a tokenizer file does not say itself; chat templates and tokenizers both read it.

use serde_json::{Map, Value};

/// What a tokenizer file does not say itself: special tokens, end-of-sequence ids and the chat
/// template.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TokenizerSettings {
    /// First token of a sequence.
    pub bos_token: Option<String>,
    /// Last token of a sequence.
    pub eos_token: Option<String>,
    /// Fills short sequences of a batch.
    pub pad_token: Option<String>,
    /// Stands for what the vocabulary cannot spell.
    pub unk_token: Option<String>,
    /// Ids that end a generation, beside that of `eos_token`.
    pub eos_token_ids: Vec<u32>,
    /// Put `bos_token` first whenever special tokens are added. Nothing changes for a tokenizer
    /// that does so already.
    pub add_bos_token: bool,
    /// Put `eos_token` last whenever special tokens are added. Nothing changes for a tokenizer that
    /// does so already.
    pub add_eos_token: bool,
    /// Jinja source of the chat template.
    pub chat_template: Option<String>,
    /// Longest sequence the model was made for, in tokens.
    pub model_max_length: Option<usize>,
    /// Whether the model is told which tokens are of the second text of a pair: `token_type_ids`
    /// among the inputs that the tokenizer's class, or `model_input_names`, gives it.
    pub token_types: bool,
    /// Whether words that come one by one are read as behind a space, as the tokenizer's class does.
    pub spaced_words: bool,
    /// Every other key of `tokenizer_config.json`, written back as it was read.
    pub other: Map<String, Value>,
}

impl TokenizerSettings {
    /// The special tokens by the names that chat templates know them under, `cls_token` and the
    /// like included.
    pub fn named_tokens(&self) -> Vec<(&str, &str)> {
        let own = [
            ("bos_token", &self.bos_token),
            ("eos_token", &self.eos_token),
            ("pad_token", &self.pad_token),
            ("unk_token", &self.unk_token),
        ];
        let own = own
            .into_iter()
            .filter_map(|(name, token)| Some((name, token.as_deref()?)));
        let other = self
            .other
            .iter()
            .filter(|(name, _)| name.ends_with("_token"));
        let other = other.filter_map(|(name, value)| Some((name.as_str(), token_text(value)?)));
        own.chain(other).collect()
    }
}

/// The text of a special token, which files hold as a string or as an object with it under
/// `content`.
pub(crate) fn token_text(value: &Value) -> Option<&str> {
    value.as_str().or_else(|| value.get("content")?.as_str())
}
