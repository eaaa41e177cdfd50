//! Products of matrices: which of the ways to compute one is taken.

use super::super::gemm::{self, Extra, Strided, Target};
use super::memory::build_matrix;
use super::narrow;
use super::threads::Threads;
use super::view::Matrix;
use super::view_mut::MatrixMut;

/// `scale * a * b`, row by row, in memory of its own.
pub(crate) fn product(a: Matrix, b: Matrix, scale: f32) -> Vec<f32> {
    // SAFETY: the product writes every element.
    unsafe { build_matrix(a.rows, b.cols, |mut out| out.set(a, b, scale, Threads::All)) }
}

impl MatrixMut<'_> {
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
