//! Factors and target of a product, by their strides.

/// A matrix by its strides.
#[derive(Clone, Copy)]
pub(in crate::flex) struct Strided {
    pub(in crate::flex) data: *const f32,
    pub(in crate::flex) row_stride: usize,
    pub(in crate::flex) col_stride: usize,
}

/// A matrix to write to, row by row.
#[derive(Clone, Copy)]
pub(in crate::flex) struct Target {
    pub(in crate::flex) data: *mut f32,
    pub(in crate::flex) row_stride: usize,
}

// SAFETY: the memory is only read while `multiply` runs, as its caller promises.
unsafe impl Send for Strided {}
// SAFETY: threads share it to read from memory that nothing writes to while `multiply` runs.
unsafe impl Sync for Strided {}
// SAFETY: whoever writes through it has tiles of its own, which no other thread touches.
unsafe impl Send for Target {}
// SAFETY: threads share it to write to disjoint tiles.
unsafe impl Sync for Target {}

impl Strided {
    /// The part from an element on.
    ///
    /// # Safety
    /// The element must lie inside the matrix.
    pub(super) unsafe fn at(self, row: usize, col: usize) -> Self {
        // SAFETY: passed on to the caller.
        Self {
            data: unsafe { self.data.add(row * self.row_stride + col * self.col_stride) },
            ..self
        }
    }
}

impl Target {
    /// The part from an element on.
    ///
    /// # Safety
    /// The element must lie inside the matrix.
    pub(in crate::flex) unsafe fn at(self, row: usize, col: usize) -> Self {
        // SAFETY: passed on to the caller.
        Self {
            data: unsafe { self.data.add(row * self.row_stride + col) },
            ..self
        }
    }
}

/// Two factors, `[rows, depth]` and `[depth, cols]`, whose product is added while the sums are in
/// registers.
#[derive(Clone, Copy)]
pub(in crate::flex) struct Extra {
    /// Its rows must be contiguous.
    pub(in crate::flex) a: Strided,
    pub(in crate::flex) b: Strided,
    pub(in crate::flex) depth: usize,
}
