//! How examples become token ids.

use crate::tokenizer::TextTokenizer;

/// How examples become ids.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EncodeOptions {
    /// Most tokens of an example, special ones included.
    pub max_length: usize,
    /// Cut longer examples at the end instead of refusing them.
    pub truncate: bool,
    /// Train only completions and the turns of the assistant, not what is given.
    pub completion_only: bool,
    /// Text around a prompt, with `{prompt}` where it goes: `"Review: {prompt}\nSentiment:"`.
    pub prompt_template: Option<String>,
    /// Write prompts and their completions as a question and its answer by the chat template, where
    /// the tokenizer has one and there is no `prompt_template`.
    pub chat_template: bool,
}

impl EncodeOptions {
    /// Refuses examples of more than `max_length` tokens and trains completions only.
    pub fn new(max_length: usize) -> Self {
        Self {
            max_length,
            truncate: false,
            completion_only: true,
            prompt_template: None,
            chat_template: true,
        }
    }

    /// As much of a text as can be used: all of it, unless it is cut anyway, or refused because its
    /// beginning alone is too long.
    pub(super) fn used<'t>(&self, text: &'t str, tokenizer: &TextTokenizer) -> &'t str {
        let head = tokenizer.head(text, self.max_length);
        let is_too_long = || {
            let tokens = tokenizer.encode(head, false);
            tokens.is_ok_and(|ids| ids.len() > self.max_length)
        };
        if self.truncate || head.len() == text.len() || is_too_long() {
            head
        } else {
            text
        }
    }

    /// Whether prompts and completions go through the chat template.
    pub(super) fn renders(&self, tokenizer: &TextTokenizer) -> bool {
        self.chat_template && self.prompt_template.is_none() && tokenizer.has_chat_template()
    }
}
