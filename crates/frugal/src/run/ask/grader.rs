//! Who says whether a passage helps to answer a question.

/// Who grades passages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Grader {
    /// Half of the question's content words stand in the passage.
    #[default]
    Words,
    /// The cross-encoder gives it a probability of at least one half.
    Reranker,
    /// The model, asked whether the passage contains the answer, finds yes likelier than no. Small
    /// models say little of worth here.
    Model,
}
