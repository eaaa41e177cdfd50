//! Single-precision matrix products with AVX-512, which the general library is built without.
//!
//! The inner loop keeps 12 x 32 sums in registers. Its columns of the second factor are copied into
//! panels by the task that multiplies them; the first factor is read where it lies if its rows are
//! contiguous and do not fall on the same lines of the first-level cache, and copied into panels of
//! 12 rows if not. A second, shallow product can be added to the sums before they are written. Cuts
//! along the depth, which decide the order of a sum, follow from the shapes alone, so the result is
//! the same for any number of threads.

use std::ops::Range;

use rayon::prelude::*;

use super::scratch::Scratch;

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

impl Strided {
    /// The part from an element on.
    ///
    /// # Safety
    /// The element must lie inside the matrix.
    unsafe fn at(self, row: usize, col: usize) -> Self {
        // SAFETY: passed on to the caller.
        Self {
            data: unsafe { self.data.add(row * self.row_stride + col * self.col_stride) },
            ..self
        }
    }
}

impl Target {
    /// The part from an element on.
    ///
    /// # Safety
    /// The element must lie inside the matrix.
    unsafe fn at(self, row: usize, col: usize) -> Self {
        // SAFETY: passed on to the caller.
        Self {
            data: unsafe { self.data.add(row * self.row_stride + col) },
            ..self
        }
    }
}

/// Rows of a panel of the first factor.
pub(super) const ROWS: usize = 12;
/// Columns of a panel of the second factor: two vectors.
const COLS: usize = 32;
/// Inner size of a block: sums stay in registers as long as the panels of a task stay in the
/// second-level cache.
const DEPTH: usize = 640;
/// The most panels of columns that a task copies.
const TASK_PANELS: usize = 4;
/// Elements of the first factor that are copied at a time, where it has more than one block of
/// depth.
const COPIED: usize = 1 << 20;
/// Multiply-adds that are worth the threads.
const THREADS_FROM: usize = 1 << 19;
/// Rows this many elements apart fall on the same few lines of the first-level cache, and are
/// copied for that.
const ALIASED: usize = 1024;

/// Whether products of this size are better computed here.
pub(super) fn is_better(rows: usize, cols: usize, depth: usize) -> bool {
    #[cfg(target_arch = "x86_64")]
    {
        rows >= 8 && cols > COLS / 4 && depth >= 8 && is_x86_feature_detected!("avx512f")
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        let _ = (rows, cols, depth);
        false
    }
}

/// Two factors, `[rows, depth]` and `[depth, cols]`, whose product is added while the sums are in
/// registers.
#[derive(Clone, Copy)]
pub(super) struct Extra {
    /// Its rows must be contiguous.
    pub(super) a: Strided,
    pub(super) b: Strided,
    pub(super) depth: usize,
}

/// The deepest [`Extra`].
pub(super) const EXTRA_DEPTH: usize = 64;

/// `c = scale * (a * b + extra)`, or `c += scale * (a * b + extra)` with `accumulate`; a is
/// `[rows, depth]`, b `[depth, cols]`.
///
/// # Safety
/// The matrices must lie in memory that may be read and written, nothing else may write to them,
/// and the processor must have AVX-512.
#[expect(clippy::too_many_arguments, reason = "the numbers of a matrix product")]
pub(super) unsafe fn multiply(
    [rows, cols, depth]: [usize; 3],
    c: Target,
    a: Strided,
    b: Strided,
    extra: Option<Extra>,
    scale: f32,
    accumulate: bool,
    threads: bool,
) {
    let threads = threads && rows * cols * depth >= THREADS_FROM;
    // Blocks of equal depth.
    let blocks = depth.div_ceil(DEPTH);
    let block = depth.div_ceil(blocks);
    let extra_depth = extra.map_or(0, |extra| extra.depth);
    assert!(extra_depth <= EXTRA_DEPTH);
    let (row_panels, col_panels) = (rows.div_ceil(ROWS), cols.div_ceil(COLS));
    let in_place = a.col_stride == 1 && !a.row_stride.is_multiple_of(ALIASED);
    // How many blocks the tasks go through before they meet.
    let together = if in_place {
        blocks
    } else {
        (COPIED / (block * rows)).clamp(1, blocks)
    };
    let mut copied = Scratch::new(if in_place {
        0
    } else {
        together * row_panels * block * ROWS
    });
    let cut = Cut::of(
        row_panels,
        col_panels,
        if threads {
            rayon::current_num_threads()
        } else {
            1
        },
    );
    for first_block in (0..blocks).step_by(together) {
        let count = together.min(blocks - first_block);
        let depth_of = |i: usize| block.min(depth - (first_block + i) * block);
        if !in_place {
            let copy = |(i, panel): (usize, &mut [f32])| {
                let (k, row) = (
                    (first_block + i / row_panels) * block,
                    i % row_panels * ROWS,
                );
                // SAFETY: the block lies inside the matrix.
                unsafe {
                    copy_rows(
                        panel,
                        a,
                        row,
                        ROWS.min(rows - row),
                        k,
                        depth_of(i / row_panels),
                    )
                };
            };
            let part = &mut copied[..count * row_panels * block * ROWS];
            if threads {
                part.par_chunks_mut(block * ROWS)
                    .enumerate()
                    .with_min_len(4)
                    .for_each(copy);
            } else {
                part.chunks_mut(block * ROWS).enumerate().for_each(copy);
            }
        }
        let panels = &*copied;
        // The first factor's panel of rows, in the block.
        let left = |i: usize, panel: usize| {
            if in_place {
                let (row, k) = (panel * ROWS, (first_block + i) * block);
                // SAFETY: the element lies inside the matrix.
                unsafe { a.at(row, k) }
            } else {
                let panel = &panels[(i * row_panels + panel) * block * ROWS..][..block * ROWS];
                Strided {
                    data: panel.as_ptr(),
                    row_stride: 1,
                    col_stride: ROWS,
                }
            }
        };
        let task = |task: usize| {
            let (my_rows, my_cols) = cut.part(task);
            let columns = my_cols.start * COLS..cols.min(my_cols.end * COLS);
            let (panel_len, extra_len) = (block * COLS, extra_depth * COLS);
            let mut space = Scratch::new(my_cols.len() * (panel_len + extra_len));
            let (space, extra_space) = space.split_at_mut(my_cols.len() * panel_len);
            for i in 0..count {
                let (k, depth) = ((first_block + i) * block, depth_of(i));
                let extra = extra.filter(|_| first_block + i + 1 == blocks);
                let add = accumulate || first_block + i > 0;
                // SAFETY: the block lies inside the matrix.
                unsafe { copy_cols(space, panel_len, b, columns.clone(), k, depth) };
                if let Some(extra) = extra {
                    // SAFETY: as above.
                    unsafe {
                        copy_cols(
                            extra_space,
                            extra_len,
                            extra.b,
                            columns.clone(),
                            0,
                            extra.depth,
                        )
                    };
                }
                for row in my_rows.clone() {
                    for (at, col) in my_cols.clone().enumerate() {
                        let (r, n) = (ROWS.min(rows - row * ROWS), COLS.min(cols - col * COLS));
                        let part = Part {
                            a: left(i, row),
                            b: &space[at * panel_len..],
                            depth,
                        };
                        let more = extra.map(|extra| {
                            // SAFETY: the element lies inside the matrix.
                            let a = unsafe { extra.a.at(row * ROWS, 0) };
                            Part {
                                a,
                                b: &extra_space[at * extra_len..],
                                depth: extra_depth,
                            }
                        });
                        // SAFETY: the tile lies inside the target, each task has tiles of its own,
                        // and the first factors have `r` rows of their depth from here on.
                        unsafe { tile(r, part, more, c.at(row * ROWS, col * COLS), n, scale, add) };
                    }
                }
            }
        };
        if threads {
            (0..cut.tasks())
                .into_par_iter()
                .with_max_len(1)
                .for_each(task);
        } else {
            (0..cut.tasks()).for_each(task);
        }
    }
}

/// What a tile adds up: rows of a first factor, and a panel of columns of the second.
#[derive(Clone, Copy)]
struct Part<'a> {
    a: Strided,
    b: &'a [f32],
    depth: usize,
}

/// How the tiles of a product are dealt out: each task has some panels of rows and at most
/// [`TASK_PANELS`] panels of columns.
#[derive(Clone, Copy)]
struct Cut {
    panels: [usize; 2],
    per_task: [usize; 2],
}

impl Cut {
    /// The cut that is done first, if every thread takes the next task when it has none: a task
    /// costs its tiles, the copies of its columns, as much as some tiles each, and the way of the
    /// rows into the cache.
    fn of(row_panels: usize, col_panels: usize, threads: usize) -> Self {
        const COPY: usize = 8;
        const QUARTER: usize = 4;
        let cost = |[rows, cols]: [usize; 2]| {
            let tasks = row_panels.div_ceil(rows) * col_panels.div_ceil(cols);
            tasks.div_ceil(threads) * (QUARTER * cols * (rows + COPY) + rows)
        };
        let parts = row_panels.div_ceil(TASK_PANELS).min(2 * threads);
        let candidates = (1..=parts).flat_map(|parts| {
            (1..=TASK_PANELS.min(col_panels))
                .rev()
                .map(move |cols| [row_panels.div_ceil(parts), cols])
        });
        let per_task = candidates
            .min_by_key(|&per_task| cost(per_task))
            .unwrap_or([1, 1]);
        Self {
            panels: [row_panels, col_panels],
            per_task,
        }
    }

    fn tasks(self) -> usize {
        self.panels[0].div_ceil(self.per_task[0]) * self.panels[1].div_ceil(self.per_task[1])
    }

    /// The panels of rows and of columns of a task.
    fn part(self, task: usize) -> (Range<usize>, Range<usize>) {
        let cols = self.panels[1].div_ceil(self.per_task[1]);
        let range = |axis: usize, i: usize| {
            let start = i * self.per_task[axis];
            start..(start + self.per_task[axis]).min(self.panels[axis])
        };
        (range(0, task / cols), range(1, task % cols))
    }
}

/// Copies rows of a matrix to `[depth, ROWS]`.
///
/// # Safety
/// The rows and columns must lie inside the matrix.
unsafe fn copy_rows(
    panel: &mut [f32],
    a: Strided,
    row: usize,
    rows: usize,
    k: usize,
    depth: usize,
) {
    assert!(rows <= ROWS && depth * ROWS <= panel.len());
    // SAFETY: passed on to the caller; the panel has room for `depth` times `ROWS`.
    unsafe {
        let source = a.data.add(row * a.row_stride + k * a.col_stride);
        let out = panel.as_mut_ptr();
        if a.row_stride == 1 && rows == ROWS {
            for k in 0..depth {
                // A length that the compiler knows takes a few moves instead of a call.
                std::ptr::copy_nonoverlapping(
                    source.add(k * a.col_stride),
                    out.add(k * ROWS),
                    ROWS,
                );
            }
        } else if a.row_stride == 1 {
            for k in 0..depth {
                std::ptr::copy_nonoverlapping(
                    source.add(k * a.col_stride),
                    out.add(k * ROWS),
                    rows,
                );
            }
        } else {
            transpose::<ROWS>(panel, source, a.row_stride, a.col_stride, rows, depth);
        }
    }
}

/// Copies columns of a matrix to panels `[depth, COLS]`, `panel_len` apart; what is beyond them is
/// 0.
///
/// # Safety
/// The rows and columns must lie inside the matrix.
unsafe fn copy_cols(
    panels: &mut [f32],
    panel_len: usize,
    b: Strided,
    cols: Range<usize>,
    k: usize,
    depth: usize,
) {
    let (whole, rest) = (cols.len() / COLS, cols.len() % COLS);
    assert!(depth * COLS <= panel_len && cols.len().div_ceil(COLS) * panel_len <= panels.len());
    if rest > 0 {
        panels[whole * panel_len..][..depth * COLS].fill(0.0);
    }
    let out = panels.as_mut_ptr();
    // SAFETY: as in `copy_rows`.
    unsafe {
        let source = b.data.add(k * b.row_stride + cols.start * b.col_stride);
        if b.col_stride == 1 {
            // Along the rows, as they lie in memory.
            for k in 0..depth {
                let row = source.add(k * b.row_stride);
                for panel in 0..whole {
                    let at = row.add(panel * COLS);
                    prefetch(at.wrapping_add(8 * b.row_stride));
                    prefetch(at.wrapping_add(8 * b.row_stride + COLS / 2));
                    // A length that the compiler knows takes two moves instead of a call.
                    std::ptr::copy_nonoverlapping(at, out.add(panel * panel_len + k * COLS), COLS);
                }
                if rest > 0 {
                    std::ptr::copy_nonoverlapping(
                        row.add(whole * COLS),
                        out.add(whole * panel_len + k * COLS),
                        rest,
                    );
                }
            }
        } else {
            for (panel, first) in panels
                .chunks_mut(panel_len)
                .zip((0..cols.len()).step_by(COLS))
            {
                let source = source.add(first * b.col_stride);
                transpose::<COLS>(
                    panel,
                    source,
                    b.col_stride,
                    b.row_stride,
                    COLS.min(cols.len() - first),
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

/// Asks for the line of an element, which need not exist.
pub(super) fn prefetch(at: *const f32) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a hint that reads nothing.
    unsafe {
        std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(at.cast())
    };
    #[cfg(not(target_arch = "x86_64"))]
    let _ = at;
}

/// One tile of the target, `rows` by `cols`.
///
/// # Safety
/// The tile must be the caller's, first factors must have `rows` rows of their depth, and the
/// processor must have AVX-512.
unsafe fn tile(
    rows: usize,
    part: Part,
    more: Option<Part>,
    c: Target,
    cols: usize,
    scale: f32,
    add: bool,
) {
    assert!(
        cols <= COLS
            && part.b.len() >= part.depth * COLS
            && more.is_none_or(|more| more.b.len() >= more.depth * COLS)
    );
    #[cfg(target_arch = "x86_64")]
    // SAFETY: passed on to the caller; the panels of columns are long enough, as just checked.
    unsafe {
        match rows {
            1 => kernel::<1>(part, more, c, cols, scale, add),
            2 => kernel::<2>(part, more, c, cols, scale, add),
            3 => kernel::<3>(part, more, c, cols, scale, add),
            4 => kernel::<4>(part, more, c, cols, scale, add),
            5 => kernel::<5>(part, more, c, cols, scale, add),
            6 => kernel::<6>(part, more, c, cols, scale, add),
            7 => kernel::<7>(part, more, c, cols, scale, add),
            8 => kernel::<8>(part, more, c, cols, scale, add),
            9 => kernel::<9>(part, more, c, cols, scale, add),
            10 => kernel::<10>(part, more, c, cols, scale, add),
            11 => kernel::<11>(part, more, c, cols, scale, add),
            _ => kernel::<12>(part, more, c, cols, scale, add),
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (rows, part, more, c, scale, add);
}

/// # Safety
/// As [`tile`], with panels of columns of at least their depth.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
unsafe fn kernel<const R: usize>(
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
            prefetch(row.wrapping_add(COLS / 2));
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
            // SAFETY: the first factor has `R` rows of `depth`, the panel `depth` rows of `COLS`.
            unsafe {
                let right = [
                    _mm512_loadu_ps(b.add(k * COLS)),
                    _mm512_loadu_ps(b.add(k * COLS + 16)),
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

#[cfg(all(test, target_arch = "x86_64"))]
mod tests {
    use super::*;

    /// Values that differ from place to place and are exact in every sum.
    fn value(i: usize) -> f32 {
        ((i * 7919) % 31) as f32 - 15.0
    }

    #[test]
    fn products_are_exact_whatever_the_layout() {
        if !is_x86_feature_detected!("avx512f") {
            return;
        }
        // Whole and partial tiles, one block of depth and more, and rows that lie on the same lines
        // of the cache.
        for [rows, cols, depth] in [[8, 32, 8], [13, 45, 300], [100, 129, 1024], [121, 700, 17]] {
            let data = |len: usize| (0..len).map(value).collect::<Vec<_>>();
            let (left, right) = (data(rows * depth), data(depth * cols));
            for (a_turned, b_turned, threads, accumulate) in [
                (false, false, false, false),
                (false, true, true, true),
                (true, false, true, false),
                (true, true, false, true),
            ] {
                let view = |data: &[f32], rows: usize, cols: usize, turned: bool| match turned {
                    false => Strided {
                        data: data.as_ptr(),
                        row_stride: cols,
                        col_stride: 1,
                    },
                    true => Strided {
                        data: data.as_ptr(),
                        row_stride: 1,
                        col_stride: rows,
                    },
                };
                let (a, b) = (
                    view(&left, rows, depth, a_turned),
                    view(&right, depth, cols, b_turned),
                );
                let mut found = vec![3.0; rows * cols];
                let c = Target {
                    data: found.as_mut_ptr(),
                    row_stride: cols,
                };
                // A shallow product besides, of as many columns and rows of the same data.
                let shallow = usize::from(accumulate) * depth.min(5);
                let low = view(&left, rows, shallow, false);
                let extra = accumulate.then_some(Extra {
                    a: low,
                    b,
                    depth: shallow,
                });
                // SAFETY: the views have the sizes of their slices, and the processor was asked.
                unsafe {
                    multiply(
                        [rows, cols, depth],
                        c,
                        a,
                        b,
                        extra,
                        0.5,
                        accumulate,
                        threads,
                    )
                };
                for i in 0..rows {
                    for j in 0..cols {
                        let at =
                            |m: Strided, i: usize, j: usize| i * m.row_stride + j * m.col_stride;
                        let product = |a: Strided, depth: usize| -> f32 {
                            (0..depth)
                                .map(|k| left[at(a, i, k)] * right[at(b, k, j)])
                                .sum()
                        };
                        let sum = product(a, depth) + product(low, shallow);
                        let expected = 0.5 * sum + if accumulate { 3.0 } else { 0.0 };
                        assert_eq!(
                            found[i * cols + j],
                            expected,
                            "[{i}, {j}] of {rows} x {cols} x {depth}"
                        );
                    }
                }
            }
        }
    }

    #[test]
    fn every_tile_is_dealt_out_once() {
        for threads in [1, 2, 3, 16, 100] {
            for [rows, cols] in [[1, 1], [3, 50], [86, 18], [86, 48], [700, 1]] {
                let cut = Cut::of(rows, cols, threads);
                let mut dealt = vec![0; rows * cols];
                for task in 0..cut.tasks() {
                    let (my_rows, my_cols) = cut.part(task);
                    assert!(
                        my_cols.len() <= TASK_PANELS && !my_rows.is_empty() && !my_cols.is_empty()
                    );
                    my_rows.for_each(|row| {
                        my_cols.clone().for_each(|col| dealt[row * cols + col] += 1)
                    });
                }
                assert!(
                    dealt.iter().all(|&times| times == 1),
                    "{threads} threads, {rows} x {cols} panels"
                );
            }
        }
    }
}
