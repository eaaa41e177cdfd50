use burn::tensor::Device;
use frugal_kernels::portable;

use crate::support::{Array, check, check_finite, normalized, random, row};

const SHAPES: [(usize, usize); 6] = [(1, 3), (2, 5), (3, 16), (4, 33), (70, 577), (600, 64)];
const EPS: f64 = 1e-5;

#[test]
fn rms_norm_matches_the_reference() {
    for (rows, d) in SHAPES {
        check(
            &format!("rms_norm {rows}x{d}"),
            &[random(rows, d, 2.0, 1), random(1, d, 1.0, 2)],
            &[true, true],
            &|t| frugal_kernels::rms_norm(t[0].clone(), row(&t[1]), EPS),
            &|t| portable::rms_norm(t[0].clone(), row(&t[1]), EPS),
            &|v| {
                normalized(&v[0], d, false, EPS)
                    .iter()
                    .enumerate()
                    .map(|(i, n)| n * v[1][i % d])
                    .collect()
            },
            2e-5,
        );
    }
}

#[test]
fn layer_norm_matches_the_reference() {
    for (rows, d) in SHAPES {
        check(
            &format!("layer_norm {rows}x{d}"),
            &[
                random(rows, d, 2.0, 1),
                random(1, d, 1.0, 2),
                random(1, d, 1.0, 3),
            ],
            &[true, true, true],
            &|t| frugal_kernels::layer_norm(t[0].clone(), row(&t[1]), Some(row(&t[2])), EPS),
            &|t| portable::layer_norm(t[0].clone(), row(&t[1]), Some(row(&t[2])), EPS),
            &|v| {
                normalized(&v[0], d, true, EPS)
                    .iter()
                    .enumerate()
                    .map(|(i, n)| n * v[1][i % d] + v[2][i % d])
                    .collect()
            },
            3e-5,
        );
        check(
            &format!("layer_norm without bias {rows}x{d}"),
            &[random(rows, d, 2.0, 1), random(1, d, 1.0, 2)],
            &[true, true],
            &|t| frugal_kernels::layer_norm(t[0].clone(), row(&t[1]), None, EPS),
            &|t| portable::layer_norm(t[0].clone(), row(&t[1]), None, EPS),
            &|v| {
                normalized(&v[0], d, true, EPS)
                    .iter()
                    .enumerate()
                    .map(|(i, n)| n * v[1][i % d])
                    .collect()
            },
            3e-5,
        );
    }
}

#[test]
fn extreme_rows_give_finite_results() {
    let mut data = vec![0.0; 3 * 20];
    data[20..40].fill(1e-30);
    data[40..]
        .iter_mut()
        .enumerate()
        .for_each(|(i, x)| *x = if i % 2 == 0 { 1e30 } else { -3e20 });
    let inputs = [
        Array {
            data,
            shape: [3, 20],
        },
        random(1, 20, 1.0, 2),
    ];
    check_finite("rms_norm", &inputs, &[true, true], &|t| {
        frugal_kernels::rms_norm(t[0].clone(), row(&t[1]), EPS)
    });
    check_finite("layer_norm", &inputs, &[true, true], &|t| {
        frugal_kernels::layer_norm(t[0].clone(), row(&t[1]), None, EPS)
    });
}

#[test]
fn no_rows_give_no_rows() {
    let device = Device::flex();
    let empty = Array {
        data: Vec::new(),
        shape: [0, 8],
    }
    .tensor(&device);
    assert_eq!(
        frugal_kernels::rms_norm(empty, row(&random(1, 8, 1.0, 1).tensor(&device)), EPS).dims(),
        [0, 8]
    );
}
