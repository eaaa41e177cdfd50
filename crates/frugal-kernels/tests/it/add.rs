use burn::tensor::Tensor;
use frugal_kernels::portable;

use crate::support::{Array, check, matmul_t, normalized, random, row};

const SHAPES: [(usize, usize); 4] = [(1, 3), (3, 16), (70, 577), (600, 64)];
const EPS: f64 = 1e-5;

fn sums(x: &[f64], y: &[f64]) -> Vec<f64> {
    x.iter().zip(y).map(|(x, y)| x + y).collect()
}

/// Row by row, the sum and then its norm.
fn beside(sum: &[f64], norm: &[f64], d: usize) -> Vec<f64> {
    sum.chunks(d)
        .zip(norm.chunks(d))
        .flat_map(|(sum, norm)| [sum, norm].concat())
        .collect()
}

#[test]
fn sums_match_the_reference() {
    for (rows, d) in SHAPES {
        check(
            &format!("add {rows}x{d}"),
            &[random(rows, d, 2.0, 1), random(rows, d, 2.0, 2)],
            &[true, true],
            &|t| frugal_kernels::add(t[0].clone(), t[1].clone()),
            &|t| portable::add(t[0].clone(), t[1].clone()),
            &|v| sums(&v[0], &v[1]),
            1e-6,
        );
        check(
            &format!("twice {rows}x{d}"),
            &[random(rows, d, 2.0, 1)],
            &[true],
            &|t| {
                let twice = frugal_kernels::add(t[0].clone(), t[0].clone());
                frugal_kernels::add(twice.clone(), twice)
            },
            &|t| t[0].clone() * 4.0,
            &|v| v[0].iter().map(|x| 4.0 * x).collect(),
            1e-6,
        );
    }
}

#[test]
fn norms_of_sums_match_the_reference() {
    for (rows, d) in SHAPES {
        let both = |[sum, norm]: [Tensor<2>; 2]| Tensor::cat(vec![sum, norm], 1);
        let inputs = [
            random(rows, d, 2.0, 1),
            random(rows, d, 2.0, 2),
            random(1, d, 1.0, 3),
            random(1, d, 1.0, 4),
        ];
        check(
            &format!("add_rms_norm {rows}x{d}"),
            &inputs[..3],
            &[true; 3],
            &|t| {
                both(frugal_kernels::add_rms_norm(
                    t[0].clone(),
                    t[1].clone(),
                    row(&t[2]),
                    EPS,
                ))
            },
            &|t| {
                both(portable::add_rms_norm(
                    t[0].clone(),
                    t[1].clone(),
                    row(&t[2]),
                    EPS,
                ))
            },
            &|v| {
                let sum = sums(&v[0], &v[1]);
                let norm: Vec<f64> = normalized(&sum, d, false, EPS)
                    .iter()
                    .enumerate()
                    .map(|(i, n)| n * v[2][i % d])
                    .collect();
                beside(&sum, &norm, d)
            },
            3e-5,
        );
        check(
            &format!("add_layer_norm {rows}x{d}"),
            &inputs,
            &[true; 4],
            &|t| {
                both(frugal_kernels::add_layer_norm(
                    t[0].clone(),
                    t[1].clone(),
                    row(&t[2]),
                    Some(row(&t[3])),
                    EPS,
                ))
            },
            &|t| {
                both(portable::add_layer_norm(
                    t[0].clone(),
                    t[1].clone(),
                    row(&t[2]),
                    Some(row(&t[3])),
                    EPS,
                ))
            },
            &|v| {
                let sum = sums(&v[0], &v[1]);
                let norm: Vec<f64> = normalized(&sum, d, true, EPS)
                    .iter()
                    .enumerate()
                    .map(|(i, n)| n * v[2][i % d] + v[3][i % d])
                    .collect();
                beside(&sum, &norm, d)
            },
            3e-5,
        );
    }
}

#[test]
fn one_pass_gives_the_bits_of_two() {
    let device = burn::tensor::Device::flex();
    let [x, y, gain] = [
        random(70, 577, 2.0, 1),
        random(70, 577, 2.0, 2),
        random(1, 577, 1.0, 3),
    ]
    .map(|a: Array| a.tensor(&device));
    let [sum, norm] = frugal_kernels::add_rms_norm(x.clone(), y.clone(), row(&gain), EPS);
    let expected = frugal_kernels::add(x, y);
    assert_eq!(sum.into_data(), expected.clone().into_data());
    assert_eq!(
        norm.into_data(),
        frugal_kernels::rms_norm(expected, row(&gain), EPS).into_data()
    );
}

/// One output that linear layers, a norm, a sum and operations of Burn use gets the gradients of all
/// of them.
#[test]
fn gradients_of_all_uses_are_added_up() {
    for (rows, d) in [(2, 5), (40, 96)] {
        let inputs = [
            random(rows, d, 1.0, 1),
            random(d, d, 0.3, 2),
            random(d, d, 0.3, 3),
            random(1, d, 1.0, 4),
            random(2, d, 0.5, 5),
            random(d, 2, 0.5, 6),
        ];
        check(
            &format!("several uses {rows}x{d}"),
            &inputs,
            &[true; 6],
            &|t| {
                let [x, a, b, gain, low, high] = std::array::from_fn(|i| t[i].clone());
                let h = frugal_kernels::linear(x, a.clone(), None);
                let y = frugal_kernels::rms_norm(h.clone(), row(&gain), EPS);
                let first = frugal_kernels::linear(y.clone(), a, None);
                let second = frugal_kernels::lora_linear(y.clone(), b, None, low, high, 0.5);
                let sum = frugal_kernels::add(first, frugal_kernels::silu(second));
                frugal_kernels::add(h.clone(), sum) + y.clone() * y * h
            },
            &|t| {
                let [x, a, b, gain, low, high] = std::array::from_fn(|i| t[i].clone());
                let h = portable::linear(x, a.clone(), None);
                let y = portable::rms_norm(h.clone(), row(&gain), EPS);
                let first = portable::linear(y.clone(), a, None);
                let second = portable::lora_linear(y.clone(), b, None, low, high, 0.5);
                h.clone() + first + portable::silu(second) + y.clone() * y * h
            },
            &|v| {
                let h = matmul_t(&v[0], &v[1], d);
                let y: Vec<f64> = normalized(&h, d, false, EPS)
                    .iter()
                    .enumerate()
                    .map(|(i, n)| n * v[3][i % d])
                    .collect();
                let first = matmul_t(&y, &v[1], d);
                let low = matmul_t(&matmul_t(&y, &v[4], d), &v[5], 2);
                let second: Vec<f64> = matmul_t(&y, &v[2], d)
                    .iter()
                    .zip(low)
                    .map(|(y, low)| y + 0.5 * low)
                    .collect();
                let silu = |x: f64| x / (1.0 + (-x).exp());
                (0..h.len())
                    .map(|i| h[i] + first[i] + silu(second[i]) + y[i] * y[i] * h[i])
                    .collect()
            },
            1e-4,
        );
    }
}
