//! Linear recurrence: a stretch of channels of one sequence at a time, whose state stays in
//! registers. The output is what the backward pass reads, so that nothing else is kept.

use std::ops::Range;
use std::sync::Arc;

use burn::backend::flex::FlexTensor;
use burn::tensor::Tensor;
use rayon::prelude::*;

use super::matrix::{Matrix, MatrixMut, SharedMatrix, build_matrix};
use super::record::{Op, Operand, present, record};
use super::tensor::{dense_rows, tensor_of};
use crate::linear_recurrence::LinearRecurrence;
use crate::save_policy::Cost;
use crate::simd::{Isa, TASK, mul_add, multiversion};

/// Channels of a task.
const WIDTH: usize = 64;

/// Which way the states of which sequences go.
#[derive(Clone, Debug)]
struct Way {
    cu_seqlens: Arc<[usize]>,
    resets: Option<Arc<[bool]>>,
    reverse: bool,
}

/// What the backward pass needs beside the inputs.
#[derive(Clone, Debug)]
struct Saved {
    way: Way,
    /// The output.
    h: Option<FlexTensor>,
}

/// [`linear_recurrence`](crate::linear_recurrence()) on Flex.
pub(crate) fn linear_recurrence(recurrence: &LinearRecurrence) -> Option<Tensor<2>> {
    let (a, b) = (Operand::new(&recurrence.a)?, Operand::new(&recurrence.b)?);
    let initial = Operand::optional(recurrence.initial_state.as_ref())?;
    let way = Way {
        cu_seqlens: recurrence.cu_seqlens.clone(),
        resets: recurrence.resets.clone(),
        reverse: recurrence.reverse,
    };
    let op = Op {
        cost: Cost::Never,
        reads: |wanted| {
            let any = wanted.contains(&true);
            [any, false, any]
        },
        forward: move |[a, b, initial]: &[Option<FlexTensor>; 3], wanted: [bool; 3]| {
            let (a, b) = (dense_rows(present(a)), dense_rows(present(b)));
            let initial = initial.as_ref().map(dense_rows);
            let output = forward_pass(
                &way,
                Matrix::of(&a),
                Matrix::of(&b),
                initial.as_ref().map(Matrix::of),
            );
            let saved = Saved {
                way: way.clone(),
                h: wanted.contains(&true).then(|| output.clone()),
            };
            (output, saved)
        },
        backward,
    };
    Some(record([Some(&a), Some(&b), initial.as_ref()], op))
}

/// A stretch of channels of one sequence.
struct Task {
    sequence: usize,
    rows: Range<usize>,
    channels: Range<usize>,
}

impl Way {
    fn tasks(&self, width: usize) -> Vec<Task> {
        let sequences = self.cu_seqlens.windows(2).enumerate();
        sequences
            .flat_map(|(sequence, w)| {
                let rows = w[0]..w[1];
                (0..width).step_by(WIDTH).map(move |first| Task {
                    sequence,
                    rows: rows.clone(),
                    channels: first..(first + WIDTH).min(width),
                })
            })
            .collect()
    }

    /// Below this many a group of tasks is not worth a thread.
    fn least_tasks(&self, tokens: usize) -> usize {
        let sequences = self.cu_seqlens.len() - 1;
        (TASK * sequences / 4)
            .div_ceil(tokens.max(1) * WIDTH)
            .max(1)
    }

    /// The row whose turn it is at a step from the beginning of the recurrence.
    fn row(&self, rows: &Range<usize>, step: usize) -> usize {
        match self.reverse {
            true => rows.end - 1 - step,
            false => rows.start + step,
        }
    }

    fn is_reset(&self, row: usize) -> bool {
        self.resets.as_ref().is_some_and(|resets| resets[row])
    }
}

fn forward_pass(
    way: &Way,
    a: Matrix<'_>,
    b: Matrix<'_>,
    initial: Option<Matrix<'_>>,
) -> FlexTensor {
    let (tokens, width) = (a.rows, a.cols);
    let tasks = way.tasks(width);
    let fill = |mut h: MatrixMut<'_>| {
        let h = h.share();
        tasks
            .par_iter()
            .with_min_len(way.least_tasks(tokens))
            .for_each(|task| forward(way, task, [a, b], initial, &h));
    };
    // SAFETY: the tasks are all channels of all sequences, whose rows are all rows.
    let h = unsafe { build_matrix(tokens, width, fill) };
    tensor_of(h, [tokens, width])
}

multiversion!(
    fn forward(
        way: &Way,
        task: &Task,
        inputs: [Matrix<'_>; 2],
        initial: Option<Matrix<'_>>,
        h: &SharedMatrix<'_>,
    ) = forward_body
);

#[inline(always)]
fn forward_body<I: Isa>(
    way: &Way,
    task: &Task,
    [a, b]: [Matrix<'_>; 2],
    initial: Option<Matrix<'_>>,
    h: &SharedMatrix<'_>,
) {
    let (first, count) = (task.channels.start, task.channels.len());
    let mut state = [0.0; WIDTH];
    let state = &mut state[..count];
    if let Some(initial) = initial {
        state.copy_from_slice(&initial.row(task.sequence)[task.channels.clone()]);
    }
    for step in 0..task.rows.len() {
        let row = way.row(&task.rows, step);
        let b = &b.row(row)[task.channels.clone()];
        if way.is_reset(row) {
            state.copy_from_slice(b);
        } else {
            let a = &a.row(row)[task.channels.clone()];
            for ((state, a), b) in state.iter_mut().zip(a).zip(b) {
                *state = mul_add::<I>(*a, *state, *b);
            }
        }
        // SAFETY: each task has channels or rows of its own.
        unsafe { h.write(row, first, state) };
    }
}

/// Where the gradients go.
struct Gradients<'a> {
    a: SharedMatrix<'a>,
    b: SharedMatrix<'a>,
    initial: SharedMatrix<'a>,
}

/// What the backward pass reads.
#[derive(Clone, Copy)]
struct Read<'a> {
    a: Matrix<'a>,
    h: Matrix<'a>,
    initial: Option<Matrix<'a>>,
    grad: Matrix<'a>,
}

fn backward(
    [a, _, initial]: [Option<FlexTensor>; 3],
    Saved { way, h }: Saved,
    grad: FlexTensor,
    [for_a, for_b, for_initial]: [bool; 3],
    _waiting: &mut [Option<FlexTensor>; 3],
) -> [Option<FlexTensor>; 3] {
    let (Some(a), Some(h)) = (a, h) else {
        return [None, None, None];
    };
    let (a, grad, initial) = (
        dense_rows(&a),
        dense_rows(&grad),
        initial.as_ref().map(dense_rows),
    );
    let read = Read {
        a: Matrix::of(&a),
        h: Matrix::of(&h),
        initial: initial.as_ref().map(Matrix::of),
        grad: Matrix::of(&grad),
    };
    let (tokens, width, sequences) = (read.a.rows, read.a.cols, way.cu_seqlens.len() - 1);
    let tasks = way.tasks(width);
    let [mut da, mut db] = [(); 2].map(|()| vec![0.0; tokens * width]);
    let mut dinitial = vec![0.0; sequences * width];
    {
        let mut views = [
            MatrixMut::new(&mut da, tokens, width),
            MatrixMut::new(&mut db, tokens, width),
            MatrixMut::new(&mut dinitial, sequences, width),
        ];
        let [a, b, initial] = views.each_mut().map(MatrixMut::share);
        let to = Gradients { a, b, initial };
        tasks
            .par_iter()
            .with_min_len(way.least_tasks(tokens))
            .for_each(|task| backward_of(&way, task, read, &to));
    }
    [
        for_a.then(|| tensor_of(da, [tokens, width])),
        for_b.then(|| tensor_of(db, [tokens, width])),
        for_initial.then(|| tensor_of(dinitial, [sequences, width])),
    ]
}

multiversion!(
    fn backward_of(way: &Way, task: &Task, read: Read<'_>, to: &Gradients<'_>) = backward_body
);

#[inline(always)]
fn backward_body<I: Isa>(way: &Way, task: &Task, read: Read<'_>, to: &Gradients<'_>) {
    let (first, count) = (task.channels.start, task.channels.len());
    let own = |row: &'_ [f32]| -> [f32; WIDTH] {
        let mut own = [0.0; WIDTH];
        own[..count].copy_from_slice(&row[task.channels.clone()]);
        own
    };
    // Of the state before, which steps behind have added to.
    let mut carried = [0.0; WIDTH];
    for step in (0..task.rows.len()).rev() {
        let row = way.row(&task.rows, step);
        let mut dh = own(read.grad.row(row));
        for (dh, carried) in dh.iter_mut().zip(&carried) {
            *dh += carried;
        }
        let mut da = [0.0; WIDTH];
        if way.is_reset(row) {
            carried = [0.0; WIDTH];
        } else {
            let before = match (step, read.initial) {
                (0, None) => [0.0; WIDTH],
                (0, Some(initial)) => own(initial.row(task.sequence)),
                _ => own(read.h.row(way.row(&task.rows, step - 1))),
            };
            let a = own(read.a.row(row));
            for j in 0..WIDTH {
                da[j] = dh[j] * before[j];
                carried[j] = dh[j] * a[j];
            }
        }
        // SAFETY: each task has channels or rows of its own.
        unsafe {
            to.a.write(row, first, &da[..count]);
            to.b.write(row, first, &dh[..count]);
        }
    }
    // SAFETY: as before.
    unsafe { to.initial.write(task.sequence, first, &carried[..count]) };
}
