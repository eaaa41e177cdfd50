//! The model, and how much is done with it.

use super::super::StudyError;

/// What answers.
pub(super) const MODEL: &str = "smollm2-135m";
/// Share of the documents that the translator does not see.
const HELD_OUT: f64 = 0.3;

/// How much is done.
#[derive(Clone, Copy)]
pub(super) struct Size {
    pub documents: usize,
    pub encode_epochs: usize,
    pub translator_epochs: usize,
    /// Questions of a held-out document.
    pub items: usize,
}

impl Size {
    pub(super) fn of(smoke: bool) -> Self {
        match smoke {
            true => Self {
                documents: 3,
                encode_epochs: 1,
                translator_epochs: 1,
                items: 1,
            },
            false => Self {
                documents: 60,
                encode_epochs: 3,
                translator_epochs: 3,
                items: 3,
            },
        }
    }

    pub(super) fn held_out(self) -> usize {
        ((self.documents as f64 * HELD_OUT).round() as usize).max(1)
    }
}

pub(super) fn failed<E: std::error::Error + Send + Sync + 'static>(error: E) -> StudyError {
    StudyError::arm(MODEL, error)
}
