use std::sync::Arc;

use burn::tensor::Device;
use frugal_kernels::{Sparse, portable, sparse_linear};

use crate::support::{Array, check, matmul_t, random, row};

/// A matrix whose smallest elements are zero.
fn pruned(rows: usize, cols: usize, sparsity: f64) -> Array {
    let mut matrix = random(rows, cols, 1.0, 2);
    let mut sorted: Vec<f32> = matrix.data.iter().map(|v| v.abs()).collect();
    sorted.sort_by(f32::total_cmp);
    let border = sorted
        .get((sparsity * sorted.len() as f64) as usize)
        .copied()
        .unwrap_or(f32::INFINITY);
    matrix
        .data
        .iter_mut()
        .filter(|v| v.abs() < border)
        .for_each(|v| *v = 0.0);
    matrix
}

/// Sizes around the blocks of columns, the groups of rows and the tiles of x, with and without
/// whole ones.
const SIZES: [(usize, usize, usize); 11] = [
    (1, 1, 1),
    (1, 33, 7),
    (3, 17, 5),
    (5, 64, 16),
    (8, 20, 40),
    (9, 20, 9),
    (64, 48, 33),
    (150, 129, 65),
    (1, 576, 83),
    (7, 700, 50),
    (70, 700, 50),
];

#[test]
fn sparse_linear_is_the_product_with_the_dense_matrix() {
    for sparsity in [0.0, 0.5, 0.9, 1.0] {
        for (tokens, d, out) in SIZES {
            let weight = pruned(out, d, sparsity);
            let sparse = Arc::new(Sparse::new(&weight.data, d));
            let (wide, dense) = (
                weight
                    .data
                    .iter()
                    .map(|v| f64::from(*v))
                    .collect::<Vec<_>>(),
                weight.tensor(&Device::flex()),
            );
            check(
                &format!("sparse linear {tokens}x{d}x{out} at {sparsity}"),
                &[random(tokens, d, 1.0, 1), random(1, out, 1.0, 3)],
                &[true, true],
                &|t| sparse_linear(t[0].clone(), &sparse, Some(row(&t[1]))),
                &|t| portable::linear(t[0].clone(), dense.clone(), Some(row(&t[1]))),
                &|v| {
                    matmul_t(&v[0], &wide, d)
                        .chunks(out)
                        .flat_map(|y| y.iter().zip(&v[1]).map(|(y, b)| y + b))
                        .collect()
                },
                2e-5,
            );
        }
    }
}

#[test]
fn the_elements_are_those_of_the_dense_matrix() {
    for (rows, cols, sparsity) in [(3, 5, 0.4), (17, 16, 0.0), (20, 100, 0.9), (4, 40, 1.0)] {
        let matrix = pruned(rows, cols, sparsity);
        let sparse = Sparse::new(&matrix.data, cols);
        assert!(
            sparse.to_vec() == matrix.data,
            "{rows}x{cols} at {sparsity}"
        );
        assert_eq!(
            sparse.nonzeros(),
            matrix.data.iter().filter(|v| **v != 0.0).count()
        );
        assert_eq!(sparse.dims(), [rows, cols]);
    }
    // A row of 2 and 3: two masks, two values with sixteen zeros behind them, two places where rows
    // start.
    let row = Sparse::new(&[vec![0.0; 20], vec![2.0, 3.0]].concat(), 22);
    assert_eq!(row.bytes(), 2 * 2 + 18 * 4 + 2 * 8);
}
