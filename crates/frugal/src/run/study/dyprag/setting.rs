//! The model, and how much is done with it.

use super::super::StudyError;

/// What answers.
pub(super) const MODEL: &str = "smollm2-135m";
/// Share of the documents that the translator does not see.
const HELD_OUT: f64 = 0.3;

/// How much is done.
#[derive(Clone, Copy)]
pub(super) struct Size {
    /// Invented documents.
    pub documents: usize,
    /// Steps of training a document, at least; whole passes.
    pub encode_steps: usize,
    /// Passes of the translator.
    pub translator_epochs: usize,
    /// Questions about a held-out document.
    pub items: usize,
    /// Questions of MuSiQue.
    pub musique: usize,
}

impl Size {
    pub(super) fn of(smoke: bool) -> Self {
        match smoke {
            true => Self {
                documents: 2,
                encode_steps: 1,
                translator_epochs: 1,
                items: 1,
                musique: 2,
            },
            false => Self {
                documents: 60,
                encode_steps: 15,
                translator_epochs: 3,
                items: 3,
                musique: 40,
            },
        }
    }

    /// How many of these are held out.
    pub(super) fn held_out(of: usize) -> usize {
        ((of as f64 * HELD_OUT).round() as usize).max(1)
    }
}

pub(super) fn failed<E: std::error::Error + Send + Sync + 'static>(error: E) -> StudyError {
    StudyError::arm(MODEL, error)
}
