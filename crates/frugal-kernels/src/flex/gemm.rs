//! Single-precision matrix products with AVX-512, which the general library is built without.
//!
//! Both factors are copied in blocks into the order in which they are read: panels of 12 rows of the first and of 32 columns of the
//! second. The inner loop keeps 12 x 32 sums in registers. Cuts depend on the shapes alone, so the result is the same for any
//! number of threads.

use std::cell::Cell;

use rayon::prelude::*;

/// A matrix by its strides.
#[derive(Clone, Copy)]
pub(super) struct Strided {
    pub(super) data: *const f32,
    pub(super) row_stride: usize,
    pub(super) col_stride: usize,
}

/// A matrix to write to, row by row.
#[derive(Clone, Copy)]
pub(super) struct Target {
    pub(super) data: *mut f32,
    pub(super) row_stride: usize,
}

// SAFETY: the memory is only read while `multiply` runs, as its caller promises.
unsafe impl Send for Strided {}
// SAFETY: as above.
unsafe impl Sync for Strided {}
// SAFETY: tasks write to disjoint tiles.
unsafe impl Send for Target {}
// SAFETY: as above.
unsafe impl Sync for Target {}

impl Target {
    /// The part from an element on.
    ///
    /// # Safety
    /// The element must lie inside the matrix.
    unsafe fn at(self, row: usize, col: usize) -> Self {
        // SAFETY: passed on to the caller.
        Self { data: unsafe { self.data.add(row * self.row_stride + col) }, ..self }
    }
}

/// Rows of a panel of the first factor.
const ROWS: usize = 12;
/// Columns of a panel of the second factor: two vectors.
const COLS: usize = 32;
/// Inner size of a block: a panel of columns fills two thirds of the first-level cache.
const DEPTH: usize = 256;
/// Panels of rows and of columns that make a task.
const TASK_PANELS: usize = 8;
/// Columns of the second factor that are copied at a time.
const WIDTH: usize = 4096;
/// Elements of a factor that are copied at a time, where it has more than one block of depth.
const COPIED: usize = 1 << 20;
/// Multiply-adds that are worth the threads.
const THREADS_FROM: usize = 1 << 19;

thread_local! {
    static SCRATCH: Cell<[Vec<f32>; 2]> = const { Cell::new([Vec::new(), Vec::new()]) };
}

/// Whether products of this size are better computed here.
pub(super) fn is_better(rows: usize, cols: usize, depth: usize) -> bool {
    #[cfg(target_arch = "x86_64")]
    {
        rows >= 8 && cols >= COLS && depth >= 16 && is_x86_feature_detected!("avx512f")
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        let _ = (rows, cols, depth);
        false
    }
}

/// `c = scale * a * b`, or `c += scale * a * b` with `accumulate`; a is `[rows, depth]`, b `[depth, cols]`.
///
/// # Safety
/// The matrices must lie in memory that may be read and written, nothing else may write to them, and the processor must have
/// AVX-512.
pub(super) unsafe fn multiply(
    [rows, cols, depth]: [usize; 3],
    c: Target,
    a: Strided,
    b: Strided,
    scale: f32,
    accumulate: bool,
    threads: bool,
) {
    let threads = threads && rows * cols * depth >= THREADS_FROM;
    let width = cols.min(WIDTH);
    // Blocks of equal depth, and how many of them are copied at a time.
    let blocks = depth.div_ceil(DEPTH);
    let block = depth.div_ceil(blocks);
    let together = (COPIED / (block * rows.max(width))).clamp(1, blocks);
    let (row_panels, width_panels) = (rows.div_ceil(ROWS), width.div_ceil(COLS));
    // Taken out meanwhile, so that a task that this thread helps with has its own.
    let [mut a_space, mut b_space] = SCRATCH.take();
    let grow = |space: &mut Vec<f32>, len: usize| {
        if space.len() < len {
            space.resize(len, 0.0);
        }
    };
    grow(&mut a_space, together * row_panels * block * ROWS);
    grow(&mut b_space, together * width_panels * block * COLS);
    for first_col in (0..cols).step_by(WIDTH) {
        let width = WIDTH.min(cols - first_col);
        let col_panels = width.div_ceil(COLS);
        for first_block in (0..blocks).step_by(together) {
            let count = together.min(blocks - first_block);
            let depth_of = |i: usize| block.min(depth - (first_block + i) * block);
            let copy_a = |(i, panel): (usize, &mut [f32])| {
                let (k, row) = ((first_block + i / row_panels) * block, i % row_panels * ROWS);
                // SAFETY: the block lies inside the matrix.
                unsafe { copy_rows(panel, a, row, ROWS.min(rows - row), k, depth_of(i / row_panels)) };
            };
            let copy_b = |(i, panel): (usize, &mut [f32])| {
                let (k, col) = ((first_block + i / col_panels) * block, i % col_panels * COLS);
                // SAFETY: the block lies inside the matrix.
                unsafe { copy_cols(panel, b, first_col + col, COLS.min(width - col), k, depth_of(i / col_panels)) };
            };
            let a_part = &mut a_space[..count * row_panels * block * ROWS];
            let b_part = &mut b_space[..count * col_panels * block * COLS];
            if threads {
                a_part.par_chunks_mut(block * ROWS).enumerate().with_min_len(4).for_each(copy_a);
                b_part.par_chunks_mut(block * COLS).enumerate().with_min_len(4).for_each(copy_b);
            } else {
                a_part.chunks_mut(block * ROWS).enumerate().for_each(copy_a);
                b_part.chunks_mut(block * COLS).enumerate().for_each(copy_b);
            }
            let (a_part, b_part) = (&*a_part, &*b_part);
            let col_tasks = col_panels.div_ceil(TASK_PANELS);
            let task = |task: usize| {
                let (row_task, col_task) = (task / col_tasks * TASK_PANELS, task % col_tasks * TASK_PANELS);
                for i in 0..count {
                    let add = accumulate || first_block + i > 0;
                    for col in col_task..(col_task + TASK_PANELS).min(col_panels) {
                        let b = &b_part[(i * col_panels + col) * block * COLS..][..block * COLS];
                        for row in row_task..(row_task + TASK_PANELS).min(row_panels) {
                            let a = &a_part[(i * row_panels + row) * block * ROWS..][..block * ROWS];
                            let (r, n) = (ROWS.min(rows - row * ROWS), COLS.min(width - col * COLS));
                            // SAFETY: the tile lies inside the target, and each task has tiles of its own.
                            unsafe {
                                let c = c.at(row * ROWS, first_col + col * COLS);
                                tile(r, a, b, depth_of(i), c, n, scale, add);
                            }
                        }
                    }
                }
            };
            let tasks = row_panels.div_ceil(TASK_PANELS) * col_tasks;
            if threads {
                (0..tasks).into_par_iter().with_max_len(1).for_each(task);
            } else {
                (0..tasks).for_each(task);
            }
        }
    }
    SCRATCH.set([a_space, b_space]);
}

/// Copies rows of a matrix to `[depth, ROWS]`.
///
/// # Safety
/// The rows and columns must lie inside the matrix.
unsafe fn copy_rows(panel: &mut [f32], a: Strided, row: usize, rows: usize, k: usize, depth: usize) {
    assert!(rows <= ROWS && depth * ROWS <= panel.len());
    // SAFETY: passed on to the caller; the panel has room for `depth` times `ROWS`.
    unsafe {
        let source = a.data.add(row * a.row_stride + k * a.col_stride);
        if a.row_stride == 1 {
            for k in 0..depth {
                std::ptr::copy_nonoverlapping(source.add(k * a.col_stride), panel.as_mut_ptr().add(k * ROWS), rows);
            }
        } else {
            transpose::<ROWS>(panel, source, a.row_stride, a.col_stride, rows, depth);
        }
    }
}

/// Copies columns of a matrix to `[depth, COLS]`; what is beyond them is 0.
///
/// # Safety
/// The rows and columns must lie inside the matrix.
unsafe fn copy_cols(panel: &mut [f32], b: Strided, col: usize, cols: usize, k: usize, depth: usize) {
    assert!(cols <= COLS && depth * COLS <= panel.len());
    if cols < COLS {
        panel[..depth * COLS].fill(0.0);
    }
    // SAFETY: as in `copy_rows`.
    unsafe {
        let source = b.data.add(k * b.row_stride + col * b.col_stride);
        if b.col_stride == 1 {
            for k in 0..depth {
                std::ptr::copy_nonoverlapping(source.add(k * b.row_stride), panel.as_mut_ptr().add(k * COLS), cols);
            }
        } else {
            transpose::<COLS>(panel, source, b.col_stride, b.row_stride, cols, depth);
        }
    }
}

/// Side of the squares that are transposed in registers.
const SIDE: usize = 16;

/// `panel[k * W + line] = source[line * line_stride + k * stride]`, a few k at a time, so that both sides stay in the cache.
///
/// # Safety
/// `lines <= W`, the panel must have room for `depth * W`, the source must have all these elements, and the processor must have
/// AVX-512.
unsafe fn transpose<const W: usize>(panel: &mut [f32], source: *const f32, line_stride: usize, stride: usize, lines: usize, depth: usize) {
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

/// `out[k * out_stride + line] = source[line * line_stride + k]` for sixteen k and up to sixteen lines.
///
/// # Safety
/// Both sides must have these elements, and the processor must have AVX-512.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
unsafe fn transpose_square(out: *mut f32, out_stride: usize, source: *const f32, line_stride: usize, lines: usize) {
    use std::arch::x86_64::*;

    let mut rows = [_mm512_setzero_ps(); SIDE];
    for (line, row) in rows.iter_mut().enumerate().take(lines) {
        // SAFETY: passed on to the caller.
        *row = unsafe { _mm512_loadu_ps(source.add(line * line_stride)) };
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
        let even = [_mm512_shuffle_f32x4::<0x88>(fours[j], fours[4 + j]), _mm512_shuffle_f32x4::<0x88>(fours[8 + j], fours[12 + j])];
        let odd = [_mm512_shuffle_f32x4::<0xdd>(fours[j], fours[4 + j]), _mm512_shuffle_f32x4::<0xdd>(fours[8 + j], fours[12 + j])];
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

/// One tile of the target, `rows` by `cols`.
///
/// # Safety
/// The tile must be the caller's, and the processor must have AVX-512.
#[expect(clippy::too_many_arguments, reason = "the loop around it passes plain numbers")]
unsafe fn tile(rows: usize, a: &[f32], b: &[f32], depth: usize, c: Target, cols: usize, scale: f32, add: bool) {
    assert!(a.len() >= depth * ROWS && b.len() >= depth * COLS && cols <= COLS);
    #[cfg(target_arch = "x86_64")]
    // SAFETY: passed on to the caller; the panels are long enough, as just checked.
    unsafe {
        match rows {
            1 => kernel::<1>(a, b, depth, c, cols, scale, add),
            2 => kernel::<2>(a, b, depth, c, cols, scale, add),
            3 => kernel::<3>(a, b, depth, c, cols, scale, add),
            4 => kernel::<4>(a, b, depth, c, cols, scale, add),
            5 => kernel::<5>(a, b, depth, c, cols, scale, add),
            6 => kernel::<6>(a, b, depth, c, cols, scale, add),
            7 => kernel::<7>(a, b, depth, c, cols, scale, add),
            8 => kernel::<8>(a, b, depth, c, cols, scale, add),
            9 => kernel::<9>(a, b, depth, c, cols, scale, add),
            10 => kernel::<10>(a, b, depth, c, cols, scale, add),
            11 => kernel::<11>(a, b, depth, c, cols, scale, add),
            _ => kernel::<12>(a, b, depth, c, cols, scale, add),
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (rows, c, scale, add);
}

/// # Safety
/// As [`tile`], with panels of at least `depth`.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
unsafe fn kernel<const R: usize>(a: &[f32], b: &[f32], depth: usize, c: Target, cols: usize, scale: f32, add: bool) {
    use std::arch::x86_64::*;

    let (mut a, mut b) = (a.as_ptr(), b.as_ptr());
    let mut sums = [[_mm512_setzero_ps(); 2]; R];
    for _ in 0..depth {
        // SAFETY: the panels hold `depth` rows of `ROWS` and `COLS` elements.
        unsafe {
            let right = [_mm512_loadu_ps(b), _mm512_loadu_ps(b.add(16))];
            for (r, sums) in sums.iter_mut().enumerate() {
                let left = _mm512_set1_ps(*a.add(r));
                sums[0] = _mm512_fmadd_ps(left, right[0], sums[0]);
                sums[1] = _mm512_fmadd_ps(left, right[1], sums[1]);
            }
            a = a.add(ROWS);
            b = b.add(COLS);
        }
    }
    let masks = [(1u32 << cols.min(16)) - 1, (1u32 << cols.saturating_sub(16)) - 1].map(|mask| mask as __mmask16);
    let scale = _mm512_set1_ps(scale);
    for (r, sums) in sums.iter().enumerate() {
        // SAFETY: the masks keep to the columns of the tile.
        unsafe {
            let row = c.data.add(r * c.row_stride);
            for half in 0..2 {
                let out = row.add(16 * half);
                let before = if add { _mm512_maskz_loadu_ps(masks[half], out) } else { _mm512_setzero_ps() };
                _mm512_mask_storeu_ps(out, masks[half], _mm512_fmadd_ps(sums[half], scale, before));
            }
        }
    }
}
