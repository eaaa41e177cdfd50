//! What is added to the scores, and its gradient.

use std::ops::Range;

use burn::backend::flex::FlexTensor;

use super::super::tensor::{tensor_of, values};
use super::task::HeadTask;
use crate::attention::AttentionSpec;

/// Numbers to add to the scores.
#[derive(Clone, Copy, Debug)]
pub(super) enum Bias<'a> {
    None,
    /// One for each key, `[tokens_k]`.
    Keys(&'a [f32]),
    /// `[heads or 1, queries, keys]` of each sequence.
    Positions {
        values: &'a [f32],
        shape: [usize; 3],
    },
}

impl<'a> Bias<'a> {
    /// Of a contiguous vector, or of three dimensions.
    pub(super) fn of(bias: Option<&'a FlexTensor>) -> Self {
        let Some(bias) = bias else { return Self::None };
        match *bias.layout().shape().as_slice() {
            [heads, queries, keys] => Self::Positions {
                values: values(bias),
                shape: [heads, queries, keys],
            },
            _ => Self::Keys(values(bias)),
        }
    }

    /// The part for some keys (relative to the sequence) of a task's query.
    pub(super) fn row(
        self,
        task: &HeadTask,
        query: usize,
        keys: &Range<usize>,
    ) -> Option<&'a [f32]> {
        Some(match self {
            Self::None => return None,
            Self::Keys(values) => &values[task.keys.start..][keys.clone()],
            Self::Positions { values, shape } => {
                let head = if shape[0] == 1 { 0 } else { task.head };
                &values[Self::place(shape, head, query)..][keys.clone()]
            }
        })
    }

    fn place([_, queries, keys]: [usize; 3], head: usize, query: usize) -> usize {
        (head * queries + query) * keys
    }

    /// Numbers in one head's gradient.
    pub(super) fn head_len(self) -> usize {
        match self {
            Self::None => 0,
            Self::Keys(values) => values.len(),
            Self::Positions {
                shape: [_, queries, keys],
                ..
            } => queries * keys,
        }
    }

    /// The part of one head's gradient that belongs to some keys of a task's query.
    pub(super) fn gradient_row<'g>(
        self,
        of_head: &'g mut [f32],
        task: &HeadTask,
        query: usize,
        keys: &Range<usize>,
    ) -> &'g mut [f32] {
        let start = match self {
            Self::None => 0,
            Self::Keys(_) => task.keys.start,
            Self::Positions { shape, .. } => Self::place(shape, 0, query),
        };
        &mut of_head[start..][keys.clone()]
    }

    /// The gradient from those of all heads, one after the other.
    pub(super) fn gradient(self, of_heads: Vec<f32>, spec: &AttentionSpec) -> Option<FlexTensor> {
        let summed = |of_heads: &[f32]| {
            let mut sum = vec![0.0; self.head_len()];
            for head in of_heads.chunks(sum.len().max(1)) {
                sum.iter_mut()
                    .zip(head)
                    .for_each(|(sum, value)| *sum += value);
            }
            sum
        };
        match self {
            Self::None => None,
            Self::Keys(values) => Some(tensor_of(summed(&of_heads), [values.len()])),
            Self::Positions { shape, .. } if shape[0] == spec.num_heads => {
                Some(tensor_of(of_heads, shape))
            }
            Self::Positions { shape, .. } => Some(tensor_of(summed(&of_heads), shape)),
        }
    }
}
