//! Ragged input: the tokens of all sequences one after another, without padding.

use std::sync::Arc;

use burn::prelude::*;

/// Where the sequences of a batch begin and end, and how much of each is already in the cache.
#[derive(Clone, Debug)]
pub struct SequenceLayout {
    /// Sequence boundaries, `[sequences + 1]`, from 0 to the number of tokens.
    pub cu_seqlens: Arc<[usize]>,
    /// Position of each token in its sequence, `[tokens]`.
    pub position_ids: Vec<u32>,
    /// Tokens of each sequence that earlier calls put in the cache, `[sequences]`.
    pub past: Vec<usize>,
    /// Positions that a method put in front of each sequence in this call.
    pub prepended: usize,
    /// Where the text stands that turned on a method which waits for one, `[sequences]`: a position
    /// in the sequence, `None` before.
    pub invoked_at: Vec<Option<usize>>,
}

impl SequenceLayout {
    /// Sequences of these lengths, each starting at position 0.
    pub fn new(lengths: &[usize]) -> Self {
        Self::with_past(lengths, &vec![0; lengths.len()])
    }

    /// Sequences of which `past` tokens are in the cache already.
    pub fn with_past(lengths: &[usize], past: &[usize]) -> Self {
        let mut cu_seqlens = vec![0];
        let mut position_ids = Vec::new();
        for (&length, &past) in lengths.iter().zip(past) {
            cu_seqlens.push(cu_seqlens[cu_seqlens.len() - 1] + length);
            position_ids.extend((past..past + length).map(|p| p as u32));
        }
        Self {
            cu_seqlens: cu_seqlens.into(),
            position_ids,
            past: past.to_vec(),
            prepended: 0,
            invoked_at: vec![None; lengths.len()],
        }
    }

    /// Number of sequences.
    pub fn sequences(&self) -> usize {
        self.cu_seqlens.len() - 1
    }

    /// Number of tokens of all sequences.
    pub fn tokens(&self) -> usize {
        self.position_ids.len()
    }

    /// Length of each sequence in this call, `[sequences]`.
    pub fn lengths(&self) -> Vec<usize> {
        self.cu_seqlens.windows(2).map(|w| w[1] - w[0]).collect()
    }

    /// Index of the last token of each sequence, `[sequences]`.
    pub fn last_tokens(&self) -> Vec<usize> {
        self.cu_seqlens[1..].iter().map(|end| end - 1).collect()
    }

    /// The layout after `count` positions were put in front of every sequence.
    pub fn prepend(&self, count: usize) -> Self {
        let lengths: Vec<usize> = self.lengths().iter().map(|n| n + count).collect();
        Self {
            prepended: self.prepended + count,
            invoked_at: self.invoked_at.clone(),
            ..Self::with_past(&lengths, &self.past)
        }
    }
}

/// What the rows that a backbone reads are.
#[derive(Clone, Debug)]
pub enum Content<'a> {
    /// Token ids, `[tokens]`.
    Tokens(&'a [u32]),
    /// Rows of the width of the residual stream in place of looked-up tokens, `[tokens, d_model]`.
    Embeddings(Tensor<2>),
    /// Rows that the model still has to project, `[rows, width]`: patches, spectrogram frames.
    Rows {
        /// Row after row.
        rows: Tensor<2>,
        /// How each sequence's rows lie in space: `[height, width]` of patches, `[1, frames]`.
        grid: [usize; 2],
    },
}

/// What a backbone reads.
#[derive(Clone, Debug)]
pub struct Input<'a> {
    /// The rows.
    pub content: Content<'a>,
    /// Segment ids of an encoder, `[tokens]`; empty for all 0.
    pub token_type_ids: &'a [u32],
    /// Sequence boundaries.
    pub layout: SequenceLayout,
}

impl<'a> Input<'a> {
    /// Tokens of sequences of these lengths.
    pub fn new(input_ids: &'a [u32], lengths: &[usize]) -> Self {
        Self::tokens(input_ids, SequenceLayout::new(lengths))
    }

    /// Tokens.
    pub fn tokens(input_ids: &'a [u32], layout: SequenceLayout) -> Self {
        Self::of(Content::Tokens(input_ids), layout)
    }

    /// Embeddings `[tokens, d_model]` of sequences of these lengths.
    pub fn embeddings(rows: Tensor<2>, lengths: &[usize]) -> Self {
        Self::of(Content::Embeddings(rows), SequenceLayout::new(lengths))
    }

    /// Rows `[rows, width]` that lie on a grid, of sequences of these lengths.
    pub fn rows(rows: Tensor<2>, grid: [usize; 2], lengths: &[usize]) -> Self {
        Self::of(Content::Rows { rows, grid }, SequenceLayout::new(lengths))
    }

    /// Index of the last token of each sequence that is not padding, `[sequences]`; of a sequence of
    /// padding alone the first, as `GenericForSequenceClassification` of transformers computes it.
    /// Rows that are no tokens are all read.
    pub fn last_tokens_but(&self, pad_token_id: Option<u32>) -> Vec<usize> {
        let (Content::Tokens(ids), Some(pad)) = (&self.content, pad_token_id) else {
            return self.layout.last_tokens();
        };
        let bounds = self.layout.cu_seqlens.windows(2);
        bounds
            .map(|bounds| {
                let own = ids.get(bounds[0]..bounds[1]).unwrap_or_default();
                bounds[0] + own.iter().rposition(|id| *id != pad).unwrap_or(0)
            })
            .collect()
    }

    fn of(content: Content<'a>, layout: SequenceLayout) -> Self {
        Self {
            content,
            token_type_ids: &[],
            layout,
        }
    }

    /// Number of rows.
    pub fn len(&self) -> usize {
        match &self.content {
            Content::Tokens(ids) => ids.len(),
            Content::Embeddings(rows) | Content::Rows { rows, .. } => rows.dims()[0],
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}
