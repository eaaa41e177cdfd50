//! One new query of each sequence over its cached keys, read where they lie.

use half::f16;
use rayon::prelude::*;

use super::super::matrix::Matrix;
use super::forward::{merge, one_query};
use super::softmax::Running;
use crate::attention::AttentionSpec;
use crate::cache::{BLOCK, Block, KeyValues};
use crate::simd::bytes::{Bytes, multiversion_bytes};
use crate::simd::{LANES, Lanes};

/// Multiply-adds that are worth a thread.
const TASK_WORK: usize = 1 << 17;

/// The output `[sequences, num_heads * head_dim]` for q of the same shape.
pub(crate) fn attend(q: Matrix, cached: &[&KeyValues], spec: &AttentionSpec) -> Vec<f32> {
    let (dim, group) = (spec.head_dim, spec.num_heads / spec.num_kv_heads);
    let mut output = vec![0.0; q.rows * spec.num_heads * dim];
    let work: usize = cached.iter().map(|cache| cache.len() * spec.num_heads * dim).sum();
    let head = |(task, out): (usize, &mut [f32])| {
        let (sequence, kv_head) = (task / spec.num_kv_heads, task % spec.num_kv_heads);
        let q = &q.row(sequence)[kv_head * group * dim..][..group * dim];
        group_of_heads(out, q, cached[sequence], kv_head, spec);
    };
    let width = group * dim;
    if work < TASK_WORK {
        output.chunks_mut(width).enumerate().for_each(head);
    } else {
        output.par_chunks_mut(width).enumerate().with_max_len(1).for_each(head);
    }
    output
}

/// The heads that share keys, over these block by block.
fn group_of_heads(out: &mut [f32], q: &[f32], cached: &KeyValues, kv_head: usize, spec: &AttentionSpec) {
    let (dim, width) = (spec.head_dim, spec.num_kv_heads * spec.head_dim);
    let visible = spec.visible(0, 1, cached.len());
    let mut running = vec![Running::EMPTY; q.len() / dim];
    let (mut keys, mut values) = (Vec::new(), Vec::new());
    for (i, (k, v)) in cached.keys.iter().zip(cached.values()).enumerate() {
        let rows = visible.start.max(i * BLOCK)..visible.end.min((i + 1) * BLOCK);
        if rows.is_empty() {
            continue;
        }
        let (first, count) = (rows.start - i * BLOCK, rows.len());
        let k = piece(k, &mut keys, width, first, count, kv_head * dim, dim);
        let v = piece(v, &mut values, width, first, count, kv_head * dim, dim);
        for ((q, out), running) in q.chunks(dim).zip(out.chunks_mut(dim)).zip(&mut running) {
            let (part, total) = one_query(q, k, v, spec);
            merge(running, out, part, &total);
        }
    }
    for (out, running) in out.chunks_mut(dim).zip(running) {
        out.iter_mut().for_each(|value| *value /= running.sum);
    }
}

/// Some rows and columns of a block, in single precision.
fn piece<'a>(block: &'a Block, space: &'a mut Vec<f32>, width: usize, row: usize, rows: usize, col: usize, cols: usize) -> Matrix<'a> {
    match block {
        Block::F32(values) => Matrix::new(values, values.len() / width, width).window(row, rows, col, cols),
        Block::F16(values) => {
            space.resize(rows * cols, 0.0);
            for (out, row) in space.chunks_mut(cols).zip(values.chunks(width).skip(row)) {
                widen(out, &row[col..][..cols]);
            }
            Matrix::new(space, rows, cols)
        }
    }
}

multiversion_bytes!(fn widen<>(out: &mut [f32], halves: &[f16]) = widen_body);

#[inline(always)]
fn widen_body<B: Bytes>(out: &mut [f32], halves: &[f16]) {
    let (blocks, rest) = halves.as_chunks::<LANES>();
    let (out_blocks, out_rest) = out.as_chunks_mut::<LANES>();
    for (out, halves) in out_blocks.iter_mut().zip(blocks) {
        B::halves(halves).store(out);
    }
    out_rest.iter_mut().zip(rest).for_each(|(out, half)| *out = half.to_f32());
}
