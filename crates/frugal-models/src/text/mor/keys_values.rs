//! Keys and values of the first recursion step, which all steps read (`kv_sharing`).

use std::collections::HashMap;

use burn::prelude::*;
use frugal_kernels::{AttentionSpec, ScoreBias, attention, biased_attention};
use frugal_nn::state::DecodeState;

use super::active::Active;
use crate::blocks::attention::Attend;

/// Added to scores of what a query does not see. Not infinite: a tile in which all is hidden would
/// have no largest score.
const HIDDEN: f32 = -1e30;

/// What a pass without a cache keeps of the layers that come first.
#[derive(Default)]
pub(super) struct Shared(HashMap<usize, (Active, [Tensor<2>; 2])>);

/// Keys and values of each sequence of a layer's input.
pub(super) type OfSequences = Vec<[Tensor<2>; 2]>;

impl Shared {
    /// Keys and values of these tokens, each `[active, width]`.
    pub fn keep(&mut self, layer: usize, active: &Active, rows: [Tensor<2>; 2]) {
        self.0.insert(layer, (active.clone(), rows));
    }

    /// All keys and values that `layer` has of the sequences that `active` has tokens of; none where
    /// it did not run.
    pub fn of(
        &self,
        layer: usize,
        active: &Active,
        cache: Option<&DecodeState>,
        device: &Device,
    ) -> Option<OfSequences> {
        let sequences = active.sequences.iter();
        if let Some(cache) = cache {
            let held = |&sequence: &usize| {
                let (k, v) = cache.tensors(layer, sequence, device)?;
                Some([k, v])
            };
            return sequences.map(held).collect();
        }
        let (kept, [k, v]) = self.0.get(&layer)?;
        let own = |sequence: &usize| {
            let place = kept.sequences.binary_search(sequence).ok()?;
            let bounds = &kept.layout.cu_seqlens;
            Some([k, v].map(|rows| rows.clone().slice(bounds[place]..bounds[place + 1])))
        };
        sequences.map(own).collect()
    }
}

/// Attention of queries `[active, heads * head_dim]` to the first step's keys and values of their
/// sequences, each seeing those of its own position and before: `[active, heads * head_dim]`.
pub(super) fn attend_to_first(at: &Attend<'_>, q: Tensor<2>, kept: OfSequences) -> Tensor<2> {
    let outputs = kept.into_iter().enumerate().map(|(sequence, [k, v])| {
        let rows = at.layout.cu_seqlens[sequence]..at.layout.cu_seqlens[sequence + 1];
        let positions = &at.layout.position_ids[rows.clone()];
        let (queries, keys) = (rows.len(), k.dims()[0]);
        let q = q.clone().slice(rows);
        let last = positions.iter().rev().zip((0..keys).rev());
        // The last tokens in a row are what causal attention is.
        let causal = last
            .into_iter()
            .all(|(&position, key)| position as usize == key);
        let spec = AttentionSpec {
            num_heads: at.heads[0],
            num_kv_heads: at.heads[1],
            head_dim: at.heads[2],
            scale: at.scale,
            causal,
            window: None,
            cu_q: [0, queries].into(),
            cu_k: [0, keys].into(),
            softcap: at.softcap,
        };
        if causal {
            return attention(q, k, v, &spec);
        }
        let mut bias = vec![0.0; queries * keys];
        for (row, &position) in bias.chunks_mut(keys).zip(positions) {
            let seen = (position as usize + 1).min(keys);
            row[seen..].fill(HIDDEN);
        }
        let bias = TensorData::new(bias, [1, queries, keys]);
        let bias = ScoreBias::Positions(Tensor::from_data(bias, &q.device().inner()));
        biased_attention(q, k, v, &bias, &spec)
    });
    Tensor::cat(outputs.collect(), 0)
}

/// Rows `[active, d]` among zeros, `[tokens, d]`.
pub(super) fn spread(active: &Active, rows: Tensor<2>) -> Tensor<2> {
    if active.is_all() {
        return rows;
    }
    let zeros = Tensor::zeros([active.tokens(), rows.dims()[1]], &rows.device().inner());
    active.put(zeros, rows)
}
