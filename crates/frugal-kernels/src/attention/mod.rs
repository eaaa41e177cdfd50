//! Scaled dot-product attention over ragged batches.

mod spec;

use burn::tensor::Tensor;

pub use spec::{AttentionSpec, ScoreBias};

use crate::cache::KeyValues;
use crate::flex;

/// Scaled dot-product attention, `softmax(scale * q · kᵀ) · v` for each head (Vaswani et al.,
/// *Attention Is All You Need*, arXiv 1706.03762, equation 1), tile by tile as in Dao,
/// *FlashAttention-2*, arXiv 2307.08691, algorithms 1 and 2.
///
/// Sequences do not see each other. Keys of another sequence than that of the queries
/// (cross-attention) are no special case: without `causal`, each sequence may have any number of
/// them.
///
/// # Shapes
/// q: `[tokens_q, num_heads * head_dim] -> [tokens_q, num_heads * head_dim]`;
/// k, v: `[tokens_k, num_kv_heads * head_dim]`
///
/// # Panics
/// When the shapes and the specification do not fit together, or a query has no key.
pub fn attention(q: Tensor<2>, k: Tensor<2>, v: Tensor<2>, spec: &AttentionSpec) -> Tensor<2> {
    spec.check(&q, &k, &v);
    flex::attention(&q, &k, &v, None, spec).unwrap_or_else(|| portable::attention(q, k, v, spec))
}

/// [`attention`] with a bias on the scores: `softmax(scale * q · kᵀ + bias) · v`, the bias after
/// any cap, as `attn_mask` in `torch.nn.functional.scaled_dot_product_attention`.
///
/// # Shapes
/// q: `[tokens_q, num_heads * head_dim] -> [tokens_q, num_heads * head_dim]`;
/// k, v: `[tokens_k, num_kv_heads * head_dim]`;
/// bias: `[tokens_k]` or `[num_heads or 1, queries, keys]`
///
/// # Panics
/// When the shapes, the bias and the specification do not fit together, or a query has no key.
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

/// [`attention`] of one new query of each sequence to the keys that its KV cache holds, of which
/// the last is its own. The boundaries in the specification are not read.
///
/// # Shapes
/// q: `[sequences, num_heads * head_dim] -> [sequences, num_heads * head_dim]`;
/// each cache: `[len, num_kv_heads * head_dim]`
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
