//! Copying factors into panels, so that the inner loop reads memory in order.

use std::ops::Range;

use super::kernel::{MR, NR};
use super::prefetch::prefetch;
use super::view::Strided;

/// Copies rows of a matrix to `[depth, MR]`.
///
/// # Safety
/// The rows and columns must lie inside the matrix, and the processor must have AVX-512.
pub(in crate::flex) unsafe fn pack_a(
    panel: &mut [f32],
    a: Strided,
    row: usize,
    rows: usize,
    k: usize,
    depth: usize,
) {
    assert!(rows <= MR && depth * MR <= panel.len());
    // SAFETY: passed on to the caller; the panel has room for `depth` times `MR`.
    unsafe {
        let source = a.data.add(row * a.row_stride + k * a.col_stride);
        let out = panel.as_mut_ptr();
        if a.row_stride == 1 && rows == MR {
            for k in 0..depth {
                // A length that the compiler knows takes a few moves instead of a call.
                std::ptr::copy_nonoverlapping(source.add(k * a.col_stride), out.add(k * MR), MR);
            }
        } else if a.row_stride == 1 {
            for k in 0..depth {
                std::ptr::copy_nonoverlapping(source.add(k * a.col_stride), out.add(k * MR), rows);
            }
        } else {
            transpose::<MR>(panel, source, a.row_stride, a.col_stride, rows, depth);
        }
    }
}

/// Copies columns of a matrix to panels `[depth, NR]`, `panel_len` apart; what is beyond them is
/// 0.
///
/// # Safety
/// The rows and columns must lie inside the matrix.
pub(super) unsafe fn pack_b(
    panels: &mut [f32],
    panel_len: usize,
    b: Strided,
    cols: Range<usize>,
    k: usize,
    depth: usize,
) {
    let (whole, rest) = (cols.len() / NR, cols.len() % NR);
    assert!(depth * NR <= panel_len && cols.len().div_ceil(NR) * panel_len <= panels.len());
    if rest > 0 {
        panels[whole * panel_len..][..depth * NR].fill(0.0);
    }
    let out = panels.as_mut_ptr();
    // SAFETY: the caller promises that rows and columns lie inside the matrix; the panels have room
    // for `depth` times `NR` each, as just checked.
    unsafe {
        let source = b.data.add(k * b.row_stride + cols.start * b.col_stride);
        if b.col_stride == 1 {
            // Along the rows, as they lie in memory.
            for k in 0..depth {
                let row = source.add(k * b.row_stride);
                for panel in 0..whole {
                    let at = row.add(panel * NR);
                    prefetch(at.wrapping_add(8 * b.row_stride));
                    prefetch(at.wrapping_add(8 * b.row_stride + NR / 2));
                    // A length that the compiler knows takes two moves instead of a call.
                    std::ptr::copy_nonoverlapping(at, out.add(panel * panel_len + k * NR), NR);
                }
                if rest > 0 {
                    std::ptr::copy_nonoverlapping(
                        row.add(whole * NR),
                        out.add(whole * panel_len + k * NR),
                        rest,
                    );
                }
            }
        } else {
            for (panel, first) in panels
                .chunks_mut(panel_len)
                .zip((0..cols.len()).step_by(NR))
            {
                let source = source.add(first * b.col_stride);
                transpose::<NR>(
                    panel,
                    source,
                    b.col_stride,
                    b.row_stride,
                    NR.min(cols.len() - first),
                    depth,
                );
            }
        }
    }
}

/// Side of the squares that are transposed in registers.
const SIDE: usize = 16;

/// `panel[k * W + line] = source[line * line_stride + k * stride]`, a few k at a time, so that both
/// sides stay in the cache.
///
/// # Safety
/// `lines <= W`, the panel must have room for `depth * W`, the source must have all these elements,
/// and the processor must have AVX-512.
unsafe fn transpose<const W: usize>(
    panel: &mut [f32],
    source: *const f32,
    line_stride: usize,
    stride: usize,
    lines: usize,
    depth: usize,
) {
    let out = panel.as_mut_ptr();
    for start in (0..depth).step_by(SIDE) {
        let end = (start + SIDE).min(depth);
        #[cfg(target_arch = "x86_64")]
        if stride == 1 && end - start == SIDE {
            for line in (0..lines).step_by(SIDE) {
                // SAFETY: passed on to the caller.
                unsafe {
                    transpose_square(
                        out.add(start * W + line),
                        W,
                        source.add(line * line_stride + start),
                        line_stride,
                        SIDE.min(lines - line),
                    )
                };
            }
            continue;
        }
        for line in 0..lines {
            for k in start..end {
                // SAFETY: passed on to the caller.
                unsafe { *out.add(k * W + line) = *source.add(line * line_stride + k * stride) };
            }
        }
    }
}

/// `out[k * out_stride + line] = source[line * line_stride + k]` for sixteen k and up to sixteen
/// lines.
///
/// # Safety
/// Both sides must have these elements, and the processor must have AVX-512.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
unsafe fn transpose_square(
    out: *mut f32,
    out_stride: usize,
    source: *const f32,
    line_stride: usize,
    lines: usize,
) {
    use std::arch::x86_64::*;

    let mut rows = [_mm512_setzero_ps(); SIDE];
    for (line, row) in rows.iter_mut().enumerate().take(lines) {
        let at = source.wrapping_add(line * line_stride);
        // What comes a few squares on: these are too many streams for the processor to foresee.
        prefetch(at.wrapping_add(4 * SIDE));
        // SAFETY: passed on to the caller.
        *row = unsafe { _mm512_loadu_ps(at) };
    }
    // Pairs of lines, then fours, then the quarters of the registers change places.
    let mut pairs = rows;
    for i in 0..8 {
        pairs[2 * i] = _mm512_unpacklo_ps(rows[2 * i], rows[2 * i + 1]);
        pairs[2 * i + 1] = _mm512_unpackhi_ps(rows[2 * i], rows[2 * i + 1]);
    }
    let mut fours = rows;
    for i in 0..4 {
        let p = [
            _mm512_castps_pd(pairs[4 * i]),
            _mm512_castps_pd(pairs[4 * i + 1]),
            _mm512_castps_pd(pairs[4 * i + 2]),
            _mm512_castps_pd(pairs[4 * i + 3]),
        ];
        fours[4 * i] = _mm512_castpd_ps(_mm512_unpacklo_pd(p[0], p[2]));
        fours[4 * i + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(p[0], p[2]));
        fours[4 * i + 2] = _mm512_castpd_ps(_mm512_unpacklo_pd(p[1], p[3]));
        fours[4 * i + 3] = _mm512_castpd_ps(_mm512_unpackhi_pd(p[1], p[3]));
    }
    for j in 0..4 {
        let even = [
            _mm512_shuffle_f32x4::<0x88>(fours[j], fours[4 + j]),
            _mm512_shuffle_f32x4::<0x88>(fours[8 + j], fours[12 + j]),
        ];
        let odd = [
            _mm512_shuffle_f32x4::<0xdd>(fours[j], fours[4 + j]),
            _mm512_shuffle_f32x4::<0xdd>(fours[8 + j], fours[12 + j]),
        ];
        rows[j] = _mm512_shuffle_f32x4::<0x88>(even[0], even[1]);
        rows[8 + j] = _mm512_shuffle_f32x4::<0xdd>(even[0], even[1]);
        rows[4 + j] = _mm512_shuffle_f32x4::<0x88>(odd[0], odd[1]);
        rows[12 + j] = _mm512_shuffle_f32x4::<0xdd>(odd[0], odd[1]);
    }
    let mask = ((1u32 << lines) - 1) as __mmask16;
    for (k, row) in rows.iter().enumerate() {
        // SAFETY: the mask keeps to the lines; the rest is passed on to the caller.
        unsafe { _mm512_mask_storeu_ps(out.add(k * out_stride), mask, *row) };
    }
}
