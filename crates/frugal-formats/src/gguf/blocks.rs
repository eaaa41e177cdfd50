//! Element types: blocks of quantised weights to and from `f32`.
//!
//! Dequantising does the same `f32` operations in the same order as GGML's reference, so results
//! are equal bit for bit. Type names and layouts:
//! <https://github.com/ggml-org/ggml/blob/master/src/ggml-common.h>.

use std::fmt;

use half::{bf16, f16};
use rayon::prelude::*;

/// How a tensor's elements are stored.
#[allow(non_camel_case_types, missing_docs, reason = "GGML's own names")]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum GgmlType {
    F32,
    F16,
    BF16,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q4_K,
    Q5_K,
    Q6_K,
}

/// Type, code in the file, elements per block, bytes per block.
const TYPES: [(GgmlType, u32, usize, usize); 11] = [
    (GgmlType::F32, 0, 1, 4),
    (GgmlType::F16, 1, 1, 2),
    (GgmlType::BF16, 30, 1, 2),
    (GgmlType::Q4_0, 2, 32, 18),
    (GgmlType::Q4_1, 3, 32, 20),
    (GgmlType::Q5_0, 6, 32, 22),
    (GgmlType::Q5_1, 7, 32, 24),
    (GgmlType::Q8_0, 8, 32, 34),
    (GgmlType::Q4_K, 12, 256, 144),
    (GgmlType::Q5_K, 13, 256, 176),
    (GgmlType::Q6_K, 14, 256, 210),
];

/// GGML's other types, to name them in an error.
const UNSUPPORTED: [(u32, &str); 24] = [
    (9, "Q8_1"),
    (10, "Q2_K"),
    (11, "Q3_K"),
    (15, "Q8_K"),
    (16, "IQ2_XXS"),
    (17, "IQ2_XS"),
    (18, "IQ3_XXS"),
    (19, "IQ1_S"),
    (20, "IQ4_NL"),
    (21, "IQ3_S"),
    (22, "IQ2_S"),
    (23, "IQ4_XS"),
    (24, "I8"),
    (25, "I16"),
    (26, "I32"),
    (27, "I64"),
    (28, "F64"),
    (29, "IQ1_M"),
    (34, "TQ1_0"),
    (35, "TQ2_0"),
    (39, "MXFP4"),
    (40, "NVFP4"),
    (4, "Q4_2"),
    (5, "Q4_3"),
];

impl GgmlType {
    fn row(self) -> &'static (Self, u32, usize, usize) {
        &TYPES[self as usize]
    }

    /// The type with this code in the file, if it is supported.
    pub fn from_code(code: u32) -> Option<Self> {
        TYPES.iter().find(|row| row.1 == code).map(|row| row.0)
    }

    pub(crate) fn unsupported_name(code: u32) -> Option<&'static str> {
        UNSUPPORTED
            .iter()
            .find(|row| row.0 == code)
            .map(|row| row.1)
    }

    /// All supported types, for messages.
    pub(crate) fn names() -> String {
        TYPES.map(|row| row.0.to_string()).join(", ")
    }

    /// Its code in the file.
    pub fn code(self) -> u32 {
        self.row().1
    }

    /// Elements per block; a row is a whole number of blocks.
    pub fn block_len(self) -> usize {
        self.row().2
    }

    /// Bytes per block.
    pub fn block_bytes(self) -> usize {
        self.row().3
    }
}

impl fmt::Display for GgmlType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// Blocks that one thread decodes at a time.
const TASK: usize = 1024;

/// The elements stored in `bytes`, a whole number of blocks (a rest shorter than a block is
/// ignored).
pub fn dequantize(ggml_type: GgmlType, bytes: &[u8]) -> Vec<f32> {
    let (block_len, block_bytes) = (ggml_type.block_len(), ggml_type.block_bytes());
    let mut out = vec![0.0; bytes.len() / block_bytes * block_len];
    let decode: fn(&[u8], &mut [f32]) = match ggml_type {
        GgmlType::F32 => |b, out| out[0] = f32::from_le_bytes([b[0], b[1], b[2], b[3]]),
        GgmlType::F16 => |b, out| out[0] = half_at(b, 0),
        GgmlType::BF16 => |b, out| out[0] = bf16::from_le_bytes([b[0], b[1]]).to_f32(),
        GgmlType::Q4_0 => q4_0,
        GgmlType::Q4_1 => q4_1,
        GgmlType::Q5_0 => q5_0,
        GgmlType::Q5_1 => q5_1,
        GgmlType::Q8_0 => q8_0,
        GgmlType::Q4_K => q4_k,
        GgmlType::Q5_K => q5_k,
        GgmlType::Q6_K => q6_k,
    };
    let parts = bytes
        .par_chunks(TASK * block_bytes)
        .zip(out.par_chunks_mut(TASK * block_len));
    parts.for_each(|(bytes, out)| {
        bytes
            .chunks_exact(block_bytes)
            .zip(out.chunks_exact_mut(block_len))
            .for_each(|(block, out)| decode(block, out));
    });
    out
}

pub(super) fn half_at(block: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}

/// The 32 codes of a legacy block: low nibbles first, then high ones, with a fifth bit each from
/// `high`.
pub(super) fn nibbles(packed: &[u8], high: u32) -> impl Iterator<Item = u8> {
    (0..32).map(move |i| {
        let nibble = if i < 16 {
            packed[i] & 0x0f
        } else {
            packed[i - 16] >> 4
        };
        nibble | (((high >> i) & 1) as u8) << 4
    })
}

fn q4_0(block: &[u8], out: &mut [f32]) {
    let d = half_at(block, 0);
    out.iter_mut()
        .zip(nibbles(&block[2..], 0))
        .for_each(|(o, q)| *o = d * f32::from(q as i8 - 8));
}

fn q4_1(block: &[u8], out: &mut [f32]) {
    let (d, m) = (half_at(block, 0), half_at(block, 2));
    out.iter_mut()
        .zip(nibbles(&block[4..], 0))
        .for_each(|(o, q)| *o = d * f32::from(q) + m);
}

fn q5_0(block: &[u8], out: &mut [f32]) {
    let d = half_at(block, 0);
    let high = u32::from_le_bytes([block[2], block[3], block[4], block[5]]);
    out.iter_mut()
        .zip(nibbles(&block[6..], high))
        .for_each(|(o, q)| *o = d * f32::from(q as i8 - 16));
}

fn q5_1(block: &[u8], out: &mut [f32]) {
    let (d, m) = (half_at(block, 0), half_at(block, 2));
    let high = u32::from_le_bytes([block[4], block[5], block[6], block[7]]);
    out.iter_mut()
        .zip(nibbles(&block[8..], high))
        .for_each(|(o, q)| *o = d * f32::from(q) + m);
}

fn q8_0(block: &[u8], out: &mut [f32]) {
    let d = half_at(block, 0);
    out.iter_mut()
        .zip(&block[2..])
        .for_each(|(o, &q)| *o = d * f32::from(q as i8));
}

/// The six-bit scale and minimum of sub-block `j` of eight, packed in 12 bytes.
pub(super) fn scale_min(packed: &[u8], j: usize) -> (u8, u8) {
    if j < 4 {
        (packed[j] & 63, packed[j + 4] & 63)
    } else {
        let both = packed[j + 4];
        (
            (both & 0x0f) | (packed[j - 4] >> 6) << 4,
            (both >> 4) | (packed[j] >> 6) << 4,
        )
    }
}

fn q4_k(block: &[u8], out: &mut [f32]) {
    k_quant(block, None, &block[16..], out);
}

fn q5_k(block: &[u8], out: &mut [f32]) {
    k_quant(block, Some(&block[16..48]), &block[48..], out);
}

/// Eight sub-blocks of 32: pairs share 32 bytes of nibbles; `high` holds the fifth bit of sub-block
/// j in its bit j.
fn k_quant(block: &[u8], high: Option<&[u8]>, low: &[u8], out: &mut [f32]) {
    let (d, min) = (half_at(block, 0), half_at(block, 2));
    for (j, out) in out.chunks_exact_mut(32).enumerate() {
        let (scale, m) = scale_min(&block[4..16], j);
        let (scale, m) = (d * f32::from(scale), min * f32::from(m));
        let packed = &low[j / 2 * 32..][..32];
        for (i, o) in out.iter_mut().enumerate() {
            let nibble = if j % 2 == 0 {
                packed[i] & 0x0f
            } else {
                packed[i] >> 4
            };
            let fifth = high.map_or(0, |high| (high[i] >> j) & 1);
            *o = scale * f32::from(nibble | fifth << 4) - m;
        }
    }
}

/// Two halves of 128: each has 64 bytes of low nibbles and 32 bytes of two-bit highs; one signed
/// scale per 16 elements.
fn q6_k(block: &[u8], out: &mut [f32]) {
    let (low, rest) = block.split_at(128);
    let (high, rest) = rest.split_at(64);
    let d = half_at(rest, 16);
    for (group, out) in out.chunks_exact_mut(32).enumerate() {
        let (half, quarter) = (group / 4, group % 4);
        for (i, o) in out.iter_mut().enumerate() {
            let byte = low[half * 64 + quarter % 2 * 32 + i];
            let nibble = if quarter < 2 { byte & 0x0f } else { byte >> 4 };
            let top = (high[half * 32 + i] >> (2 * quarter)) & 3;
            let scale = d * f32::from(rest[group * 2 + i / 16] as i8);
            *o = scale * f32::from((nibble | top << 4) as i8 - 32);
        }
    }
}
