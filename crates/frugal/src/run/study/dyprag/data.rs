//! Documents, and questions about some of them.

use frugal_retrieve::parametric::AugmentedDocument;

/// A question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Case {
    pub question: String,
    /// What is right, in one form or another.
    pub answers: Vec<String>,
    /// The documents that answer it together, by number.
    pub documents: Vec<usize>,
    /// Whether the documents' parameters are trained on this very question.
    pub is_trained: bool,
}

/// Documents, of which the first are held out from the translator and asked about.
pub(super) struct Data {
    pub name: &'static str,
    pub documents: Vec<AugmentedDocument>,
    pub held_out: usize,
    pub cases: Vec<Case>,
}

impl Data {
    /// An arm on these documents.
    pub(super) fn label(&self, arm: &str) -> String {
        format!("{}: {arm}", self.name)
    }
}
