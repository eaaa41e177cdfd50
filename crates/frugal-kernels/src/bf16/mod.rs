//! Frozen matrices in bfloat16, packed for dot products of pairs.
//!
//! Half the memory of single precision with its range, and one instruction for two multiply-adds
//! where the processor has AVX-512 BF16. Models do not use it yet.

mod kernel;

use std::fmt::{self, Debug, Formatter};

use rayon::prelude::*;

use kernel::{MR, NR, Pair, tile};

/// Multiply-adds that are worth the threads.
const THREADS_FROM: usize = 1 << 19;

/// A frozen matrix `[rows, cols]` in bfloat16.
pub struct PackedBf16 {
    rows: usize,
    cols: usize,
    /// `[panels, pairs of columns, NR rows]`; what is beyond the matrix is 0.
    panels: Vec<[Pair; NR]>,
}

impl Debug for PackedBf16 {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "PackedBf16([{}, {}])", self.rows, self.cols)
    }
}

impl PackedBf16 {
    /// Rounds a dense row-major matrix, to the nearest and ties to even.
    ///
    /// # Panics
    /// When the values are not whole rows of at least one column.
    pub fn new(values: &[f32], cols: usize) -> Self {
        assert!(
            cols > 0 && values.len().is_multiple_of(cols),
            "{} values are no whole rows of {cols}",
            values.len()
        );
        let (rows, depth) = (values.len() / cols, cols.div_ceil(2));
        let mut panels = vec![[Pair::default(); NR]; rows.div_ceil(NR) * depth];
        panels
            .par_chunks_mut(depth)
            .zip(values.par_chunks(NR * cols))
            .for_each(|(panel, values)| {
                for (lane, row) in values.chunks(cols).enumerate() {
                    let pairs = panel.iter_mut().zip(row.chunks(2));
                    pairs.for_each(|(panel, pair)| panel[lane] = rounded(pair));
                }
            });
        Self { rows, cols, panels }
    }

    /// `[rows, cols]`.
    pub fn dims(&self) -> [usize; 2] {
        [self.rows, self.cols]
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        size_of_val(&*self.panels)
    }

    /// All elements, row by row.
    pub fn to_vec(&self) -> Vec<f32> {
        let depth = self.depth();
        let element = |row: usize, col: usize| {
            let pair = self.panels[row / NR * depth + col / 2][row % NR];
            if col.is_multiple_of(2) {
                pair.low()
            } else {
                pair.high()
            }
        };
        (0..self.rows)
            .flat_map(|row| (0..self.cols).map(move |col| element(row, col)))
            .collect()
    }

    /// Pairs of columns.
    fn depth(&self) -> usize {
        self.cols.div_ceil(2)
    }

    /// `x · selfᵀ`, with x rounded to bfloat16 and sums in single precision.
    ///
    /// With both factors as they were rounded, a sum is off by at most `(cols + 3) · 2⁻²⁴` times the
    /// sum of the magnitudes of its products; rounding is off by at most `2⁻⁸` of each factor.
    /// Numbers below `2⁻¹²⁶` may count as 0. The result does not depend on the number of threads.
    ///
    /// # Shapes
    /// x: `[tokens, cols] -> [tokens, rows]`
    ///
    /// # Panics
    /// When x is not whole rows of `cols`.
    pub fn product(&self, x: &[f32]) -> Vec<f32> {
        assert!(
            x.len().is_multiple_of(self.cols),
            "{} values are no whole rows of {}",
            x.len(),
            self.cols
        );
        let mut y = vec![0.0; x.len() / self.cols * self.rows];
        if y.is_empty() {
            return y;
        }
        let rows = y
            .par_chunks_mut(MR * self.rows)
            .zip(x.par_chunks(MR * self.cols));
        let alone = x.len() * self.rows < THREADS_FROM;
        rows.with_min_len(if alone { usize::MAX } else { 1 })
            .for_each(|(y, x)| self.row_panel(y, x));
        y
    }

    /// The product of at most [`MR`] rows of x.
    fn row_panel(&self, y: &mut [f32], x: &[f32]) {
        let (depth, count) = (self.depth(), x.len() / self.cols);
        let mut packed = vec![Pair::default(); depth * count];
        pack_a(&mut packed, x, self.cols);
        let mut sums = [[0.0; NR]; MR];
        for (panel, first) in self
            .panels
            .chunks_exact(depth)
            .zip((0..self.rows).step_by(NR))
        {
            tile(&mut sums[..count], &packed, panel);
            let valid = NR.min(self.rows - first);
            for (y, sums) in y.chunks_exact_mut(self.rows).zip(&sums) {
                y[first..first + valid].copy_from_slice(&sums[..valid]);
            }
        }
    }
}

/// Rounds some rows to `[depth, rows]`.
fn pack_a(packed: &mut [Pair], x: &[f32], cols: usize) {
    let rows = x.len() / cols;
    for (r, row) in x.chunks_exact(cols).enumerate() {
        let out = packed[r..].iter_mut().step_by(rows);
        out.zip(row.chunks(2))
            .for_each(|(out, pair)| *out = rounded(pair));
    }
}

/// Two neighbours; the last of an odd number stands with 0.
fn rounded(pair: &[f32]) -> Pair {
    Pair::new(pair[0], pair.get(1).copied().unwrap_or(0.0))
}
