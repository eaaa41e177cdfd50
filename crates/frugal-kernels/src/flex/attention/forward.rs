//! The forward pass, by tiles of queries; one query alone goes over the keys directly.

use std::ops::Range;

use burn::backend::flex::FlexTensor;
use rayon::prelude::*;

use super::super::matrix::{Matrix, MatrixMut, Shared, Threads, zeros};
use super::super::scratch::Scratch;
use super::super::tensor::tensor_of;
use super::bias::Bias;
use super::softmax::{Running, online_softmax, scale_row};
use super::task::{HeadTask, TILE_K, TILE_Q, pieces};
use crate::attention::AttentionSpec;
use crate::simd::{Isa, LANES, Lanes, dot, dots, mul_add, multiversion};

/// Keys that one task of the single-query path handles.
const SPLIT: usize = 1024;

/// The output, and the logarithm of the sum of exponentials of each query and head.
pub(super) fn forward(
    q: Matrix,
    k: Matrix,
    v: Matrix,
    bias: Bias,
    spec: &AttentionSpec,
) -> (FlexTensor, Vec<f32>) {
    let (heads, dim) = (spec.num_heads, spec.head_dim);
    let mut output = zeros(q.rows * heads * dim);
    let mut lse = vec![0.0; q.rows * heads];
    let (shared_output, shared_lse) = (Shared::new(&mut output), Shared::new(&mut lse));
    let (single, tiled): (Vec<_>, Vec<_>) = HeadTask::all(spec)
        .into_iter()
        .partition(|task| task.queries.len() == 1);

    let tiles: Vec<(HeadTask, Range<usize>)> = tiled
        .into_iter()
        .flat_map(|task| {
            pieces(0..task.queries.len(), TILE_Q).map(move |rows| (task.clone(), rows))
        })
        .collect();
    tiles
        .into_par_iter()
        .with_max_len(1)
        .for_each(|(task, rows)| {
            let first = task.queries.start + rows.start;
            // SAFETY: the tiles are disjoint in rows or in the columns of their head.
            let mut out =
                unsafe { task.columns(&shared_output, &(first..first + rows.len()), spec) };
            let running = tile(&mut out, &task, &rows, [q, k, v], bias, spec);
            for (i, running) in running.iter().enumerate() {
                // SAFETY: each tile has its own rows and head, so that no other writes this element.
                unsafe { shared_lse.write((first + i) * heads + task.head, running.lse()) };
            }
        });

    for (task, running, total) in single_queries(&single, [q, k, v], bias, spec) {
        let row = task.queries.start * heads + task.head;
        lse[row] = running.lse();
        output[row * dim..][..dim]
            .iter_mut()
            .zip(total)
            .for_each(|(out, value)| *out = value / running.sum);
    }
    (tensor_of(output, [q.rows, heads * dim]), lse)
}

/// The output of some queries of one head.
fn tile(
    out: &mut MatrixMut,
    task: &HeadTask,
    rows: &Range<usize>,
    [q, k, v]: [Matrix; 3],
    bias: Bias,
    spec: &AttentionSpec,
) -> Vec<Running> {
    let dim = spec.head_dim;
    let kv_head = task.head * spec.num_kv_heads / spec.num_heads;
    let q = q.window(
        task.queries.start + rows.start,
        rows.len(),
        task.head * dim,
        dim,
    );
    let mut running = vec![Running::EMPTY; rows.len()];
    let mut scores = Scratch::new(rows.len() * TILE_K);
    let mut total = Scratch::zeros(rows.len() * dim);
    for keys in pieces(task.visible(rows, spec), TILE_K) {
        let scores = &mut scores[..rows.len() * keys.len()];
        let [k, v] =
            [k, v].map(|m| m.window(task.keys.start + keys.start, keys.len(), kv_head * dim, dim));
        MatrixMut::new(scores, rows.len(), keys.len()).set(q, k.t(), spec.scale, Threads::One);
        let totals = total.chunks_mut(dim);
        for (i, ((scores, total), running)) in scores
            .chunks_mut(keys.len())
            .zip(totals)
            .zip(&mut running)
            .enumerate()
        {
            let visible = task.visible_in(rows.start + i, &keys, spec);
            let factor = online_softmax(
                scores,
                visible,
                spec.softcap,
                bias.row(task, rows.start + i, &keys),
                running,
            );
            if factor != 1.0 {
                scale_row(total, factor);
            }
        }
        MatrixMut::new(&mut total, rows.len(), dim).add(
            Matrix::new(scores, rows.len(), keys.len()),
            v,
            1.0,
            Threads::One,
        );
    }
    for (i, (total, running)) in total.chunks_mut(dim).zip(&running).enumerate() {
        scale_row(total, running.sum.recip());
        out.row_mut(i).copy_from_slice(total);
    }
    running
}

/// The running softmax and the unnormalised output of each head of sequences with one query.
fn single_queries<'a>(
    tasks: &'a [HeadTask],
    inputs: [Matrix; 3],
    bias: Bias,
    spec: &AttentionSpec,
) -> Vec<(&'a HeadTask, Running, Vec<f32>)> {
    // The heads that share keys go together over a piece of the keys, which stays in the cache.
    let groups: Vec<(&[HeadTask], Range<usize>)> = tasks
        .chunks(spec.num_heads / spec.num_kv_heads)
        .flat_map(|group| {
            pieces(group[0].visible(&(0..1), spec), SPLIT).map(move |keys| (group, keys))
        })
        .collect();
    let piece = |(group, keys): &(&'a [HeadTask], Range<usize>)| -> Vec<_> {
        group
            .iter()
            .map(|task| single_query(task, keys, inputs, bias, spec))
            .collect()
    };
    // Entering the thread pool costs more than a short cache.
    let work: usize = groups
        .iter()
        .map(|(group, keys)| group.len() * keys.len() * spec.head_dim)
        .sum();
    let pieces: Vec<_> = if work < 1 << 17 {
        groups.iter().map(piece).collect()
    } else {
        groups.par_iter().with_max_len(1).map(piece).collect()
    };
    let mut results: Vec<(&HeadTask, Running, Vec<f32>)> = Vec::with_capacity(tasks.len());
    for ((group, _), parts) in groups.iter().zip(pieces) {
        let started = results
            .len()
            .checked_sub(group.len())
            .filter(|&first| std::ptr::eq(results[first].0, &group[0]));
        match started {
            Some(first) => {
                for ((_, running, total), (other, values)) in results[first..].iter_mut().zip(parts)
                {
                    merge(running, total, other, &values);
                }
            }
            None => results.extend(
                group
                    .iter()
                    .zip(parts)
                    .map(|(task, (running, total))| (task, running, total)),
            ),
        }
    }
    results
}

/// One query over some of its keys: the running softmax and the unnormalised output.
fn single_query(
    task: &HeadTask,
    keys: &Range<usize>,
    [q, k, v]: [Matrix; 3],
    bias: Bias,
    spec: &AttentionSpec,
) -> (Running, Vec<f32>) {
    let dim = spec.head_dim;
    let kv_head = task.head * spec.num_kv_heads / spec.num_heads;
    let q = &q.row(task.queries.start)[task.head * dim..][..dim];
    let [k, v] =
        [k, v].map(|m| m.window(task.keys.start + keys.start, keys.len(), kv_head * dim, dim));
    one_query(q, k, v, bias.row(task, 0, keys), spec)
}

/// One query of one head over keys that it sees all: the running softmax and the unnormalised
/// output.
pub(super) fn one_query(
    q: &[f32],
    k: Matrix,
    v: Matrix,
    bias: Option<&[f32]>,
    spec: &AttentionSpec,
) -> (Running, Vec<f32>) {
    let mut scores = vec![0.0; k.rows];
    query_scores(&mut scores, q, k, spec.scale);
    let mut running = Running::EMPTY;
    online_softmax(&mut scores, 0..k.rows, spec.softcap, bias, &mut running);
    let mut total = vec![0.0; v.cols];
    weighted_sum(&mut total, &scores, v);
    (running, total)
}

/// Adds another part of the same row's softmax.
pub(super) fn merge(running: &mut Running, total: &mut [f32], other: Running, values: &[f32]) {
    let max = running.max.max(other.max);
    if max == f32::NEG_INFINITY {
        return;
    }
    let (mine, theirs) = ((running.max - max).exp(), (other.max - max).exp());
    *running = Running {
        max,
        sum: running.sum * mine + other.sum * theirs,
    };
    total
        .iter_mut()
        .zip(values)
        .for_each(|(total, value)| *total = *total * mine + value * theirs);
}

multiversion!(fn query_scores(scores: &mut [f32], q: &[f32], k: Matrix<'_>, scale: f32) = query_scores_body);

#[inline(always)]
fn query_scores_body<I: Isa>(scores: &mut [f32], q: &[f32], k: Matrix, scale: f32) {
    let (quads, rest) = scores.as_chunks_mut::<4>();
    for (i, quad) in quads.iter_mut().enumerate() {
        let keys = std::array::from_fn::<_, 4, _>(|j| k.row(4 * i + j));
        *quad = dots::<I, 4>(keys, q).map(|score| score * scale);
    }
    let start = k.rows - rest.len();
    for (i, score) in rest.iter_mut().enumerate() {
        *score = dot::<I>(k.row(start + i), q) * scale;
    }
}

multiversion!(fn weighted_sum(total: &mut [f32], weights: &[f32], v: Matrix<'_>) = weighted_sum_body);

#[inline(always)]
fn weighted_sum_body<I: Isa>(total: &mut [f32], weights: &[f32], v: Matrix) {
    let (quads, rest) = total.as_chunks_mut::<{ 4 * LANES }>();
    for (i, quad) in quads.iter_mut().enumerate() {
        let mut sums = [I::Lanes::splat(0.0); 4];
        for (row, weight) in weights.iter().enumerate() {
            let (values, _) = v.row(row)[i * 4 * LANES..][..4 * LANES].as_chunks::<LANES>();
            let weight = I::Lanes::splat(*weight);
            for (sum, values) in sums.iter_mut().zip(values) {
                *sum = I::Lanes::load(values).mul_add(weight, *sum);
            }
        }
        for (sum, out) in sums.iter().zip(quad.as_chunks_mut::<LANES>().0) {
            sum.store(out);
        }
    }
    let start = v.cols - rest.len();
    for (row, weight) in weights.iter().enumerate() {
        for (total, value) in rest.iter_mut().zip(&v.row(row)[start..]) {
            *total = mul_add::<I>(*weight, *value, *total);
        }
    }
}
