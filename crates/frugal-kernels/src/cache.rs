//! Keys and values of earlier tokens, in blocks that never move.

use std::sync::Arc;

use burn::tensor::{Device, Tensor, TensorData};
use half::f16;

use crate::flex;

/// Positions of a block.
pub(crate) const BLOCK: usize = 256;

/// Numbers of a row that share a scale in [`CacheType::Int8`], as in GGUF's Q8_0.
pub(crate) const GROUP: usize = 32;

/// How cached keys and values are held.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CacheType {
    /// Single precision: the result is that without a cache.
    #[default]
    F32,
    /// Half precision: half the memory.
    F16,
    /// Eight bits with a scale for every 32 numbers: little more than a quarter of the memory.
    Int8,
}

/// Numbers of some positions, `[positions, width]`.
#[derive(Debug)]
pub(crate) enum Block {
    F32(Vec<f32>),
    F16(Vec<f16>),
    /// `[positions, width]` codes, and a scale for each group of each row.
    Int8(Vec<i8>, Vec<f16>),
}

/// A copy with the room of the original, so that what is added to it stays where it is too.
impl Clone for Block {
    fn clone(&self) -> Self {
        fn copy<T: Copy>(values: &Vec<T>) -> Vec<T> {
            let mut copy = Vec::with_capacity(values.capacity());
            copy.extend_from_slice(values);
            copy
        }
        match self {
            Self::F32(block) => Self::F32(copy(block)),
            Self::F16(block) => Self::F16(copy(block)),
            Self::Int8(codes, scales) => Self::Int8(copy(codes), copy(scales)),
        }
    }
}

impl Block {
    fn new(cache_type: CacheType, width: usize) -> Self {
        match cache_type {
            CacheType::F32 => Self::F32(Vec::with_capacity(BLOCK * width)),
            CacheType::F16 => Self::F16(Vec::with_capacity(BLOCK * width)),
            CacheType::Int8 => Self::Int8(
                Vec::with_capacity(BLOCK * width),
                Vec::with_capacity(BLOCK * width.div_ceil(GROUP)),
            ),
        }
    }

    fn extend(&mut self, values: &[f32], width: usize) {
        match self {
            Self::F32(block) => block.extend_from_slice(values),
            Self::F16(block) => block.extend(values.iter().map(|&v| f16::from_f32(v))),
            Self::Int8(codes, scales) => {
                for group in values.chunks(width).flat_map(|row| row.chunks(GROUP)) {
                    let largest = group.iter().fold(0f32, |largest, v| largest.max(v.abs()));
                    // What is not a number has no code, and must not pass for one.
                    let scale = if group.iter().any(|v| v.is_nan()) {
                        f16::NAN
                    } else {
                        f16::from_f32(largest / 127.0)
                    };
                    // With the scale as it is held, so that its rounding costs nothing.
                    let inverse = if scale.to_f32() > 0.0 {
                        scale.to_f32().recip()
                    } else {
                        0.0
                    };
                    codes.extend(
                        group
                            .iter()
                            .map(|v| (v * inverse).round().clamp(-127.0, 127.0) as i8),
                    );
                    scales.push(scale);
                }
            }
        }
    }

    fn truncate(&mut self, positions: usize, width: usize) {
        match self {
            Self::F32(block) => block.truncate(positions * width),
            Self::F16(block) => block.truncate(positions * width),
            Self::Int8(codes, scales) => {
                codes.truncate(positions * width);
                scales.truncate(positions * width.div_ceil(GROUP));
            }
        }
    }

    /// All rows but the first `skip`.
    fn copy_to(&self, out: &mut Vec<f32>, skip: usize, width: usize) {
        match self {
            Self::F32(block) => out.extend_from_slice(&block[skip * width..]),
            Self::F16(block) => out.extend(block[skip * width..].iter().map(|v| v.to_f32())),
            Self::Int8(codes, scales) => {
                let rows = codes.chunks(width).skip(skip);
                let groups = rows.flat_map(|row| row.chunks(GROUP));
                for (codes, scale) in groups.zip(&scales[skip * width.div_ceil(GROUP)..]) {
                    out.extend(codes.iter().map(|&code| f32::from(code) * scale.to_f32()));
                }
            }
        }
    }
}

/// Keys and values of one sequence in one layer, each `[len, width]`. What is added is copied once
/// and stays where it is. A clone has its blocks in common with the original until one of them
/// changes a block.
#[derive(Clone, Debug)]
pub struct KeyValues {
    cache_type: CacheType,
    width: usize,
    /// Positions of the first block that are let go already.
    start: usize,
    len: usize,
    /// Whether the keys are the values too, which then hold nothing.
    shared: bool,
    pub(crate) keys: Vec<Arc<Block>>,
    values: Vec<Arc<Block>>,
}

impl KeyValues {
    /// An empty cache for rows of `width` numbers.
    pub fn new(width: usize, cache_type: CacheType) -> Self {
        Self {
            cache_type,
            width,
            start: 0,
            len: 0,
            shared: false,
            keys: Vec::new(),
            values: Vec::new(),
        }
    }

    /// An empty cache whose values are its keys, held once. What is appended as value is not read.
    pub fn shared(width: usize, cache_type: CacheType) -> Self {
        Self {
            shared: true,
            ..Self::new(width, cache_type)
        }
    }

    pub(crate) fn width(&self) -> usize {
        self.width
    }

    /// Where a position lies: its block, and its row there.
    pub(crate) fn place(&self, position: usize) -> (usize, usize) {
        let row = self.start + position;
        (row / BLOCK, row % BLOCK)
    }

    /// The positions of a block that are held.
    pub(crate) fn positions_of(&self, block: usize) -> std::ops::Range<usize> {
        let from = (block * BLOCK).saturating_sub(self.start);
        let to = ((block + 1) * BLOCK).saturating_sub(self.start);
        from..to.min(self.len)
    }

    pub(crate) fn values(&self) -> &[Arc<Block>] {
        if self.shared {
            &self.keys
        } else {
            &self.values
        }
    }

    /// Adds positions: key and value are `[positions, width]`. False, with nothing added, when they
    /// are not f32 in this process's memory (on another device than the CPU).
    ///
    /// # Panics
    /// When the shapes do not fit.
    #[must_use]
    pub fn append(&mut self, key: &Tensor<2>, value: &Tensor<2>) -> bool {
        assert!(
            key.dims() == value.dims() && key.dims()[1] == self.width,
            "cache: key {:?}, value {:?}",
            key.dims(),
            value.dims()
        );
        let values = if self.shared {
            Some(Vec::new())
        } else {
            flex::host_rows(value)
        };
        let (Some(keys), Some(values)) = (flex::host_rows(key), values) else {
            return false;
        };
        let mut at = 0;
        while at < keys.len() {
            let used = (self.start + self.len) % BLOCK;
            if used == 0 {
                let empty = || Arc::new(Block::new(self.cache_type, self.width));
                self.keys.push(empty());
                if !self.shared {
                    self.values.push(empty());
                }
            }
            let positions = (BLOCK - used).min((keys.len() - at) / self.width);
            let part = at..at + positions * self.width;
            for (blocks, rows) in [(&mut self.keys, &keys), (&mut self.values, &values)] {
                if let Some(block) = blocks.last_mut() {
                    Arc::make_mut(block).extend(&rows[part.clone()], self.width);
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
        if len == 0 {
            self.start = 0;
        }
        let end = self.start + len;
        for blocks in [&mut self.keys, &mut self.values] {
            blocks.truncate(end.div_ceil(BLOCK));
            if let Some(last) = blocks.last_mut() {
                Arc::make_mut(last).truncate(end - (end - 1) / BLOCK * BLOCK, self.width);
            }
        }
    }

    /// Forgets all but the last `len` positions.
    pub fn keep_last(&mut self, len: usize) {
        if len == 0 {
            return self.truncate(0);
        }
        self.start += self.len.saturating_sub(len);
        self.len = self.len.min(len);
        let gone = self.start / BLOCK;
        self.start %= BLOCK;
        for blocks in [&mut self.keys, &mut self.values] {
            blocks.drain(..gone.min(blocks.len()));
        }
    }

    /// Numbers that tell the blocks of key and value pairs apart: clones have those in common that
    /// they share.
    pub fn block_ids(&self) -> impl Iterator<Item = usize> + '_ {
        self.keys.iter().map(|block| Arc::as_ptr(block).addr())
    }

    /// Bytes set aside for each block.
    pub fn bytes_per_block(&self) -> usize {
        BLOCK * self.bytes_per_position()
    }

    /// Bytes set aside.
    pub fn bytes(&self) -> usize {
        self.keys.len() * self.bytes_per_block()
    }

    /// Bytes of one position's key and value.
    pub fn bytes_per_position(&self) -> usize {
        let row = match self.cache_type {
            CacheType::F32 => self.width * size_of::<f32>(),
            CacheType::F16 => self.width * size_of::<f16>(),
            CacheType::Int8 => self.width + self.width.div_ceil(GROUP) * size_of::<f16>(),
        };
        row * if self.shared { 1 } else { 2 }
    }

    /// Copies of all keys and values, each `[len, width]`.
    pub fn tensors(&self, device: &Device) -> (Tensor<2>, Tensor<2>) {
        let tensor = |blocks: &[Arc<Block>]| {
            let mut all = Vec::with_capacity(self.len * self.width);
            for (i, block) in blocks.iter().enumerate() {
                let skip = if i == 0 { self.start } else { 0 };
                block.copy_to(&mut all, skip, self.width);
            }
            Tensor::from_data(TensorData::new(all, [self.len, self.width]), device)
        };
        (tensor(&self.keys), tensor(self.values()))
    }
}
