//! What functions score, and what they give.

use super::super::metric::Score;

/// What a model answered to one question.
#[derive(Clone, Copy, Debug)]
pub(in crate::tasks) struct Outcome<'a> {
    /// Log-likelihood of each continuation, or of the text.
    pub likelihoods: &'a [f64],
    /// What it wrote.
    pub texts: &'a [String],
}

/// Scores by metric.
pub(in crate::tasks) type Found = Vec<(&'static str, Score)>;
