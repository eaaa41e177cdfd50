//! Matrices to write to, alone or from parallel tasks.

use std::marker::PhantomData;
use std::ops::Range;

use super::super::gemm::Target;

/// A matrix to write to, row by row with a stride; may be uninitialised where a product overwrites
/// it.
pub(crate) struct MatrixMut<'a> {
    pub(super) data: *mut f32,
    pub(super) rows: usize,
    pub(super) cols: usize,
    pub(super) row_stride: usize,
    lifetime: PhantomData<&'a mut [f32]>,
}

impl<'a> MatrixMut<'a> {
    /// A view of `data`, row by row.
    pub(crate) fn new(data: &'a mut [f32], rows: usize, cols: usize) -> Self {
        assert_eq!(data.len(), rows * cols);
        Self {
            data: data.as_mut_ptr(),
            rows,
            cols,
            row_stride: cols,
            lifetime: PhantomData,
        }
    }

    /// A view of memory that may not have been initialised, row by row.
    ///
    /// # Safety
    /// The memory must have `rows * cols` elements, be the caller's for `'a`, and no element may be
    /// read before it is written.
    pub(super) unsafe fn from_raw(data: *mut f32, rows: usize, cols: usize) -> Self {
        Self {
            data,
            rows,
            cols,
            row_stride: cols,
            lifetime: PhantomData,
        }
    }

    /// Row `i`; it must have been initialised.
    pub(crate) fn row_mut(&mut self, i: usize) -> &mut [f32] {
        assert!(i < self.rows);
        // SAFETY: the constructors ensure that the rows lie inside memory borrowed mutably.
        unsafe { std::slice::from_raw_parts_mut(self.data.add(i * self.row_stride), self.cols) }
    }

    pub(crate) fn rows(&self) -> usize {
        self.rows
    }

    pub(crate) fn cols(&self) -> usize {
        self.cols
    }

    /// For a product that writes through a pointer, tile by tile.
    pub(crate) fn target(&mut self) -> Target {
        Target {
            data: self.data,
            row_stride: self.row_stride,
        }
    }

    /// Makes all elements 0, which need not have been initialised.
    pub(crate) fn clear(&mut self) {
        for i in 0..self.rows {
            // SAFETY: the constructors ensure that the rows lie inside memory borrowed mutably.
            unsafe { self.data.add(i * self.row_stride).write_bytes(0, self.cols) };
        }
    }

    /// Some of the rows.
    pub(crate) fn narrow_rows(&mut self, rows: &Range<usize>) -> MatrixMut<'_> {
        assert!(rows.start <= rows.end && rows.end <= self.rows);
        // SAFETY: the rows lie inside this matrix.
        let data = unsafe { self.data.add(rows.start * self.row_stride) };
        MatrixMut {
            data,
            rows: rows.len(),
            lifetime: PhantomData,
            ..*self
        }
    }

    /// Some of the columns.
    pub(crate) fn narrow_cols(&mut self, cols: &Range<usize>) -> MatrixMut<'_> {
        assert!(cols.start <= cols.end && cols.end <= self.cols);
        // SAFETY: the columns lie inside this matrix.
        let data = unsafe { self.data.add(cols.start) };
        MatrixMut {
            data,
            cols: cols.len(),
            lifetime: PhantomData,
            ..*self
        }
    }

    /// For parallel tasks that write to disjoint places.
    pub(crate) fn share(&mut self) -> SharedMatrix<'_> {
        SharedMatrix {
            data: self.data,
            rows: self.rows,
            cols: self.cols,
            row_stride: self.row_stride,
            lifetime: PhantomData,
        }
    }

    /// For a narrow product, scaled, perhaps added to what is there.
    pub(super) fn sink(&mut self, scale: f32, accumulate: bool) -> Sink<'_> {
        let (dims, strides) = ([self.rows, self.cols], [self.row_stride, 1]);
        Sink {
            data: self.data,
            dims,
            strides,
            scale,
            accumulate,
            lifetime: PhantomData,
        }
    }
}

/// Memory that parallel tasks write to in disjoint places.
pub(crate) struct Shared<'a> {
    data: *mut f32,
    len: usize,
    lifetime: PhantomData<&'a mut [f32]>,
}

// SAFETY: the memory is borrowed mutably for `'a`, and every access goes through an unsafe function
// whose caller promises that no two tasks touch the same element.
unsafe impl Sync for Shared<'_> {}

impl<'a> Shared<'a> {
    /// Shares `data` until the borrow ends.
    pub(crate) fn new(data: &'a mut [f32]) -> Self {
        Self {
            data: data.as_mut_ptr(),
            len: data.len(),
            lifetime: PhantomData,
        }
    }

    /// A matrix inside the memory.
    ///
    /// # Safety
    /// While it is used, nothing else may touch its elements.
    pub(crate) unsafe fn window(
        &self,
        start: usize,
        rows: usize,
        cols: usize,
        row_stride: usize,
    ) -> MatrixMut<'a> {
        assert!(
            cols <= row_stride && (rows == 0 || start + (rows - 1) * row_stride + cols <= self.len)
        );
        // SAFETY: the start lies inside the memory, or the matrix is empty and is never followed.
        let data = unsafe { self.data.add(start.min(self.len)) };
        MatrixMut {
            data,
            rows,
            cols,
            row_stride,
            lifetime: PhantomData,
        }
    }

    /// Writes one element.
    ///
    /// # Safety
    /// Nothing else may touch the element at the same time.
    pub(crate) unsafe fn write(&self, index: usize, value: f32) {
        assert!(index < self.len);
        // SAFETY: the index lies inside the memory.
        unsafe { self.data.add(index).write(value) };
    }
}

/// A matrix that parallel tasks write to in disjoint places.
pub(crate) struct SharedMatrix<'a> {
    data: *mut f32,
    rows: usize,
    cols: usize,
    row_stride: usize,
    lifetime: PhantomData<&'a mut [f32]>,
}

// SAFETY: the memory is borrowed mutably for the lifetime of the view, and every access goes through
// an unsafe function whose caller promises that no two tasks touch the same element.
unsafe impl Sync for SharedMatrix<'_> {}

impl SharedMatrix<'_> {
    /// Writes neighbours in a row.
    ///
    /// # Safety
    /// Nothing else may touch these elements at the same time.
    pub(crate) unsafe fn write(&self, row: usize, col: usize, values: &[f32]) {
        assert!(row < self.rows && col + values.len() <= self.cols);
        // SAFETY: the elements lie inside the matrix.
        unsafe {
            std::ptr::copy_nonoverlapping(
                values.as_ptr(),
                self.data.add(row * self.row_stride + col),
                values.len(),
            )
        };
    }
}

/// Where parallel tasks put the values of a product, each in its places; what is there has been
/// initialised if it is added to.
pub(super) struct Sink<'a> {
    data: *mut f32,
    dims: [usize; 2],
    strides: [usize; 2],
    scale: f32,
    accumulate: bool,
    lifetime: PhantomData<&'a mut [f32]>,
}

// SAFETY: the memory is borrowed mutably for the lifetime of the view, and every access goes through
// an unsafe function whose caller promises that no two tasks touch the same element.
unsafe impl Sync for Sink<'_> {}

impl Sink<'_> {
    /// The transposed view.
    pub(super) fn t(self) -> Self {
        let ([rows, cols], [row_stride, col_stride]) = (self.dims, self.strides);
        Self {
            dims: [cols, rows],
            strides: [col_stride, row_stride],
            ..self
        }
    }

    /// The first values of a row.
    ///
    /// # Safety
    /// Nothing else may touch these elements at the same time.
    pub(super) unsafe fn put_row(&self, row: usize, values: &[f32]) {
        assert!(row < self.dims[0] && values.len() <= self.dims[1]);
        // SAFETY: the elements lie inside the matrix; the rest is passed on to the caller.
        unsafe { self.put(row * self.strides[0], self.strides[1], values) };
    }

    /// Values of a column, from a row on.
    ///
    /// # Safety
    /// Nothing else may touch these elements at the same time.
    pub(super) unsafe fn put_col(&self, first_row: usize, col: usize, values: &[f32]) {
        assert!(col < self.dims[1] && first_row + values.len() <= self.dims[0]);
        // SAFETY: the elements lie inside the matrix, as just checked; the caller promises that nothing
        // else touches them.
        unsafe {
            self.put(
                first_row * self.strides[0] + col * self.strides[1],
                self.strides[0],
                values,
            )
        };
    }

    /// # Safety
    /// The elements must lie inside the matrix, and nothing else may touch them at the same time.
    #[inline(always)]
    unsafe fn put(&self, start: usize, stride: usize, values: &[f32]) {
        // SAFETY: passed on to the caller.
        unsafe {
            let start = self.data.add(start);
            match (stride, self.accumulate) {
                (1, false) => values
                    .iter()
                    .enumerate()
                    .for_each(|(i, value)| start.add(i).write(self.scale * value)),
                (_, false) => values
                    .iter()
                    .enumerate()
                    .for_each(|(i, value)| start.add(i * stride).write(self.scale * value)),
                (_, true) => values
                    .iter()
                    .enumerate()
                    .for_each(|(i, value)| *start.add(i * stride) += self.scale * value),
            }
        }
    }
}
