//! The micro-kernel: one tile of the target, its sums in registers from beginning to end.

use super::super::gemm::{MR, Target};
use crate::packed::{NR, Pair};
use crate::simd::{InstructionSet, Isa, instruction_set, multiversion};

/// A low-rank pair of factors in single precision that is added to a tile.
#[derive(Clone, Copy)]
pub(super) struct LowRank<'a> {
    /// `[rows, depth]`, row by row.
    pub(super) left: &'a [f32],
    /// `[depth, NR]`.
    pub(super) right: &'a [[f32; NR]],
}

/// One tile of the target, `rows` by `cols`: the sum over k of `x[k][r] · panel[k][c]`, and of the
/// low-rank pair, is written, or added to what is there.
///
/// # Safety
/// The tile must be the caller's, and initialised if it is added to.
pub(super) unsafe fn tile(
    [rows, cols]: [usize; 2],
    c: Target,
    x: &[[Pair; MR]],
    panel: &[[Pair; NR]],
    low_rank: LowRank,
    add: bool,
) {
    assert!(
        (1..=MR).contains(&rows)
            && cols <= NR
            && x.len() == panel.len()
            && low_rank.left.len() == rows * low_rank.right.len(),
        "both factors have the depth of the product"
    );
    // SAFETY: passed on to the caller.
    unsafe {
        match rows {
            1 => tile_of::<1>(c, cols, x, panel, low_rank, add),
            2 => tile_of::<2>(c, cols, x, panel, low_rank, add),
            3 => tile_of::<3>(c, cols, x, panel, low_rank, add),
            4 => tile_of::<4>(c, cols, x, panel, low_rank, add),
            5 => tile_of::<5>(c, cols, x, panel, low_rank, add),
            6 => tile_of::<6>(c, cols, x, panel, low_rank, add),
            7 => tile_of::<7>(c, cols, x, panel, low_rank, add),
            8 => tile_of::<8>(c, cols, x, panel, low_rank, add),
            9 => tile_of::<9>(c, cols, x, panel, low_rank, add),
            10 => tile_of::<10>(c, cols, x, panel, low_rank, add),
            11 => tile_of::<11>(c, cols, x, panel, low_rank, add),
            _ => tile_of::<MR>(c, cols, x, panel, low_rank, add),
        }
    }
}

/// # Safety
/// As of [`tile`], for `R` rows; `cols` is at most [`NR`].
unsafe fn tile_of<const R: usize>(
    c: Target,
    cols: usize,
    x: &[[Pair; MR]],
    panel: &[[Pair; NR]],
    low_rank: LowRank,
    add: bool,
) {
    #[cfg(target_arch = "x86_64")]
    if instruction_set() >= InstructionSet::Avx512Bf16 {
        // SAFETY: the processor has AVX-512 F and BF16: it is asked before a set is used. The rest
        // is passed on to the caller.
        unsafe { dot_pairs::<R>(c, cols, x, panel, low_rank, add) };
        return;
    }
    let mut sums = [[0.0; NR]; R];
    widened::<R>(&mut sums, x, panel, low_rank);
    for (r, sums) in sums.iter().enumerate() {
        for (j, sum) in sums.iter().enumerate().take(cols) {
            // SAFETY: the element lies in the caller's tile.
            unsafe {
                let to = c.data.add(r * c.row_stride + j);
                to.write(if add { *to + sum } else { *sum });
            }
        }
    }
}

/// # Safety
/// As of [`tile_of`]; the processor must have the features.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bf16")]
unsafe fn dot_pairs<const R: usize>(
    c: Target,
    cols: usize,
    x: &[[Pair; MR]],
    panel: &[[Pair; NR]],
    low_rank: LowRank,
    add: bool,
) {
    use std::arch::x86_64::*;
    use std::mem::transmute;

    let mut sums = [[_mm512_setzero_ps(); 2]; R];
    for (x, right) in x.iter().zip(panel) {
        // SAFETY: a row of the panel is 32 pairs, two vectors of 64 bytes, and any 64 bytes are a
        // vector of sixteen pairs.
        let right: [__m512bh; 2] = unsafe {
            let at = right.as_ptr().cast::<i32>();
            [
                transmute::<__m512i, __m512bh>(_mm512_loadu_epi32(at)),
                transmute::<__m512i, __m512bh>(_mm512_loadu_epi32(at.add(16))),
            ]
        };
        for (sums, pair) in sums.iter_mut().zip(x) {
            // SAFETY: both are 64 bytes without further meaning.
            let left = unsafe { transmute::<__m512i, __m512bh>(_mm512_set1_epi32(pair.0 as i32)) };
            sums[0] = _mm512_dpbf16_ps(sums[0], left, right[0]);
            sums[1] = _mm512_dpbf16_ps(sums[1], left, right[1]);
        }
    }
    let depth = low_rank.right.len();
    for (k, right) in low_rank.right.iter().enumerate() {
        // SAFETY: a row is 32 numbers, two vectors.
        let right = unsafe {
            [
                _mm512_loadu_ps(right.as_ptr()),
                _mm512_loadu_ps(right.as_ptr().add(16)),
            ]
        };
        for (r, sums) in sums.iter_mut().enumerate() {
            let left = _mm512_set1_ps(low_rank.left[r * depth + k]);
            sums[0] = _mm512_fmadd_ps(left, right[0], sums[0]);
            sums[1] = _mm512_fmadd_ps(left, right[1], sums[1]);
        }
    }
    let masks = [
        (1u32 << cols.min(16)) - 1,
        (1u32 << cols.saturating_sub(16)) - 1,
    ]
    .map(|mask| mask as __mmask16);
    for (r, sums) in sums.iter().enumerate() {
        for (half, (sum, mask)) in sums.iter().zip(masks).enumerate() {
            // SAFETY: the mask keeps to the caller's columns.
            unsafe {
                let to = c.data.wrapping_add(r * c.row_stride + 16 * half);
                let sum = if add {
                    _mm512_add_ps(*sum, _mm512_maskz_loadu_ps(mask, to))
                } else {
                    *sum
                };
                _mm512_mask_storeu_ps(to, mask, sum);
            }
        }
    }
}

multiversion!(fn widened<const R: usize>(sums: &mut [[f32; NR]; R], x: &[[Pair; MR]], panel: &[[Pair; NR]], low_rank: LowRank<'_>) = widened_body);

/// The same on other instruction sets: products of two bfloat16 are exact in single precision, and
/// are added in the order of `VDPBF16PS`, the second of a pair first.
#[inline(always)]
fn widened_body<I: Isa, const R: usize>(
    sums: &mut [[f32; NR]; R],
    x: &[[Pair; MR]],
    panel: &[[Pair; NR]],
    low_rank: LowRank,
) {
    for (x, right) in x.iter().zip(panel) {
        for (sums, left) in sums.iter_mut().zip(x) {
            for (sum, right) in sums.iter_mut().zip(right) {
                *sum += left.high() * right.high();
                *sum += left.low() * right.low();
            }
        }
    }
    let depth = low_rank.right.len();
    for (k, right) in low_rank.right.iter().enumerate() {
        for (r, sums) in sums.iter_mut().enumerate() {
            let left = low_rank.left[r * depth + k];
            sums.iter_mut()
                .zip(right)
                .for_each(|(sum, right)| *sum += left * right);
        }
    }
}
