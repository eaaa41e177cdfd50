//! Every vector against every query.

use faer::linalg::matmul::matmul;
use faer::{Accum, MatMut, MatRef, Par};
use half::f16;
use half::slice::HalfFloatSliceExt;
use rayon::prelude::*;

use super::builder::signs;
use super::error::VectorError;
use super::exact;
use super::kind::{Encoding, Metric};
use super::layout::{BLOCK, Section};
use super::neighbor::Neighbor;
use super::open::VectorIndex;
use super::simd;
use crate::top_k::TopK;

/// From this number of queries on a matrix product pays.
const PRODUCT: usize = 4;

/// What one thread needs for a block.
struct Scratch {
    best: Vec<TopK<u32>>,
    numbers: Vec<f32>,
    scores: Vec<f32>,
    counts: Vec<u32>,
}

impl VectorIndex {
    /// The `k` nearest vectors of each query, the nearest first, equal ones by key. The queries lie
    /// one behind the other. Every vector is compared; what comes near is compared again in double
    /// precision, so that the order does not depend on rounding.
    ///
    /// # Errors
    /// Queries of another length, or with numbers that are not finite; a damaged file.
    pub fn search(&self, queries: &[f32], k: usize) -> Result<Vec<Vec<Neighbor>>, VectorError> {
        self.search_where(queries, k, |_| true)
    }

    /// As [`VectorIndex::search`] among the rows, numbered from 0 in the order of their keys, that
    /// `allowed` says.
    ///
    /// # Errors
    /// As [`VectorIndex::search`].
    pub fn search_where(
        &self,
        queries: &[f32],
        k: usize,
        allowed: impl Fn(usize) -> bool + Sync,
    ) -> Result<Vec<Vec<Neighbor>>, VectorError> {
        let queries = exact::queries(self, queries)?;
        let count = queries.len() / self.dimension();
        // Never more than there are, whatever was asked for.
        let k = k.min(self.len());
        if count == 0 || k == 0 {
            return Ok(vec![Vec::new(); count]);
        }
        let candidates = self.candidates(&queries, k, &allowed)?;
        let queries = queries.par_chunks_exact(self.dimension());
        let found = candidates.into_par_iter().zip(queries);
        Ok(found
            .map(|(best, query)| {
                let rows = best.into_sorted().into_iter().map(|found| found.item);
                exact::settled(self, rows, query, k)
            })
            .collect())
    }

    /// More rows than are asked for, by scores that are a little off.
    fn candidates(
        &self,
        queries: &[f32],
        k: usize,
        allowed: &(impl Fn(usize) -> bool + Sync),
    ) -> Result<Vec<TopK<u32>>, VectorError> {
        let keep = match self.encoding() {
            Encoding::Binary => k.saturating_mul(20).saturating_add(200),
            _ => k.saturating_add(k / 2).saturating_add(16),
        };
        let count = queries.len() / self.dimension();
        let words: Vec<u64> = match self.encoding() {
            Encoding::Binary => queries.chunks(self.dimension()).flat_map(signs).collect(),
            _ => Vec::new(),
        };
        let empty = || vec![TopK::new(keep.min(self.len())); count];
        let scratch = || Scratch {
            best: empty(),
            numbers: Vec::new(),
            scores: Vec::new(),
            counts: Vec::new(),
        };
        (0..self.shape().blocks())
            .into_par_iter()
            .try_fold(scratch, |mut scratch, block| {
                self.check_block(block)?;
                match self.encoding() {
                    Encoding::Binary => self.block_signs(block, &words, &mut scratch, allowed),
                    _ => self.block_products(block, queries, &mut scratch, allowed),
                }
                Ok(scratch)
            })
            .map(|scratch| scratch.map(|scratch| scratch.best))
            .try_reduce(empty, |a, b| {
                Ok(a.into_iter().zip(b).map(|(a, b)| a.merge(b)).collect())
            })
    }

    fn block_products(
        &self,
        block: usize,
        queries: &[f32],
        scratch: &mut Scratch,
        allowed: &impl Fn(usize) -> bool,
    ) {
        let (dimension, rows) = (self.dimension(), self.block_rows(block));
        let height = rows.len();
        let count = queries.len() / dimension;
        scratch.scores.resize(BLOCK * count, 0.0);
        let scores = &mut scratch.scores[..height * count];
        let bytes = self.rows(Section::Numbers, rows.clone());
        let numbers: &[f32] = match self.encoding() {
            Encoding::F32 => bytemuck::cast_slice(bytes),
            Encoding::F16 => {
                scratch.numbers.resize(height * dimension, 0.0);
                bytemuck::cast_slice::<u8, f16>(bytes).convert_to_f32_slice(&mut scratch.numbers);
                &scratch.numbers
            }
            Encoding::Int8 | Encoding::Binary => {
                scratch.numbers.resize(height * dimension, 0.0);
                let scales = bytemuck::cast_slice(self.rows(Section::Scales, rows.clone()));
                let codes = bytemuck::cast_slice(bytes);
                simd::dequantize(codes, scales, dimension, &mut scratch.numbers);
                &scratch.numbers
            }
        };
        if count < PRODUCT {
            let outs = scores.chunks_exact_mut(height);
            for (query, out) in queries.chunks_exact(dimension).zip(outs) {
                simd::products(numbers, query, out);
            }
        } else {
            // Threads have blocks of their own, so the product itself takes one.
            matmul(
                MatMut::from_column_major_slice_mut(scores, height, count),
                Accum::Replace,
                MatRef::from_row_major_slice(numbers, height, dimension),
                MatRef::from_row_major_slice(queries, count, dimension).transpose(),
                1.0,
                Par::Seq,
            );
        }
        if self.metric() == Metric::L2 {
            // The query's own square is the same for all rows.
            let squares: &[f32] = bytemuck::cast_slice(self.rows(Section::Squares, rows.clone()));
            for column in scores.chunks_exact_mut(height) {
                let pairs = column.iter_mut().zip(squares);
                pairs.for_each(|(score, square)| *score = 2.0 * *score - square);
            }
        }
        for (best, column) in scratch.best.iter_mut().zip(scores.chunks_exact(height)) {
            collect(
                best,
                column.iter().map(|s| f64::from(*s)),
                rows.start,
                allowed,
            );
        }
    }

    fn block_signs(
        &self,
        block: usize,
        words: &[u64],
        scratch: &mut Scratch,
        allowed: &impl Fn(usize) -> bool,
    ) {
        let rows = self.block_rows(block);
        let signs: &[u64] = bytemuck::cast_slice(self.rows(Section::Signs, rows.clone()));
        scratch.counts.resize(rows.len(), 0);
        let queries = words.chunks_exact(self.shape().words());
        for (best, query) in scratch.best.iter_mut().zip(queries) {
            simd::differences(signs, query, &mut scratch.counts);
            let scores = scratch.counts.iter().map(|count| -f64::from(*count));
            collect(best, scores, rows.start, allowed);
        }
    }
}

fn collect(
    best: &mut TopK<u32>,
    scores: impl Iterator<Item = f64>,
    first: usize,
    allowed: &impl Fn(usize) -> bool,
) {
    let mut threshold = best.threshold();
    for (i, score) in scores.enumerate() {
        if score >= threshold && allowed(first + i) {
            best.push(score, (first + i) as u32);
            threshold = best.threshold();
        }
    }
}
