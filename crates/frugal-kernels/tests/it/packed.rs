use std::sync::Arc;

use burn::tensor::{Device, Tensor};
use frugal_formats::gguf::{GgmlType, dequantize, quantize};
use frugal_kernels::{
    ActivationQuant, CrossEntropyOptions, LowRankRows, Packed, linear, linear_cross_entropy,
    lora_linear, multi_lora_linear, quantized_cross_entropy, quantized_linear,
    quantized_lora_linear, quantized_multi_lora_linear,
};

use crate::support::{Array, assert_close, random};

/// Rows that do not fill a panel, and enough of them for several threads.
const ROWS: usize = 83;
const COLS: usize = 512;

/// Blocks of every type: those that can be written from values, the others from bytes with small
/// scales.
fn blocks(ggml_type: GgmlType) -> Vec<u8> {
    if let Ok(bytes) = quantize(ggml_type, &random(ROWS, COLS, 1.0, 11).data) {
        return bytes;
    }
    let size = ggml_type.block_bytes();
    let mut state = 3u32;
    let mut bytes: Vec<u8> = (0..ROWS * COLS / ggml_type.block_len() * size)
        .map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 24) as u8
        })
        .collect();
    for block in bytes.chunks_exact_mut(size) {
        let halves: &[usize] = match ggml_type {
            GgmlType::Q6_K => &[208],
            GgmlType::Q5_0 => &[0],
            _ => &[0, 2],
        };
        halves
            .iter()
            .for_each(|&at| block[at + 1] = 0x20 | block[at + 1] & 0x83);
    }
    bytes
}

const TYPES: [GgmlType; 8] = [
    GgmlType::Q4_0,
    GgmlType::Q4_1,
    GgmlType::Q5_0,
    GgmlType::Q5_1,
    GgmlType::Q8_0,
    GgmlType::Q4_K,
    GgmlType::Q5_K,
    GgmlType::Q6_K,
];

fn vec<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    tensor.into_data().try_into_vec().unwrap()
}

fn dense(values: &[f32], cols: usize) -> Tensor<2> {
    Array {
        data: values.to_vec(),
        shape: [values.len() / cols, cols],
    }
    .tensor(&Device::flex())
}

fn close(what: &str, actual: Tensor<2>, expected: Tensor<2>, tolerance: f64) {
    let expected: Vec<f64> = vec(expected).into_iter().map(f64::from).collect();
    assert_close(what, &vec(actual), &expected, tolerance);
}

#[test]
fn packed_blocks_hold_the_values_of_the_file() {
    let order: Vec<usize> = (0..ROWS).rev().collect();
    for ggml_type in TYPES {
        let bytes = blocks(ggml_type);
        let values = dequantize(ggml_type, &bytes);
        let packed = Packed::from_ggml(ggml_type, &bytes, COLS, None).unwrap();
        assert_eq!(packed.dims(), [ROWS, COLS]);
        assert!(packed.to_vec() == values, "{ggml_type}");
        let reversed = Packed::from_ggml(ggml_type, &bytes, COLS, Some(&order)).unwrap();
        assert!(
            reversed.gather(&[0, 82]) == [&values[82 * COLS..], &values[..COLS]].concat(),
            "{ggml_type} in another order"
        );
        if matches!(ggml_type, GgmlType::Q4_0 | GgmlType::Q4_1 | GgmlType::Q8_0) {
            // Sixteen rows a panel: 96 for 83.
            assert_eq!(packed.bytes(), bytes.len() / ROWS * 96, "{ggml_type}");
        }
    }
    assert!(Packed::from_ggml(GgmlType::F16, &[], COLS, None).is_none());
}

/// `max |w| / 127` a step, so half of that is the largest error; the largest element is kept.
#[test]
fn int8_rounds_to_the_nearest_of_255_steps() {
    for cols in [1, 7, 24, 100] {
        let values = random(19, cols, 3.0, 5).data;
        let packed = Packed::int8(&values, cols);
        for (row, found) in values.chunks(cols).zip(packed.to_vec().chunks(cols)) {
            let largest = row.iter().fold(0.0f32, |max, v| max.max(v.abs()));
            for (value, found) in row.iter().zip(found) {
                assert!(
                    (value - found).abs() <= largest / 127.0 * 0.5001,
                    "{value} became {found}"
                );
            }
        }
    }
    assert!(
        Packed::int8(&[0.0; 8], 8)
            .to_vec()
            .iter()
            .all(|v| *v == 0.0)
    );
}

/// Sums of products of integers stay within 32 bits however long a row is.
#[test]
fn integer_products_of_long_rows_do_not_overflow() {
    const COLS: usize = 70_000;
    let packed =
        Arc::new(Packed::int8(&vec![1.0; 2 * COLS], COLS).with_activations(ActivationQuant::Int8));
    let x = Tensor::<2>::ones([1, COLS], &Device::flex());
    for found in vec(quantized_linear(x, &packed, None)) {
        assert!((found / COLS as f32 - 1.0).abs() < 1e-3, "{found}");
    }
}

#[test]
fn integer_products_keep_what_is_not_a_number() {
    let packed = Arc::new(Packed::int8(&[1.0; 64], 32).with_activations(ActivationQuant::Int8));
    let mut values = [0.5; 32];
    values[3] = f32::NAN;
    let x = Tensor::<1>::from_data(values.as_slice(), &Device::flex()).unsqueeze::<2>();
    assert!(
        vec(quantized_linear(x, &packed, None))
            .iter()
            .all(|v| v.is_nan())
    );
}

/// The values of a group over its largest are rounded to the nearest of the sixteen that the paper
/// lists.
#[test]
fn nf4_rounds_to_the_nearest_of_its_sixteen_values() {
    let levels = [
        -1.0,
        -0.6961928,
        -0.52507305,
        -0.3949175,
        -0.28444138,
        -0.18477343,
        -0.091050036,
        0.0,
        0.0795803,
        0.1609302,
        0.2461123,
        0.33791524,
        0.44070983,
        0.562617,
        0.72295684,
        1.0f32,
    ];
    for cols in [64, 100, 192] {
        let values = random(21, cols, 2.0, 9).data;
        let packed = Packed::nf4(&values, cols);
        for (row, found) in values.chunks(cols).zip(packed.to_vec().chunks(cols)) {
            for (group, found) in row.chunks(64).zip(found.chunks(64)) {
                let largest = group.iter().fold(0.0f32, |max, v| max.max(v.abs()));
                for (value, found) in group.iter().zip(found) {
                    let nearest = levels
                        .iter()
                        .map(|level| level * largest)
                        .min_by(|a, b| (a - value).abs().total_cmp(&(b - value).abs()));
                    assert!(
                        (nearest.unwrap() - found).abs() < 1e-5,
                        "{value} of {largest} became {found}"
                    );
                }
            }
        }
    }
}

/// With scales of a byte, a group keeps its codes and its scale is off by half a step of the
/// dynamic values at most, 0.0071 of the largest distance from the mean scale.
#[test]
fn double_quantisation_moves_scales_by_half_a_step_at_most() {
    let (rows, cols) = (64, 640);
    let values: Vec<f32> = random(rows, cols, 1.0, 9)
        .data
        .iter()
        .enumerate()
        .map(|(i, v)| v * (1.0 + (i / 64 % 7) as f32))
        .collect();
    let (single, double) = (
        Packed::nf4(&values, cols),
        Packed::nf4_double(&values, cols),
    );
    assert_eq!(
        double.bytes(),
        rows * cols / 2 + rows * cols / 64 + 4 * (rows * cols / 64usize).div_ceil(256)
    );
    let scales: Vec<f32> = values
        .chunks(64)
        .map(|group| group.iter().fold(0.0f32, |max, v| max.max(v.abs())))
        .collect();
    let mean = scales.iter().sum::<f32>() / scales.len() as f32;
    let furthest = scales
        .iter()
        .fold(0.0f32, |max, scale| max.max((scale - mean).abs()));
    let (single, double) = (single.to_vec(), double.to_vec());
    let mut moved = 0.0f32;
    for ((single, double), scale) in single.chunks(64).zip(double.chunks(64)).zip(&scales) {
        for (a, b) in single.iter().zip(double) {
            // The same share of either scale.
            let off = (b - a) * scale / a.abs().max(1e-9) * if *a == 0.0 { 0.0 } else { 1.0 };
            moved = moved.max(off.abs());
            assert!(
                off.abs() <= 0.0071 * furthest,
                "{a} became {b}, the scale is {scale}"
            );
        }
    }
    assert!(moved > 0.0);
}

fn all_packed() -> Vec<Packed> {
    let values = random(ROWS, COLS, 1.0, 11).data;
    let files = TYPES
        .iter()
        .map(|&t| Packed::from_ggml(t, &blocks(t), COLS, None).unwrap());
    let odd = random(37, 100, 1.0, 12).data;
    let ours = [Packed::int8, Packed::nf4, Packed::nf4_double];
    files
        .chain(ours.iter().map(|pack| pack(&values, COLS)))
        .chain(ours.iter().map(|pack| pack(&odd, 100)))
        .collect()
}

#[test]
fn exact_products_equal_those_of_the_dense_matrix() {
    for packed in all_packed() {
        let ([rows, cols], name) = (packed.dims(), format!("{packed:?}"));
        let weight = dense(&packed.to_vec(), cols);
        let packed = Arc::new(packed);
        let bias = random(1, rows, 1.0, 3)
            .tensor(&Device::flex())
            .reshape([rows]);
        for tokens in [1, 3, 8, 9, 40] {
            let x = random(tokens, cols, 1.0, 4).tensor(&Device::flex());
            let expected = linear(x.clone(), weight.clone(), Some(bias.clone()));
            close(
                &format!("{name} with {tokens} tokens"),
                quantized_linear(x, &packed, Some(bias.clone())),
                expected,
                2e-5,
            );
        }
        let column_major = random(cols, 20, 1.0, 4).tensor(&Device::flex()).transpose();
        let expected = linear(column_major.clone(), weight.clone(), None);
        close(
            &format!("{name} with columns"),
            quantized_linear(column_major, &packed, None),
            expected,
            2e-5,
        );
    }
}

/// With x rounded to 8 bits the way that is documented, the integer products must be exact; only
/// sums of floats differ.
#[test]
fn integer_products_equal_those_of_the_rounded_input() {
    for packed in all_packed() {
        let ([rows, cols], name) = (packed.dims(), format!("{packed:?}"));
        if name.contains("nf4") {
            continue;
        }
        let group = match packed.format() {
            "int8" => cols,
            "Q6_K" => 16,
            _ => 32,
        };
        let weight = dense(&packed.to_vec(), cols);
        let packed = Arc::new(packed.with_activations(ActivationQuant::Int8));
        for tokens in [1, 3, 4, 7, 8, 29] {
            let x = random(tokens, cols, 1.0, 4);
            let rounded: Vec<f32> = x
                .data
                .chunks(cols)
                .flat_map(|row| row.chunks(group))
                .flat_map(|x| {
                    let largest = x.iter().fold(0.0f32, |max, v| max.max(v.abs()));
                    x.iter()
                        .map(move |x| (x * (127.0 / largest)).round_ties_even() * (largest / 127.0))
                })
                .collect();
            let expected = linear(dense(&rounded, cols), weight.clone(), None);
            let found = quantized_linear(x.tensor(&Device::flex()), &packed, None);
            assert_eq!(found.dims(), [tokens, rows]);
            close(
                &format!("{name} with {tokens} tokens"),
                found,
                expected,
                5e-5,
            );
        }
    }
}

#[test]
fn gradients_pass_through_a_packed_base() {
    for packed in all_packed() {
        let ([rows, cols], name) = (packed.dims(), format!("{packed:?}"));
        let weight = dense(&packed.to_vec(), cols);
        let packed = Arc::new(packed);
        let leaf = |rows, cols, seed| {
            Tensor::<2>::from_inner(random(rows, cols, 0.5, seed).tensor(&Device::flex()))
                .require_grad()
        };
        let outcome = |packed: Option<&Arc<Packed>>| {
            let inputs = [leaf(13, cols, 1), leaf(4, cols, 2), leaf(rows, 4, 3)];
            let [x, a, b] = inputs.clone();
            let some = [LowRankRows {
                rows: 2..9,
                a: a.clone(),
                b: b.clone(),
                scale: -0.4,
            }];
            let (y, some, z) = match packed {
                Some(p) => (
                    quantized_lora_linear(x.clone(), p, None, a, b, 0.7),
                    quantized_multi_lora_linear(x.clone(), p, None, &some),
                    quantized_linear(x, p, None),
                ),
                None => (
                    lora_linear(x.clone(), weight.clone(), None, a, b, 0.7),
                    multi_lora_linear(x.clone(), weight.clone(), None, &some),
                    linear(x, weight.clone(), None),
                ),
            };
            let factor = random(13, rows, 1.0, 8).tensor(&Device::flex());
            let grads = ((y * factor.clone()).sum() + (some * factor).sum() + z.sum()).backward();
            inputs.map(|input| input.grad(&grads).unwrap())
        };
        for (i, (found, expected)) in outcome(Some(&packed))
            .into_iter()
            .zip(outcome(None))
            .enumerate()
        {
            close(&format!("{name}: gradient {i}"), found, expected, 5e-5);
        }
    }
}

#[test]
fn the_loss_of_a_packed_head_is_that_of_the_dense_one() {
    let packed = Arc::new(Packed::int8(&random(ROWS, 64, 1.0, 2).data, 64));
    let targets: Vec<i32> = (0..30)
        .map(|i| if i % 7 == 0 { -100 } else { i * 2 })
        .collect();
    let options = CrossEntropyOptions {
        label_smoothing: 0.1,
        ..CrossEntropyOptions::default()
    };
    let hidden =
        || Tensor::<2>::from_inner(random(30, 64, 1.0, 1).tensor(&Device::flex())).require_grad();
    let (a, b) = (hidden(), hidden());
    let found = quantized_cross_entropy(a.clone(), &packed, None, &targets, &options);
    let expected = linear_cross_entropy(
        b.clone(),
        dense(&packed.to_vec(), 64),
        None,
        &targets,
        &options,
    );
    let (found_grad, expected_grad) = (found.backward(), expected.backward());
    assert!((vec(found)[0] / vec(expected)[0] - 1.0).abs() < 1e-5);
    close(
        "gradient",
        a.grad(&found_grad).unwrap(),
        b.grad(&expected_grad).unwrap(),
        2e-5,
    );
}
