//! Single-precision matrix products (GEMM) with AVX-512, which the general library is built without.
//!
//! The micro-kernel keeps `MR x NR` = 12 x 32 sums in registers. The second factor is packed into
//! panels of `NR` columns by the task that multiplies them; the first is read where it lies if its
//! rows are contiguous and do not fall on the same lines of the first-level cache, and packed into
//! panels of `MR` rows if not. A second, shallow product can be added to the sums before the epilogue
//! scales and writes them. The depth is cut into equal blocks of at most `KC`; the cuts, which decide
//! the order of a sum, follow from the shapes alone, so the result is the same for any number of
//! threads. Names as in Goto and van de Geijn, *Anatomy of high-performance matrix multiplication*
//! (2008).

mod kernel;
mod pack;
mod prefetch;
mod schedule;
mod view;

use rayon::prelude::*;

pub(super) use kernel::MR;
pub(super) use pack::pack_a;
pub(super) use prefetch::prefetch;
pub(super) use schedule::Cut;
pub(super) use view::{Extra, Strided, Target};

use super::scratch::Scratch;
use crate::simd::{InstructionSet, instruction_set};
use kernel::{NR, Part, tile};
use pack::pack_b;

/// Inner size of a block: sums stay in registers as long as the panels of a task stay in the
/// second-level cache.
const KC: usize = 640;
/// Elements of the first factor that are copied at a time, where it has more than one block of
/// depth.
const PACKED_ELEMENTS: usize = 1 << 20;
/// Multiply-adds that are worth the threads.
const THREADS_FROM: usize = 1 << 19;
/// Rows this many elements apart fall on the same few lines of the first-level cache, and are
/// copied for that.
const ALIASED: usize = 1024;

/// Whether products of this size are better computed here.
pub(super) fn is_better(rows: usize, cols: usize, depth: usize) -> bool {
    rows >= 8 && cols > NR / 4 && depth >= 8 && instruction_set() >= InstructionSet::Avx512
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
    let blocks = depth.div_ceil(KC);
    let block = depth.div_ceil(blocks);
    let extra_depth = extra.map_or(0, |extra| extra.depth);
    assert!(extra_depth <= EXTRA_DEPTH);
    let (row_panels, col_panels) = (rows.div_ceil(MR), cols.div_ceil(NR));
    let in_place = a.col_stride == 1 && !a.row_stride.is_multiple_of(ALIASED);
    // How many blocks the tasks go through before they meet.
    let together = if in_place {
        blocks
    } else {
        (PACKED_ELEMENTS / (block * rows)).clamp(1, blocks)
    };
    let mut copied = Scratch::new(if in_place {
        0
    } else {
        together * row_panels * block * MR
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
                let (k, row) = ((first_block + i / row_panels) * block, i % row_panels * MR);
                // SAFETY: the block lies inside the matrix.
                unsafe {
                    pack_a(
                        panel,
                        a,
                        row,
                        MR.min(rows - row),
                        k,
                        depth_of(i / row_panels),
                    )
                };
            };
            let part = &mut copied[..count * row_panels * block * MR];
            if threads {
                part.par_chunks_mut(block * MR)
                    .enumerate()
                    .with_min_len(4)
                    .for_each(copy);
            } else {
                part.chunks_mut(block * MR).enumerate().for_each(copy);
            }
        }
        let panels = &*copied;
        // The first factor's panel of rows, in the block.
        let left = |i: usize, panel: usize| {
            if in_place {
                let (row, k) = (panel * MR, (first_block + i) * block);
                // SAFETY: the element lies inside the matrix.
                unsafe { a.at(row, k) }
            } else {
                let panel = &panels[(i * row_panels + panel) * block * MR..][..block * MR];
                Strided {
                    data: panel.as_ptr(),
                    row_stride: 1,
                    col_stride: MR,
                }
            }
        };
        let task = |task: usize| {
            let (my_rows, my_cols) = cut.part(task);
            let columns = my_cols.start * NR..cols.min(my_cols.end * NR);
            let (panel_len, extra_len) = (block * NR, extra_depth * NR);
            let mut space = Scratch::new(my_cols.len() * (panel_len + extra_len));
            let (space, extra_space) = space.split_at_mut(my_cols.len() * panel_len);
            for i in 0..count {
                let (k, depth) = ((first_block + i) * block, depth_of(i));
                let extra = extra.filter(|_| first_block + i + 1 == blocks);
                let add = accumulate || first_block + i > 0;
                // SAFETY: the block lies inside the matrix.
                unsafe { pack_b(space, panel_len, b, columns.clone(), k, depth) };
                if let Some(extra) = extra {
                    // SAFETY: the same columns and all of the depth of the extra factor.
                    unsafe {
                        pack_b(
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
                        let (r, n) = (MR.min(rows - row * MR), NR.min(cols - col * NR));
                        let part = Part {
                            a: left(i, row),
                            b: &space[at * panel_len..],
                            depth,
                        };
                        let more = extra.map(|extra| {
                            // SAFETY: the element lies inside the matrix.
                            let a = unsafe { extra.a.at(row * MR, 0) };
                            Part {
                                a,
                                b: &extra_space[at * extra_len..],
                                depth: extra_depth,
                            }
                        });
                        // SAFETY: the tile lies inside the target, each task has tiles of its own,
                        // and the first factors have `r` rows of their depth from here on.
                        unsafe { tile(r, part, more, c.at(row * MR, col * NR), n, scale, add) };
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
}
