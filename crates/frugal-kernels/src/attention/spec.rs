//! What attention is asked for.

use std::sync::Arc;

use burn::tensor::Tensor;

/// What attends to what, and how scores are formed.
#[derive(Clone, Debug, PartialEq)]
pub struct AttentionSpec {
    /// Number of query heads.
    pub num_heads: usize,
    /// Number of key and value heads; divides `num_heads` (grouped-query attention).
    pub num_kv_heads: usize,
    /// Width of one head.
    pub head_dim: usize,
    /// Factor on the scores, usually `1 / sqrt(head_dim)`.
    pub scale: f32,
    /// Query i of a sequence with `q_len` queries and `k_len` keys sees keys
    /// `j <= i + k_len - q_len`.
    pub causal: bool,
    /// Sliding window: a key is seen only when it is fewer than this many positions before the
    /// query; without `causal`, fewer than this many positions away on either side.
    pub window: Option<usize>,
    /// Sequence boundaries among the queries: `[sequences + 1]`, from 0 to `tokens_q`.
    pub cu_q: Arc<[usize]>,
    /// Sequence boundaries among the keys: `[sequences + 1]`, from 0 to `tokens_k`.
    pub cu_k: Arc<[usize]>,
    /// Scores become `cap * tanh(score / cap)` before masking.
    pub softcap: Option<f32>,
}

impl AttentionSpec {
    /// The keys (relative to the sequence) that query `i` of a sequence sees.
    pub fn visible(&self, i: usize, q_len: usize, k_len: usize) -> std::ops::Range<usize> {
        let position = (i + k_len).saturating_sub(q_len);
        let window = self.window.unwrap_or(usize::MAX);
        let start = (position + 1).saturating_sub(window);
        let end = if self.causal {
            position + 1
        } else {
            position.saturating_add(window)
        };
        start.min(k_len)..end.min(k_len)
    }

    /// The sequences of the batch, as ranges of query rows and of key rows.
    pub(crate) fn sequences(
        &self,
    ) -> impl Iterator<Item = (std::ops::Range<usize>, std::ops::Range<usize>)> + '_ {
        let queries = self.cu_q.windows(2).map(|w| w[0]..w[1]);
        queries.zip(self.cu_k.windows(2).map(|w| w[0]..w[1]))
    }

    pub(super) fn check_heads(&self) {
        let (heads, kv_heads, dim) = (self.num_heads, self.num_kv_heads, self.head_dim);
        assert!(
            kv_heads > 0 && dim > 0 && heads > 0 && heads.is_multiple_of(kv_heads),
            "attention: num_kv_heads {kv_heads} must divide num_heads {heads}, head_dim is {dim}"
        );
        assert!(
            self.window != Some(0),
            "attention: a window of 0 hides every key; use None for no window"
        );
    }

    pub(super) fn check(&self, q: &Tensor<2>, k: &Tensor<2>, v: &Tensor<2>) {
        self.check_heads();
        let (heads, kv_heads, dim) = (self.num_heads, self.num_kv_heads, self.head_dim);
        assert!(
            self.cu_q.len() == self.cu_k.len() && !self.cu_q.is_empty(),
            "attention: cu_q has {} boundaries and cu_k {}; both need sequences + 1",
            self.cu_q.len(),
            self.cu_k.len()
        );
        for (name, cu) in [("cu_q", &self.cu_q), ("cu_k", &self.cu_k)] {
            assert!(
                cu[0] == 0 && cu.is_sorted(),
                "attention: {name} must start at 0 and not decrease"
            );
        }
        let [tokens_q, tokens_k] = [
            self.cu_q[self.cu_q.len() - 1],
            self.cu_k[self.cu_k.len() - 1],
        ];
        assert!(
            q.dims() == [tokens_q, heads * dim],
            "attention: q {:?} must be {:?}",
            q.dims(),
            [tokens_q, heads * dim]
        );
        let expected = [tokens_k, kv_heads * dim];
        assert!(
            k.dims() == expected && v.dims() == expected,
            "attention: k {:?} and v {:?} must be {expected:?}",
            k.dims(),
            v.dims()
        );
        for (queries, keys) in self.sequences() {
            let (q_len, k_len) = (queries.len(), keys.len());
            assert!(
                q_len == 0
                    || (k_len > 0 && (!self.causal && self.window.is_none() || k_len >= q_len)),
                "attention: a sequence has {q_len} queries and {k_len} keys; every query needs a key, and with causal or a window \
                 one of its own position"
            );
        }
    }
}

/// What is added to the scores, after any cap on them. It may be trained.
#[derive(Clone, Debug)]
pub enum ScoreBias {
    /// A number for each key, `[tokens_k]`: where tokens were merged, the logarithm of how many a
    /// key stands for.
    Keys(Tensor<1>),
    /// A number for each head, query and key of a sequence, `[num_heads, queries, keys]`, or
    /// `[1, queries, keys]` for all heads alike. Every sequence begins at its first query and key,
    /// so the longest decides the size.
    Positions(Tensor<3>),
}

impl ScoreBias {
    pub(super) fn check(&self, spec: &AttentionSpec) {
        match self {
            Self::Keys(bias) => {
                let tokens_k = spec.cu_k[spec.cu_k.len() - 1];
                assert!(
                    bias.dims() == [tokens_k],
                    "attention: the bias {:?} needs a number for each of {tokens_k} keys",
                    bias.dims()
                );
            }
            Self::Positions(bias) => {
                let [heads, queries, keys] = bias.dims();
                assert!(
                    heads == 1 || heads == spec.num_heads,
                    "attention: the bias {:?} must be for 1 head or for {}",
                    bias.dims(),
                    spec.num_heads
                );
                for (q, k) in spec.sequences() {
                    let (q_len, k_len) = (q.len(), k.len());
                    assert!(
                        q_len <= queries && k_len <= keys,
                        "attention: the bias {:?} is too small for {q_len} queries and {k_len} keys",
                        bias.dims()
                    );
                }
            }
        }
    }
}
