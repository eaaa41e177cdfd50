//! One new query of each sequence over its cached keys, read where they lie.

use half::f16;
use rayon::prelude::*;

use super::super::matrix::Matrix;
use super::forward::{merge, one_query};
use super::softmax::Running;
use crate::attention::AttentionSpec;
use crate::cache::{Block, GROUP, KeyValues};
use crate::simd::bytes::{Bytes, multiversion_bytes};
use crate::simd::{Isa, LANES, Lanes, multiversion};

/// Multiply-adds that are worth a thread.
const TASK_WORK: usize = 1 << 17;

/// The output `[sequences, num_heads * head_dim]` for q of the same shape.
pub(crate) fn attend(q: Matrix, cached: &[&KeyValues], spec: &AttentionSpec) -> Vec<f32> {
    let (dim, group) = (spec.head_dim, spec.num_heads / spec.num_kv_heads);
    let width = group * dim;
    let heads = cached.len() * spec.num_kv_heads;
    let work: usize = cached
        .iter()
        .map(|cache| cache.len() * spec.num_heads * dim)
        .sum();
    // A task is a block of the heads that share keys, so that few heads and one long sequence
    // occupy all threads.
    let tasks: Vec<(usize, usize)> = (0..heads)
        .flat_map(|head| {
            (0..cached[head / spec.num_kv_heads].keys.len()).map(move |block| (head, block))
        })
        .collect();
    let part = |&(head, block): &(usize, usize)| {
        let (sequence, kv_head) = (head / spec.num_kv_heads, head % spec.num_kv_heads);
        over_block(
            &q.row(sequence)[kv_head * width..][..width],
            cached[sequence],
            block,
            kv_head,
            spec,
        )
    };
    // A share for each thread: a task of its own for every block, a few microseconds long, costs
    // more than it evens out.
    let share = tasks.len().div_ceil(rayon::current_num_threads()).max(1);
    let parts: Vec<Vec<(Running, Vec<f32>)>> = if work < TASK_WORK {
        tasks.iter().map(part).collect()
    } else {
        tasks.par_iter().with_min_len(share).map(part).collect()
    };
    let mut output = vec![0.0; heads * width];
    let mut running = vec![Running::EMPTY; heads * group];
    // In the order of the blocks, whatever thread had them.
    for ((head, _), parts) in tasks.into_iter().zip(parts) {
        let (out, running) = (
            &mut output[head * width..][..width],
            &mut running[head * group..][..group],
        );
        for ((out, running), (part, total)) in out.chunks_mut(dim).zip(running).zip(parts) {
            merge(running, out, part, &total);
        }
    }
    for (out, running) in output.chunks_mut(dim).zip(running) {
        out.iter_mut().for_each(|value| *value /= running.sum);
    }
    output
}

/// What the heads that share keys find in one block; nothing where they see none of it.
fn over_block(
    q: &[f32],
    cached: &KeyValues,
    block: usize,
    kv_head: usize,
    spec: &AttentionSpec,
) -> Vec<(Running, Vec<f32>)> {
    let (dim, width) = (spec.head_dim, spec.num_kv_heads * spec.head_dim);
    let visible = spec.visible(0, 1, cached.len());
    let held = cached.positions_of(block);
    let rows = visible.start.max(held.start)..visible.end.min(held.end);
    if rows.is_empty() {
        return Vec::new();
    }
    let (mut keys, mut values) = (Vec::new(), Vec::new());
    let (_, first) = cached.place(rows.start);
    let k = piece(
        &cached.keys[block],
        &mut keys,
        width,
        first,
        rows.len(),
        kv_head * dim,
        dim,
    );
    let v = piece(
        &cached.values()[block],
        &mut values,
        width,
        first,
        rows.len(),
        kv_head * dim,
        dim,
    );
    q.chunks(dim)
        .map(|q| one_query(q, k, v, None, spec))
        .collect()
}

/// Some rows and columns of a block, in single precision.
fn piece<'a>(
    block: &'a Block,
    space: &'a mut Vec<f32>,
    width: usize,
    row: usize,
    rows: usize,
    col: usize,
    cols: usize,
) -> Matrix<'a> {
    match block {
        Block::F32(values) => {
            Matrix::new(values, values.len() / width, width).window(row, rows, col, cols)
        }
        Block::F16(values) => {
            space.resize(rows * cols, 0.0);
            for (out, row) in space.chunks_mut(cols).zip(values.chunks(width).skip(row)) {
                widen(out, &row[col..][..cols]);
            }
            Matrix::new(space, rows, cols)
        }
        Block::Int8(codes, scales) => {
            space.resize(rows * cols, 0.0);
            let lines = codes
                .chunks(width)
                .zip(scales.chunks(width.div_ceil(GROUP)))
                .skip(row);
            for (out, (codes, scales)) in space.chunks_mut(cols).zip(lines) {
                unpack(out, &codes[col..][..cols], scales, col);
            }
            Matrix::new(space, rows, cols)
        }
    }
}

/// Codes of a row from column `col` on times the scales of their groups.
fn unpack(mut out: &mut [f32], mut codes: &[i8], scales: &[f16], mut col: usize) {
    while !codes.is_empty() {
        let (group, count) = (col / GROUP, (GROUP - col % GROUP).min(codes.len()));
        let (out_group, out_rest) = out.split_at_mut(count);
        scale_codes(out_group, &codes[..count], scales[group].to_f32());
        (out, codes, col) = (out_rest, &codes[count..], col + count);
    }
}

multiversion!(fn scale_codes(out: &mut [f32], codes: &[i8], scale: f32) = scale_codes_body);

#[inline(always)]
fn scale_codes_body<I: Isa>(out: &mut [f32], codes: &[i8], scale: f32) {
    for (out, code) in out.iter_mut().zip(codes) {
        *out = f32::from(*code) * scale;
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
    out_rest
        .iter_mut()
        .zip(rest)
        .for_each(|(out, half)| *out = half.to_f32());
}
