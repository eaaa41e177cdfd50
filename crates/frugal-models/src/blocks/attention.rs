//! Attention over ragged sequences with cache and prefix.

use burn::prelude::*;
use frugal_kernels::AttentionSpec;
use frugal_nn::layout::SequenceLayout;
use frugal_nn::state::KvCache;
use frugal_nn::{Frozen, Pass, RotaryTable};

use crate::architecture::ModelConfig;

/// How the tokens of a block look at each other.
pub trait SelfAttention: Send + Sync {
    /// `[tokens, d_model]` to the same.
    fn forward(
        &self,
        at: &Attend<'_>,
        rotary: &RotaryTable,
        x: Tensor<2>,
        pass: &mut dyn Pass,
        cache: Option<&mut KvCache>,
    ) -> Tensor<2>;
    /// Visits all weights.
    fn visit_weights(&self, visit: &mut dyn FnMut(Frozen<'_>));
    /// Whether a method may put keys and values in front of it.
    fn takes_prefix(&self) -> bool {
        false
    }
}

/// Where an attention call happens.
pub struct Attend<'a> {
    /// Sequence boundaries of the queries.
    pub layout: &'a SequenceLayout,
    /// Block number.
    pub layer: usize,
    /// Sliding window, if this block has one.
    pub window: Option<usize>,
    /// Whether a token sees only itself and what is before it.
    pub causal: bool,
    /// Heads of the queries, of the keys, and their width.
    pub heads: [usize; 3],
    /// Factor on the scores.
    pub scale: f32,
    /// Cap on the scores: `cap * tanh(x / cap)`.
    pub softcap: Option<f32>,
    /// Whether the values are the keys, so that a cache need hold them once only.
    pub values_are_keys: bool,
}

impl<'a> Attend<'a> {
    /// Attention with the configuration's heads, scores divided by the root of their width, and
    /// without a window.
    pub fn new(
        config: &ModelConfig,
        layout: &'a SequenceLayout,
        layer: usize,
        causal: bool,
    ) -> Self {
        let heads = [
            config.num_attention_heads,
            config.num_key_value_heads,
            config.head_dim,
        ];
        Self {
            layout,
            layer,
            window: None,
            causal,
            heads,
            scale: (1.0 / (config.head_dim as f64).sqrt()) as f32,
            softcap: None,
            values_are_keys: false,
        }
    }
}

/// Attention of each sequence over its cached, prefixed and own keys.
///
/// `q` is `[tokens, heads * head_dim]`, `k` and `v` are `[tokens, kv_heads * head_dim]`, rotated
/// where the model rotates; returns `[tokens, heads * head_dim]`.
pub fn attend(
    at: &Attend<'_>,
    q: Tensor<2>,
    k: Tensor<2>,
    v: Tensor<2>,
    pass: &mut dyn Pass,
    cache: Option<&mut KvCache>,
) -> Tensor<2> {
    let boundaries = at.layout.cu_seqlens.clone();
    let mut spec = AttentionSpec {
        num_heads: at.heads[0],
        num_kv_heads: at.heads[1],
        head_dim: at.heads[2],
        scale: at.scale,
        causal: at.causal,
        window: at.window,
        cu_q: boundaries.clone(),
        cu_k: boundaries.clone(),
        softcap: at.softcap,
    };
    let prefix = pass.key_value(at.layer);
    if prefix.is_none() && cache.is_none() {
        return frugal_kernels::attention(q, k, v, &spec);
    }
    // A prefix is one for all sequences, or one of each.
    let positions = pass.prefix_length();
    let of_sequence = |rows: &Tensor<2>, sequence: usize| {
        let shared = rows.dims()[0] == positions;
        if shared {
            rows.clone()
        } else {
            rows.clone()
                .slice(sequence * positions..(sequence + 1) * positions)
        }
    };
    let mut cache = cache;
    let (mut keys, mut values, mut cu_k) = (Vec::new(), Vec::new(), vec![0]);
    for (sequence, range) in boundaries.windows(2).enumerate() {
        let (mut key, mut value) = (
            k.clone().slice(range[0]..range[1]),
            v.clone().slice(range[0]..range[1]),
        );
        if let Some(prefix) = prefix.as_ref().filter(|_| at.layout.past[sequence] == 0) {
            key = Tensor::cat(vec![of_sequence(&prefix.key, sequence), key], 0);
            value = Tensor::cat(vec![of_sequence(&prefix.value, sequence), value], 0);
        }
        if let Some(cache) = cache.as_deref_mut() {
            if at.values_are_keys {
                cache.append_shared(at.layer, sequence, key.clone());
            } else {
                cache.append(at.layer, sequence, key.clone(), value.clone());
            }
        }
        keys.push(key);
        values.push(value);
    }
    if let Some(cache) = cache {
        if boundaries.windows(2).all(|range| range[1] - range[0] == 1)
            && let Some(output) = cache.attend(at.layer, q.clone(), &spec)
        {
            return output;
        }
        // Several new tokens after others: what is cached is copied out once.
        for (sequence, (key, value)) in keys
            .iter_mut()
            .zip(&mut values)
            .enumerate()
            .filter(|(i, _)| at.layout.past[*i] > 0)
        {
            if let Some(cached) = cache.tensors(at.layer, sequence, &key.device().inner()) {
                (*key, *value) = cached;
            }
        }
    }
    keys.iter()
        .for_each(|key| cu_k.push(cu_k[cu_k.len() - 1] + key.dims()[0]));
    spec.cu_k = cu_k.into();
    frugal_kernels::attention(q, join(keys), join(values), &spec)
}

fn join(mut parts: Vec<Tensor<2>>) -> Tensor<2> {
    if parts.len() == 1 {
        parts.remove(0)
    } else {
        Tensor::cat(parts, 0)
    }
}
