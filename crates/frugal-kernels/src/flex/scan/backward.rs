//! The recurrence from back to front. The states of a chunk are computed again from the one at its
//! beginning, so that memory is that of one chunk and one state for each.

use std::ops::Range;

use super::forward::{put, put_state};
use super::inputs::{Block, CHUNK, Inputs, gate, lanes};
use crate::flex::matrix::{Matrix, SharedMatrix};
use crate::simd::{Isa, LANES, Lanes, exp_lanes, multiversion, sigmoid_lanes};

/// Some blocks of channels of one sequence.
#[derive(Clone)]
pub(super) struct Task {
    pub(super) sequence: usize,
    pub(super) rows: Range<usize>,
    pub(super) blocks: Range<usize>,
    /// Place among the groups of blocks of the sequence.
    pub(super) group: usize,
    pub(super) first_chunk: usize,
}

/// What comes from behind.
pub(super) struct Behind<'a> {
    /// States at the beginning of each chunk, `[chunks * d_state, d_inner]`.
    pub(super) kept: Matrix<'a>,
    /// Gradient of the outputs, `[tokens, d_inner]`.
    pub(super) grad: Matrix<'a>,
    /// That of the last states, `[sequences * d_state, d_inner]`.
    pub(super) last: Option<Matrix<'a>>,
}

/// Where the gradients go. What several tasks add to is written apart and summed by the caller.
pub(super) struct Gradients<'a> {
    pub(super) x: SharedMatrix<'a>,
    pub(super) delta: SharedMatrix<'a>,
    pub(super) z: Option<SharedMatrix<'a>>,
    /// `[sequences * decays, d_inner]`.
    pub(super) a: SharedMatrix<'a>,
    /// `[groups * tokens, 2 * d_state]`: of b, then of c.
    pub(super) bc: SharedMatrix<'a>,
    /// `[2 * sequences, d_inner]`: of d, then of the bias of the steps.
    pub(super) vectors: SharedMatrix<'a>,
    /// `[sequences * d_state, d_inner]`.
    pub(super) initial: SharedMatrix<'a>,
}

/// Memory of a task.
pub(super) struct Memory {
    /// States before each token of a chunk and behind the last, `[CHUNK + 1, d_state]`.
    h: Vec<Block>,
    /// `[CHUNK, decays]`.
    decay: Vec<Block>,
    /// Gradients of b and c by channel within a block, `[CHUNK, d_state]` each.
    db: Vec<Block>,
    dc: Vec<Block>,
    /// Gradient of the state, `[blocks, d_state]`.
    dh: Vec<Block>,
    /// `[blocks, decays]`.
    da: Vec<Block>,
    /// `[blocks]`: gradients of d and of the bias.
    sums: Vec<[Block; 2]>,
    /// Outputs before the gate, `[CHUNK]`.
    y: Vec<Block>,
}

impl Memory {
    pub(super) fn new([d_state, decays]: [usize; 2], blocks: usize) -> Self {
        let zeros = |len: usize| vec![[0.0; LANES]; len];
        Self {
            h: zeros((CHUNK + 1) * d_state),
            decay: zeros(CHUNK * decays),
            db: zeros(CHUNK * d_state),
            dc: zeros(CHUNK * d_state),
            dh: zeros(blocks * d_state),
            da: zeros(blocks * decays),
            sums: vec![[[0.0; LANES]; 2]; blocks],
            y: zeros(CHUNK),
        }
    }
}

/// The gradients of a task's channels.
pub(super) fn run(
    task: &Task,
    inputs: &Inputs<'_>,
    behind: &Behind<'_>,
    to: &Gradients<'_>,
    memory: &mut Memory,
) {
    let d_state = inputs.d_state;
    if let Some(last) = behind.last {
        for (i, block) in task.blocks.clone().enumerate() {
            let at = inputs.channels(block);
            for n in 0..d_state {
                let row = last.row(task.sequence * d_state + n);
                memory.dh[i * d_state + n][..at.count]
                    .copy_from_slice(&row[at.first..at.first + at.count]);
            }
        }
    }
    let chunks = task.rows.len().div_ceil(CHUNK);
    for chunk in (0..chunks).rev() {
        let start = task.rows.start + chunk * CHUNK;
        let tokens = start..(start + CHUNK).min(task.rows.end);
        memory.db.fill([0.0; LANES]);
        memory.dc.fill([0.0; LANES]);
        for (i, block) in task.blocks.clone().enumerate() {
            let part = Part {
                tokens: tokens.clone(),
                block,
                place: i,
                kept_row: (task.first_chunk + chunk) * d_state,
            };
            chunk_of_block(&part, inputs, behind, to, memory);
        }
        let first_row = task.group * inputs.x.rows;
        for (i, token) in tokens.enumerate() {
            for (side, sums) in [&memory.db, &memory.dc].into_iter().enumerate() {
                let sums = &sums[i * d_state..][..d_state];
                put_sums(&to.bc, first_row + token, side * d_state, sums);
            }
        }
    }
    for (i, block) in task.blocks.clone().enumerate() {
        let at = inputs.channels(block);
        let of = |width: usize| (task.sequence * width, i * width..(i + 1) * width);
        let (first, own) = of(inputs.decays);
        put_state(&to.a, first, at, &memory.da[own]);
        let (first, own) = of(d_state);
        put_state(&to.initial, first, at, &memory.dh[own]);
        for (side, sums) in memory.sums[i].iter().enumerate() {
            put(&to.vectors, 2 * task.sequence + side, at, sums);
        }
    }
}

/// Writes the sum of each block.
fn put_sums(to: &SharedMatrix<'_>, row: usize, col: usize, blocks: &[Block]) {
    for (n, lanes) in blocks.iter().enumerate() {
        let mut half = LANES / 2;
        let mut lanes = *lanes;
        while half > 0 {
            for i in 0..half {
                lanes[i] += lanes[i + half];
            }
            half /= 2;
        }
        // SAFETY: each task has rows of its own group and sequence.
        unsafe { to.write(row, col + n, &lanes[..1]) };
    }
}

/// One chunk of one block.
struct Part {
    tokens: Range<usize>,
    block: usize,
    /// Its place among the blocks of the task.
    place: usize,
    /// Row of the first number of its first state.
    kept_row: usize,
}

multiversion!(
    fn chunk_of_block(
        part: &Part,
        inputs: &Inputs<'_>,
        behind: &Behind<'_>,
        to: &Gradients<'_>,
        memory: &mut Memory,
    ) = chunk_of_block_body
);

#[inline(always)]
fn chunk_of_block_body<I: Isa>(
    part: &Part,
    inputs: &Inputs<'_>,
    behind: &Behind<'_>,
    to: &Gradients<'_>,
    memory: &mut Memory,
) {
    let Part {
        block,
        place,
        kept_row,
        ..
    } = *part;
    let (d_state, decays) = (inputs.d_state, inputs.decays);
    let at = inputs.channels(block);
    let a = inputs.decay(block);
    let (skip, bias) = (inputs.skip::<I>(at), inputs.delta_bias::<I>(at));
    for n in 0..d_state {
        lanes::<I>(behind.kept.row(kept_row + n), at).store(&mut memory.h[n]);
    }
    for (i, token) in part.tokens.clone().enumerate() {
        let step = inputs.step::<I>(token, at, bias);
        let input = step.delta.mul(step.x);
        let (b, c) = (inputs.b.row(token), inputs.c.row(token));
        let (before, after) = memory.h[i * d_state..].split_at_mut(d_state);
        let kept = &mut memory.decay[i * decays..][..decays];
        for (kept, a) in kept.iter_mut().zip(a) {
            exp_lanes(step.delta.mul(I::Lanes::load(a))).store(kept);
        }
        let mut sum = step.x.mul(skip);
        for n in 0..d_state {
            let decay = I::Lanes::load(&kept[if decays == 1 { 0 } else { n }]);
            let next = decay.mul_add(I::Lanes::load(&before[n]), input.mul(I::Lanes::splat(b[n])));
            next.store(&mut after[n]);
            sum = next.mul_add(I::Lanes::splat(c[n]), sum);
        }
        sum.store(&mut memory.y[i]);
    }
    let dh = &mut memory.dh[place * d_state..][..d_state];
    let da = &mut memory.da[place * decays..][..decays];
    let [mut dskip, mut dbias] = memory.sums[place].map(|sum| I::Lanes::load(&sum));
    let mut out = [0.0; LANES];
    for (i, token) in part.tokens.clone().enumerate().rev() {
        let step = inputs.step::<I>(token, at, bias);
        let input = step.delta.mul(step.x);
        let mut grad = lanes::<I>(behind.grad.row(token), at);
        if let (Some(z), Some(to)) = (inputs.z, &to.z) {
            let [value, slope] = gate(lanes::<I>(z.row(token), at));
            let y = I::Lanes::load(&memory.y[i]);
            grad.mul(y).mul(slope).store(&mut out);
            put(to, token, at, &out);
            grad = grad.mul(value);
        }
        let (b, c) = (inputs.b.row(token), inputs.c.row(token));
        let (before, after) = memory.h[i * d_state..].split_at(d_state);
        let kept = &memory.decay[i * decays..][..decays];
        let db = &mut memory.db[i * d_state..][..d_state];
        let dc = &mut memory.dc[i * d_state..][..d_state];
        // Of Δ x, and of Δ by way of the decay.
        let [mut for_input, mut for_decay] = [I::Lanes::splat(0.0); 2];
        for n in 0..d_state {
            let state = grad.mul_add(I::Lanes::splat(c[n]), I::Lanes::load(&dh[n]));
            grad.mul_add(I::Lanes::load(&after[n]), I::Lanes::load(&dc[n]))
                .store(&mut dc[n]);
            state
                .mul_add(input, I::Lanes::load(&db[n]))
                .store(&mut db[n]);
            for_input = state.mul_add(I::Lanes::splat(b[n]), for_input);
            let decay = I::Lanes::load(&kept[if decays == 1 { 0 } else { n }]);
            let carried = state.mul(decay);
            carried.store(&mut dh[n]);
            let before = I::Lanes::load(&before[n]);
            if decays == 1 {
                // Its factors are those of the whole sum.
                for_decay = carried.mul_add(before, for_decay);
            } else {
                let change = carried.mul(before);
                for_decay = change.mul_add(I::Lanes::load(&a[n]), for_decay);
                change
                    .mul_add(step.delta, I::Lanes::load(&da[n]))
                    .store(&mut da[n]);
            }
        }
        if let ([a], [da]) = (a, &mut *da) {
            for_decay.mul_add(step.delta, I::Lanes::load(da)).store(da);
            for_decay = for_decay.mul(I::Lanes::load(a));
        }
        dskip = grad.mul_add(step.x, dskip);
        for_input
            .mul_add(step.delta, grad.mul(skip))
            .store(&mut out);
        put(&to.x, token, at, &out);
        let mut ddelta = for_input.mul_add(step.x, for_decay);
        if inputs.softplus {
            ddelta = ddelta.mul(sigmoid_lanes(step.raw));
        }
        dbias = dbias.add(ddelta);
        ddelta.store(&mut out);
        put(&to.delta, token, at, &out);
    }
    dskip.store(&mut memory.sums[place][0]);
    dbias.store(&mut memory.sums[place][1]);
}
