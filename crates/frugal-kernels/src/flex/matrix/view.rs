//! Read-only views of matrices.

use std::ops::Range;

use burn::backend::flex::FlexTensor;
use rayon::prelude::*;

use crate::simd::task_rows;

/// A read-only view of a matrix.
#[derive(Clone, Copy)]
pub(crate) struct Matrix<'a> {
    pub(super) data: &'a [f32],
    pub(crate) rows: usize,
    pub(crate) cols: usize,
    pub(super) row_stride: usize,
    pub(super) col_stride: usize,
}

impl<'a> Matrix<'a> {
    /// A view of `data`, row by row.
    pub(crate) fn new(data: &'a [f32], rows: usize, cols: usize) -> Self {
        assert_eq!(data.len(), rows * cols);
        Self {
            data,
            rows,
            cols,
            row_stride: cols,
            col_stride: 1,
        }
    }

    /// A view of a two-dimensional tensor whose rows or columns are contiguous.
    pub(crate) fn of(tensor: &'a FlexTensor) -> Self {
        let layout = tensor.layout();
        let (&[rows, cols], &[row_stride, col_stride]) =
            (layout.shape().as_slice(), layout.strides())
        else {
            panic!(
                "a matrix view needs two dimensions, the tensor has {}",
                layout.num_dims()
            );
        };
        let data = &tensor.storage::<f32>()[layout.start_offset()..];
        let view = Self {
            data,
            rows,
            cols,
            row_stride: row_stride as usize,
            col_stride: col_stride as usize,
        };
        assert!(
            view.extent() <= data.len(),
            "the tensor's layout leaves its storage"
        );
        view
    }

    /// Elements from the first to the last of the view.
    fn extent(&self) -> usize {
        if self.rows == 0 || self.cols == 0 {
            0
        } else {
            (self.rows - 1) * self.row_stride + (self.cols - 1) * self.col_stride + 1
        }
    }

    /// The transposed view.
    pub(crate) fn t(self) -> Self {
        Self {
            rows: self.cols,
            cols: self.rows,
            row_stride: self.col_stride,
            col_stride: self.row_stride,
            ..self
        }
    }

    /// All elements, row by row.
    pub(crate) fn to_rows(self) -> Vec<f32> {
        let mut rows = vec![0.0; self.rows * self.cols];
        self.copy_rows_to(&mut rows);
        rows
    }

    /// Writes all elements, row by row.
    pub(crate) fn copy_rows_to(self, out: &mut [f32]) {
        assert_eq!(out.len(), self.rows * self.cols);
        for (i, out) in out.chunks_exact_mut(self.cols.max(1)).enumerate() {
            out.iter_mut()
                .enumerate()
                .for_each(|(j, out)| *out = self.data[i * self.row_stride + j * self.col_stride]);
        }
    }

    /// Whether each row is contiguous.
    pub(crate) fn has_dense_rows(&self) -> bool {
        self.col_stride == 1 || self.cols <= 1
    }

    /// Whether the elements lie row by row without a gap.
    pub(crate) fn is_contiguous(&self) -> bool {
        self.has_dense_rows() && (self.row_stride == self.cols || self.rows <= 1)
    }

    /// Some rows, one behind the other; the matrix must be contiguous.
    pub(crate) fn rows_of(&self, rows: &Range<usize>) -> &'a [f32] {
        debug_assert!(self.is_contiguous());
        &self.data[rows.start * self.cols..rows.end * self.cols]
    }

    /// Row `i`; the rows must be contiguous.
    pub(crate) fn row(&self, i: usize) -> &'a [f32] {
        debug_assert!(self.has_dense_rows());
        &self.data[i * self.row_stride..][..self.cols]
    }

    /// Adds the sum of each column to `sums`, in a fixed order: where rows are contiguous, blocks
    /// of them are summed first.
    pub(crate) fn add_column_sums(&self, sums: &mut [f32]) {
        if !self.has_dense_rows() {
            let columns = self.t();
            sums.iter_mut()
                .enumerate()
                .for_each(|(i, sum)| *sum += columns.row(i).iter().sum::<f32>());
            return;
        }
        let per_task = task_rows(self.cols);
        let starts: Vec<usize> = (0..self.rows).step_by(per_task).collect();
        let block = |start: usize| {
            let mut sums = vec![0.0; self.cols];
            for i in start..(start + per_task).min(self.rows) {
                sums.iter_mut()
                    .zip(self.row(i))
                    .for_each(|(sum, value)| *sum += value);
            }
            sums
        };
        for block in starts.into_par_iter().map(block).collect::<Vec<_>>() {
            sums.iter_mut()
                .zip(block)
                .for_each(|(sum, value)| *sum += value);
        }
    }

    /// `rows` rows from `row` and `cols` columns from `col`.
    pub(crate) fn window(self, row: usize, rows: usize, col: usize, cols: usize) -> Self {
        assert!(row + rows <= self.rows && col + cols <= self.cols);
        let start = row * self.row_stride + col * self.col_stride;
        let data = if rows == 0 || cols == 0 {
            &[]
        } else {
            &self.data[start..]
        };
        Self {
            data,
            rows,
            cols,
            ..self
        }
    }

    /// `count` rows from `start`.
    pub(crate) fn narrow_rows(self, start: usize, count: usize) -> Self {
        assert!(start + count <= self.rows);
        let data = if count == 0 {
            &[]
        } else {
            &self.data[start * self.row_stride..]
        };
        Self {
            data,
            rows: count,
            ..self
        }
    }
}
