//! Selective scan, sixteen channels at a time: their states lie in vectors, one for each number of a
//! state, so that nothing is summed across a vector in the forward pass.

mod backward;
mod forward;
mod inputs;

use std::sync::Arc;

use burn::backend::flex::FlexTensor;
use burn::tensor::Tensor;
use rayon::prelude::*;

use super::matrix::{Matrix, MatrixMut, build_matrix};
use super::record::{Op, Operand, record};
use super::tensor::{dense_rows, tensor_of};
use crate::save_policy::Cost;
use crate::selective_scan::SelectiveScan;
use crate::simd::LANES;
use inputs::{Block, CHUNK, Dense, INPUTS, Inputs};

/// Groups of channels that the backward pass sums gradients of b and c for.
const MAX_GROUPS: usize = 16;

/// What the backward pass needs beside the inputs.
#[derive(Clone, Debug)]
struct Saved {
    /// States at the beginning of each chunk, `[chunks * d_state, d_inner]`.
    kept: Arc<Vec<f32>>,
    cu_seqlens: Arc<[usize]>,
    softplus: bool,
    with_state: bool,
}

/// [`selective_scan`](crate::selective_scan()) on Flex, `[tokens, d_inner]`; `with_state`, the last
/// states follow as `[sequences * d_state]` further rows.
pub(crate) fn selective_scan(scan: &SelectiveScan, with_state: bool) -> Option<Tensor<2>> {
    let inputs = [&scan.x, &scan.delta, &scan.a, &scan.b, &scan.c].map(Operand::new);
    let [x, delta, a, b, c] = inputs;
    let (x, delta, a, b, c) = (x?, delta?, a?, b?, c?);
    let (d, z) = (
        Operand::optional(scan.d.as_ref())?,
        Operand::optional(scan.z.as_ref())?,
    );
    let (bias, initial) = (
        Operand::optional(scan.delta_bias.as_ref())?,
        Operand::optional(scan.initial_state.as_ref())?,
    );
    let (cu_seqlens, softplus) = (scan.cu_seqlens.clone(), scan.softplus);
    let op = Op {
        cost: Cost::Never,
        reads: |wanted| [wanted.contains(&true); INPUTS],
        forward: move |inputs: &[Option<FlexTensor>; INPUTS], wanted: [bool; INPUTS]| {
            let dense = Dense::of(inputs).expect("the first five inputs are never absent");
            let inputs = dense.view(softplus);
            let keep = wanted.contains(&true);
            let (output, kept) = forward_pass(&inputs, &cu_seqlens, with_state, keep);
            let saved = Saved {
                kept,
                cu_seqlens: cu_seqlens.clone(),
                softplus,
                with_state,
            };
            (output, saved)
        },
        backward: backward_pass,
    };
    Some(record(
        [
            Some(&x),
            Some(&delta),
            Some(&a),
            Some(&b),
            Some(&c),
            d.as_ref(),
            z.as_ref(),
            bias.as_ref(),
            initial.as_ref(),
        ],
        op,
    ))
}

/// Number of the first chunk of each sequence, and of all chunks behind.
fn first_chunks(cu_seqlens: &[usize]) -> Vec<usize> {
    let mut firsts = vec![0];
    for w in cu_seqlens.windows(2) {
        firsts.push(firsts[firsts.len() - 1] + (w[1] - w[0]).div_ceil(CHUNK));
    }
    firsts
}

fn forward_pass(
    inputs: &Inputs<'_>,
    cu_seqlens: &[usize],
    with_state: bool,
    keep: bool,
) -> (FlexTensor, Arc<Vec<f32>>) {
    let (tokens, width, d_state) = (inputs.x.rows, inputs.x.cols, inputs.d_state);
    let (sequences, blocks) = (cu_seqlens.len() - 1, width.div_ceil(LANES));
    let firsts = first_chunks(cu_seqlens);
    let tasks: Vec<forward::Task> = (0..sequences)
        .flat_map(|sequence| (0..blocks).map(move |block| (sequence, block)))
        .map(|(sequence, block)| forward::Task {
            sequence,
            rows: cu_seqlens[sequence]..cu_seqlens[sequence + 1],
            block,
            first_chunk: firsts[sequence],
        })
        .collect();
    let rows = tokens + if with_state { sequences * d_state } else { 0 };
    let kept_rows = if keep { firsts[sequences] * d_state } else { 0 };
    let mut output = Vec::new();
    let fill_kept = |mut kept: MatrixMut<'_>| {
        let kept = keep.then(|| kept.share());
        let fill = |mut y: MatrixMut<'_>| {
            let y = y.share();
            // Below this many steps a task is not worth a thread.
            let least = (64 * sequences).div_ceil(tokens.max(1)).max(1);
            tasks.par_iter().with_min_len(least).for_each_init(
                || vec![[0.0; LANES]; d_state],
                |h: &mut Vec<Block>, task| {
                    forward::run(task, inputs, h, &y, kept.as_ref());
                    if with_state {
                        let first = tokens + task.sequence * d_state;
                        forward::put_state(&y, first, inputs.channels(task.block), h);
                    }
                },
            );
        };
        // SAFETY: the tasks are all channels of all sequences, whose rows are all rows.
        output = unsafe { build_matrix(rows, width, fill) };
    };
    // SAFETY: the tasks write the states of all channels at the beginning of all chunks.
    let kept = unsafe { build_matrix(kept_rows, width, fill_kept) };
    (tensor_of(output, [rows, width]), Arc::new(kept))
}

fn backward_pass(
    inputs: [Option<FlexTensor>; INPUTS],
    saved: Saved,
    grad: FlexTensor,
    wanted: [bool; INPUTS],
    _waiting: &mut [Option<FlexTensor>; INPUTS],
) -> [Option<FlexTensor>; INPUTS] {
    let Some(dense) = Dense::of(&inputs) else {
        return [const { None }; INPUTS];
    };
    let inputs = dense.view(saved.softplus);
    let (tokens, width, d_state) = (inputs.x.rows, inputs.x.cols, inputs.d_state);
    let cu = &saved.cu_seqlens;
    let (sequences, blocks) = (cu.len() - 1, width.div_ceil(LANES));
    let grad = dense_rows(&grad);
    let grad = Matrix::of(&grad);
    let firsts = first_chunks(cu);
    let behind = backward::Behind {
        kept: Matrix::new(&saved.kept, firsts[sequences] * d_state, width),
        grad: grad.narrow_rows(0, tokens),
        last: saved
            .with_state
            .then(|| grad.narrow_rows(tokens, sequences * d_state)),
    };
    // Fixed by the shapes, so that sums do not depend on the threads.
    let per_group = blocks.div_ceil(MAX_GROUPS).max(1);
    let groups = blocks.div_ceil(per_group);
    let tasks: Vec<backward::Task> = (0..sequences)
        .flat_map(|sequence| (0..groups).map(move |group| (sequence, group)))
        .map(|(sequence, group)| backward::Task {
            sequence,
            rows: cu[sequence]..cu[sequence + 1],
            blocks: group * per_group..((group + 1) * per_group).min(blocks),
            group,
            first_chunk: firsts[sequence],
        })
        .collect();
    let states = sequences * d_state;
    let mut like_x = [(); 3].map(|()| vec![0.0; tokens * width]);
    let decays = inputs.decays;
    let mut dinitial = vec![0.0; states * width];
    let mut da = vec![0.0; sequences * decays * width];
    let mut dbc = vec![0.0; groups * tokens * 2 * d_state];
    let mut vectors = vec![0.0; 2 * sequences * width];
    {
        let [dx, ddelta, dz] = &mut like_x;
        let mut views = [
            MatrixMut::new(dx, tokens, width),
            MatrixMut::new(ddelta, tokens, width),
            MatrixMut::new(dz, tokens, width),
            MatrixMut::new(&mut da, sequences * decays, width),
            MatrixMut::new(&mut dbc, groups * tokens, 2 * d_state),
            MatrixMut::new(&mut vectors, 2 * sequences, width),
            MatrixMut::new(&mut dinitial, states, width),
        ];
        let [x, delta, z, a, bc, vectors, initial] = views.each_mut().map(MatrixMut::share);
        let to = backward::Gradients {
            x,
            delta,
            z: inputs.z.map(|_| z),
            a,
            bc,
            vectors,
            initial,
        };
        tasks.par_iter().for_each(|task| {
            let mut memory = backward::Memory::new([d_state, decays], task.blocks.len());
            backward::run(task, &inputs, &behind, &to, &mut memory);
        });
    }
    let [dx, ddelta, dz] = like_x;
    let [
        for_x,
        for_delta,
        for_a,
        for_b,
        for_c,
        for_d,
        for_z,
        for_bias,
        for_initial,
    ] = wanted;
    // The gradient of a, transposed.
    let summed = sum_blocks(&da, decays * width);
    let a_by_channel = Matrix::new(&summed, decays, width).t().to_rows();
    let summed = sum_blocks(&dbc, tokens * 2 * d_state);
    let both = Matrix::new(&summed, tokens, 2 * d_state);
    let side = |from: usize| {
        let part = both.window(0, tokens, from, d_state).to_rows();
        tensor_of(part, [tokens, d_state])
    };
    let vectors = sum_blocks(&vectors, 2 * width);
    let vector = |side: usize| tensor_of(vectors[side * width..][..width].to_vec(), [width]);
    [
        for_x.then(|| tensor_of(dx, [tokens, width])),
        for_delta.then(|| tensor_of(ddelta, [tokens, width])),
        for_a.then(|| tensor_of(a_by_channel, [width, decays])),
        for_b.then(|| side(0)),
        for_c.then(|| side(d_state)),
        for_d.then(|| vector(0)),
        for_z.then(|| tensor_of(dz, [tokens, width])),
        for_bias.then(|| vector(1)),
        for_initial.then(|| tensor_of(dinitial, [states, width])),
    ]
}

/// The sum of the blocks of `len` that `values` holds, in order.
fn sum_blocks(values: &[f32], len: usize) -> Vec<f32> {
    let mut sum = vec![0.0; len];
    if len == 0 {
        return sum;
    }
    for block in values.chunks_exact(len) {
        sum.iter_mut()
            .zip(block)
            .for_each(|(sum, value)| *sum += value);
    }
    sum
}
