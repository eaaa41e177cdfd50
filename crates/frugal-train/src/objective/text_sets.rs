//! Texts that belong together, as vectors.

use std::hash::{DefaultHasher, Hash, Hasher};

use burn::prelude::*;
use frugal_nn::select_rows;
use serde::Deserialize;

use crate::{Target, Tokenized};

/// One example without its tokens: an anchor, and texts beside it.
#[derive(Clone, Debug, PartialEq)]
pub struct TextSet {
    /// Each text by a hash of its tokens, the anchor first.
    pub texts: Vec<u64>,
    /// What was said of how near they are.
    pub scores: Vec<f32>,
}

impl TextSet {
    /// Of an example; one that holds no several texts counts as a single one.
    pub fn of(example: &Tokenized) -> Self {
        let hash = |ids: &[u32]| {
            let mut hasher = DefaultHasher::new();
            ids.hash(&mut hasher);
            hasher.finish()
        };
        let Target::Texts { lengths, scores } = &example.labels else {
            return Self {
                texts: vec![hash(&example.input_ids)],
                scores: Vec::new(),
            };
        };
        let mut rest = example.input_ids.as_slice();
        let texts = lengths.iter().map(|length| {
            let (text, later) = rest.split_at(*length);
            rest = later;
            hash(text)
        });
        Self {
            texts: texts.collect(),
            scores: scores.clone(),
        }
    }
}

/// The vectors of some examples, text by text.
pub struct TextSets<'a> {
    /// `[texts, dimension]`.
    pub vectors: Tensor<2>,
    /// The examples.
    pub sets: &'a [TextSet],
}

impl TextSets<'_> {
    /// The row of each example's anchor.
    pub fn anchors(&self) -> Vec<usize> {
        let mut next = 0;
        let start = |set: &TextSet| {
            next += set.texts.len();
            next - set.texts.len()
        };
        self.sets.iter().map(start).collect()
    }

    /// For each text that is no anchor its row and the row of its anchor.
    pub fn pairs(&self) -> (Vec<usize>, Vec<usize>) {
        let of = |(set, start): (&TextSet, usize)| {
            (start + 1..start + set.texts.len()).map(move |row| (row, start))
        };
        self.sets.iter().zip(self.anchors()).flat_map(of).unzip()
    }

    /// Similarity `[texts without anchors, 1]` of each text to its anchor.
    pub fn to_anchors(&self, similarity: Similarity) -> Tensor<2> {
        let (texts, anchors) = self.pairs();
        similarity.of_rows(self.rows(&anchors), self.rows(&texts))
    }

    /// Some of the vectors.
    pub fn rows(&self, rows: &[usize]) -> Tensor<2> {
        select_rows(self.vectors.clone(), rows)
    }

    /// The same with the first `dimension` numbers of each vector, which gets length 1.
    pub fn truncated(&self, dimension: usize) -> Self {
        let rows = self.vectors.dims()[0];
        let vectors = self.vectors.clone().slice([0..rows, 0..dimension]);
        Self {
            vectors: unit(vectors),
            sets: self.sets,
        }
    }
}

/// How near two vectors are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Similarity {
    /// The cosine of the angle between them.
    #[serde(alias = "cos_sim", alias = "cosine")]
    Cos,
    /// Their product.
    #[serde(alias = "dot_score")]
    Dot,
}

impl Similarity {
    fn ready(self, x: Tensor<2>) -> Tensor<2> {
        match self {
            Self::Cos => unit(x),
            Self::Dot => x,
        }
    }

    /// `[rows of a, rows of b]`.
    pub fn matrix(self, a: Tensor<2>, b: Tensor<2>) -> Tensor<2> {
        self.ready(a).matmul(self.ready(b).transpose())
    }

    /// `[rows, 1]` of each row of `a` to the same of `b`.
    pub fn of_rows(self, a: Tensor<2>, b: Tensor<2>) -> Tensor<2> {
        (self.ready(a) * self.ready(b)).sum_dim(1)
    }
}

/// Rows of length 1.
pub fn unit(x: Tensor<2>) -> Tensor<2> {
    x.clone() / length(x)
}

/// Length `[rows, 1]` of each row, never quite 0: the root has no slope there.
pub fn length(x: Tensor<2>) -> Tensor<2> {
    (x.clone() * x).sum_dim(1).clamp_min(1e-24).sqrt()
}

/// A constant beside a tensor.
pub fn constant(values: Vec<f32>, shape: [usize; 2], beside: &Tensor<2>) -> Tensor<2> {
    Tensor::from_data(TensorData::new(values, shape), &beside.device())
}
