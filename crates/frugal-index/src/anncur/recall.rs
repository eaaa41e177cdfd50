//! How much of the exact answer is found, and how well it could be.

use faer::Mat;

use super::error::AnncurError;
use super::scores::ScoreTable;
use crate::top_k::TopK;

/// The numbers of the `k` highest scores, the highest first, equal ones by number.
pub fn best(scores: &[f64], k: usize) -> Vec<usize> {
    let mut top = TopK::new(k.min(scores.len()));
    for (item, score) in scores.iter().enumerate() {
        top.push(*score, item);
    }
    top.into_sorted().into_iter().map(|s| s.item).collect()
}

/// Top-k-Recall: the part of the exact answer that is among what was found; 1 where there is none.
pub fn recall(exact: &[usize], found: &[usize]) -> f64 {
    if exact.is_empty() {
        return 1.0;
    }
    let hits = exact.iter().filter(|item| found.contains(item)).count();
    hits as f64 / exact.len() as f64
}

/// Singular values of a table, the largest first: how fast they fall decides how well few anchors
/// can do.
///
/// # Errors
/// A decomposition that does not converge.
pub fn singular_values(table: &ScoreTable) -> Result<Vec<f64>, AnncurError> {
    matrix(table)
        .singular_values()
        .map_err(|_| AnncurError::Decomposition)
}

/// The best approximation of a rank, which needs the whole table: an upper bound.
///
/// # Errors
/// A decomposition that does not converge.
pub fn low_rank(table: &ScoreTable, rank: usize) -> Result<ScoreTable, AnncurError> {
    let svd = matrix(table)
        .thin_svd()
        .map_err(|_| AnncurError::Decomposition)?;
    let rank = rank.min(svd.S().column_vector().nrows());
    let mut left = svd.U().subcols(0, rank).to_owned();
    for (i, value) in svd.S().column_vector().iter().take(rank).enumerate() {
        left.col_mut(i).iter_mut().for_each(|v| *v *= value);
    }
    let product = left * svd.V().subcols(0, rank).transpose();
    let rows = product.row_iter().flat_map(|row| row.iter().copied());
    ScoreTable::new(table.rows(), table.columns(), rows.collect())
}

fn matrix(table: &ScoreTable) -> Mat<f64> {
    Mat::from_fn(table.rows(), table.columns(), |i, j| table.row(i)[j])
}
