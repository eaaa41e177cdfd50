//! What a measure looks at.

/// A question with what a system made of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RagSample {
    /// The question.
    pub question: String,
    /// The answer of the system.
    pub answer: String,
    /// The passages that it was given, the best first.
    pub contexts: Vec<String>,
    /// The right answer.
    pub reference: String,
}
