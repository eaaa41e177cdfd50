//! Blocks taken apart: integer codes with the scale and minimum of each group, for kernels that
//! compute on them.

use half::f16;

use super::GgmlType;
use super::blocks::{half_at, nibbles, scale_min};

/// How the elements of a quantised type are coded: `scale * (code - zero) + minimum`, with one
/// scale and minimum for each group of neighbours in a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CodeLayout {
    /// Elements of a group.
    pub group: usize,
    /// Bits that a code needs.
    pub bits: u32,
    /// The code of 0 where there is no minimum.
    pub zero: u8,
    /// Whether groups have a minimum.
    pub minimum: bool,
    /// Whether scales and minima are halves; else they are products that need single precision.
    pub half: bool,
}

impl GgmlType {
    /// How its elements are coded; `None` for floating-point types.
    pub fn code_layout(self) -> Option<CodeLayout> {
        let layout = |group, bits, zero, minimum, half| {
            Some(CodeLayout {
                group,
                bits,
                zero,
                minimum,
                half,
            })
        };
        match self {
            Self::F32 | Self::F16 | Self::BF16 => None,
            Self::Q4_0 => layout(32, 4, 8, false, true),
            Self::Q4_1 => layout(32, 4, 0, true, true),
            Self::Q5_0 => layout(32, 5, 16, false, true),
            Self::Q5_1 => layout(32, 5, 0, true, true),
            Self::Q8_0 => layout(32, 8, 128, false, true),
            Self::Q4_K => layout(32, 4, 0, true, false),
            Self::Q5_K => layout(32, 5, 0, true, false),
            Self::Q6_K => layout(16, 6, 32, false, false),
        }
    }
}

/// Takes a row of blocks apart: one code per element, one scale and minimum per group.
/// [`super::dequantize`] of the same bytes gives the same bits as
/// `scale * (code - zero) + minimum`.
///
/// # Panics
/// For a type without [`GgmlType::code_layout`], or slices that do not fit the bytes.
pub fn unpack_codes(
    ggml_type: GgmlType,
    bytes: &[u8],
    codes: &mut [u8],
    scales: &mut [f32],
    minima: &mut [f32],
) {
    let layout = ggml_type
        .code_layout()
        .unwrap_or_else(|| panic!("{ggml_type} has no codes"));
    let (len, groups) = (ggml_type.block_len(), ggml_type.block_len() / layout.group);
    let blocks = bytes.chunks_exact(ggml_type.block_bytes());
    let outputs = codes
        .chunks_exact_mut(len)
        .zip(scales.chunks_exact_mut(groups))
        .zip(minima.chunks_exact_mut(groups));
    assert!(
        blocks.len() == outputs.len(),
        "{} blocks of {ggml_type} for {} outputs",
        blocks.len(),
        outputs.len()
    );
    for (block, ((codes, scales), minima)) in blocks.zip(outputs) {
        match ggml_type {
            GgmlType::Q8_0 => {
                scales[0] = half_at(block, 0);
                codes
                    .iter_mut()
                    .zip(&block[2..])
                    .for_each(|(code, q)| *code = q ^ 0x80);
            }
            GgmlType::Q4_K | GgmlType::Q5_K => k_quant(ggml_type, block, codes, scales, minima),
            GgmlType::Q6_K => q6_k(block, codes, scales),
            _ => legacy(layout, block, codes, scales, minima),
        }
    }
}

fn legacy(
    layout: CodeLayout,
    block: &[u8],
    codes: &mut [u8],
    scales: &mut [f32],
    minima: &mut [f32],
) {
    let half = size_of::<f16>();
    scales[0] = half_at(block, 0);
    let mut at = half;
    if layout.minimum {
        minima[0] = half_at(block, at);
        at += half;
    }
    let mut high = 0;
    if layout.bits == 5 {
        high = u32::from_le_bytes([block[at], block[at + 1], block[at + 2], block[at + 3]]);
        at += size_of::<u32>();
    }
    codes
        .iter_mut()
        .zip(nibbles(&block[at..], high))
        .for_each(|(code, q)| *code = q);
}

fn k_quant(
    ggml_type: GgmlType,
    block: &[u8],
    codes: &mut [u8],
    scales: &mut [f32],
    minima: &mut [f32],
) {
    let (d, min) = (half_at(block, 0), half_at(block, 2));
    let (high, low) = if ggml_type == GgmlType::Q5_K {
        (Some(&block[16..48]), &block[48..])
    } else {
        (None, &block[16..])
    };
    for (j, codes) in codes.chunks_exact_mut(32).enumerate() {
        let (scale, m) = scale_min(&block[4..16], j);
        (scales[j], minima[j]) = (d * f32::from(scale), -(min * f32::from(m)));
        let packed = &low[j / 2 * 32..][..32];
        for (i, code) in codes.iter_mut().enumerate() {
            let nibble = if j % 2 == 0 {
                packed[i] & 0x0f
            } else {
                packed[i] >> 4
            };
            *code = nibble | high.map_or(0, |high| (high[i] >> j) & 1) << 4;
        }
    }
}

fn q6_k(block: &[u8], codes: &mut [u8], scales: &mut [f32]) {
    let (low, rest) = block.split_at(128);
    let (high, rest) = rest.split_at(64);
    let d = half_at(rest, 16);
    scales
        .iter_mut()
        .zip(rest)
        .for_each(|(scale, &q)| *scale = d * f32::from(q as i8));
    for (group, codes) in codes.chunks_exact_mut(32).enumerate() {
        let (half, quarter) = (group / 4, group % 4);
        for (i, code) in codes.iter_mut().enumerate() {
            let byte = low[half * 64 + quarter % 2 * 32 + i];
            let nibble = if quarter < 2 { byte & 0x0f } else { byte >> 4 };
            *code = nibble | ((high[half * 32 + i] >> (2 * quarter)) & 3) << 4;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gguf::dequantize;

    #[test]
    fn codes_spell_the_same_values_as_blocks() {
        let types = [
            GgmlType::Q4_0,
            GgmlType::Q4_1,
            GgmlType::Q5_0,
            GgmlType::Q5_1,
            GgmlType::Q8_0,
            GgmlType::Q4_K,
            GgmlType::Q5_K,
            GgmlType::Q6_K,
        ];
        for ggml_type in types {
            // Any bytes are a block; those of the scales are kept finite.
            let mut state = 7u32;
            let mut bytes: Vec<u8> = (0..3 * ggml_type.block_bytes())
                .map(|_| {
                    state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                    (state >> 24) as u8
                })
                .collect();
            for block in bytes.chunks_exact_mut(ggml_type.block_bytes()) {
                let at = if ggml_type == GgmlType::Q6_K {
                    block.len() - 2
                } else {
                    0
                };
                block[at + 1] = 0x2c;
                if ggml_type.code_layout().unwrap().minimum {
                    block[3] = 0xac;
                }
            }
            let expected = dequantize(ggml_type, &bytes);
            let layout = ggml_type.code_layout().unwrap();
            let groups = expected.len() / layout.group;
            let (mut codes, mut scales, mut minima) = (
                vec![0; expected.len()],
                vec![0.0; groups],
                vec![0.0; groups],
            );
            unpack_codes(ggml_type, &bytes, &mut codes, &mut scales, &mut minima);
            assert!(
                codes.iter().all(|&code| u32::from(code) < 1 << layout.bits),
                "{ggml_type}"
            );
            for (i, expected) in expected.iter().enumerate() {
                let (scale, minimum) = (scales[i / layout.group], minima[i / layout.group]);
                let offset = f32::from(i16::from(codes[i]) - i16::from(layout.zero));
                let value = if layout.minimum {
                    scale * offset + minimum
                } else {
                    scale * offset
                };
                assert_eq!(
                    value.to_bits(),
                    expected.to_bits(),
                    "{ggml_type} element {i}: {value} is not {expected}"
                );
            }
        }
    }
}
