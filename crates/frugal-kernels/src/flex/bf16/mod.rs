//! Products with matrices in bfloat16: pairs of numbers, sums in single precision.
//!
//! As the products in single precision next door: the micro-kernel keeps `MR x NR` sums in
//! registers, tasks have tiles of their own, the depth is cut into equal blocks whose cuts follow
//! from the shapes alone. The matrix lies in memory as the forward product reads it; for the
//! backward product, each task turns the columns that it needs. The other factor is rounded as it
//! is copied to panels.

mod kernel;
mod pack;

use rayon::prelude::*;

use super::gemm::{Cut, MR, Target};
use super::matrix::{Matrix, MatrixMut, Threads};
use super::scratch::Scratch;
use crate::packed::{Bf16, NR};
use kernel::{LowRank, tile};
use pack::{TURNED, pack_rows, pairs_of, pairs_of_mut, turn};

/// Pairs of a block's depth: a panel of columns stays in the cache.
const KC: usize = 320;
/// Pairs of the first factor that are copied at a time, where it has more than one block of depth.
const PACKED_PAIRS: usize = 1 << 20;
/// Multiply-adds that are worth the threads.
const THREADS_FROM: usize = 1 << 19;
/// The deepest low-rank pair that is added on the way.
const LOW_RANK_DEPTH: usize = 64;

/// Which product is wanted of a matrix `[rows, cols]`.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Side {
    /// `x · weightᵀ`.
    Forward,
    /// `x · weight`.
    Backward,
}

/// `out = x · weight(ᵀ) + l · r` of a low-rank pair `(l, r)`, or `out += ...` with `accumulate`; x
/// is rounded.
pub(super) fn multiply(
    out: &mut MatrixMut,
    x: Matrix,
    weight: &Bf16,
    side: Side,
    low_rank: Option<(Matrix, Matrix)>,
    accumulate: bool,
) {
    let [weight_rows, weight_cols] = weight.dims();
    let (cols, depth) = match side {
        Side::Forward => (weight_rows, weight_cols),
        Side::Backward => (weight_cols, weight_rows),
    };
    assert!(
        x.cols == depth && out.rows() == x.rows && out.cols() == cols,
        "matrix product of unequal inner sizes"
    );
    let low_rank = low_rank.filter(|(l, _)| l.cols > 0);
    if let Some((l, r)) = low_rank {
        assert!(
            l.rows == x.rows && r.cols == cols && l.cols == r.rows,
            "matrix product of unequal inner sizes"
        );
        if !l.is_contiguous() || l.cols > LOW_RANK_DEPTH || depth == 0 {
            multiply(out, x, weight, side, None, accumulate);
            out.add(l, r, 1.0, Threads::All);
            return;
        }
    }
    if x.rows == 0 || cols == 0 {
        return;
    }
    if depth == 0 {
        if !accumulate {
            out.clear();
        }
        return;
    }
    let dense;
    let x = if x.has_dense_rows() {
        x
    } else {
        dense = x.to_rows();
        Matrix::new(&dense, x.rows, x.cols)
    };
    let product = Product {
        x,
        weight,
        side,
        low_rank,
        accumulate,
        cols,
        blocks: Blocks::of(depth.div_ceil(2)),
        target: out.target(),
    };
    product.compute(x.rows * cols * depth >= THREADS_FROM);
}

/// Equal parts of the depth, in pairs; all but the last are whole source panels.
#[derive(Clone, Copy)]
struct Blocks {
    pairs: usize,
    block: usize,
}

impl Blocks {
    fn of(pairs: usize) -> Self {
        let block = pairs.div_ceil(pairs.div_ceil(KC)).next_multiple_of(TURNED);
        Self { pairs, block }
    }

    fn count(self) -> usize {
        self.pairs.div_ceil(self.block)
    }

    fn range(self, i: usize) -> std::ops::Range<usize> {
        i * self.block..((i + 1) * self.block).min(self.pairs)
    }
}

struct Product<'a> {
    x: Matrix<'a>,
    weight: &'a Bf16,
    side: Side,
    low_rank: Option<(Matrix<'a>, Matrix<'a>)>,
    accumulate: bool,
    cols: usize,
    blocks: Blocks,
    /// Borrowed mutably for `'a`.
    target: Target,
}

impl Product<'_> {
    fn compute(&self, threads: bool) {
        let (row_panels, col_panels) = (self.x.rows.div_ceil(MR), self.cols.div_ceil(NR));
        let threads_used = if threads {
            rayon::current_num_threads()
        } else {
            1
        };
        let cut = Cut::of(row_panels, col_panels, threads_used);
        let Blocks { block, .. } = self.blocks;
        let blocks = self.blocks.count();
        // How many blocks the tasks go through before they meet.
        let together = (PACKED_PAIRS / (block * row_panels * MR)).clamp(1, blocks);
        let panel_len = block * MR;
        let mut copied = Scratch::new(together * row_panels * panel_len);
        for first in (0..blocks).step_by(together) {
            let count = together.min(blocks - first);
            let copy = |(i, panel): (usize, &mut [f32])| {
                let (pairs, row) = (
                    self.blocks.range(first + i / row_panels),
                    i % row_panels * MR,
                );
                let panel = &mut pairs_of_mut(panel)[..pairs.len()];
                pack_rows(panel, self.x, row..(row + MR).min(self.x.rows), pairs);
            };
            let part = &mut copied[..count * row_panels * panel_len];
            if threads {
                part.par_chunks_mut(panel_len)
                    .enumerate()
                    .with_min_len(4)
                    .for_each(copy);
            } else {
                part.chunks_mut(panel_len).enumerate().for_each(copy);
            }
            let left = |i: usize, panel: usize, pairs: usize| {
                let panel = &copied[((i - first) * row_panels + panel) * panel_len..];
                &pairs_of::<MR>(panel)[..pairs]
            };
            let task = |task: usize| {
                for i in first..first + count {
                    self.task(cut, task, i, |panel, pairs| left(i, panel, pairs));
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

    /// The tiles of a task, over one block of the depth.
    fn task<'x>(
        &self,
        cut: Cut,
        task: usize,
        block: usize,
        left: impl Fn(usize, usize) -> &'x [[crate::packed::Pair; MR]],
    ) {
        let (my_rows, my_cols) = cut.part(task);
        let pairs = self.blocks.range(block);
        let last = block + 1 == self.blocks.count();
        let add = self.accumulate || block > 0;
        let low_rank = self.low_rank.filter(|_| last);
        let right = low_rank.map_or_else(Vec::new, |(_, r)| low_rank_panels(r, &my_cols));
        let rank = low_rank.map_or(0, |(l, _)| l.cols);
        let turned_len = pairs.len().next_multiple_of(TURNED);
        let mut space = match self.side {
            Side::Forward => Scratch::new(0),
            Side::Backward => Scratch::new(my_cols.len() * turned_len * NR),
        };
        if self.side == Side::Backward {
            let sources = pairs.start / TURNED..pairs.end.div_ceil(TURNED);
            for (space, panel) in space.chunks_exact_mut(turned_len * NR).zip(my_cols.clone()) {
                turn(pairs_of_mut(space), self.weight, panel, sources.clone());
            }
        }
        for row in my_rows {
            let rows = row * MR..((row + 1) * MR).min(self.x.rows);
            let left = left(row, pairs.len());
            let low = low_rank.map_or(&[][..], |(l, _)| l.rows_of(&rows));
            for (at, col) in my_cols.clone().enumerate() {
                let panel = match self.side {
                    Side::Forward => &self.weight.panel(col)[pairs.clone()],
                    Side::Backward => {
                        &pairs_of::<NR>(&space[at * turned_len * NR..])[..pairs.len()]
                    }
                };
                let low_rank = LowRank {
                    left: low,
                    right: &right[at * rank..][..rank],
                };
                let sizes = [rows.len(), NR.min(self.cols - col * NR)];
                // SAFETY: the tile lies inside the target, which is borrowed mutably, and each task
                // has tiles of its own; those of later blocks have been written before.
                unsafe {
                    let c = self.target.at(rows.start, col * NR);
                    tile(sizes, c, left, panel, low_rank, add);
                }
            }
        }
    }
}

/// The second factor of a low-rank pair, `[depth, NR]` for each panel of columns.
fn low_rank_panels(r: Matrix, panels: &std::ops::Range<usize>) -> Vec<[f32; NR]> {
    let mut out = vec![[0.0; NR]; panels.len() * r.rows];
    for (out, panel) in out.chunks_exact_mut(r.rows).zip(panels.clone()) {
        let cols = NR.min(r.cols - panel * NR);
        let part = r.window(0, r.rows, panel * NR, cols);
        for (k, out) in out.iter_mut().enumerate() {
            part.narrow_rows(k, 1).copy_rows_to(&mut out[..cols]);
        }
    }
    out
}
