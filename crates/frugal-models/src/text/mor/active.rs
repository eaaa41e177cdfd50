//! The tokens of a batch that are still in, as a shorter ragged batch.

use burn::prelude::*;
use frugal_nn::state::DecodeState;
use frugal_nn::{RotaryTable, SequenceLayout, select_rows};

/// Some tokens of a batch.
#[derive(Clone, Debug)]
pub(super) struct Active {
    /// Their rows in the batch, ascending.
    pub rows: Vec<usize>,
    /// The sequences that have any, ascending.
    pub sequences: Vec<usize>,
    /// Boundaries among `rows`, and where the tokens stand.
    pub layout: SequenceLayout,
    /// Tokens of the batch.
    all: usize,
}

impl Active {
    /// All tokens.
    pub fn all(batch: &SequenceLayout) -> Self {
        Self::of((0..batch.tokens()).collect(), batch)
    }

    /// Tokens in these rows of the batch.
    pub fn of(rows: Vec<usize>, batch: &SequenceLayout) -> Self {
        let (mut sequences, mut boundaries, mut at) = (Vec::new(), vec![0], 0);
        for (sequence, range) in batch.cu_seqlens.windows(2).enumerate() {
            let begin = at;
            at += rows[at..].iter().take_while(|row| **row < range[1]).count();
            if at > begin {
                sequences.push(sequence);
                boundaries.push(at);
            }
        }
        let position_ids = rows.iter().map(|&row| batch.position_ids[row]).collect();
        Self {
            layout: SequenceLayout {
                cu_seqlens: boundaries.into(),
                position_ids,
                past: vec![0; sequences.len()],
                prepended: 0,
                invoked_at: vec![None; sequences.len()],
            },
            sequences,
            all: batch.tokens(),
            rows,
        }
    }

    /// Those of its tokens whose place in it is listed.
    pub fn keep(&self, places: &[usize], batch: &SequenceLayout) -> Self {
        Self::of(
            places.iter().map(|&place| self.rows[place]).collect(),
            batch,
        )
    }

    /// Tokens of the batch.
    pub fn tokens(&self) -> usize {
        self.all
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Whether these are all tokens.
    pub fn is_all(&self) -> bool {
        self.rows.len() == self.all
    }

    /// Their rows of `x` `[tokens, d]`.
    pub fn select(&self, x: Tensor<2>) -> Tensor<2> {
        if self.is_all() {
            x
        } else {
            select_rows(x, &self.rows)
        }
    }

    /// Their angles.
    pub fn rotary(&self, table: &RotaryTable) -> RotaryTable {
        RotaryTable {
            cos: self.select(table.cos.clone()),
            sin: self.select(table.sin.clone()),
        }
    }

    /// `x` `[tokens, d]` with `change` `[active, d]` added to their rows; the others stay as they are.
    pub fn add(&self, x: Tensor<2>, change: Tensor<2>) -> Tensor<2> {
        let own = frugal_kernels::add(self.select(x.clone()), change);
        self.put(x, own)
    }

    /// `x` `[tokens, d]` with `own` `[active, d]` in their rows.
    pub fn put(&self, x: Tensor<2>, own: Tensor<2>) -> Tensor<2> {
        if self.is_all() {
            return own;
        }
        let mut place: Vec<usize> = (0..self.all).collect();
        for (at, &row) in self.rows.iter().enumerate() {
            place[row] = self.all + at;
        }
        select_rows(Tensor::cat(vec![x, own], 0), &place)
    }

    /// Says how many rows of each sequence `layer` holds already.
    pub fn with_past(mut self, layer: usize, cache: Option<&DecodeState>) -> Self {
        if let Some(cache) = cache {
            let held = |&s: &usize| cache.sequences()[s].layers()[layer].rows().len();
            self.layout.past = self.sequences.iter().map(held).collect();
        }
        self
    }

    /// Tells the layers of a step where the tokens stand whose keys and values come next.
    pub fn route(&self, layer: usize, cache: &mut DecodeState) {
        for (&sequence, range) in self.sequences.iter().zip(self.layout.cu_seqlens.windows(2)) {
            let positions = &self.layout.position_ids[range[0]..range[1]];
            cache.route(layer, sequence, positions);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use frugal_nn::to_vec;

    #[test]
    fn chosen_rows_are_a_ragged_batch_and_come_back_to_their_places() {
        let batch = SequenceLayout::with_past(&[3, 2, 4], &[5, 0, 0]);
        let active = Active::of(vec![1, 2, 5, 8], &batch);
        assert_eq!(active.sequences, [0, 2]);
        assert_eq!(&*active.layout.cu_seqlens, [0, 2, 4]);
        assert_eq!(active.layout.position_ids, [6, 7, 0, 3]);
        let narrower = active.keep(&[0, 3], &batch);
        assert_eq!(narrower.rows, [1, 8]);
        assert_eq!(&*narrower.layout.cu_seqlens, [0, 1, 2]);

        let device = Device::flex();
        let values: Vec<f32> = (0..9).map(|i| 0.1 + i as f32).collect();
        let x = Tensor::<2>::from_data(TensorData::new(values.clone(), [9, 1]), &device);
        assert_eq!(to_vec(active.select(x.clone())), [1.1, 2.1, 5.1, 8.1]);
        let changed = to_vec(active.add(x, Tensor::ones([4, 1], &device)));
        for (row, (found, before)) in changed.iter().zip(&values).enumerate() {
            let expected = if active.rows.contains(&row) {
                before + 1.0
            } else {
                *before
            };
            assert_eq!(found.to_bits(), expected.to_bits(), "{row}");
        }
        assert!(Active::of(vec![], &batch).is_empty());
    }
}
