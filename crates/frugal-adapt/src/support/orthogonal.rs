//! Block-diagonal rotations of the input of a layer.

use burn::prelude::*;
use burn::tensor::TensorData;
use frugal_nn::to_vec;

/// Skew-symmetric matrices `[blocks, b, b]` with these entries above the diagonal, row by row:
/// `[blocks, b (b - 1) / 2]`.
pub(crate) fn skew(entries: Tensor<2>, b: usize) -> Tensor<3> {
    let blocks = entries.dims()[0];
    if b == 1 {
        return Tensor::zeros([blocks, 1, 1], &entries.device());
    }
    let position = |i: usize, j: usize| (i * (2 * b - i - 1) / 2 + j - i - 1) as i64;
    let (mut index, mut sign) = (vec![0_i64; b * b], vec![0.0_f32; b * b]);
    for i in 0..b {
        for j in i + 1..b {
            (index[i * b + j], index[j * b + i]) = (position(i, j), position(i, j));
            (sign[i * b + j], sign[j * b + i]) = (1.0, -1.0);
        }
    }
    let device = entries.device().inner();
    let index = Tensor::<1, Int>::from_data(TensorData::from(index.as_slice()), &device);
    let sign = Tensor::<2>::from_data(TensorData::new(sign, [1, b * b]), &device);
    (entries.select(1, index) * sign).reshape([blocks, b, b])
}

fn identity(b: usize, device: &Device) -> Tensor<3> {
    Tensor::<2>::eye(b, &device.clone().inner()).unsqueeze::<3>()
}

/// Cayley's transform `(I − Q)(I + Q)⁻¹` of skew-symmetric matrices: rotations.
pub(crate) fn cayley(q: Tensor<3>) -> Tensor<3> {
    let one = identity(q.dims()[1], &q.device());
    let sum = q.clone() + one.clone();
    // One step of Newton's iteration from the inverse itself leaves the value and gives it its
    // gradient.
    let inverse = inverse(&sum);
    let inverse = inverse.clone() * 2.0 - inverse.clone().matmul(sum).matmul(inverse);
    (one - q).matmul(inverse)
}

/// The same by the first terms of Neumann's series, as `peft` sums them:
/// `I + 2Q + 2Q² + ... + 2Qⁿ⁻² + Qⁿ⁻¹`.
pub(crate) fn cayley_neumann(q: Tensor<3>, terms: usize) -> Tensor<3> {
    let mut sum = identity(q.dims()[1], &q.device()).expand(q.dims());
    if terms > 1 {
        sum = sum + q.clone() * 2.0;
    }
    if terms > 2 {
        let mut power = q.clone().matmul(q.clone());
        sum = sum + power.clone() * 2.0;
        for _ in 3..terms.max(4) - 1 {
            power = power.matmul(q.clone());
            sum = sum + power.clone() * 2.0;
        }
        sum = sum + power.matmul(q);
    }
    sum
}

/// Inverses of matrices `[blocks, b, b]` by elimination in double precision, outside the gradient
/// graph.
pub(crate) fn inverse(matrices: &Tensor<3>) -> Tensor<3> {
    let ([blocks, b, _], device) = (matrices.dims(), matrices.device().inner());
    let values = to_vec(matrices.clone().inner());
    let values: Vec<f64> = values.into_iter().map(f64::from).collect();
    let inverted: Vec<f32> = values
        .chunks_exact(b * b)
        .flat_map(|block| invert(block, b))
        .map(|v| v as f32)
        .collect();
    Tensor::from_data(TensorData::new(inverted, [blocks, b, b]), &device)
}

/// The inverse of one matrix `[b, b]`.
pub(crate) fn invert(block: &[f64], b: usize) -> Vec<f64> {
    // Rows of [M | I].
    let mut rows: Vec<Vec<f64>> = (0..b)
        .map(|i| {
            (0..2 * b)
                .map(|j| {
                    if j < b {
                        block[i * b + j]
                    } else {
                        f64::from(u8::from(j - b == i))
                    }
                })
                .collect()
        })
        .collect();
    for i in 0..b {
        let pivot = (i..b)
            .max_by(|&x, &y| rows[x][i].abs().total_cmp(&rows[y][i].abs()))
            .unwrap_or(i);
        rows.swap(i, pivot);
        let scale = 1.0 / rows[i][i];
        rows[i].iter_mut().for_each(|v| *v *= scale);
        let row = rows[i].clone();
        for (_, other) in rows.iter_mut().enumerate().filter(|(j, _)| *j != i) {
            let share = other[i];
            if share != 0.0 {
                other
                    .iter_mut()
                    .zip(&row)
                    .for_each(|(o, v)| *o -= share * v);
            }
        }
    }
    rows.iter()
        .flat_map(|row| row[b..].iter().copied())
        .collect()
}

/// `x [rows, d]` times the block-diagonal matrix of `blocks [d / b, b, b]`; a single block is used
/// at every place.
pub(crate) fn rotate(x: Tensor<2>, blocks: Tensor<3>) -> Tensor<2> {
    let ([rows, d], [count, b, _]) = (x.dims(), blocks.dims());
    if count == 1 {
        return x
            .reshape([rows * d / b, b])
            .matmul(blocks.squeeze_dim::<2>(0))
            .reshape([rows, d]);
    }
    x.reshape([rows, count, b])
        .swap_dims(0, 1)
        .matmul(blocks)
        .swap_dims(0, 1)
        .reshape([rows, d])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rotation_of_the_plane() {
        // Q = [[0, q], [-q, 0]]: (1 − q²)/(1 + q²) = cos, 2q/(1 + q²) = sin of the angle, here 0.6
        // and 0.8 for q = 1/2.
        let entries = Tensor::<2>::from_data([[0.5]], &Device::flex());
        let found = to_vec(cayley(skew(entries, 2)));
        let expected = [0.6, -0.8, 0.8, 0.6];
        assert!(
            found
                .iter()
                .zip(expected)
                .all(|(a, b)| (a - b).abs() < 1e-6),
            "{found:?}"
        );
    }

    #[test]
    fn the_series_approaches_the_transform() {
        let entries = Tensor::<2>::from_data([[0.05, -0.02, 0.03]], &Device::flex());
        let (exact, series) = (
            cayley(skew(entries.clone(), 3)),
            cayley_neumann(skew(entries.clone().neg(), 3), 12),
        );
        let worst: f32 = (exact - series).abs().max().into_scalar();
        assert!(worst < 1e-6, "{worst:e}");
        assert_eq!(
            to_vec(cayley_neumann(skew(entries.clone(), 3), 3)),
            to_vec(cayley_neumann(skew(entries, 3), 4))
        );
    }

    #[test]
    fn an_inverse_with_a_zero_on_the_diagonal() {
        let matrix = Tensor::<3>::from_data([[[0.0, 2.0], [4.0, 0.0]]], &Device::flex());
        assert_eq!(to_vec(inverse(&matrix)), [0.0, 0.25, 0.5, 0.0]);
    }

    #[test]
    fn one_block_serves_every_place() {
        let x = Tensor::<2>::from_data([[1.0, 2.0, 3.0, 4.0]], &Device::flex());
        let swap = Tensor::<3>::from_data([[[0.0, 1.0], [1.0, 0.0]]], &Device::flex());
        assert_eq!(
            to_vec(rotate(x.clone(), swap.clone())),
            [2.0, 1.0, 4.0, 3.0]
        );
        let identity = Tensor::<2>::eye(2, &Device::flex()).unsqueeze::<3>();
        assert_eq!(
            to_vec(rotate(x, Tensor::cat(vec![swap, identity], 0))),
            [2.0, 1.0, 3.0, 4.0]
        );
    }
}
