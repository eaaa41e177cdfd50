//! Attention over ragged sequences with cache and prefix.

use burn::prelude::*;
use frugal_kernels::AttentionSpec;
use frugal_nn::layout::SequenceLayout;
use frugal_nn::state::{DecodeState, LayerState};
use frugal_nn::{
    AttentionControl, AttentionMask, Frozen, KeyValue, ModelError, Pass, RotaryTable, select_rows,
};

use crate::architecture::ModelConfig;
use crate::blocks::controlled::{attend_controlled, over_prefixes};

/// How the tokens of a block look at each other.
pub trait SelfAttention: Send + Sync {
    /// `[tokens, d_model]` to the same.
    fn forward(
        &self,
        at: &Attend<'_>,
        rotary: &RotaryTable,
        x: Tensor<2>,
        pass: &mut dyn Pass,
        cache: Option<&mut DecodeState>,
    ) -> Tensor<2>;
    /// Visits all weights.
    fn visit_weights(&self, visit: &mut dyn FnMut(Frozen<'_>));
    /// What it remembers of a sequence, of which it shows the tokens in this window.
    fn new_state(&self, window: Option<usize>) -> LayerState {
        window.map_or_else(LayerState::key_value, LayerState::ring)
    }
    /// Refuses a pass that cannot go on from what is remembered.
    ///
    /// # Errors
    /// What does not go together.
    fn check_state(
        &self,
        _layer: usize,
        _state: &DecodeState,
        _pass: &mut dyn Pass,
    ) -> Result<(), ModelError> {
        Ok(())
    }
    /// Whether a method may put keys and values in front of it.
    fn takes_prefix(&self) -> bool {
        false
    }
    /// Whether a method may say how tokens see each other: all that it computes of them goes
    /// through [`attend`].
    fn takes_control(&self) -> bool {
        false
    }
    /// Refuses what a method may not say here of how tokens see each other.
    ///
    /// # Errors
    /// What has no place.
    fn check_control(&self, _control: &AttentionControl) -> Result<(), String> {
        Ok(())
    }
}

/// Where an attention call happens.
pub struct Attend<'a> {
    /// Sequence boundaries of the queries.
    pub layout: &'a SequenceLayout,
    /// Which sequences of the batch these are, where others have no queries here.
    pub sequences: Option<&'a [usize]>,
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
    /// What the pass wants of attention.
    pub control: Option<&'a AttentionControl>,
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
            sequences: None,
            layer,
            window: None,
            causal,
            heads,
            scale: (1.0 / (config.head_dim as f64).sqrt()) as f32,
            softcap: None,
            values_are_keys: false,
            control: None,
        }
    }

    /// A sequence's number in the batch.
    fn in_batch(&self, sequence: usize) -> usize {
        self.sequences.map_or(sequence, |all| all[sequence])
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
    cache: Option<&mut DecodeState>,
) -> Tensor<2> {
    let beside = pass.beside_attention(at.layer, &q, at.scale);
    let y = attend_to_keys(at, q, [k, v], pass, cache);
    match beside {
        Some(beside) => y + beside,
        None => y,
    }
}

fn attend_to_keys(
    at: &Attend<'_>,
    q: Tensor<2>,
    [k, v]: [Tensor<2>; 2],
    pass: &mut dyn Pass,
    cache: Option<&mut DecodeState>,
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
    if let (Some(control), Some(_)) = (at.control, &cache)
        && let AttentionMask::Prefix(prefixes) = &control.mask
    {
        let plain = Attend {
            control: None,
            ..*at
        };
        let rows = [q.clone(), k.clone(), v.clone()];
        let causal = attend_to_keys(&plain, q, [k, v], pass, cache);
        return over_prefixes(prefixes, at.layout, causal, rows, &spec);
    }
    if let Some(control) = at.control {
        return attend_controlled(at.layer, at.layout, control, [q, k, v], spec, pass);
    }
    let prefix = pass.key_value(at.layer);
    if prefix.is_none() && cache.is_none() {
        return frugal_kernels::attention(q, k, v, &spec);
    }
    let own = own_rows(at, [k, v], prefix, pass.prefix_length());
    let Some(cache) = cache else {
        return over(spec, q, own);
    };
    for (sequence, [key, value]) in own.iter().enumerate() {
        let sequence = at.in_batch(sequence);
        if at.values_are_keys {
            cache.append_shared(at.layer, sequence, key.clone());
        } else {
            cache.append(at.layer, sequence, key.clone(), value.clone());
        }
    }
    // A sequence with one new token reads what is held where it lies, whoever shares the pass.
    let (one, several): (Vec<usize>, Vec<usize>) =
        (0..own.len()).partition(|&i| boundaries[i + 1] - boundaries[i] == 1);
    let rows = |sequences: &[usize]| -> Vec<usize> {
        let rows = sequences.iter();
        rows.flat_map(|&i| boundaries[i]..boundaries[i + 1])
            .collect()
    };
    let (one_rows, rows_of_several) = (rows(&one), rows(&several));
    let in_batch =
        |sequences: &[usize]| -> Vec<usize> { sequences.iter().map(|&i| at.in_batch(i)).collect() };
    if several.is_empty()
        && let Some(output) = cache.attend(at.layer, &in_batch(&one), q.clone(), &spec)
    {
        return output;
    }
    let of_one = match one.is_empty() || several.is_empty() {
        true => None,
        false => cache.attend(
            at.layer,
            &in_batch(&one),
            select_rows(q.clone(), &one_rows),
            &spec,
        ),
    };
    // Several new tokens after others: what is cached is copied out once.
    let all = |i: usize, own: [Tensor<2>; 2]| match at.layout.past[i] {
        0 => own,
        _ => cache
            .tensors(at.layer, at.in_batch(i), &own[0].device().inner())
            .map_or(own, |(key, value)| [key, value]),
    };
    let Some(of_one) = of_one else {
        let keys = own.into_iter().enumerate().map(|(i, own)| all(i, own));
        return over(spec, q, keys.collect());
    };
    let mut own: Vec<Option<[Tensor<2>; 2]>> = own.into_iter().map(Some).collect();
    let keys = several
        .iter()
        .filter_map(|&i| own[i].take().map(|own| all(i, own)));
    let mut cu_q = vec![0];
    several
        .iter()
        .for_each(|&i| cu_q.push(cu_q[cu_q.len() - 1] + boundaries[i + 1] - boundaries[i]));
    spec.cu_q = cu_q.into();
    let of_several = over(spec, select_rows(q, &rows_of_several), keys.collect());
    // Back into the order of the batch.
    let mut place = vec![0; one_rows.len() + rows_of_several.len()];
    for (from, &to) in one_rows.iter().chain(&rows_of_several).enumerate() {
        place[to] = from;
    }
    select_rows(Tensor::cat(vec![of_one, of_several], 0), &place)
}

/// Keys and values of each sequence that come in this pass, those of a method in front of them
/// where the sequence begins.
fn own_rows(
    at: &Attend<'_>,
    [k, v]: [Tensor<2>; 2],
    prefix: Option<KeyValue>,
    positions: usize,
) -> Vec<[Tensor<2>; 2]> {
    // A prefix is one for all sequences, or one of each.
    let of_sequence = |rows: &Tensor<2>, sequence: usize| {
        let shared = rows.dims()[0] == positions;
        if shared {
            rows.clone()
        } else {
            rows.clone()
                .slice(sequence * positions..(sequence + 1) * positions)
        }
    };
    let boundaries = at.layout.cu_seqlens.windows(2).enumerate();
    let own = boundaries.map(|(sequence, range)| {
        let own = [&k, &v].map(|rows| rows.clone().slice(range[0]..range[1]));
        let begins = at.layout.past[sequence] == 0;
        match prefix.as_ref().filter(|_| begins) {
            Some(KeyValue { key, value }) => {
                let [k, v] = own;
                [(key, k), (value, v)].map(|(prefix, own)| {
                    Tensor::cat(vec![of_sequence(prefix, at.in_batch(sequence)), own], 0)
                })
            }
            None => own,
        }
    });
    own.collect()
}

/// Attention of the queries to the keys and values of each sequence.
fn over(mut spec: AttentionSpec, q: Tensor<2>, rows: Vec<[Tensor<2>; 2]>) -> Tensor<2> {
    let mut cu_k = vec![0];
    let (mut keys, mut values) = (Vec::new(), Vec::new());
    for [key, value] in rows {
        cu_k.push(cu_k[cu_k.len() - 1] + key.dims()[0]);
        keys.push(key);
        values.push(value);
    }
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
