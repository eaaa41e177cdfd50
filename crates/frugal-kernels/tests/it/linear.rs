use burn::tensor::Tensor;
use frugal_kernels::portable;

use crate::support::{Array, check, matmul_t, random, row};

fn bias_added(mut y: Vec<f64>, bias: &[f64]) -> Vec<f64> {
    y.chunks_mut(bias.len()).for_each(|row| row.iter_mut().zip(bias).for_each(|(y, b)| *y += b));
    y
}

/// Sizes around the vector widths, the few-rows path and the blocks of the matrix product.
const SIZES: [(usize, usize, usize); 9] = [
    (1, 1, 1),
    (1, 33, 7),
    (3, 17, 5),
    (8, 20, 9),
    (9, 20, 9),
    (40, 70, 33),
    (150, 129, 65),
    // Several blocks of depth, and more columns than are copied at a time.
    (23, 700, 50),
    (13, 24, 4150),
];

#[test]
fn linear_matches_the_reference() {
    for (tokens, d, out) in SIZES {
        let inputs = [random(tokens, d, 1.0, 1), random(out, d, 1.0, 2)];
        check(
            &format!("linear {tokens}x{d}x{out}"),
            &inputs,
            &[true, true],
            &|t| frugal_kernels::linear(t[0].clone(), t[1].clone(), None),
            &|t| portable::linear(t[0].clone(), t[1].clone(), None),
            &|v| matmul_t(&v[0], &v[1], d),
            2e-5,
        );
    }
}

#[test]
fn linear_with_bias_matches_the_reference() {
    for (tokens, d, out) in SIZES {
        let inputs = [random(tokens, d, 1.0, 1), random(out, d, 1.0, 2), random(1, out, 1.0, 3)];
        check(
            &format!("linear with bias {tokens}x{d}x{out}"),
            &inputs,
            &[true, true, true],
            &|t| frugal_kernels::linear(t[0].clone(), t[1].clone(), Some(row(&t[2]))),
            &|t| portable::linear(t[0].clone(), t[1].clone(), Some(row(&t[2]))),
            &|v| bias_added(matmul_t(&v[0], &v[1], d), &v[2]),
            2e-5,
        );
    }
}

#[test]
fn lora_linear_matches_the_reference() {
    for (tokens, d, out) in SIZES {
        for r in [1, 3, 8] {
            let scale = 0.7;
            let inputs =
                [random(tokens, d, 1.0, 1), random(out, d, 1.0, 2), random(1, out, 1.0, 3), random(r, d, 1.0, 4), random(out, r, 1.0, 5)];
            let op = |t: &[Tensor<2>]| (t[0].clone(), t[1].clone(), Some(row(&t[2])), t[3].clone(), t[4].clone(), scale);
            check(
                &format!("lora_linear {tokens}x{d}x{out} r {r}"),
                &inputs,
                &[true; 5],
                &|t| {
                    let (x, w, bias, a, b, scale) = op(t);
                    frugal_kernels::lora_linear(x, w, bias, a, b, scale)
                },
                &|t| {
                    let (x, w, bias, a, b, scale) = op(t);
                    portable::lora_linear(x, w, bias, a, b, scale)
                },
                &|v| {
                    let low = matmul_t(&matmul_t(&v[0], &v[3], d), &v[4], r);
                    let y = bias_added(matmul_t(&v[0], &v[1], d), &v[2]);
                    y.iter().zip(low).map(|(y, low)| y + f64::from(scale) * low).collect()
                },
                5e-5,
            );
        }
    }
}

#[test]
fn linear_of_no_tokens_is_empty() {
    let empty = Array { data: Vec::new(), shape: [0, 4] };
    let device = burn::tensor::Device::flex();
    let y = frugal_kernels::linear(empty.tensor(&device), random(3, 4, 1.0, 1).tensor(&device), None);
    assert_eq!(y.dims(), [0, 3]);
}
