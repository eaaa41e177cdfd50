//! What stands behind the transformer of an encoder.

use burn::prelude::*;
use frugal_nn::{SequenceLayout, mean_pool};

/// From the hidden states of sequences to one vector of each: pooling, layers, length. It is not
/// trained.
pub trait Readout: Send + Sync {
    /// Vectors `[sequences, dimension]` of hidden states `[tokens, d_model]`.
    fn vectors(&self, hidden_states: Tensor<2>, layout: &SequenceLayout) -> Tensor<2>;

    /// Width of the vectors over a model of this width.
    fn dimension(&self, hidden_size: usize) -> usize;
}

/// The mean of the tokens: what sentence-transformers makes of a model that says nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct MeanOfTokens;

impl Readout for MeanOfTokens {
    fn vectors(&self, hidden_states: Tensor<2>, layout: &SequenceLayout) -> Tensor<2> {
        mean_pool(hidden_states, &layout.cu_seqlens)
    }

    fn dimension(&self, hidden_size: usize) -> usize {
        hidden_size
    }
}
