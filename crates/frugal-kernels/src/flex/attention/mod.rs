//! Tiled attention: the score matrix exists one tile at a time, and the backward recomputes it from
//! the logarithm of each row's sum of exponentials.

mod backward;
mod bias;
mod cached;
mod forward;
mod softmax;

use std::ops::Range;
use std::sync::Arc;

use burn::backend::flex::FlexTensor;
use burn::tensor::Tensor;

use super::matrix::{Matrix, MatrixMut, Shared};
use super::record::{Op, Operand, contiguous, dense_rows, present, record, tensor_of, untracked};
use crate::attention::{AttentionSpec, ScoreBias};
use crate::cache::KeyValues;
use crate::memory::Cost;
use bias::Bias;

/// Query rows of a tile.
const TILE_Q: usize = 48;
/// Keys of a tile.
const TILE_K: usize = 256;

/// Kept for the backward pass beside q, k and v; the output is shared with what reads it next.
#[derive(Clone, Debug)]
struct Saved {
    output: FlexTensor,
    /// The logarithm of the sum of exponentials, `[tokens_q, num_heads]`.
    lse: Arc<[f32]>,
    spec: AttentionSpec,
}

/// [`attention`](crate::attention()) and [`biased_attention`](crate::biased_attention) on Flex.
pub(crate) fn attention(
    q: &Tensor<2>,
    k: &Tensor<2>,
    v: &Tensor<2>,
    bias: Option<&ScoreBias>,
    spec: &AttentionSpec,
) -> Option<Tensor<2>> {
    let (q, k, v) = (Operand::new(q)?, Operand::new(k)?, Operand::new(v)?);
    let bias = match bias {
        None => None,
        Some(ScoreBias::Keys(bias)) => Some(Operand::new(bias)?),
        Some(ScoreBias::Positions(bias)) => Some(Operand::new(bias)?),
    };
    let spec = spec.clone();
    let op = Op {
        cost: Cost::Never,
        reads: |wanted| [wanted.contains(&true); 4],
        forward: move |[q, k, v, bias]: &[Option<FlexTensor>; 4], _| {
            let [q, k, v] = [q, k, v].map(|input| dense_rows(present(input)));
            let bias = bias.as_ref().map(contiguous);
            let bias = Bias::of(bias.as_ref());
            let (output, lse) =
                forward::forward(Matrix::of(&q), Matrix::of(&k), Matrix::of(&v), bias, &spec);
            (
                output.clone(),
                Saved {
                    output,
                    lse: lse.into(),
                    spec: spec.clone(),
                },
            )
        },
        backward: |[q, k, v, bias], saved, grad, wanted, _| {
            let inputs = [q, k, v].each_ref().map(|input| dense_rows(present(input)));
            let bias = bias.as_ref().map(contiguous);
            backward::backward(
                &inputs,
                Bias::of(bias.as_ref()),
                &saved,
                &dense_rows(&grad),
                wanted,
            )
        },
    };
    Some(record([Some(&q), Some(&k), Some(&v), bias.as_ref()], op))
}

/// [`cached_attention`](crate::cached_attention) on Flex.
pub(crate) fn cached_attention(
    q: &Tensor<2>,
    cached: &[&KeyValues],
    spec: &AttentionSpec,
) -> Option<Tensor<2>> {
    let q = Operand::new(q)?;
    if q.is_tracked() {
        return None;
    }
    let rows = dense_rows(&q.tensor);
    let rows = Matrix::of(&rows);
    let output = cached::attend(rows, cached, spec);
    Some(untracked(tensor_of(output, [rows.rows, rows.cols])))
}

/// One head of one sequence.
#[derive(Clone, Debug)]
struct HeadTask {
    queries: Range<usize>,
    keys: Range<usize>,
    head: usize,
}

impl HeadTask {
    /// All heads of all sequences that have queries.
    fn all(spec: &AttentionSpec) -> Vec<Self> {
        let sequences = spec.sequences().filter(|(queries, _)| !queries.is_empty());
        sequences
            .flat_map(|(queries, keys)| {
                (0..spec.num_heads).map(move |head| Self {
                    queries: queries.clone(),
                    keys: keys.clone(),
                    head,
                })
            })
            .collect()
    }

    /// This head's columns of some rows of a `[tokens, num_heads * head_dim]` matrix.
    ///
    /// # Safety
    /// While they are used, nothing else may touch these elements.
    unsafe fn columns<'a>(
        &self,
        matrix: &Shared<'a>,
        rows: &Range<usize>,
        spec: &AttentionSpec,
    ) -> MatrixMut<'a> {
        let (dim, width) = (spec.head_dim, spec.num_heads * spec.head_dim);
        // SAFETY: passed on to the caller.
        unsafe { matrix.window(rows.start * width + self.head * dim, rows.len(), dim, width) }
    }

    /// The keys that some query of `rows` (relative to the sequence) sees.
    fn visible(&self, rows: &Range<usize>, spec: &AttentionSpec) -> Range<usize> {
        let visible = |i| spec.visible(i, self.queries.len(), self.keys.len());
        visible(rows.start).start..visible(rows.end - 1).end
    }

    /// The part of a tile of `keys` that query `i` sees, relative to the tile.
    fn visible_in(&self, i: usize, keys: &Range<usize>, spec: &AttentionSpec) -> Range<usize> {
        let visible = spec.visible(i, self.queries.len(), self.keys.len());
        let clip = |position: usize| position.clamp(keys.start, keys.end) - keys.start;
        clip(visible.start)..clip(visible.end)
    }
}

/// `0..len` from `start`, cut into pieces of `size`.
fn pieces(range: Range<usize>, size: usize) -> impl Iterator<Item = Range<usize>> {
    range
        .clone()
        .step_by(size)
        .map(move |start| start..(start + size).min(range.end))
}
