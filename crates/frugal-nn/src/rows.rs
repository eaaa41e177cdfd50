//! Choosing and pooling rows of ragged batches.

use burn::prelude::*;

use crate::layout::SequenceLayout;

/// Rows of `x` `[tokens, d]` at these indices.
pub fn select_rows(x: Tensor<2>, rows: &[usize]) -> Tensor<2> {
    let device = x.device().inner();
    let rows: Vec<i64> = rows.iter().map(|&r| r as i64).collect();
    x.select(
        0,
        Tensor::<1, Int>::from_data(TensorData::from(rows.as_slice()), &device),
    )
}

/// Removes the positions that a method put in front of each sequence.
pub fn drop_prepended(x: Tensor<2>, layout: &SequenceLayout) -> Tensor<2> {
    if layout.prepended == 0 {
        return x;
    }
    let rows: Vec<usize> = layout
        .cu_seqlens
        .windows(2)
        .flat_map(|w| w[0] + layout.prepended..w[1])
        .collect();
    select_rows(x, &rows)
}

/// Mean of each sequence's rows: `[tokens, d]` to `[sequences, d]`.
pub fn mean_pool(x: Tensor<2>, cu_seqlens: &[usize]) -> Tensor<2> {
    let means = cu_seqlens
        .windows(2)
        .map(|w| x.clone().slice(w[0]..w[1]).mean_dim(0))
        .collect();
    Tensor::cat(means, 0)
}
