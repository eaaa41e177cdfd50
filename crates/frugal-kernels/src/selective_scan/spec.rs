//! What a scan is asked for.

use std::ops::Range;
use std::sync::Arc;

use burn::tensor::Tensor;

/// A selective scan over the sequences of a ragged batch (Gu and Dao, *Mamba*, arXiv 2312.00752,
/// algorithm 2 and equations 2a and 2b with the discretisation of its reference code,
/// `selective_scan_ref` in `state-spaces/mamba`). For channel e, state n and token t,
///
/// `Δ = softplus(delta + delta_bias)`, or without `softplus` where [`SelectiveScan::softplus`] is
/// off; `h[t, n] = exp(Δ a[e, n]) h[t - 1, n] + Δ b[t, n] x[t, e]`;
/// `y = (Σ_n c[t, n] h[t, n] + d[e] x[t, e]) silu(z[t, e])`.
///
/// A sequence begins with a state of zeros unless another is given. States are
/// `[sequences * d_state, d_inner]`: the rows of one sequence lie one after another, the state
/// number `n` in each.
#[derive(Clone, Debug)]
pub struct SelectiveScan {
    /// `[tokens, d_inner]`.
    pub x: Tensor<2>,
    /// Steps before the softplus, `[tokens, d_inner]`.
    pub delta: Tensor<2>,
    /// `[d_inner, d_state]`, or `[d_inner, 1]` where all numbers of a channel's state decay alike
    /// (Mamba-2, arXiv 2405.21060); negative in a recurrence that forgets.
    pub a: Tensor<2>,
    /// `[tokens, d_state]`.
    pub b: Tensor<2>,
    /// `[tokens, d_state]`.
    pub c: Tensor<2>,
    /// Factor on what goes past the recurrence, `[d_inner]`.
    pub d: Option<Tensor<1>>,
    /// Gate, `[tokens, d_inner]`.
    pub z: Option<Tensor<2>>,
    /// `[d_inner]`.
    pub delta_bias: Option<Tensor<1>>,
    /// Whether steps go through a softplus.
    pub softplus: bool,
    /// States that the sequences begin with, `[sequences * d_state, d_inner]`.
    pub initial_state: Option<Tensor<2>>,
    /// Sequence boundaries, `[sequences + 1]`, from 0 to `tokens`.
    pub cu_seqlens: Arc<[usize]>,
}

impl SelectiveScan {
    /// Number of sequences.
    pub(crate) fn sequences(&self) -> usize {
        self.cu_seqlens.len() - 1
    }

    /// Width of the state of a channel.
    pub(crate) fn d_state(&self) -> usize {
        self.b.dims()[1]
    }

    /// The rows of each sequence.
    pub(crate) fn rows(&self) -> impl Iterator<Item = Range<usize>> {
        self.cu_seqlens.windows(2).map(|w| w[0]..w[1])
    }

    pub(super) fn check(&self) {
        let ([tokens, d_inner], [channels, decays]) = (self.x.dims(), self.a.dims());
        let d_state = self.d_state();
        let cu = &self.cu_seqlens;
        assert!(
            cu.first() == Some(&0) && cu.last() == Some(&tokens) && cu.is_sorted(),
            "selective scan: cu_seqlens {cu:?} must go from 0 to the {tokens} rows of x without decreasing"
        );
        assert!(
            channels == d_inner && d_state > 0 && (decays == d_state || decays == 1),
            "selective scan: a {:?} must be [d_inner, d_state] = [{d_inner}, {d_state}] or [{d_inner}, 1]",
            self.a.dims()
        );
        let like_x = [("delta", Some(&self.delta)), ("z", self.z.as_ref())];
        for (name, tensor) in like_x {
            assert!(
                tensor.is_none_or(|tensor| tensor.dims() == [tokens, d_inner]),
                "selective scan: {name} must be of the shape {:?} of x",
                [tokens, d_inner]
            );
        }
        for (name, tensor) in [("b", &self.b), ("c", &self.c)] {
            assert!(
                tensor.dims() == [tokens, d_state],
                "selective scan: {name} {:?} must be [tokens, d_state] = {:?}",
                tensor.dims(),
                [tokens, d_state]
            );
        }
        for (name, tensor) in [("d", &self.d), ("delta_bias", &self.delta_bias)] {
            assert!(
                tensor
                    .as_ref()
                    .is_none_or(|tensor| tensor.dims() == [d_inner]),
                "selective scan: {name} must have an entry for each of {d_inner} channels"
            );
        }
        let expected = [self.sequences() * d_state, d_inner];
        assert!(
            self.initial_state
                .as_ref()
                .is_none_or(|state| state.dims() == expected),
            "selective scan: the initial state must be [sequences * d_state, d_inner] = {expected:?}"
        );
    }
}
