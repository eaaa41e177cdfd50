//! The ways of tokens to the experts of a mixture and back.

use std::sync::Arc;

use burn::tensor::Tensor;

use crate::flex;
pub use crate::flex::NO_ROW;

/// Rows of a matrix, one behind the other: `y[i] = x[rows[i]]`. A row may be chosen often. The
/// gradient is added to what x has got from its other uses, in place, so that the rows of many
/// experts cost no more than those of one.
///
/// # Shapes
/// x: `[tokens, d] -> [rows, d]`
///
/// # Panics
/// When a row is not one of x.
pub fn gather_rows(x: Tensor<2>, rows: &Arc<[u32]>) -> Tensor<2> {
    let [tokens, _] = x.dims();
    assert!(
        rows.iter().all(|&row| (row as usize) < tokens),
        "gather_rows: a row beyond the {tokens} of x"
    );
    flex::gather_rows(&x, rows).unwrap_or_else(|| portable::gather_rows(x, rows))
}

/// The weighted sum of some rows for each token: `out[t] = Σⱼ weights[t, j] · y[places[t · k + j]]`,
/// in the order of j, where [`NO_ROW`] stands for zeros (equation 2 of *Outrageously Large Neural
/// Networks*, arXiv 1701.06538, where the rows are what the experts of the token gave).
///
/// # Shapes
/// y: `[rows, d]`; weights: `[tokens, k]`; places: `tokens * k -> [tokens, d]`
///
/// # Panics
/// When the shapes do not fit together, a place is beyond y, or a row of y has not exactly one place.
pub fn combine_rows(y: Tensor<2>, weights: Tensor<2>, places: &Arc<[u32]>) -> Tensor<2> {
    let ([rows, _], [tokens, k]) = (y.dims(), weights.dims());
    assert!(
        places.len() == tokens * k,
        "combine_rows: {} places for {tokens} tokens of {k} each",
        places.len()
    );
    let mut has_place = vec![false; rows];
    for &place in places.iter().filter(|&&place| place != NO_ROW) {
        let seen = has_place.get_mut(place as usize);
        assert!(
            seen.is_some_and(|seen| !std::mem::replace(seen, true)),
            "combine_rows: the place {place} is beyond the {rows} rows of y, or given twice"
        );
    }
    assert!(
        has_place.iter().all(|&seen| seen),
        "combine_rows: a row of y has no place"
    );
    flex::combine_rows(&y, &weights, places)
        .unwrap_or_else(|| portable::combine_rows(y, weights, places))
}

pub(crate) mod portable {
    use std::sync::Arc;

    use burn::tensor::{Int, Tensor, TensorData};

    use super::NO_ROW;

    /// [`gather_rows`](crate::gather_rows) as a composition of Burn operations.
    pub fn gather_rows(x: Tensor<2>, rows: &Arc<[u32]>) -> Tensor<2> {
        let rows: Vec<i64> = rows.iter().map(|&row| i64::from(row)).collect();
        select(x, &rows)
    }

    /// [`combine_rows`](crate::combine_rows) as a composition of Burn operations.
    pub fn combine_rows(y: Tensor<2>, weights: Tensor<2>, places: &Arc<[u32]>) -> Tensor<2> {
        let ([rows, d], [tokens, k]) = (y.dims(), weights.dims());
        let nothing = Tensor::zeros([1, d], &y.device().inner());
        let of = |&place: &u32| match place {
            NO_ROW => rows as i64,
            place => i64::from(place),
        };
        let places: Vec<i64> = places.iter().map(of).collect();
        let terms =
            select(Tensor::cat(vec![y, nothing], 0), &places) * weights.reshape([tokens * k, 1]);
        terms
            .reshape([tokens, k, d])
            .sum_dim(1)
            .reshape([tokens, d])
    }

    fn select(x: Tensor<2>, rows: &[i64]) -> Tensor<2> {
        let device = x.device().inner();
        x.select(
            0,
            Tensor::<1, Int>::from_data(TensorData::from(rows), &device),
        )
    }
}
