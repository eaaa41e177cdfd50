//! The micro-kernel: one tile of the target, its sums in registers from beginning to end.

use super::prefetch::prefetch;
use super::view::{Strided, Target};

/// Rows of a panel of the first factor.
pub(in crate::flex) const MR: usize = 12;
/// Columns of a panel of the second factor: two vectors.
pub(super) const NR: usize = 32;
/// What a tile adds up: rows of a first factor, and a panel of columns of the second.
#[derive(Clone, Copy)]
pub(super) struct Part<'a> {
    pub(super) a: Strided,
    pub(super) b: &'a [f32],
    pub(super) depth: usize,
}

/// One tile of the target, `rows` by `cols`.
///
/// # Safety
/// The tile must be the caller's, first factors must have `rows` rows of their depth, and the
/// processor must have AVX-512.
pub(super) unsafe fn tile(
    rows: usize,
    part: Part,
    more: Option<Part>,
    c: Target,
    cols: usize,
    scale: f32,
    add: bool,
) {
    assert!(
        cols <= NR
            && part.b.len() >= part.depth * NR
            && more.is_none_or(|more| more.b.len() >= more.depth * NR)
    );
    #[cfg(target_arch = "x86_64")]
    // SAFETY: passed on to the caller; the panels of columns are long enough, as just checked.
    unsafe {
        match rows {
            1 => micro_kernel::<1>(part, more, c, cols, scale, add),
            2 => micro_kernel::<2>(part, more, c, cols, scale, add),
            3 => micro_kernel::<3>(part, more, c, cols, scale, add),
            4 => micro_kernel::<4>(part, more, c, cols, scale, add),
            5 => micro_kernel::<5>(part, more, c, cols, scale, add),
            6 => micro_kernel::<6>(part, more, c, cols, scale, add),
            7 => micro_kernel::<7>(part, more, c, cols, scale, add),
            8 => micro_kernel::<8>(part, more, c, cols, scale, add),
            9 => micro_kernel::<9>(part, more, c, cols, scale, add),
            10 => micro_kernel::<10>(part, more, c, cols, scale, add),
            11 => micro_kernel::<11>(part, more, c, cols, scale, add),
            _ => micro_kernel::<12>(part, more, c, cols, scale, add),
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (rows, part, more, c, scale, add);
}

/// # Safety
/// The tile must be the caller's, first factors must have `R` rows of their depth, panels of
/// columns at least that depth, and the processor must have AVX-512.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
unsafe fn micro_kernel<const R: usize>(
    part: Part,
    more: Option<Part>,
    c: Target,
    cols: usize,
    scale: f32,
    add: bool,
) {
    use std::arch::x86_64::*;

    if add {
        // Wanted at the end, when nothing else could be done meanwhile.
        for r in 0..R {
            let row = c.data.wrapping_add(r * c.row_stride);
            prefetch(row);
            prefetch(row.wrapping_add(NR / 2));
        }
    }
    let mut sums = [[_mm512_setzero_ps(); 2]; R];
    let mut next = Some(part);
    let mut more = more;
    while let Some(Part { a, b, depth }) = next {
        let b = b.as_ptr();
        // Threes of rows share an address register.
        let thirds = [0, 1, 2, 3].map(|third| a.data.wrapping_add(3 * third * a.row_stride));
        for k in 0..depth {
            // SAFETY: the first factor has `R` rows of `depth`, the panel `depth` rows of `NR`.
            unsafe {
                let right = [
                    _mm512_loadu_ps(b.add(k * NR)),
                    _mm512_loadu_ps(b.add(k * NR + 16)),
                ];
                for (r, sums) in sums.iter_mut().enumerate() {
                    let left =
                        _mm512_set1_ps(*thirds[r / 3].add(k * a.col_stride + r % 3 * a.row_stride));
                    sums[0] = _mm512_fmadd_ps(left, right[0], sums[0]);
                    sums[1] = _mm512_fmadd_ps(left, right[1], sums[1]);
                }
            }
        }
        next = more.take();
    }
    // The epilogue: scales the sums, adds what is there, writes the columns that exist.
    let masks = [
        (1u32 << cols.min(16)) - 1,
        (1u32 << cols.saturating_sub(16)) - 1,
    ]
    .map(|mask| mask as __mmask16);
    let scale = _mm512_set1_ps(scale);
    for (r, sums) in sums.iter().enumerate() {
        // SAFETY: the masks keep to the columns of the tile.
        unsafe {
            let row = c.data.add(r * c.row_stride);
            for half in 0..2 {
                let out = row.wrapping_add(16 * half);
                let before = if add {
                    _mm512_maskz_loadu_ps(masks[half], out)
                } else {
                    _mm512_setzero_ps()
                };
                _mm512_mask_storeu_ps(out, masks[half], _mm512_fmadd_ps(sums[half], scale, before));
            }
        }
    }
}
