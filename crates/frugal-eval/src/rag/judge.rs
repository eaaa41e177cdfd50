//! Who gives verdicts.

use thiserror::Error;

/// Statements of an answer and of a reference, told apart.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Correctness {
    /// In the answer and supported by the reference.
    pub true_positive: usize,
    /// In the answer and not supported.
    pub false_positive: usize,
    /// In the reference and missing from the answer.
    pub false_negative: usize,
}

/// A verdict that could not be had.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum JudgeError {
    /// An answer that is not in the form that was asked for, twice.
    #[error("the judge's answer cannot be read ({reason}): {answer:?}")]
    Unreadable {
        /// What was expected.
        reason: String,
        /// The beginning of the answer.
        answer: String,
    },
    /// The judge itself, or the encoder of a proxy.
    #[error("the judge failed: {0}")]
    Failed(String),
}

/// Gives the verdicts of which measures are made. Every question is one method; a judge counts
/// nothing itself.
pub trait Judge {
    /// What it is called where its numbers are shown.
    fn name(&self) -> &str;

    /// The statements that an answer makes, each to be understood alone.
    ///
    /// # Errors
    /// A judge that fails.
    fn statements(&mut self, question: &str, answer: &str) -> Result<Vec<String>, JudgeError>;

    /// For each statement, whether it follows from the passages.
    ///
    /// # Errors
    /// A judge that fails.
    fn verify(
        &mut self,
        statements: &[String],
        contexts: &[String],
    ) -> Result<Vec<bool>, JudgeError>;

    /// How statements of an answer and of the reference meet.
    ///
    /// # Errors
    /// A judge that fails.
    fn classify(
        &mut self,
        question: &str,
        answer: &[String],
        reference: &[String],
    ) -> Result<Correctness, JudgeError>;

    /// Similarity of the question to questions that the answer would answer; 0 for an answer that
    /// commits itself to nothing. `None` where no such question can be found.
    ///
    /// # Errors
    /// A judge that fails.
    fn relevancy(&mut self, question: &str, answer: &str) -> Result<Option<f64>, JudgeError>;

    /// Whether a passage was of use for the reference.
    ///
    /// # Errors
    /// A judge that fails.
    fn is_useful(
        &mut self,
        question: &str,
        context: &str,
        reference: &str,
    ) -> Result<bool, JudgeError>;

    /// The similarity of two texts.
    ///
    /// # Errors
    /// A judge that fails.
    fn similarity(&mut self, a: &str, b: &str) -> Result<f64, JudgeError>;
}
