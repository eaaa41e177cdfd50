//! Parts shared by all backbones: attention over ragged sequences with cache and prefix, pooling helpers.

use std::sync::Arc;

use burn::prelude::*;
use frugal_kernels::AttentionSpec;

use super::cache::KvCache;
use super::config::ModelConfig;
use super::layout::SequenceLayout;
use crate::adapt::Pass;

/// Where an attention call happens.
pub struct Attend<'a> {
    /// Sizes.
    pub config: &'a ModelConfig,
    /// Sequence boundaries of the queries.
    pub layout: &'a SequenceLayout,
    /// Block number.
    pub layer: usize,
    /// Sliding window, if this block has one.
    pub window: Option<usize>,
    /// Whether a token sees only itself and what is before it.
    pub causal: bool,
}

/// Attention of each sequence over its cached, prefixed and own keys.
///
/// `q` is `[tokens, heads * head_dim]`, `k` and `v` are `[tokens, kv_heads * head_dim]`, rotated where the model
/// rotates; returns `[tokens, heads * head_dim]`.
pub fn attend(at: &Attend<'_>, q: Tensor<2>, k: Tensor<2>, v: Tensor<2>, pass: &mut dyn Pass, cache: Option<&mut KvCache>) -> Tensor<2> {
    let cu_q = at.layout.cu_seqlens.clone();
    let prefix = pass.key_value(at.layer);
    let positions = pass.prefix_length();
    let of_sequence = |rows: &Tensor<2>, sequence: usize| {
        let shared = rows.dims()[0] == positions;
        if shared { rows.clone() } else { rows.clone().slice(sequence * positions..(sequence + 1) * positions) }
    };
    let (k, v, cu_k) = if prefix.is_none() && cache.is_none() {
        (k, v, cu_q.clone())
    } else {
        let mut cache = cache;
        let (mut keys, mut values, mut cu_k) = (Vec::new(), Vec::new(), vec![0]);
        for (sequence, range) in cu_q.windows(2).enumerate() {
            let (mut key, mut value) = (k.clone().slice(range[0]..range[1]), v.clone().slice(range[0]..range[1]));
            if let Some(prefix) = prefix.as_ref().filter(|_| at.layout.past[sequence] == 0) {
                key = Tensor::cat(vec![of_sequence(&prefix.key, sequence), key], 0);
                value = Tensor::cat(vec![of_sequence(&prefix.value, sequence), value], 0);
            }
            if let Some(cache) = cache.as_deref_mut() {
                (key, value) = cache.append(at.layer, sequence, key, value);
            }
            cu_k.push(cu_k[sequence] + key.dims()[0]);
            keys.push(key);
            values.push(value);
        }
        (join(keys), join(values), Arc::from(cu_k))
    };
    let c = at.config;
    let spec = AttentionSpec {
        num_heads: c.num_attention_heads,
        num_kv_heads: c.num_key_value_heads,
        head_dim: c.head_dim,
        scale: c.attention_scale as f32,
        causal: at.causal,
        window: at.window,
        cu_q,
        cu_k,
        softcap: None,
    };
    frugal_kernels::attention(q, k, v, &spec)
}

fn join(mut parts: Vec<Tensor<2>>) -> Tensor<2> {
    if parts.len() == 1 { parts.remove(0) } else { Tensor::cat(parts, 0) }
}

/// Rows of `x` `[tokens, d]` at these indices.
pub fn select_rows(x: Tensor<2>, rows: &[usize]) -> Tensor<2> {
    let device = x.device().inner();
    let rows: Vec<i64> = rows.iter().map(|&r| r as i64).collect();
    x.select(0, Tensor::<1, Int>::from_data(TensorData::from(rows.as_slice()), &device))
}

/// Removes the positions that a method put in front of each sequence.
pub fn drop_prepended(x: Tensor<2>, layout: &SequenceLayout) -> Tensor<2> {
    if layout.prepended == 0 {
        return x;
    }
    let rows: Vec<usize> = layout.cu_seqlens.windows(2).flat_map(|w| w[0] + layout.prepended..w[1]).collect();
    select_rows(x, &rows)
}

/// Mean of each sequence's rows: `[tokens, d]` to `[sequences, d]`.
pub fn mean_pool(x: Tensor<2>, cu_seqlens: &[usize]) -> Tensor<2> {
    let means = cu_seqlens.windows(2).map(|w| x.clone().slice(w[0]..w[1]).mean_dim(0)).collect();
    Tensor::cat(means, 0)
}
