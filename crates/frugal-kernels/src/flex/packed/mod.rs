//! Products with packed matrices: of integers, or in single precision against the matrix unpacked
//! piece by piece.

mod integer;
mod unpack;

use std::ops::Range;

use rayon::prelude::*;

use super::bf16::{self, Side};
use super::matrix::{Matrix, MatrixMut, Shared, Threads, build_matrix};
use super::scratch::Scratch;
use crate::packed::{Codes, Form, PANEL, Packed};
use crate::simd::{Isa, LANES, Lanes, multiversion};
use integer::integer_product;
use unpack::{TASK_BYTES, unpack};

/// Elements unpacked at a time: 4 MiB, which the second-level cache nearly holds.
const TILE: usize = 1 << 20;
/// Up to this many rows of x, a panel is unpacked and used by the thread that unpacked it.
const FEW_ROWS: usize = 8;

/// `x · weightᵀ + bias + l · bᵀ` of a low-rank pair `(l, bᵀ)`, `[tokens, rows]`.
pub(crate) fn affine(
    x: Matrix,
    weight: &Packed,
    bias: Option<&[f32]>,
    low_rank: Option<(Matrix, Matrix)>,
) -> Vec<f32> {
    let rows = weight.dims()[0];
    if let Form::Bf16(matrix) = weight.form() {
        let Some(bias) = bias else {
            // SAFETY: the product writes every element.
            return unsafe {
                build_matrix(x.rows, rows, |mut out| {
                    bf16::multiply(&mut out, x, matrix, Side::Forward, low_rank, false)
                })
            };
        };
        let mut y = bias.repeat(x.rows);
        let mut out = MatrixMut::new(&mut y, x.rows, rows);
        bf16::multiply(&mut out, x, matrix, Side::Forward, low_rank, true);
        return y;
    }
    let mut y = vec![0.0; x.rows * rows];
    let mut out = MatrixMut::new(&mut y, x.rows, rows);
    product(&mut out, x, weight);
    if let Some(bias) = bias {
        y.par_chunks_mut(rows.max(1))
            .with_min_len(16)
            .for_each(|row| row.iter_mut().zip(bias).for_each(|(y, bias)| *y += bias));
    }
    if let Some((l, b)) = low_rank {
        MatrixMut::new(&mut y, l.rows, b.cols).add(l, b, 1.0, Threads::All);
    }
    y
}

/// `out = x · weightᵀ`.
pub(crate) fn product(out: &mut MatrixMut, x: Matrix, weight: &Packed) {
    let [_, cols] = weight.dims();
    assert!(
        x.cols == cols,
        "x has {} columns and the packed matrix {cols}",
        x.cols
    );
    let codes = match weight.form() {
        Form::Codes(codes) => codes,
        Form::Bf16(matrix) => return bf16::multiply(out, x, matrix, Side::Forward, None, false),
    };
    let dense;
    let x = if x.has_dense_rows() {
        x
    } else {
        dense = x.to_rows();
        Matrix::new(&dense, x.rows, x.cols)
    };
    if x.rows == 0 || weight.dims()[0] == 0 {
    } else if cols == 0 {
        out.clear();
    } else if weight.computes_in_integers(codes) {
        integer_product(out, x, codes);
    } else if x.rows <= FEW_ROWS {
        few_rows(out, x, codes);
    } else {
        for_tiles(codes, |tile, rows| {
            out.narrow_cols(&rows).set(x, tile, 1.0, Threads::All)
        });
    }
}

/// `out = y · weight + l · a` of a low-rank pair `(l, a)`, for y `[tokens, rows]`.
pub(crate) fn transposed_product(
    out: &mut MatrixMut,
    y: Matrix,
    weight: &Packed,
    low_rank: Option<(Matrix, Matrix)>,
) {
    let codes = match weight.form() {
        Form::Codes(codes) => codes,
        Form::Bf16(matrix) => {
            return bf16::multiply(out, y, matrix, Side::Backward, low_rank, false);
        }
    };
    if weight.dims()[0] == 0 {
        out.clear();
    }
    for_tiles(codes, |tile, rows| {
        let y = y.window(0, y.rows, rows.start, rows.len());
        if rows.start == 0 {
            out.set(y, tile.t(), 1.0, Threads::All)
        } else {
            out.add(y, tile.t(), 1.0, Threads::All)
        }
    });
    if let Some((l, a)) = low_rank {
        out.add(l, a, 1.0, Threads::All);
    }
}

/// Calls `f` with some rows of the matrix at a time, transposed: `[cols, rows]`.
fn for_tiles(weight: &Codes, mut f: impl FnMut(Matrix, Range<usize>)) {
    let [rows, cols] = weight.dims();
    let per_tile = (TILE / (cols * PANEL).max(1)).clamp(1, weight.panels().max(1));
    let mut scratch = Scratch::new(per_tile * PANEL * cols);
    for first in (0..weight.panels()).step_by(per_tile) {
        let panels = first..(first + per_tile).min(weight.panels());
        let width = panels.len() * PANEL;
        let tile = &mut scratch[..width * cols];
        let shared = Shared::new(tile);
        panels.clone().into_par_iter().for_each(|panel| {
            // SAFETY: each panel has columns of its own.
            let out = unsafe { shared.window((panel - first) * PANEL, cols, PANEL, width) };
            unpack(out, weight, panel);
        });
        let valid = first * PANEL..(panels.end * PANEL).min(rows);
        f(
            Matrix::new(tile, cols, width).window(0, cols, 0, valid.len()),
            valid,
        );
    }
}

/// Each panel is unpacked once and meets all rows of x.
fn few_rows(out: &mut MatrixMut, x: Matrix, weight: &Codes) {
    let [rows, cols] = weight.dims();
    let shared = out.share();
    (0..weight.panels())
        .into_par_iter()
        .with_min_len((TASK_BYTES / weight.panel_bytes()).max(1))
        .for_each(|panel| {
            let mut tile = Scratch::new(cols * PANEL);
            unpack(MatrixMut::new(&mut tile, cols, PANEL), weight, panel);
            for i in 0..x.rows {
                let mut y = [0.0; LANES];
                row_times_tile(&mut y, x.row(i), &tile);
                let valid = PANEL.min(rows - panel * PANEL);
                // SAFETY: each panel has columns of its own.
                unsafe { shared.write(i, panel * PANEL, &y[..valid]) };
            }
        });
}

multiversion!(fn row_times_tile(out: &mut [f32; LANES], x: &[f32], tile: &[f32]) = row_times_tile_body);

#[inline(always)]
fn row_times_tile_body<I: Isa>(out: &mut [f32; LANES], x: &[f32], tile: &[f32]) {
    let (x_quads, x_rest) = x.as_chunks::<4>();
    let (tile_quads, tile_rest) = tile.as_chunks::<LANES>().0.as_chunks::<4>();
    let mut sums = [I::Lanes::splat(0.0); 4];
    for (x, tile) in x_quads.iter().zip(tile_quads) {
        for (sum, (x, row)) in sums.iter_mut().zip(x.iter().zip(tile)) {
            *sum = I::Lanes::load(row).mul_add(I::Lanes::splat(*x), *sum);
        }
    }
    for (x, row) in x_rest.iter().zip(tile_rest) {
        sums[0] = I::Lanes::load(row).mul_add(I::Lanes::splat(*x), sums[0]);
    }
    sums[0].add(sums[1]).add(sums[2].add(sums[3])).store(out);
}
