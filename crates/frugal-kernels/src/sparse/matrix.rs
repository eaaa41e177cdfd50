//! Frozen matrices with many zeros.

use std::fmt::{self, Debug, Formatter};

use burn::tensor::{Device, Tensor, TensorData};

/// Neighbours in a row whose zeros share a mask.
pub(crate) const BLOCK: usize = 16;

/// A frozen matrix `[rows, cols]` of which only the elements other than zero are held: a bit for
/// each element, and the values of those whose bit is set, in order: 0.53 of the memory of the
/// dense matrix where half of it is zeros, and 0.13 where nine tenths are.
pub struct Sparse {
    rows: usize,
    cols: usize,
    /// `[rows, blocks]`, the first element in the lowest bit.
    pub(crate) masks: Vec<u16>,
    /// With [`BLOCK`] zeros at the end, so that a block can be read whole.
    pub(crate) values: Vec<f32>,
    /// Where each row's values start, and where the last one's end.
    pub(crate) starts: Vec<usize>,
}

impl Debug for Sparse {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "Sparse([{}, {}], {} of {} elements)",
            self.rows,
            self.cols,
            self.nonzeros(),
            self.rows * self.cols
        )
    }
}

impl Sparse {
    /// The nonzero elements of a dense row-major matrix.
    ///
    /// # Panics
    /// When the values are not whole rows.
    pub fn new(values: &[f32], cols: usize) -> Self {
        assert!(
            cols > 0 && values.len().is_multiple_of(cols),
            "{} values are not rows of {cols}",
            values.len()
        );
        let bit = |(i, v): (usize, &f32)| u16::from(*v != 0.0) << i;
        let mask = |block: &[f32]| block.iter().enumerate().map(bit).sum::<u16>();
        let masks = values
            .chunks(cols)
            .flat_map(|row| row.chunks(BLOCK))
            .map(mask)
            .collect();
        let mut kept = Vec::new();
        let mut starts = vec![0];
        for row in values.chunks(cols) {
            kept.extend(row.iter().copied().filter(|v| *v != 0.0));
            starts.push(kept.len());
        }
        kept.extend([0.0; BLOCK]);
        Self {
            rows: values.len() / cols,
            cols,
            masks,
            values: kept,
            starts,
        }
    }

    /// `[rows, cols]`.
    pub fn dims(&self) -> [usize; 2] {
        [self.rows, self.cols]
    }

    /// Number of elements held.
    pub fn nonzeros(&self) -> usize {
        self.values.len() - BLOCK
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        size_of_val(&*self.masks) + size_of_val(&*self.values) + size_of_val(&*self.starts)
    }

    /// All elements, row by row.
    pub fn to_vec(&self) -> Vec<f32> {
        let mut values = self.values.iter();
        let mut out = vec![0.0; self.rows * self.cols];
        let blocks = out
            .chunks_mut(self.cols)
            .flat_map(|row| row.chunks_mut(BLOCK));
        for (block, mask) in blocks.zip(&self.masks) {
            let set = block
                .iter_mut()
                .enumerate()
                .filter(|(i, _)| mask >> i & 1 == 1);
            set.zip(&mut values)
                .for_each(|((_, out), value)| *out = *value);
        }
        out
    }

    /// The dense matrix.
    pub fn dense(&self, device: &Device) -> Tensor<2> {
        Tensor::from_data(
            TensorData::new(self.to_vec(), [self.rows, self.cols]),
            device,
        )
    }

    /// Blocks of a row; the last one may end beyond it.
    pub(crate) fn blocks(&self) -> usize {
        self.cols.div_ceil(BLOCK)
    }
}
