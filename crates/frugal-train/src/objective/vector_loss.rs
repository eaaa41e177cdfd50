//! What a loss over vectors of texts is.

use burn::prelude::*;

use super::text_sets::{Similarity, TextSets};

/// What the texts of an example are to each other, and how a model is measured by them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The first text beside the anchor belongs to it: it should be found among all others.
    Ranked,
    /// The text with the highest score belongs to it.
    Taught,
    /// Two texts and how near they are.
    Scored,
}

/// A loss over the vectors of texts.
pub trait VectorLoss: Send + Sync {
    /// Its name in the registry.
    fn name(&self) -> &'static str;

    /// What the texts of an example are to each other.
    fn kind(&self) -> Kind;

    /// Whether so many texts with these scores are an example for it.
    ///
    /// # Errors
    /// What is missing or too much.
    fn check(&self, texts: usize, scores: &[f32]) -> Result<(), String>;

    /// Whether an example of so many texts teaches nothing without others beside it.
    fn needs_others(&self, _texts: usize) -> bool {
        false
    }

    /// How near two vectors are when the model is measured.
    fn similarity(&self) -> Similarity;

    /// The loss, summed over the examples.
    fn loss(&self, examples: &TextSets<'_>) -> Tensor<1>;
}
