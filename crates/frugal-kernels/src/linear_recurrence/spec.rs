//! What a linear recurrence is asked for.

use std::ops::Range;
use std::sync::Arc;

use burn::tensor::Tensor;

/// A gated linear recurrence over the sequences of a ragged batch, element by element:
///
/// `h[t] = a[t] ⊙ h[t - 1] + b[t]`,
///
/// or from the last token to the first where it is [`LinearRecurrence::reverse`]: `h[t] = a[t] ⊙
/// h[t + 1] + b[t]`. It is what gated state space models (arXiv 2411.01030, appendix A.1) and the RG-LRU
/// (arXiv 2402.19427, equation 4) compute between their gates.
#[derive(Clone, Debug)]
pub struct LinearRecurrence {
    /// Decays, `[tokens, d]`.
    pub a: Tensor<2>,
    /// What is added, `[tokens, d]`.
    pub b: Tensor<2>,
    /// State that each sequence begins with, `[sequences, d]`; zeros without one. In reverse it comes
    /// from behind the last token.
    pub initial_state: Option<Tensor<2>>,
    /// Tokens whose state is `b` alone, as if their decay were 0, `[tokens]`; none without it.
    pub resets: Option<Arc<[bool]>>,
    /// Whether the state goes from the last token of a sequence to its first.
    pub reverse: bool,
    /// Sequence boundaries, `[sequences + 1]`, from 0 to `tokens`.
    pub cu_seqlens: Arc<[usize]>,
}

impl LinearRecurrence {
    /// Number of sequences.
    pub(crate) fn sequences(&self) -> usize {
        self.cu_seqlens.len() - 1
    }

    /// The rows of each sequence.
    pub(crate) fn rows(&self) -> impl Iterator<Item = Range<usize>> {
        self.cu_seqlens.windows(2).map(|w| w[0]..w[1])
    }

    pub(super) fn check(&self) {
        let [tokens, d] = self.a.dims();
        let cu = &self.cu_seqlens;
        assert!(
            cu.first() == Some(&0) && cu.last() == Some(&tokens) && cu.is_sorted(),
            "linear recurrence: cu_seqlens {cu:?} must go from 0 to the {tokens} rows of a without decreasing"
        );
        assert!(
            self.b.dims() == [tokens, d],
            "linear recurrence: b {:?} must be of the shape {:?} of a",
            self.b.dims(),
            [tokens, d]
        );
        let expected = [self.sequences(), d];
        assert!(
            self.initial_state
                .as_ref()
                .is_none_or(|state| state.dims() == expected),
            "linear recurrence: the initial state must be [sequences, d] = {expected:?}"
        );
        assert!(
            self.resets
                .as_ref()
                .is_none_or(|resets| resets.len() == tokens),
            "linear recurrence: resets must say something of each of the {tokens} tokens"
        );
    }
}
