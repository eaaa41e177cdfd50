//! Strided matrices and their products.

use std::marker::PhantomData;
use std::mem::MaybeUninit;
use std::ops::Range;

use burn::backend::flex::FlexTensor;
use rayon::prelude::*;

use super::gemm::{self, Extra, Strided, Target};
use super::narrow;
use crate::simd::{TASK, task_rows};

/// A read-only view of a matrix.
#[derive(Clone, Copy)]
pub(crate) struct Matrix<'a> {
    data: &'a [f32],
    pub(crate) rows: usize,
    pub(crate) cols: usize,
    row_stride: usize,
    col_stride: usize,
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

/// A matrix to write to, row by row with a stride; may be uninitialised where a product overwrites
/// it.
pub(crate) struct MatrixMut<'a> {
    data: *mut f32,
    rows: usize,
    cols: usize,
    row_stride: usize,
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

    /// Row `i`; it must have been initialised.
    pub(crate) fn row_mut(&mut self, i: usize) -> &mut [f32] {
        assert!(i < self.rows);
        // SAFETY: the constructors ensure that the rows lie inside memory borrowed mutably.
        unsafe { std::slice::from_raw_parts_mut(self.data.add(i * self.row_stride), self.cols) }
    }

    pub(crate) fn rows(&self) -> usize {
        self.rows
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

    /// `self = a * b + l * r`, of a product `l * r` that is not deep, or `self += a * b + l * r`
    /// with `accumulate`.
    pub(crate) fn sum_of(
        &mut self,
        a: Matrix,
        b: Matrix,
        low_rank: Option<(Matrix, Matrix)>,
        accumulate: bool,
    ) {
        let low_rank = low_rank.filter(|(l, _)| l.cols > 0);
        if let Some((l, r)) = low_rank
            && l.has_dense_rows()
            && l.cols <= gemm::EXTRA_DEPTH
            && gemm::is_better(self.rows, self.cols, a.cols)
            && !narrow::is_better(a, b)
            && !narrow::is_better(b.t(), a.t())
        {
            assert!(
                a.rows == self.rows && b.cols == self.cols && a.cols == b.rows,
                "matrix product of unequal inner sizes"
            );
            assert!(
                l.rows == self.rows && r.cols == self.cols && l.cols == r.rows,
                "matrix product of unequal inner sizes"
            );
            self.blocked_product(a, b, low_rank, 1.0, Threads::All, accumulate);
            return;
        }
        self.product(a, b, 1.0, Threads::All, accumulate);
        if let Some((l, r)) = low_rank {
            self.add(l, r, 1.0, Threads::All);
        }
    }

    /// `self = scale * a * b`.
    pub(crate) fn set(&mut self, a: Matrix, b: Matrix, scale: f32, threads: Threads) {
        self.product(a, b, scale, threads, false);
    }

    /// `self += scale * a * b`.
    pub(crate) fn add(&mut self, a: Matrix, b: Matrix, scale: f32, threads: Threads) {
        self.product(a, b, scale, threads, true);
    }

    fn product(&mut self, a: Matrix, b: Matrix, scale: f32, threads: Threads, accumulate: bool) {
        assert!(
            a.rows == self.rows && b.cols == self.cols && a.cols == b.rows,
            "matrix product of unequal inner sizes"
        );
        if self.narrow_product(a, b, scale, threads, accumulate) {
            return;
        }
        if gemm::is_better(self.rows, self.cols, a.cols) {
            self.blocked_product(a, b, None, scale, threads, accumulate);
            return;
        }
        let parallelism = match threads {
            Threads::One => ::gemm::Parallelism::None,
            Threads::All => ::gemm::Parallelism::Rayon(0),
        };
        // SAFETY: the constructors check that each view stays inside its slice, the slice of `self`
        // is borrowed mutably so that nothing else reads it, and it is not read unless
        // `accumulate`.
        unsafe {
            ::gemm::gemm(
                self.rows,
                self.cols,
                a.cols,
                self.data,
                1,
                self.row_stride as isize,
                accumulate,
                a.data.as_ptr(),
                a.col_stride as isize,
                a.row_stride as isize,
                b.data.as_ptr(),
                b.col_stride as isize,
                b.row_stride as isize,
                1.0,
                scale,
                false,
                false,
                false,
                parallelism,
            );
        }
    }

    /// Whether one side was so narrow that the product was computed.
    fn narrow_product(
        &mut self,
        a: Matrix,
        b: Matrix,
        scale: f32,
        threads: Threads,
        accumulate: bool,
    ) -> bool {
        let out = self.sink(scale, accumulate);
        if narrow::is_better(a, b) {
            narrow::product(a, b, threads, out);
            true
        } else if narrow::is_better(b.t(), a.t()) {
            narrow::product(b.t(), a.t(), threads, out.t());
            true
        } else {
            false
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

    /// With the products of [`gemm`], which must be better at these sizes.
    fn blocked_product(
        &mut self,
        a: Matrix,
        b: Matrix,
        low_rank: Option<(Matrix, Matrix)>,
        scale: f32,
        threads: Threads,
        accumulate: bool,
    ) {
        let strided = |m: Matrix| Strided {
            data: m.data.as_ptr(),
            row_stride: m.row_stride,
            col_stride: m.col_stride,
        };
        let target = Target {
            data: self.data,
            row_stride: self.row_stride,
        };
        let sizes = [self.rows, self.cols, a.cols];
        let extra = low_rank.map(|(l, r)| Extra {
            a: strided(l),
            b: strided(r),
            depth: l.cols,
        });
        let threads = matches!(threads, Threads::All);
        // SAFETY: the constructors check that each view stays inside its slice, the slice of `self`
        // is borrowed mutably, and the processor was asked.
        unsafe {
            gemm::multiply(
                sizes,
                target,
                strided(a),
                strided(b),
                extra,
                scale,
                accumulate,
                threads,
            )
        };
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

// SAFETY: as for `Shared`.
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

// SAFETY: as for `Shared`.
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
    /// As [`Sink::put_row`].
    pub(super) unsafe fn put_col(&self, first_row: usize, col: usize, values: &[f32]) {
        assert!(col < self.dims[1] && first_row + values.len() <= self.dims[0]);
        // SAFETY: as above.
        unsafe {
            self.put(
                first_row * self.strides[0] + col * self.strides[1],
                self.strides[0],
                values,
            )
        };
    }

    /// # Safety
    /// As [`Sink::put_row`], and the elements must lie inside the matrix.
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

/// Who shares the work of a product. The result does not depend on it.
#[derive(Clone, Copy)]
pub(crate) enum Threads {
    /// The calling thread; for products inside a parallel loop.
    One,
    /// All threads, when the product is large enough.
    All,
}

/// `scale * a * b`, row by row, in memory of its own.
pub(crate) fn product(a: Matrix, b: Matrix, scale: f32) -> Vec<f32> {
    // SAFETY: the product writes every element.
    unsafe { build_matrix(a.rows, b.cols, |mut out| out.set(a, b, scale, Threads::All)) }
}

/// A matrix, row by row, written by `fill`; see [`build`].
///
/// # Safety
/// `fill` must write every element before it reads it.
pub(crate) unsafe fn build_matrix(
    rows: usize,
    cols: usize,
    fill: impl FnOnce(MatrixMut<'_>),
) -> Vec<f32> {
    let write = |out: &mut [MaybeUninit<f32>]| {
        let data = out.as_mut_ptr().cast();
        fill(MatrixMut {
            data,
            rows,
            cols,
            row_stride: cols,
            lifetime: PhantomData,
        });
    };
    // SAFETY: passed on to the caller.
    unsafe { build(rows * cols, write) }
}

/// A vector of zeros, cleared by all threads.
pub(crate) fn zeros(len: usize) -> Vec<f32> {
    let clear =
        |part: &mut [MaybeUninit<f32>]| part.iter_mut().for_each(|value| _ = value.write(0.0));
    // SAFETY: the parts are all of it.
    unsafe { build(len, |out| out.par_chunks_mut(TASK).for_each(clear)) }
}

/// A vector of `len` elements written by `fill`; spares clearing memory that is overwritten anyway.
///
/// # Safety
/// `fill` must write every element.
pub(crate) unsafe fn build(len: usize, fill: impl FnOnce(&mut [MaybeUninit<f32>])) -> Vec<f32> {
    let mut data = Vec::with_capacity(len);
    fill(&mut data.spare_capacity_mut()[..len]);
    // SAFETY: the capacity is at least `len` and the caller promises that `fill` wrote all of it.
    unsafe { data.set_len(len) };
    data
}
