//! The result of encoding one row, and what may be wrong with the row.

use thiserror::Error;

use super::tokenized::Tokenized;
use crate::template::TemplateError;
use crate::tokenizer::TokenizerError;

/// The result of encoding one row.
pub(super) struct Row {
    pub(super) tokenized: Tokenized,
    /// Tokens before it was cut.
    pub(super) length: usize,
    /// Whether all of it was tokenized.
    pub(super) counted: bool,
    /// Words with a tag that were cut off.
    pub(super) cut_words: usize,
}

/// What is wrong with one row.
#[derive(Debug, Error)]
pub enum RowError {
    /// The tokenizer failed.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    /// The chat template failed.
    #[error(transparent)]
    Template(#[from] TemplateError),
    /// A label that is not in the list.
    #[error("label {label:?} is not one of {known}")]
    UnknownLabel {
        /// The label.
        label: String,
        /// The list.
        known: String,
    },
    /// Another count of numbers than the head has outputs.
    #[error("{found} numbers, but the head has {expected} outputs")]
    Outputs {
        /// Numbers of the row.
        found: usize,
        /// Outputs of the head.
        expected: usize,
    },
    /// A conversation in which the assistant says nothing.
    #[error("no turn has the role \"assistant\", so there is nothing to train")]
    NoAssistant,
    /// A template that leaves the answer out.
    #[error(
        "the chat template does not write what the assistant says in turn {turn}, so there is nothing to train: give another with `--chat-template`"
    )]
    NotWritten {
        /// The turn, from 1.
        turn: usize,
    },
    /// A template that rewrites earlier turns.
    #[error(
        "the chat template writes turn {turn} differently once other turns follow, so the turns of the assistant cannot be told apart; \
         split the conversation so that its last turn is the one to learn, or set completion_only = false"
    )]
    NotAPrefix {
        /// The turn, from 1.
        turn: usize,
    },
    /// A row that is not of the format of its data set.
    #[error("the row is not of the format of its data set")]
    OtherFormat,
    /// A text with more tokens than allowed.
    #[error("{length} tokens{}, but at most {max_length} are allowed; cut with `--truncate`", or_more(*counted))]
    TooLong {
        /// Its tokens.
        length: usize,
        /// Whether all of it was counted.
        counted: bool,
        /// The limit.
        max_length: usize,
    },
    /// A text without a single token.
    #[error("the text has no tokens")]
    NoTokens,
}

/// What is said behind a number of tokens that is not that of the whole text.
pub(super) fn or_more(counted: bool) -> &'static str {
    if counted { "" } else { " or more" }
}
