//! The backward pass: each head of each sequence recomputes its tiles.

use std::sync::Arc;

use burn::backend::flex::FlexTensor;
use rayon::prelude::*;

use super::super::matrix::{Matrix, MatrixMut, Shared, Threads, zeros};
use super::super::scratch::Scratch;
use super::super::tensor::tensor_of;
use super::bias::Bias;
use super::softmax::{RowState, dot_product, softmax_backward};
use super::task::{HeadTask, TILE_K, TILE_Q, pieces};
use crate::attention::AttentionSpec;

/// Kept for the backward pass beside q, k and v; the output is shared with what reads it next.
#[derive(Clone, Debug)]
pub(super) struct Saved {
    pub(super) output: FlexTensor,
    /// The logarithm of the sum of exponentials, `[tokens_q, num_heads]`.
    pub(super) lse: Arc<[f32]>,
    pub(super) spec: AttentionSpec,
}

/// The gradients of q, k, v and the bias, where wanted.
pub(super) fn backward(
    inputs: &[FlexTensor; 3],
    bias: Bias,
    saved: &Saved,
    grad: &FlexTensor,
    [for_q, for_k, for_v, for_bias]: [bool; 4],
) -> [Option<FlexTensor>; 4] {
    let spec = &saved.spec;
    let (heads, dim) = (spec.num_heads, spec.head_dim);
    let [q, k, v] = inputs.each_ref().map(Matrix::of);
    let (tokens_q, tokens_k) = (q.rows, k.rows);
    let buffer = |wanted: bool, tokens: usize| zeros(if wanted { tokens * heads * dim } else { 0 });
    // Keys and values get one gradient per query head first, so that no two tasks share memory.
    let (mut dq, mut dk, mut dv) = (
        buffer(for_q, tokens_q),
        buffer(for_k, tokens_k),
        buffer(for_v, tokens_k),
    );
    let [shared_q, shared_k, shared_v] = [
        Shared::new(&mut dq),
        Shared::new(&mut dk),
        Shared::new(&mut dv),
    ];
    let run = |task: &HeadTask, bias_grad: Option<&mut [f32]>| {
        // SAFETY: each task has its own rows or the columns of its own head.
        let gradients = unsafe {
            Gradients {
                q: for_q.then(|| task.columns(&shared_q, &task.queries, spec)),
                k: for_k.then(|| task.columns(&shared_k, &task.keys, spec)),
                v: for_v.then(|| task.columns(&shared_v, &task.keys, spec)),
                bias: bias_grad,
            }
        };
        head(gradients, task, [q, k, v], bias, saved, Matrix::of(grad));
    };
    let tasks = HeadTask::all(spec);
    let mut dbias = Vec::new();
    if for_bias && bias.head_len() > 0 {
        // The sequences of a head add to the same numbers, so they take turns.
        dbias = vec![0.0; heads * bias.head_len()];
        dbias
            .par_chunks_mut(bias.head_len())
            .enumerate()
            .with_max_len(1)
            .for_each(|(head, dbias)| {
                tasks
                    .iter()
                    .filter(|task| task.head == head)
                    .for_each(|task| run(task, Some(&mut *dbias)));
            });
    } else {
        tasks
            .par_iter()
            .with_max_len(1)
            .for_each(|task| run(task, None));
    }
    [
        for_q.then(|| tensor_of(dq, [tokens_q, heads * dim])),
        for_k.then(|| summed_groups(dk, tokens_k, spec)),
        for_v.then(|| summed_groups(dv, tokens_k, spec)),
        if for_bias {
            bias.gradient(dbias, spec)
        } else {
            None
        },
    ]
}

/// Where one head's gradients go.
struct Gradients<'a> {
    q: Option<MatrixMut<'a>>,
    k: Option<MatrixMut<'a>>,
    v: Option<MatrixMut<'a>>,
    /// The head's gradient of the bias.
    bias: Option<&'a mut [f32]>,
}

fn head(
    mut gradients: Gradients,
    task: &HeadTask,
    [q, k, v]: [Matrix; 3],
    bias: Bias,
    saved: &Saved,
    grad: Matrix,
) {
    let spec = &saved.spec;
    let (heads, dim) = (spec.num_heads, spec.head_dim);
    let kv_head = task.head * spec.num_kv_heads / heads;
    let output = Matrix::of(&saved.output);
    let mut buffers = Scratch::new(2 * TILE_Q * TILE_K);
    let (score_buffer, grad_buffer) = buffers.split_at_mut(TILE_Q * TILE_K);
    for rows in pieces(0..task.queries.len(), TILE_Q) {
        let first = task.queries.start + rows.start;
        let [q, output, grad] =
            [q, output, grad].map(|m| m.window(first, rows.len(), task.head * dim, dim));
        let state = |i: usize| RowState {
            lse: saved.lse[(first + i) * heads + task.head],
            delta: dot_product(output.row(i), grad.row(i)),
        };
        let states: Vec<RowState> = (0..rows.len()).map(state).collect();
        for keys in pieces(task.visible(&rows, spec), TILE_K) {
            let [k, v] = [k, v]
                .map(|m| m.window(task.keys.start + keys.start, keys.len(), kv_head * dim, dim));
            let size = rows.len() * keys.len();
            let (scores, grads) = (&mut score_buffer[..size], &mut grad_buffer[..size]);
            MatrixMut::new(scores, rows.len(), keys.len()).set(q, k.t(), spec.scale, Threads::One);
            MatrixMut::new(grads, rows.len(), keys.len()).set(grad, v.t(), 1.0, Threads::One);
            let tile_rows = scores
                .chunks_mut(keys.len())
                .zip(grads.chunks_mut(keys.len()));
            for (i, ((scores, grads), state)) in tile_rows.zip(&states).enumerate() {
                let query = rows.start + i;
                let bias_grad = gradients
                    .bias
                    .as_deref_mut()
                    .map(|of_head| bias.gradient_row(of_head, task, query, &keys));
                let bias = (bias.row(task, query, &keys), bias_grad);
                softmax_backward(
                    scores,
                    grads,
                    task.visible_in(query, &keys, spec),
                    *state,
                    spec,
                    bias,
                );
            }
            let [weights, grads] =
                [&*scores, &*grads].map(|data| Matrix::new(data, rows.len(), keys.len()));
            if let Some(dv) = &mut gradients.v {
                dv.narrow_rows(&keys)
                    .add(weights.t(), grad, 1.0, Threads::One);
            }
            if let Some(dk) = &mut gradients.k {
                dk.narrow_rows(&keys).add(grads.t(), q, 1.0, Threads::One);
            }
            if let Some(dq) = &mut gradients.q {
                dq.narrow_rows(&rows).add(grads, k, 1.0, Threads::One);
            }
        }
    }
}

/// Sums the gradients of the query heads that share a key head, `[tokens, heads * dim]` to
/// `[tokens, kv_heads * dim]`.
fn summed_groups(per_head: Vec<f32>, tokens: usize, spec: &AttentionSpec) -> FlexTensor {
    let (dim, width) = (spec.head_dim, spec.num_kv_heads * spec.head_dim);
    let group = spec.num_heads / spec.num_kv_heads;
    if group == 1 {
        return tensor_of(per_head, [tokens, width]);
    }
    let mut summed = vec![0.0; tokens * width];
    summed
        .par_chunks_mut(width)
        .zip(per_head.par_chunks(width * group))
        .with_min_len(16)
        .for_each(|(summed, per_head)| {
            for (summed, heads) in summed.chunks_mut(dim).zip(per_head.chunks(dim * group)) {
                for head in heads.chunks(dim) {
                    summed
                        .iter_mut()
                        .zip(head)
                        .for_each(|(sum, value)| *sum += value);
                }
            }
        });
    tensor_of(summed, [tokens, width])
}
