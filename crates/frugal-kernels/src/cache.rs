//! Keys and values of earlier tokens, in blocks that never move.

use burn::tensor::{Device, Tensor, TensorData};
use half::f16;

use crate::flex;

/// Positions of a block.
pub(crate) const BLOCK: usize = 256;

/// How cached keys and values are held.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CacheType {
    /// Single precision: the result is that without a cache.
    #[default]
    F32,
    /// Half precision: half the memory.
    F16,
}

/// Numbers of some positions, `[positions, width]`.
#[derive(Clone, Debug)]
pub(crate) enum Block {
    F32(Vec<f32>),
    F16(Vec<f16>),
}

impl Block {
    fn new(cache_type: CacheType, width: usize) -> Self {
        match cache_type {
            CacheType::F32 => Self::F32(Vec::with_capacity(BLOCK * width)),
            CacheType::F16 => Self::F16(Vec::with_capacity(BLOCK * width)),
        }
    }

    fn extend(&mut self, values: &[f32]) {
        match self {
            Self::F32(block) => block.extend_from_slice(values),
            Self::F16(block) => block.extend(values.iter().map(|&v| f16::from_f32(v))),
        }
    }

    fn truncate(&mut self, len: usize) {
        match self {
            Self::F32(block) => block.truncate(len),
            Self::F16(block) => block.truncate(len),
        }
    }

    fn copy_to(&self, out: &mut Vec<f32>) {
        match self {
            Self::F32(block) => out.extend_from_slice(block),
            Self::F16(block) => out.extend(block.iter().map(|v| v.to_f32())),
        }
    }
}

/// Keys and values of one sequence in one layer, each `[len, width]`. What is added is copied once and stays where it is.
#[derive(Clone, Debug)]
pub struct KeyValues {
    cache_type: CacheType,
    width: usize,
    len: usize,
    /// Whether the keys are the values too, which then hold nothing.
    shared: bool,
    pub(crate) keys: Vec<Block>,
    values: Vec<Block>,
}

impl KeyValues {
    /// An empty cache for rows of `width` numbers.
    pub fn new(width: usize, cache_type: CacheType) -> Self {
        Self { cache_type, width, len: 0, shared: false, keys: Vec::new(), values: Vec::new() }
    }

    /// An empty cache whose values are its keys, held once. What is appended as value is not looked at.
    pub fn shared(width: usize, cache_type: CacheType) -> Self {
        Self { shared: true, ..Self::new(width, cache_type) }
    }

    pub(crate) fn values(&self) -> &[Block] {
        if self.shared { &self.keys } else { &self.values }
    }

    /// Adds positions: key and value are `[positions, width]`. False, with nothing added, when they are not f32 in this
    /// process's memory (on another device than the CPU).
    ///
    /// # Panics
    /// When the shapes do not fit.
    #[must_use]
    pub fn append(&mut self, key: &Tensor<2>, value: &Tensor<2>) -> bool {
        assert!(key.dims() == value.dims() && key.dims()[1] == self.width, "cache: key {:?}, value {:?}", key.dims(), value.dims());
        let (Some(keys), Some(values)) = (flex::host_rows(key), flex::host_rows(value)) else { return false };
        let mut at = 0;
        while at < keys.len() {
            if self.len.is_multiple_of(BLOCK) {
                self.keys.push(Block::new(self.cache_type, self.width));
                if !self.shared {
                    self.values.push(Block::new(self.cache_type, self.width));
                }
            }
            let positions = (BLOCK - self.len % BLOCK).min((keys.len() - at) / self.width);
            let part = at..at + positions * self.width;
            for (blocks, rows) in [(&mut self.keys, &keys), (&mut self.values, &values)] {
                if let Some(block) = blocks.last_mut() {
                    block.extend(&rows[part.clone()]);
                }
            }
            self.len += positions;
            at = part.end;
        }
        true
    }

    /// Positions held.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Forgets all but the first `len` positions.
    pub fn truncate(&mut self, len: usize) {
        if len >= self.len {
            return;
        }
        self.len = len;
        for blocks in [&mut self.keys, &mut self.values] {
            blocks.truncate(len.div_ceil(BLOCK));
            if let Some(last) = blocks.last_mut() {
                last.truncate((len - (len - 1) / BLOCK * BLOCK) * self.width);
            }
        }
    }

    /// Bytes set aside.
    pub fn bytes(&self) -> usize {
        self.keys.len() * BLOCK * self.bytes_per_position()
    }

    /// Bytes of one position's key and value.
    pub fn bytes_per_position(&self) -> usize {
        let size = if self.cache_type == CacheType::F32 { size_of::<f32>() } else { size_of::<f16>() };
        self.width * size * if self.shared { 1 } else { 2 }
    }

    /// Copies of all keys and values, each `[len, width]`.
    pub fn tensors(&self, device: &Device) -> (Tensor<2>, Tensor<2>) {
        let tensor = |blocks: &[Block]| {
            let mut all = Vec::with_capacity(self.len * self.width);
            blocks.iter().for_each(|block| block.copy_to(&mut all));
            Tensor::from_data(TensorData::new(all, [self.len, self.width]), device)
        };
        (tensor(&self.keys), tensor(self.values()))
    }
}
