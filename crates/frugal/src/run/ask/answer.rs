//! What a question is answered with.

use frugal_decode::FinishReason;
use frugal_retrieve::rag::{Citation, Passage, Stages};
use serde::Serialize;

/// An answer, with what it rests on and what it took.
#[derive(Clone, Debug, Default, Serialize)]
pub struct AskAnswer {
    /// The text; empty where nothing was found to answer from.
    pub answer: String,
    /// Passages that the answer rests on.
    pub citations: Vec<Citation>,
    /// Passages that the model was given, in the order of their numbers.
    pub passages: Vec<Passage>,
    /// Queries that were searched for, the question first.
    pub queries: Vec<String>,
    /// Passages that were graded, and how many of them were dropped; absent where none was.
    pub graded: Option<(usize, usize)>,
    /// Passages that found no room in the prompt.
    pub left_out: usize,
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Tokens of the answer.
    pub tokens: usize,
    /// Why the answer ended; absent where none was generated.
    pub finish: Option<FinishReason>,
    /// What may make the answer wrong.
    pub warnings: Vec<String>,
    /// What a reader has to know.
    pub notes: Vec<String>,
    /// Time and memory of each stage.
    pub stages: Stages,
}
