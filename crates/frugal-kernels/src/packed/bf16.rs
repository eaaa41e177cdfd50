//! Matrices in bfloat16, packed for dot products of pairs.

use half::bf16;
use rayon::prelude::*;

/// Rows that are stored together: two vectors of pairs.
pub(crate) const NR: usize = 32;

/// Two neighbours along the depth of a product, as `VDPBF16PS` takes them: the first in the low
/// half.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[repr(transparent)]
pub(crate) struct Pair(pub(crate) u32);

impl Pair {
    /// Rounds to the nearest, ties to even.
    #[inline(always)]
    pub(crate) fn new(low: f32, high: f32) -> Self {
        let [low, high] = [low, high].map(|value| u32::from(bf16::from_f32(value).to_bits()));
        Self(low | high << 16)
    }

    #[inline(always)]
    pub(crate) fn low(self) -> f32 {
        f32::from_bits(self.0 << 16)
    }

    #[inline(always)]
    pub(crate) fn high(self) -> f32 {
        f32::from_bits(self.0 & 0xffff_0000)
    }
}

/// A frozen matrix `[rows, cols]` in bfloat16.
pub(crate) struct Bf16 {
    rows: usize,
    cols: usize,
    /// `[panels, pairs of columns, NR rows]`; what is beyond the matrix is 0.
    panels: Vec<[Pair; NR]>,
}

impl Bf16 {
    /// Rounds a dense row-major matrix.
    ///
    /// # Panics
    /// When the values are not whole rows of at least one column.
    pub(crate) fn new(values: &[f32], cols: usize) -> Self {
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
                    for (pairs, pair) in panel.iter_mut().zip(row.chunks(2)) {
                        pairs[lane] = Pair::new(pair[0], pair.get(1).copied().unwrap_or(0.0));
                    }
                }
            });
        Self { rows, cols, panels }
    }

    /// `[rows, cols]`.
    pub(crate) fn dims(&self) -> [usize; 2] {
        [self.rows, self.cols]
    }

    /// Bytes held.
    pub(crate) fn bytes(&self) -> usize {
        size_of_val(&*self.panels)
    }

    /// Pairs of columns.
    pub(crate) fn pairs(&self) -> usize {
        self.cols.div_ceil(2)
    }

    /// Rows from `NR * i` on, `[pairs of columns, NR]`; those beyond the matrix are 0.
    pub(crate) fn panel(&self, i: usize) -> &[[Pair; NR]] {
        &self.panels[i * self.pairs()..][..self.pairs()]
    }

    /// Writes row `row` to `out`, which has room for it.
    pub(crate) fn read_row(&self, row: usize, out: &mut [f32]) {
        let panel = self.panel(row / NR);
        for (out, pairs) in out.chunks_mut(2).zip(panel) {
            let pair = pairs[row % NR];
            out[0] = pair.low();
            if let Some(out) = out.get_mut(1) {
                *out = pair.high();
            }
        }
    }
}
