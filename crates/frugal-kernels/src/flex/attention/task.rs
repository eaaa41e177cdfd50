//! How attention is cut into tasks and tiles.

use std::ops::Range;

use super::super::matrix::{MatrixMut, Shared};
use crate::attention::AttentionSpec;

/// Query rows of a tile.
pub(super) const TILE_Q: usize = 48;
/// Keys of a tile.
pub(super) const TILE_K: usize = 256;

/// One head of one sequence.
#[derive(Clone, Debug)]
pub(super) struct HeadTask {
    pub(super) queries: Range<usize>,
    pub(super) keys: Range<usize>,
    pub(super) head: usize,
}

impl HeadTask {
    /// All heads of all sequences that have queries.
    pub(super) fn all(spec: &AttentionSpec) -> Vec<Self> {
        let sequences = spec.sequences().filter(|(queries, _)| !queries.is_empty());
        sequences
            .flat_map(|(queries, keys)| {
                (0..spec.num_heads).map(move |head| Self {
                    queries: queries.clone(),
                    keys: keys.clone(),
                    head,
                })
            })
            .collect()
    }

    /// This head's columns of some rows of a `[tokens, num_heads * head_dim]` matrix.
    ///
    /// # Safety
    /// While they are used, nothing else may touch these elements.
    pub(super) unsafe fn columns<'a>(
        &self,
        matrix: &Shared<'a>,
        rows: &Range<usize>,
        spec: &AttentionSpec,
    ) -> MatrixMut<'a> {
        let (dim, width) = (spec.head_dim, spec.num_heads * spec.head_dim);
        // SAFETY: passed on to the caller.
        unsafe { matrix.window(rows.start * width + self.head * dim, rows.len(), dim, width) }
    }

    /// The keys that some query of `rows` (relative to the sequence) sees.
    pub(super) fn visible(&self, rows: &Range<usize>, spec: &AttentionSpec) -> Range<usize> {
        let visible = |i| spec.visible(i, self.queries.len(), self.keys.len());
        visible(rows.start).start..visible(rows.end - 1).end
    }

    /// The part of a tile of `keys` that query `i` sees, relative to the tile.
    pub(super) fn visible_in(
        &self,
        i: usize,
        keys: &Range<usize>,
        spec: &AttentionSpec,
    ) -> Range<usize> {
        let visible = spec.visible(i, self.queries.len(), self.keys.len());
        let clip = |position: usize| position.clamp(keys.start, keys.end) - keys.start;
        clip(visible.start)..clip(visible.end)
    }
}

/// `0..len` from `start`, cut into pieces of `size`.
pub(super) fn pieces(range: Range<usize>, size: usize) -> impl Iterator<Item = Range<usize>> {
    range
        .clone()
        .step_by(size)
        .map(move |start| start..(start + size).min(range.end))
}
