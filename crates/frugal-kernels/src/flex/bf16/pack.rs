//! Copying factors into panels of pairs, so that the inner loop reads memory in order.

use std::ops::Range;

use super::super::gemm::{MR, Strided, pack_a};
use super::super::matrix::Matrix;
use super::super::scratch::Scratch;
use crate::packed::{Bf16, NR, Pair};
use crate::simd::{InstructionSet, instruction_set};

/// Source rows of a panel are so many pairs of the depth of the transposed product.
pub(super) const TURNED: usize = NR / 2;

/// Memory for floating-point numbers as panels `N` pairs wide.
pub(super) fn pairs_of<const N: usize>(values: &[f32]) -> &[[Pair; N]] {
    let len = values.len() / N;
    // SAFETY: both are 4 bytes an element with the same alignment, and all bits are valid in both.
    unsafe { std::slice::from_raw_parts(values.as_ptr().cast(), len) }
}

/// [`pairs_of`], to write to.
pub(super) fn pairs_of_mut<const N: usize>(values: &mut [f32]) -> &mut [[Pair; N]] {
    let len = values.len() / N;
    // SAFETY: as above; the memory is borrowed mutably.
    unsafe { std::slice::from_raw_parts_mut(values.as_mut_ptr().cast(), len) }
}

/// Rounds rows of x, which must be contiguous, to `[pairs, MR]`; rows beyond `rows` are left as they
/// are.
pub(super) fn pack_rows(
    out: &mut [[Pair; MR]],
    x: Matrix,
    rows: Range<usize>,
    pairs: Range<usize>,
) {
    assert!(rows.len() <= MR && out.len() == pairs.len());
    let columns = 2 * pairs.start..(2 * pairs.end).min(x.cols);
    #[cfg(target_arch = "x86_64")]
    if instruction_set() >= InstructionSet::Avx512Bf16 {
        let mut rounded = Scratch::new(rows.len() * pairs.len());
        for (row, to) in rows
            .clone()
            .zip(rounded.chunks_exact_mut(pairs.len().max(1)))
        {
            // SAFETY: the processor has the features: it is asked before a set is used.
            unsafe { round(pairs_of_mut(to), &x.row(row)[columns.clone()]) };
        }
        let source = Strided {
            data: rounded.as_ptr(),
            row_stride: pairs.len(),
            col_stride: 1,
        };
        let panel = out.as_flattened_mut();
        // SAFETY: both are 4 bytes an element with the same alignment, and all bits are valid in
        // both; the source has these rows and columns, and the processor has AVX-512.
        unsafe {
            let panel = std::slice::from_raw_parts_mut(panel.as_mut_ptr().cast(), panel.len());
            pack_a(panel, source, 0, rows.len(), 0, pairs.len());
        }
        return;
    }
    for (lane, row) in rows.enumerate() {
        let row = x.row(row)[columns.clone()].chunks(2);
        for (out, pair) in out.iter_mut().zip(row) {
            out[lane] = Pair::new(pair[0], pair.get(1).copied().unwrap_or(0.0));
        }
    }
}

/// Rounds neighbours to pairs; the last of an odd number stands with 0.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bf16")]
fn round(out: &mut [[Pair; 1]], values: &[f32]) {
    use std::arch::x86_64::*;
    use std::mem::transmute;

    assert!(out.len() == values.len().div_ceil(2));
    for (out, values) in out.chunks_mut(16).zip(values.chunks(32)) {
        let low = ((1u64 << values.len().min(16)) - 1) as __mmask16;
        let high = ((1u64 << values.len().saturating_sub(16)) - 1) as __mmask16;
        let kept = ((1u64 << out.len()) - 1) as __mmask16;
        // SAFETY: the masks keep to the values and to the output; any 64 bytes are a vector.
        unsafe {
            let low = _mm512_maskz_loadu_ps(low, values.as_ptr());
            let high = _mm512_maskz_loadu_ps(high, values.as_ptr().wrapping_add(16));
            let pairs = transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(high, low));
            _mm512_mask_storeu_epi32(out.as_mut_ptr().cast(), kept, pairs);
        }
    }
}

/// Copies `NR` columns of the matrix from `NR * panel` on, pairs of rows of the source's panels
/// `sources`: `[TURNED * sources, NR]`. What is beyond the matrix is 0.
pub(super) fn turn(out: &mut [[Pair; NR]], weight: &Bf16, panel: usize, sources: Range<usize>) {
    assert!(out.len() == TURNED * sources.len());
    let first = TURNED * panel;
    let count = TURNED.min(weight.pairs() - first);
    for (out, source) in out.chunks_exact_mut(TURNED).zip(sources) {
        let source = &weight.panel(source)[first..first + count];
        #[cfg(target_arch = "x86_64")]
        if instruction_set() >= InstructionSet::Avx512Bf16 && count == TURNED {
            let out = out.try_into().expect("a chunk has so many rows");
            let source = source.try_into().expect("there are so many pairs");
            // SAFETY: the processor has the features: it is asked before a set is used.
            unsafe { turn_square(out, source) };
            continue;
        }
        if count < TURNED {
            out.fill([Pair::default(); NR]);
        }
        for (k, pairs) in source.iter().enumerate() {
            for (out, two) in out.iter_mut().zip(pairs.as_chunks::<2>().0) {
                let [a, b] = [two[0].0, two[1].0];
                out[2 * k] = Pair(a & 0xffff | b << 16);
                out[2 * k + 1] = Pair(a >> 16 | b & 0xffff_0000);
            }
        }
    }
}

/// [`turn`] of one source panel: `out[p][2k], out[p][2k + 1]` are the two rows `2p`, `2p + 1` of the
/// two columns of `source[k]`.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw")]
fn turn_square(out: &mut [[Pair; NR]; TURNED], source: &[[Pair; NR]; TURNED]) {
    use std::arch::x86_64::*;

    // Of four halves a0 a1 b0 b1: a0 b0 a1 b1.
    let order = _mm512_broadcast_i32x4(_mm_setr_epi8(
        0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15,
    ));
    for rows in 0..2 {
        for pairs in 0..2 {
            // A square of eight by eight numbers of 64 bits, which changes its axes: pairs of rows
            // within a source, and sources.
            let lines: [__m512i; 8] = std::array::from_fn(|i| {
                let line = source[8 * pairs + i][16 * rows..].as_ptr();
                // SAFETY: a line has 32 pairs, and sixteen are read from 0 or 16 on.
                let line = unsafe { _mm512_loadu_epi32(line.cast()) };
                _mm512_shuffle_epi8(line, order)
            });
            for odd in 0..2 {
                let two: [__m512i; 4] = std::array::from_fn(|i| {
                    if odd == 0 {
                        _mm512_unpacklo_epi64(lines[2 * i], lines[2 * i + 1])
                    } else {
                        _mm512_unpackhi_epi64(lines[2 * i], lines[2 * i + 1])
                    }
                });
                let even = [
                    _mm512_shuffle_i64x2::<0x88>(two[0], two[1]),
                    _mm512_shuffle_i64x2::<0x88>(two[2], two[3]),
                ];
                let other = [
                    _mm512_shuffle_i64x2::<0xdd>(two[0], two[1]),
                    _mm512_shuffle_i64x2::<0xdd>(two[2], two[3]),
                ];
                let turned = [
                    _mm512_shuffle_i64x2::<0x88>(even[0], even[1]),
                    _mm512_shuffle_i64x2::<0x88>(other[0], other[1]),
                    _mm512_shuffle_i64x2::<0xdd>(even[0], even[1]),
                    _mm512_shuffle_i64x2::<0xdd>(other[0], other[1]),
                ];
                for (quarter, turned) in turned.into_iter().enumerate() {
                    let to = &mut out[8 * rows + 2 * quarter + odd][16 * pairs..];
                    // SAFETY: a row has 32 pairs, and sixteen are written from 0 or 16 on.
                    unsafe { _mm512_storeu_epi32(to.as_mut_ptr().cast(), turned) };
                }
            }
        }
    }
}
