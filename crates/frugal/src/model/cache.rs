//! Keys and values of earlier tokens, for generation.

use burn::prelude::*;

use super::layout::SequenceLayout;

/// Cached keys and values of a batch of sequences, grown by every forward pass that is given it.
#[derive(Clone, Debug)]
pub struct KvCache {
    /// `[layers][sequences]`: keys and values, each `[cached, kv_heads * head_dim]`.
    entries: Vec<Vec<Option<(Tensor<2>, Tensor<2>)>>>,
    past: Vec<usize>,
}

impl KvCache {
    /// An empty cache.
    pub fn new(layers: usize, sequences: usize) -> Self {
        Self { entries: vec![vec![None; sequences]; layers], past: vec![0; sequences] }
    }

    /// Tokens of each sequence that are cached.
    pub fn past(&self) -> &[usize] {
        &self.past
    }

    /// Adds new keys and values of a sequence and returns all of them.
    pub fn extend(&mut self, layer: usize, sequence: usize, key: Tensor<2>, value: Tensor<2>) -> (Tensor<2>, Tensor<2>) {
        self.append(layer, sequence, key, value)
    }

    /// Adds new keys and values of a sequence and returns all of them.
    pub fn append(&mut self, layer: usize, sequence: usize, key: Tensor<2>, value: Tensor<2>) -> (Tensor<2>, Tensor<2>) {
        let entry = &mut self.entries[layer][sequence];
        let joined = match entry.take() {
            None => (key, value),
            Some((k, v)) => (Tensor::cat(vec![k, key], 0), Tensor::cat(vec![v, value], 0)),
        };
        *entry = Some(joined.clone());
        joined
    }

    /// Records that a pass over `layout` is complete.
    pub fn advance(&mut self, layout: &SequenceLayout) {
        for (past, length) in self.past.iter_mut().zip(layout.lengths()) {
            *past += length;
        }
    }

    /// Forgets what a sequence cached beyond its first `length` tokens.
    pub fn truncate(&mut self, sequence: usize, length: usize) {
        for layer in &mut self.entries {
            let entry = &mut layer[sequence];
            *entry = entry.take().filter(|_| length > 0).map(|(k, v)| {
                // A method's prefix counts in the entry but not in `past`.
                let prefix = k.dims()[0].saturating_sub(self.past[sequence]);
                let end = (prefix + length).min(k.dims()[0]);
                (k.slice(0..end), v.slice(0..end))
            });
        }
        self.past[sequence] = self.past[sequence].min(length);
    }

    /// Drops the sequences for which `keep` is false.
    pub fn retain(&mut self, keep: &[bool]) {
        let chosen = |i: usize| keep.get(i).copied().unwrap_or(false);
        for layer in &mut self.entries {
            let mut i = 0;
            layer.retain(|_| (chosen(i), i += 1).0);
        }
        let mut i = 0;
        self.past.retain(|_| (chosen(i), i += 1).0);
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        let entries = self.entries.iter().flatten().flatten();
        entries.map(|(k, v)| (k.dims().iter().product::<usize>() + v.dims().iter().product::<usize>()) * 4).sum()
    }
}
