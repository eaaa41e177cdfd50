//! Scaled dot-product attention over ragged batches.

use std::sync::Arc;

use burn::tensor::Tensor;

use crate::cache::KeyValues;
use crate::flex;

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

    fn check_heads(&self) {
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

    fn check(&self, q: &Tensor<2>, k: &Tensor<2>, v: &Tensor<2>) {
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
    fn check(&self, spec: &AttentionSpec) {
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

/// Attention of q `[tokens_q, num_heads * head_dim]` to k and v
/// `[tokens_k, num_kv_heads * head_dim]`, giving `[tokens_q, num_heads * head_dim]`. Sequences do
/// not see each other. Keys of another sequence than that of the queries (cross-attention) are no
/// special case: without `causal`, each sequence may have any number of them.
///
/// # Panics
/// When the shapes and the specification do not fit together, or a query has no key.
pub fn attention(q: Tensor<2>, k: Tensor<2>, v: Tensor<2>, spec: &AttentionSpec) -> Tensor<2> {
    spec.check(&q, &k, &v);
    flex::attention(&q, &k, &v, None, spec).unwrap_or_else(|| portable::attention(q, k, v, spec))
}

/// [`attention`] with a bias on the scores.
///
/// # Panics
/// As [`attention`], and when the bias does not fit.
pub fn biased_attention(
    q: Tensor<2>,
    k: Tensor<2>,
    v: Tensor<2>,
    bias: &ScoreBias,
    spec: &AttentionSpec,
) -> Tensor<2> {
    spec.check(&q, &k, &v);
    bias.check(spec);
    flex::attention(&q, &k, &v, Some(bias), spec)
        .unwrap_or_else(|| portable::biased_attention(q, k, v, bias, spec))
}

/// Attention of one new query of each sequence, `[sequences, num_heads * head_dim]`, to the keys
/// that its cache holds, of which the last is its own. The boundaries in the specification are not
/// read.
///
/// # Panics
/// When the shapes do not fit together, or a cache is empty.
pub fn cached_attention(q: Tensor<2>, cached: &[&KeyValues], spec: &AttentionSpec) -> Tensor<2> {
    spec.check_heads();
    let width = spec.num_heads * spec.head_dim;
    let kv_width = spec.num_kv_heads * spec.head_dim;
    assert!(
        cached.iter().all(|cache| cache.width() == kv_width),
        "attention: the rows of a cache are not {kv_width} wide"
    );
    assert!(
        q.dims() == [cached.len(), width],
        "attention: q {:?} must be {:?}",
        q.dims(),
        [cached.len(), width]
    );
    assert!(
        cached.iter().all(|cache| !cache.is_empty()),
        "attention: a cache is empty"
    );
    if let Some(output) = flex::cached_attention(&q, cached, spec) {
        return output;
    }
    let device = q.device().inner();
    let (keys, values): (Vec<_>, Vec<_>) =
        cached.iter().map(|cache| cache.tensors(&device)).unzip();
    let mut cu_k = vec![0];
    cached
        .iter()
        .for_each(|cache| cu_k.push(cu_k[cu_k.len() - 1] + cache.len()));
    let spec = AttentionSpec {
        cu_q: (0..=cached.len()).collect(),
        cu_k: cu_k.into(),
        ..spec.clone()
    };
    attention(q, Tensor::cat(keys, 0), Tensor::cat(values, 0), &spec)
}

pub(crate) mod portable {
    use super::{AttentionSpec, ScoreBias};
    use burn::tensor::{Bool, Tensor, TensorData, activation::softmax};

    /// [`attention`](crate::attention) as a composition of Burn operations; holds one sequence's
    /// score matrix at a time.
    pub fn attention(q: Tensor<2>, k: Tensor<2>, v: Tensor<2>, spec: &AttentionSpec) -> Tensor<2> {
        by_sequence(q, k, v, None, spec)
    }

    /// [`biased_attention`](crate::biased_attention) as a composition of Burn operations.
    pub fn biased_attention(
        q: Tensor<2>,
        k: Tensor<2>,
        v: Tensor<2>,
        bias: &ScoreBias,
        spec: &AttentionSpec,
    ) -> Tensor<2> {
        by_sequence(q, k, v, Some(bias), spec)
    }

    fn by_sequence(
        q: Tensor<2>,
        k: Tensor<2>,
        v: Tensor<2>,
        bias: Option<&ScoreBias>,
        spec: &AttentionSpec,
    ) -> Tensor<2> {
        let (heads, kv_heads, dim) = (spec.num_heads, spec.num_kv_heads, spec.head_dim);
        let group = heads / kv_heads;
        let mut outputs = Vec::new();
        for (queries, keys) in spec.sequences() {
            let (q_len, k_len) = (queries.len(), keys.len());
            if q_len == 0 {
                continue;
            }
            // Query heads that share a key head become extra rows of one matrix product.
            let q = q
                .clone()
                .narrow(0, queries.start, q_len)
                .reshape([q_len, kv_heads, group, dim])
                .permute([1, 2, 0, 3])
                .reshape([kv_heads, group * q_len, dim]);
            let split = |t: &Tensor<2>| {
                t.clone()
                    .narrow(0, keys.start, k_len)
                    .reshape([k_len, kv_heads, dim])
                    .swap_dims(0, 1)
            };
            let mut scores = q.matmul(split(&k).transpose()) * spec.scale;
            if let Some(cap) = spec.softcap {
                scores = (scores / cap).tanh() * cap;
            }
            let mut scores = scores.reshape([kv_heads, group, q_len, k_len]);
            match bias {
                Some(ScoreBias::Keys(bias)) => {
                    scores = scores
                        + bias
                            .clone()
                            .narrow(0, keys.start, k_len)
                            .reshape([1, 1, 1, k_len])
                }
                Some(ScoreBias::Positions(bias)) => {
                    let bias = bias.clone().narrow(1, 0, q_len).narrow(2, 0, k_len);
                    let by_head = if bias.dims()[0] == 1 {
                        [1, 1]
                    } else {
                        [kv_heads, group]
                    };
                    scores = scores + bias.reshape([by_head[0], by_head[1], q_len, k_len]);
                }
                None => {}
            }
            if spec.causal || spec.window.is_some() {
                let mut hidden = vec![true; q_len * k_len];
                for (i, row) in hidden.chunks_mut(k_len).enumerate() {
                    row[spec.visible(i, q_len, k_len)].fill(false);
                }
                let mask = Tensor::<4, Bool>::from_data(
                    TensorData::new(hidden, [1, 1, q_len, k_len]),
                    &scores.device(),
                );
                let shape = scores.shape();
                scores = scores.mask_fill(mask.expand(shape), f32::NEG_INFINITY);
            }
            let weights = softmax(scores, 3).reshape([kv_heads, group * q_len, k_len]);
            let out = weights
                .matmul(split(&v))
                .reshape([kv_heads, group, q_len, dim])
                .permute([2, 0, 1, 3])
                .reshape([q_len, heads * dim]);
            outputs.push(out);
        }
        if outputs.is_empty() {
            return q;
        }
        Tensor::cat(outputs, 0)
    }
}
