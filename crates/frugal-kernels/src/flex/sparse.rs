//! Products with matrices that have many zeros.
//!
//! For a few rows of x the weight is what has to be read: each block of its row is spread to the
//! places of its nonzeros and meets sixteen elements of x at once. For many rows the work is what
//! counts: each nonzero meets the same column of x for 64 rows at once. Zeros of the weight are not
//! multiplied there, so an infinite element of x is passed over where a few rows of x, like a dense
//! product, find a sum that is not a number.

use std::sync::Arc;

use burn::backend::flex::FlexTensor;
use burn::tensor::Tensor;
use rayon::prelude::*;

use super::dense::{column_sums, rows};
use super::matrix::{Matrix, MatrixMut, Threads};
use super::record::{Op, Operand, present, record};
use super::tensor::{tensor_of, values};
use crate::save_policy::Cost;
use crate::simd::{Isa, LANES, Lanes, TASK, multiversion};
use crate::sparse::{BLOCK, Sparse};

/// Up to this many rows of x, the weight is read once.
const FEW_ROWS: usize = 8;
/// Rows of x that a nonzero meets at once.
const TILE: usize = 4 * LANES;
/// Rows of the weight whose results are written together.
const GROUP: usize = 16;
/// Blocks of columns that are gone through together: with [`TILE`] rows of x, 32 KiB, which the
/// first-level cache holds.
const CHUNK: usize = 8;

/// The places of the bits that are set, for every byte; what follows them is never used.
const PLACES: [[u32; 8]; 256] = {
    let mut places = [[0; 8]; 256];
    let mut byte = 0;
    while byte < 256 {
        let (mut bit, mut n) = (0, 0);
        while bit < 8 {
            if byte >> bit & 1 == 1 {
                places[byte][n] = bit as u32;
                n += 1;
            }
            bit += 1;
        }
        byte += 1;
    }
    places
};

/// [`sparse_linear`](crate::sparse_linear) on Flex.
pub(crate) fn sparse_linear(
    x: &Tensor<2>,
    weight: &Arc<Sparse>,
    bias: Option<&Tensor<1>>,
) -> Option<Tensor<2>> {
    let (x, bias, weight) = (Operand::new(x)?, Operand::optional(bias)?, weight.clone());
    let op = Op {
        cost: Cost::Heavy,
        reads: |_| [false, false],
        forward: move |[x, bias]: &[Option<FlexTensor>; 2], _| {
            let x = present(x);
            let y = affine(Matrix::of(x), &weight, bias.as_ref().map(values));
            (tensor_of(y, [rows(x), weight.dims()[0]]), weight.clone())
        },
        backward: |_, weight: Arc<Sparse>, dy, [for_x, for_bias], _| {
            let dy = Matrix::of(&dy);
            [
                for_x.then(|| input_gradient(dy, &weight)),
                for_bias.then(|| column_sums(dy)),
            ]
        },
    };
    Some(record([Some(&x), bias.as_ref()], op))
}

/// `dy · weight`, by way of the dense matrix: one product of a training step, where the weight is
/// read once for many rows.
fn input_gradient(dy: Matrix, weight: &Sparse) -> FlexTensor {
    let [out, cols] = weight.dims();
    let mut dx = vec![0.0; dy.rows * cols];
    let dense = weight.to_vec();
    MatrixMut::new(&mut dx, dy.rows, cols).set(
        dy,
        Matrix::new(&dense, out, cols),
        1.0,
        Threads::All,
    );
    tensor_of(dx, [dy.rows, cols])
}

/// `x · weightᵀ + bias`, `[tokens, out]`.
fn affine(x: Matrix, weight: &Sparse, bias: Option<&[f32]>) -> Vec<f32> {
    let [out, _] = weight.dims();
    let mut y = vec![0.0; x.rows * out];
    if x.rows == 0 || out == 0 {
        return y;
    }
    let mut target = MatrixMut::new(&mut y, x.rows, out);
    if x.rows <= FEW_ROWS {
        few_rows(&mut target, x, weight)
    } else {
        many_rows(&mut target, x, weight)
    }
    if let Some(bias) = bias {
        y.par_chunks_mut(out)
            .with_min_len(16)
            .for_each(|row| row.iter_mut().zip(bias).for_each(|(y, bias)| *y += bias));
    }
    y
}

fn few_rows(y: &mut MatrixMut, x: Matrix, weight: &Sparse) {
    let (width, count) = (weight.blocks() * BLOCK, x.rows);
    // Filled up to whole blocks.
    let mut padded = vec![0.0; count * width];
    padded
        .chunks_mut(width)
        .zip(x.to_rows().chunks(x.cols))
        .for_each(|(to, from)| to[..x.cols].copy_from_slice(from));
    let [out, cols] = weight.dims();
    let shared = y.share();
    let groups = out.div_ceil(GROUP);
    (0..groups)
        .into_par_iter()
        .with_min_len(TASK.div_ceil(GROUP * cols))
        .for_each(|group| {
            let rows = group * GROUP..(group * GROUP + GROUP).min(out);
            let mut sums = [0.0; FEW_ROWS * GROUP];
            rows_times(&mut sums, &padded, weight, rows.start, rows.len());
            for (token, sums) in sums.chunks(GROUP).take(count).enumerate() {
                // SAFETY: each group has columns of its own.
                unsafe { shared.write(token, rows.start, &sums[..rows.len()]) };
            }
        });
}

multiversion!(fn rows_times(out: &mut [f32], x: &[f32], weight: &Sparse, first: usize, count: usize) = rows_times_body);

/// Writes the products of `count` rows of the weight with all rows of x, `[FEW_ROWS, GROUP]`.
#[inline(always)]
fn rows_times_body<I: Isa>(
    out: &mut [f32],
    x: &[f32],
    weight: &Sparse,
    first: usize,
    count: usize,
) {
    let blocks = weight.blocks();
    let x_rows: &[[f32; BLOCK]] = x.as_chunks().0;
    let (quads, rest) = x_rows.split_at(x_rows.len() / blocks / 4 * 4 * blocks);
    for i in 0..count {
        let masks = &weight.masks[(first + i) * blocks..][..blocks];
        let values = &weight.values[weight.starts[first + i]..];
        let mut token = 0;
        for quad in quads.chunks_exact(4 * blocks) {
            let mut sums = [I::Lanes::splat(0.0); 4];
            let mut at = 0;
            for (b, mask) in masks.iter().enumerate() {
                let block = spread::<I>(values, &mut at, *mask);
                for (j, sum) in sums.iter_mut().enumerate() {
                    *sum = block.mul_add(I::Lanes::load(&quad[j * blocks + b]), *sum);
                }
            }
            sums.iter()
                .enumerate()
                .for_each(|(j, sum)| out[(token + j) * GROUP + i] = sum.sum());
            token += 4;
        }
        for x in rest.chunks_exact(blocks) {
            let mut sums = [I::Lanes::splat(0.0); 4];
            let mut at = 0;
            let ((mask_quads, mask_rest), (x_quads, x_rest)) =
                (masks.as_chunks::<4>(), x.as_chunks::<4>());
            for (masks, x) in mask_quads.iter().zip(x_quads) {
                for (sum, (mask, x)) in sums.iter_mut().zip(masks.iter().zip(x)) {
                    *sum = spread::<I>(values, &mut at, *mask).mul_add(I::Lanes::load(x), *sum);
                }
            }
            for (sum, (mask, x)) in sums.iter_mut().zip(mask_rest.iter().zip(x_rest)) {
                *sum = spread::<I>(values, &mut at, *mask).mul_add(I::Lanes::load(x), *sum);
            }
            out[token * GROUP + i] = sums[0].add(sums[1]).add(sums[2].add(sums[3])).sum();
            token += 1;
        }
    }
}

/// The next values in the places of the mask.
#[inline(always)]
fn spread<I: Isa>(values: &[f32], at: &mut usize, mask: u16) -> I::Lanes {
    let sixteen = values[*at..*at + BLOCK]
        .first_chunk()
        .expect("sixteen values");
    *at += mask.count_ones() as usize;
    I::Lanes::expand(sixteen, mask)
}

fn many_rows(y: &mut MatrixMut, x: Matrix, weight: &Sparse) {
    let [out, cols] = weight.dims();
    let tiles = x.rows.div_ceil(TILE);
    // Transposed in tiles, `[tiles, cols, TILE]`; the last one is filled up with zeros.
    let mut columns = vec![0.0; tiles * cols * TILE];
    columns
        .par_chunks_mut(cols * TILE)
        .enumerate()
        .for_each(|(tile, columns)| {
            let here = x.narrow_rows(tile * TILE, TILE.min(x.rows - tile * TILE));
            if here.has_dense_rows() {
                for token in 0..here.rows {
                    here.row(token)
                        .iter()
                        .enumerate()
                        .for_each(|(k, value)| columns[k * TILE + token] = *value);
                }
            } else {
                let across = here.t();
                (0..cols)
                    .for_each(|k| columns[k * TILE..][..here.rows].copy_from_slice(across.row(k)));
            }
        });
    let columns: &[[f32; TILE]] = columns.as_chunks().0;
    let shared = y.share();
    (0..out.div_ceil(GROUP)).into_par_iter().for_each(|group| {
        let rows = group * GROUP..(group * GROUP + GROUP).min(out);
        let places: Vec<Places> = rows.clone().map(|row| places(weight, row)).collect();
        for (tile, columns) in columns.chunks_exact(cols).enumerate() {
            let mut sums = [[0.0; TILE]; GROUP];
            for (chunk, columns) in columns.chunks(CHUNK * BLOCK).enumerate() {
                for ((sums, row), places) in sums.iter_mut().zip(rows.clone()).zip(&places) {
                    let here = places.starts[chunk]..places.starts[chunk + 1];
                    columns_times(
                        sums,
                        columns,
                        &places.columns[here.clone()],
                        &weight.values[weight.starts[row]..][here],
                    );
                }
            }
            for (token, row) in (tile * TILE..x.rows.min((tile + 1) * TILE)).enumerate() {
                let line: [f32; GROUP] = std::array::from_fn(|i| sums[i][token]);
                // SAFETY: each group has columns of its own.
                unsafe { shared.write(row, rows.start, &line[..rows.len()]) };
            }
        }
    });
}

/// Where a row has nonzeros.
struct Places {
    /// Their columns, counted from the start of their chunk.
    columns: Vec<u32>,
    /// Where the nonzeros of each chunk start, and where the last one's end.
    starts: Vec<usize>,
}

fn places(weight: &Sparse, row: usize) -> Places {
    let count = weight.starts[row + 1] - weight.starts[row];
    // Eight are written at a time.
    let mut columns = vec![0; count + 8];
    let (mut at, mut starts) = (0, Vec::with_capacity(weight.blocks().div_ceil(CHUNK) + 1));
    for chunk in weight.masks[row * weight.blocks()..][..weight.blocks()].chunks(CHUNK) {
        starts.push(at);
        at = chunk_places(&mut columns, at, chunk);
    }
    starts.push(at);
    columns.truncate(count);
    Places { columns, starts }
}

multiversion!(fn chunk_places(columns: &mut [u32], at: usize, masks: &[u16]) -> usize = chunk_places_body);

/// Writes the places of the bits of some masks from `at` on; where they end.
#[inline(always)]
fn chunk_places_body<I: Isa>(columns: &mut [u32], mut at: usize, masks: &[u16]) -> usize {
    for (block, mask) in masks.iter().enumerate() {
        for (half, byte) in mask.to_le_bytes().into_iter().enumerate() {
            let first = (block * BLOCK + 8 * half) as u32;
            let eight = PLACES[usize::from(byte)].map(|place| place + first);
            columns[at..at + 8].copy_from_slice(&eight);
            at += byte.count_ones() as usize;
        }
    }
    at
}

multiversion!(fn columns_times(out: &mut [f32; TILE], columns: &[[f32; TILE]], places: &[u32], values: &[f32]) = columns_times_body);

/// Adds the sum of columns times values, for the rows of a tile.
#[inline(always)]
fn columns_times_body<I: Isa>(
    out: &mut [f32; TILE],
    columns: &[[f32; TILE]],
    places: &[u32],
    values: &[f32],
) {
    let mut sums: [I::Lanes; TILE / LANES] =
        std::array::from_fn(|i| I::Lanes::load(&out.as_chunks().0[i]));
    for (place, value) in places.iter().zip(values) {
        let (column, value) = (
            columns[*place as usize].as_chunks().0,
            I::Lanes::splat(*value),
        );
        for (sum, column) in sums.iter_mut().zip(column) {
            *sum = value.mul_add(I::Lanes::load(column), *sum);
        }
    }
    out.as_chunks_mut()
        .0
        .iter_mut()
        .zip(sums)
        .for_each(|(out, sum)| sum.store(out));
}
