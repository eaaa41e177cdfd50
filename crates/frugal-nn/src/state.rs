//! Keys and values of earlier tokens, for generation.

use burn::prelude::*;
use frugal_kernels::{AttentionSpec, CacheType, KeyValues};

use crate::layout::SequenceLayout;

/// Cached keys and values of a batch of sequences, grown by every forward pass that is given it.
#[derive(Clone, Debug)]
pub struct KvCache {
    /// `[layers][sequences]`.
    entries: Vec<Vec<Entry>>,
    past: Vec<usize>,
    cache_type: CacheType,
}

/// Keys and values of one sequence in one layer, each `[cached, kv_heads * head_dim]`.
#[derive(Clone, Debug)]
enum Entry {
    Empty,
    /// In this process's memory, added to in place.
    Blocks(KeyValues),
    /// On another device.
    Tensors(Tensor<2>, Tensor<2>),
}

impl KvCache {
    /// An empty cache in single precision.
    pub fn new(layers: usize, sequences: usize) -> Self {
        Self::with_type(layers, sequences, CacheType::F32)
    }

    /// An empty cache.
    pub fn with_type(layers: usize, sequences: usize, cache_type: CacheType) -> Self {
        Self {
            entries: vec![vec![Entry::Empty; sequences]; layers],
            past: vec![0; sequences],
            cache_type,
        }
    }

    /// Tokens of each sequence that are cached.
    pub fn past(&self) -> &[usize] {
        &self.past
    }

    /// Adds new keys and values of a sequence and gives all of them.
    pub fn extend(
        &mut self,
        layer: usize,
        sequence: usize,
        key: Tensor<2>,
        value: Tensor<2>,
    ) -> (Tensor<2>, Tensor<2>) {
        let device = key.device().inner();
        self.append(layer, sequence, key.clone(), value.clone());
        self.tensors(layer, sequence, &device)
            .unwrap_or((key, value))
    }

    /// Adds new keys and values of a sequence.
    pub fn append(&mut self, layer: usize, sequence: usize, key: Tensor<2>, value: Tensor<2>) {
        self.add(layer, sequence, key, value, KeyValues::new);
    }

    /// Adds new vectors of a sequence that are both keys and values; in this process's memory they
    /// are held once.
    pub fn append_shared(&mut self, layer: usize, sequence: usize, memory: Tensor<2>) {
        self.add(layer, sequence, memory.clone(), memory, KeyValues::shared);
    }

    fn add(
        &mut self,
        layer: usize,
        sequence: usize,
        key: Tensor<2>,
        value: Tensor<2>,
        empty: fn(usize, CacheType) -> KeyValues,
    ) {
        let entry = &mut self.entries[layer][sequence];
        if matches!(entry, Entry::Empty) {
            *entry = Entry::Blocks(empty(key.dims()[1], self.cache_type));
        }
        if let Entry::Blocks(blocks) = entry
            && blocks.append(&key, &value)
        {
            return;
        }
        *entry = match std::mem::replace(entry, Entry::Empty) {
            Entry::Tensors(k, v) => {
                Entry::Tensors(Tensor::cat(vec![k, key], 0), Tensor::cat(vec![v, value], 0))
            }
            _ => Entry::Tensors(key, value),
        };
    }

    /// All keys and values of a sequence; none if nothing was added yet.
    pub fn tensors(
        &self,
        layer: usize,
        sequence: usize,
        device: &Device,
    ) -> Option<(Tensor<2>, Tensor<2>)> {
        match &self.entries[layer][sequence] {
            Entry::Empty => None,
            Entry::Blocks(blocks) => Some(blocks.tensors(device)),
            Entry::Tensors(k, v) => Some((k.clone(), v.clone())),
        }
    }

    /// Attention of one new query of each sequence to what is cached, which includes its own key;
    /// `None` when the cache is on another device.
    pub fn attend(&self, layer: usize, q: Tensor<2>, spec: &AttentionSpec) -> Option<Tensor<2>> {
        let blocks = self.entries[layer].iter().map(|entry| match entry {
            Entry::Blocks(blocks) => Some(blocks),
            _ => None,
        });
        let cached: Vec<&KeyValues> = blocks.collect::<Option<_>>()?;
        Some(frugal_kernels::cached_attention(q, &cached, spec))
    }

    /// Records that a pass over `layout` is complete.
    pub fn advance(&mut self, layout: &SequenceLayout) {
        for (past, length) in self.past.iter_mut().zip(layout.lengths()) {
            *past += length;
        }
    }

    /// Forgets what a sequence cached beyond its first `length` tokens.
    pub fn truncate(&mut self, sequence: usize, length: usize) {
        let past = self.past[sequence];
        // A method's prefix counts in the entry but not in `past`.
        let end = |cached: usize| (cached.saturating_sub(past) + length).min(cached);
        for layer in &mut self.entries {
            match &mut layer[sequence] {
                entry if length == 0 => *entry = Entry::Empty,
                Entry::Empty => {}
                Entry::Blocks(blocks) => blocks.truncate(end(blocks.len())),
                Entry::Tensors(k, v) => {
                    let end = end(k.dims()[0]);
                    (*k, *v) = (k.clone().slice(0..end), v.clone().slice(0..end));
                }
            }
        }
        self.past[sequence] = past.min(length);
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

    /// Bytes that each token of a sequence takes, in all layers together.
    pub fn bytes_per_token(&self, sequence: usize) -> usize {
        let of = |entry: &Entry| match entry {
            Entry::Empty => 0,
            Entry::Blocks(blocks) => blocks.bytes_per_position(),
            Entry::Tensors(k, v) => (k.dims()[1] + v.dims()[1]) * 4,
        };
        self.entries.iter().map(|layer| of(&layer[sequence])).sum()
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        let of = |entry: &Entry| match entry {
            Entry::Empty => 0,
            Entry::Blocks(blocks) => blocks.bytes(),
            Entry::Tensors(k, v) => {
                (k.dims().iter().product::<usize>() + v.dims().iter().product::<usize>()) * 4
            }
        };
        self.entries.iter().flatten().map(of).sum()
    }
}
