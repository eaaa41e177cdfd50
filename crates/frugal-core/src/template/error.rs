//! Why a chat template cannot be used.

use thiserror::Error as ThisError;

/// A chat template that does not compile or refuses a conversation.
#[derive(Debug, ThisError)]
pub enum TemplateError {
    /// What was given as a template is neither a name nor a file.
    #[error("`{given}` is neither a file nor a chat template by name; the names are {known}")]
    Unknown {
        /// What was given.
        given: String,
        /// The names.
        known: String,
    },
    /// The file of a template cannot be read.
    #[error(transparent)]
    File(#[from] crate::fs::FileError),
    /// The file of a template is not text.
    #[error("{}: not UTF-8 text", .0.display())]
    NotText(std::path::PathBuf),
    /// There is no template to render with.
    #[error(
        "the tokenizer has no chat template; name one with `--chat-template` (`chatml`, or a file), or use prompt and completion without a system message, history or tools instead of a conversation"
    )]
    Missing,
    /// The template is not valid Jinja.
    #[error("the chat template does not compile: {0}")]
    Compile(String),
    /// The template called `raise_exception`.
    #[error("the chat template refuses the conversation: {0}")]
    Refused(String),
    /// The template failed while it ran.
    #[error("the chat template failed: {0}")]
    Failed(String),
    /// The template is nested too deep to be compiled.
    #[error(
        "the chat template does not compile: line {line} has more than {limit} operators, brackets or branches in one another ({found})"
    )]
    Nested {
        /// Line of the tag.
        line: usize,
        /// What was counted.
        found: usize,
        /// The most that is compiled.
        limit: usize,
    },
    /// The template does not come to an end, or writes without end.
    #[error(
        "the chat template takes more than {fuel} steps for this conversation: it loops, or its text grows without end"
    )]
    Endless {
        /// Steps that it may take.
        fuel: u64,
    },
    /// The template takes too long or too much memory, in a place that does not count steps.
    #[error(
        "the chat template takes more than {} for this conversation: it loops, or its values grow without end",
        .0
    )]
    Unbounded(&'static str),
    /// A key of the conversation that the template has no place for.
    #[error(
        "{place} has `{key}`, which the chat template does not use: leaving it out would change what is learned; \
         give a chat template that writes it, or take it out of the data"
    )]
    Unused {
        /// `messages[3]` or `the record`.
        place: String,
        /// The key.
        key: String,
    },
}
