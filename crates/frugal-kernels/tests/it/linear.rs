use burn::tensor::Tensor;
use frugal_kernels::{LowRankRows, portable};

use crate::support::{Array, check, matmul_t, random, row};

fn bias_added(mut y: Vec<f64>, bias: &[f64]) -> Vec<f64> {
    y.chunks_mut(bias.len())
        .for_each(|row| row.iter_mut().zip(bias).for_each(|(y, b)| *y += b));
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
        let inputs = [
            random(tokens, d, 1.0, 1),
            random(out, d, 1.0, 2),
            random(1, out, 1.0, 3),
        ];
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
            let inputs = [
                random(tokens, d, 1.0, 1),
                random(out, d, 1.0, 2),
                random(1, out, 1.0, 3),
                random(r, d, 1.0, 4),
                random(out, r, 1.0, 5),
            ];
            let op = |t: &[Tensor<2>]| {
                (
                    t[0].clone(),
                    t[1].clone(),
                    Some(row(&t[2])),
                    t[3].clone(),
                    t[4].clone(),
                    scale,
                )
            };
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
                    y.iter()
                        .zip(low)
                        .map(|(y, low)| y + f64::from(scale) * low)
                        .collect()
                },
                5e-5,
            );
        }
    }
}

#[test]
fn rows_with_pairs_of_their_own_match_the_reference() {
    // Ranks, and rows of each pair: rows that have none, and more rows than are few.
    for (tokens, d, out, ranks, ranges) in [
        (7, 20, 9, [2, 3], [0..2, 4..7]),
        (5, 17, 40, [8, 1], [0..1, 1..5]),
        (150, 129, 65, [4, 8], [10..100, 100..149]),
        (13, 24, 4150, [8, 8], [0..1, 1..13]),
    ] {
        let scales = [0.7, -1.3];
        let inputs = [
            random(tokens, d, 1.0, 1),
            random(out, d, 1.0, 2),
            random(1, out, 1.0, 3),
            random(ranks[0], d, 1.0, 4),
            random(out, ranks[0], 1.0, 5),
            random(ranks[1], d, 1.0, 6),
            random(out, ranks[1], 1.0, 7),
        ];
        let pairs = |t: &[Tensor<2>]| -> [LowRankRows; 2] {
            let pair = |i: usize| LowRankRows {
                rows: ranges[i].clone(),
                a: t[3 + 2 * i].clone(),
                b: t[4 + 2 * i].clone(),
                scale: scales[i],
            };
            [pair(0), pair(1)]
        };
        check(
            &format!("multi_lora_linear {tokens}x{d}x{out}"),
            &inputs,
            &[true; 7],
            &|t| {
                frugal_kernels::multi_lora_linear(
                    t[0].clone(),
                    t[1].clone(),
                    Some(row(&t[2])),
                    &pairs(t),
                )
            },
            &|t| {
                portable::multi_lora_linear(t[0].clone(), t[1].clone(), Some(row(&t[2])), &pairs(t))
            },
            &|v| {
                let mut y = bias_added(matmul_t(&v[0], &v[1], d), &v[2]);
                for i in 0..2 {
                    let rows = &v[0][ranges[i].start * d..ranges[i].end * d];
                    let low = matmul_t(&matmul_t(rows, &v[3 + 2 * i], d), &v[4 + 2 * i], ranks[i]);
                    let y = &mut y[ranges[i].start * out..ranges[i].end * out];
                    y.iter_mut()
                        .zip(low)
                        .for_each(|(y, low)| *y += f64::from(scales[i]) * low);
                }
                y
            },
            5e-5,
        );
    }
}

#[test]
fn a_pair_without_rows_changes_nothing_and_gets_no_gradient() {
    let device = burn::tensor::Device::flex();
    let [x, weight] = [random(6, 4, 1.0, 3), random(3, 4, 1.0, 4)].map(|a| a.tensor(&device));
    let [a, b] = [random(2, 4, 1.0, 1), random(3, 2, 1.0, 2)]
        .map(|a| Tensor::from_inner(a.tensor(&device)).require_grad());
    let pair = LowRankRows {
        rows: 2..2,
        a: a.clone(),
        b: b.clone(),
        scale: 1.0,
    };
    let y = frugal_kernels::multi_lora_linear(x.clone(), weight.clone(), None, &[pair]);
    assert_eq!(
        y.clone().inner().into_data(),
        frugal_kernels::linear(x, weight, None).into_data()
    );
    let gradients = y.sum().backward();
    for parameter in [a, b] {
        assert!(
            parameter
                .grad(&gradients)
                .unwrap()
                .into_data()
                .iter::<f32>()
                .all(|g| g == 0.0)
        );
    }
}

#[test]
#[should_panic(expected = "start before those in front of them end")]
fn rows_of_pairs_that_overlap_are_refused() {
    let device = burn::tensor::Device::flex();
    let pair = |rows| LowRankRows {
        rows,
        a: random(2, 4, 1.0, 1).tensor(&device),
        b: random(3, 2, 1.0, 2).tensor(&device),
        scale: 1.0,
    };
    let [x, weight] = [random(6, 4, 1.0, 3), random(3, 4, 1.0, 4)].map(|a| a.tensor(&device));
    frugal_kernels::multi_lora_linear(x, weight, None, &[pair(0..4), pair(3..6)]);
}

#[test]
fn linear_of_no_tokens_is_empty() {
    let empty = Array {
        data: Vec::new(),
        shape: [0, 4],
    };
    let device = burn::tensor::Device::flex();
    let y = frugal_kernels::linear(
        empty.tensor(&device),
        random(3, 4, 1.0, 1).tensor(&device),
        None,
    );
    assert_eq!(y.dims(), [0, 3]);
}
