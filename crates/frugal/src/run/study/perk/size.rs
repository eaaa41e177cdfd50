//! How much is learnt and measured.

use std::ops::RangeInclusive;

use super::world::MOST;

/// How much is learnt and measured.
pub(super) struct Size {
    /// Stories that the model is trained on.
    pub stories: usize,
    /// Steps of learning in every arm.
    pub steps: usize,
    /// Facts of a context while learning.
    pub trained: RangeInclusive<usize>,
    /// Facts of a context when asked.
    pub lengths: &'static [usize],
    /// Contexts of each length.
    pub contexts: usize,
    /// Questions about a context beside those about its first, middle and last fact.
    pub questions: usize,
}

impl Size {
    pub fn of(smoke: bool) -> Self {
        match smoke {
            true => Self {
                stories: 64,
                steps: 2,
                trained: 4..=4,
                lengths: &[4, 8],
                contexts: 1,
                questions: 1,
            },
            false => Self {
                stories: 48_000,
                steps: 500,
                trained: 8..=16,
                lengths: &[8, 16, 32, MOST],
                contexts: 40,
                questions: 5,
            },
        }
    }
}
