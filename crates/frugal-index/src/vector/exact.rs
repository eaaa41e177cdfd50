//! The score of one stored vector in double precision.

use half::f16;

use super::error::VectorError;
use super::kind::{Encoding, Metric};
use super::layout::Section;
use super::neighbor::Neighbor;
use super::open::VectorIndex;
use crate::top_k::TopK;

/// Score of a row for a query that was prepared.
pub(super) fn score(index: &VectorIndex, row: usize, query: &[f32]) -> f64 {
    let shape = index.shape();
    let bytes = index.row(Section::Numbers, row);
    let metric = shape.metric;
    match shape.encoding {
        Encoding::F32 => compared(metric, query, floats(bytes)),
        Encoding::F16 => {
            let halves: &[f16] = bytemuck::cast_slice(bytes);
            compared(metric, query, halves.iter().map(|half| half.to_f32()))
        }
        Encoding::Int8 | Encoding::Binary => {
            let scale = floats(index.row(Section::Scales, row)).next();
            let scale = scale.unwrap_or_default();
            let codes: &[i8] = bytemuck::cast_slice(bytes);
            compared(metric, query, codes.iter().map(|c| f32::from(*c) * scale))
        }
    }
}

/// The `k` best of some rows by their scores in double precision.
pub(super) fn settled(
    index: &VectorIndex,
    rows: impl Iterator<Item = u32>,
    query: &[f32],
    k: usize,
) -> Vec<Neighbor> {
    let mut top = TopK::new(k);
    for row in rows {
        top.push(score(index, row as usize, query), row);
    }
    let neighbor = |scored: crate::top_k::Scored<u32>| Neighbor {
        key: index.key(scored.item as usize),
        score: scored.score,
    };
    top.into_sorted().into_iter().map(neighbor).collect()
}

fn floats(bytes: &[u8]) -> impl Iterator<Item = f32> {
    bytemuck::cast_slice::<u8, f32>(bytes).iter().copied()
}

fn compared(metric: Metric, query: &[f32], row: impl Iterator<Item = f32>) -> f64 {
    let pairs = query.iter().map(|q| f64::from(*q)).zip(row.map(f64::from));
    match metric {
        Metric::Ip | Metric::Cosine => pairs.map(|(q, v)| q * v).sum(),
        Metric::L2 => -pairs.map(|(q, v)| (q - v) * (q - v)).sum::<f64>(),
    }
}

/// Queries of one row after another, checked and prepared.
pub(super) fn queries(index: &VectorIndex, queries: &[f32]) -> Result<Vec<f32>, VectorError> {
    let dimension = index.dimension();
    let mut prepared = Vec::with_capacity(queries.len());
    for (i, query) in queries.chunks(dimension).enumerate() {
        let what = || format!("the query vector {i}");
        prepared.extend(super::kind::prepared(
            query,
            dimension,
            index.metric(),
            &what,
        )?);
    }
    Ok(prepared)
}
