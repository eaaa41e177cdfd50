//! Kernels on each instruction set, forced in a process of its own, against double precision.
//!
//! The bounds are those of the arithmetic: a sum of `n` products in single precision is off by at
//! most `(n + 3) u` times the sum of their magnitudes, whatever its order, with `u = 2^-24`; the
//! exponential is off by 3e-7 of its value. Sizes cover whole and partial vectors, tiles, panels and
//! blocks, and windows of wider matrices begin at every alignment.

use std::process::{Command, Output};
use std::sync::Arc;

use burn::tensor::{Device, Tensor, TensorData};
use frugal_formats::gguf::GgmlType;
use frugal_kernels::{
    ActivationQuant, AttentionSpec, CacheType, InstructionSet, KeyValues, Packed, Sparse,
    attention, cached_attention, linear, lora_linear, quantized_linear, quantized_lora_linear,
    rms_norm, sparse_linear, swiglu, token_log_probs,
};

use crate::support::{Array, random};

/// Half the distance between 1 and the next number.
const U: f64 = 1.0 / (1 << 24) as f64;
/// Relative error of the exponential.
const EXP: f64 = 3e-7;
const CHILD: &str = "simd::under_the_forced_set";

fn child(set: &str) -> Output {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", CHILD, "--include-ignored", "--nocapture"])
        .env("FRUGAL_SIMD", set)
        .output()
        .unwrap()
}

#[track_caller]
fn forced(set: InstructionSet) {
    if set > InstructionSet::detect() {
        println!("skipped: this machine lacks {set}");
        return;
    }
    let output = child(set.name());
    let [stdout, stderr] =
        [&output.stdout, &output.stderr].map(|text| String::from_utf8_lossy(text));
    assert!(
        output.status.success()
            && stdout.contains("1 passed")
            && stdout.contains(&format!("kernels run on {set}\n")),
        "{set}:\n{stdout}\n{stderr}"
    );
}

#[test]
fn scalar_kernels_agree_with_double_precision() {
    forced(InstructionSet::Scalar);
}

#[test]
fn avx2_kernels_agree_with_double_precision() {
    forced(InstructionSet::Avx2);
}

#[test]
fn avx512_kernels_agree_with_double_precision() {
    forced(InstructionSet::Avx512);
}

#[test]
fn avx512vnni_kernels_agree_with_double_precision() {
    forced(InstructionSet::Avx512Vnni);
}

#[test]
fn avx512bf16_kernels_agree_with_double_precision() {
    forced(InstructionSet::Avx512Bf16);
}

#[test]
fn an_unknown_instruction_set_is_refused_by_name() {
    let output = child("sse9");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success(), "{stderr}");
    assert!(
        stderr.contains("there is no instruction set `sse9`; this machine has `scalar`"),
        "{stderr}"
    );
}

#[test]
#[ignore = "run by the tests of the instruction sets, each in a process of its own"]
fn under_the_forced_set() {
    let set = InstructionSet::in_use().unwrap_or_else(|error| panic!("{error}"));
    println!("kernels run on {set}");
    dense_products();
    packed_products();
    bf16_products();
    sparse_products();
    attention_of_sequences();
    attention_to_a_cache();
    rows();
}

/// A matrix as some columns of a wider one, from column `offset` on.
fn shifted(array: &Array, offset: usize) -> Tensor<2> {
    let [rows, cols] = array.shape;
    let width = cols + offset;
    let mut data = vec![f32::NAN; rows * width];
    for i in 0..rows {
        data[i * width + offset..][..cols].copy_from_slice(&array.data[i * cols..][..cols]);
    }
    Tensor::<2>::from_data(TensorData::new(data, [rows, width]), &Device::flex())
        .narrow(1, offset, cols)
}

fn transposed(array: &Array) -> Array {
    let [rows, cols] = array.shape;
    let data = (0..cols).flat_map(|j| (0..rows).map(move |i| array.data[i * cols + j]));
    Array {
        data: data.collect(),
        shape: [cols, rows],
    }
}

fn vector(values: &[f32]) -> Tensor<1> {
    Tensor::from_data(
        TensorData::new(values.to_vec(), [values.len()]),
        &Device::flex(),
    )
}

fn values(tensor: Tensor<2>) -> Vec<f32> {
    tensor.into_data().try_into_vec().unwrap()
}

/// `x · weightᵀ` in double precision, and the same of the magnitudes.
fn reference(x: &[f32], weight: &[f32], d: usize) -> Vec<[f64; 2]> {
    x.chunks(d)
        .flat_map(|x| weight.chunks(d).map(move |weight| sums(x, weight)))
        .collect()
}

fn sums(x: &[f32], y: &[f32]) -> [f64; 2] {
    x.iter().zip(y).fold([0.0; 2], |[sum, magnitude], (x, y)| {
        let product = f64::from(*x) * f64::from(*y);
        [sum + product, magnitude + product.abs()]
    })
}

#[track_caller]
fn assert_within(what: &str, actual: &[f32], expected: impl Iterator<Item = (f64, f64)>) {
    let mut count = 0;
    for (i, (actual, (expected, bound))) in actual.iter().zip(expected).enumerate() {
        let difference = (f64::from(*actual) - expected).abs();
        assert!(
            difference <= bound,
            "{what}: element {i} is {actual}, {difference:e} from {expected}; the bound is {bound:e}"
        );
        count += 1;
    }
    assert_eq!(count, actual.len(), "{what}: elements");
}

fn dense_products() {
    let mut case = 0;
    for tokens in [1, 2, 5, 8, 9, 12, 13, 25, 40] {
        for d in [1, 7, 8, 15, 16, 17, 31, 64, 65, 641] {
            for out in [1, 3, 8, 9, 15, 16, 17, 31, 32, 33, 47] {
                case += 1;
                let (x, weight) = (random(tokens, d, 1.0, case), random(out, d, 1.0, case + 9));
                let bias = random(1, out, 1.0, case + 5).data;
                let x_tensor = match case % 3 {
                    0 => shifted(&transposed(&x), 1).transpose(),
                    _ => shifted(&x, case as usize % 17),
                };
                let w_tensor = match case % 5 {
                    0 => shifted(&transposed(&weight), 2).transpose(),
                    _ => shifted(&weight, case as usize % 16),
                };
                let what = format!("linear {tokens} x {d} x {out}");
                let y = linear(x_tensor.clone(), w_tensor.clone(), Some(vector(&bias)));
                let expected = reference(&x.data, &weight.data, d);
                let with_bias = expected.iter().enumerate().map(|(i, [sum, magnitude])| {
                    let bias = f64::from(bias[i % out]);
                    let bound = (d + 4) as f64 * U * (magnitude + bias.abs());
                    (sum + bias, bound)
                });
                assert_within(&what, &values(y), with_bias);
                if case % 4 == 0 {
                    low_rank_product(&what, [&x, &weight], [x_tensor, w_tensor], &expected);
                }
            }
        }
    }
}

/// The low-rank correction with factors of one value each, whose product is known.
fn low_rank_product(
    what: &str,
    [x, weight]: [&Array; 2],
    [x_tensor, w_tensor]: [Tensor<2>; 2],
    expected: &[[f64; 2]],
) {
    let ([_, d], [out, _]) = (x.shape, weight.shape);
    let a = random(3, d, 1.0, 77);
    let b = random(out, 3, 1.0, 78);
    let low = reference(&x.data, &a.data, d);
    let y = lora_linear(
        x_tensor,
        w_tensor,
        None,
        shifted(&a, 3),
        shifted(&b, 1),
        0.5,
    );
    let expected = expected.iter().enumerate().map(|(i, [sum, magnitude])| {
        let (token, row) = (i / out, i % out);
        let pairs = (0..3).map(|r| (low[token * 3 + r], f64::from(b.data[row * 3 + r])));
        let (mut total, mut bound) = (*sum, magnitude * (d + 8) as f64 * U);
        for ([low, low_magnitude], b) in pairs {
            total += 0.5 * low * b;
            bound += (d + 8) as f64 * U * 0.5 * low_magnitude * b.abs();
        }
        (total, bound)
    });
    assert_within(
        &format!("{what} with a low-rank pair"),
        &values(y),
        expected,
    );
}

fn packed_products() {
    for out in [1, 15, 16, 17, 40] {
        for d in [1, 4, 31, 32, 64, 65, 70, 96, 150, 256] {
            let weight = random(out, d, 1.0, (out * d) as u64).data;
            let ggml = |ggml_type| Packed::to_ggml(ggml_type, &weight, d);
            let packings = [
                (Some(Packed::int8(&weight, d)), d),
                (Some(Packed::nf4(&weight, d)), d),
                (Some(Packed::nf4_double(&weight, d)), d),
                (ggml(GgmlType::Q8_0), 32),
                (ggml(GgmlType::Q4_0), 32),
                (ggml(GgmlType::Q4_1), 32),
            ];
            for (packed, group) in packings {
                // Some widths are no whole number of a format's blocks.
                let Some(packed) = packed.map(Arc::new) else {
                    continue;
                };
                let token_counts = [1, 4, 5, 8, 9, 17];
                token_counts
                    .iter()
                    .for_each(|&tokens| packed_product(&packed, group, tokens));
                if !packed.format().starts_with("nf4") {
                    let packed = Arc::into_inner(packed).expect("no other owner");
                    let packed = Arc::new(packed.with_activations(ActivationQuant::Int8));
                    token_counts
                        .iter()
                        .for_each(|&tokens| rounded_product(&packed, group, tokens));
                }
            }
        }
    }
}

fn packed_product(packed: &Arc<Packed>, group: usize, tokens: usize) {
    let [out, d] = packed.dims();
    let x = random(tokens, d, 1.0, (tokens + group) as u64);
    let weight = packed.to_vec();
    let y = quantized_linear(shifted(&x, (tokens + d) % 16), packed, None);
    let expected = reference(&x.data, &weight, d);
    let expected = expected
        .into_iter()
        .map(|[sum, magnitude]| (sum, (d + 4) as f64 * U * magnitude));
    assert_within(
        &format!("{packed:?} by {tokens} x {d} to {out}"),
        &values(y),
        expected,
    );
}

fn rounded_product(packed: &Arc<Packed>, group: usize, tokens: usize) {
    let [_, d] = packed.dims();
    let x = random(tokens, d, 1.0, (tokens + group) as u64);
    let weight = packed.to_vec();
    let y = quantized_linear(shifted(&x, (tokens + d) % 16), packed, None);
    let expected = x.data.chunks(d).flat_map(|x| {
        weight.chunks(d).map(move |weight| {
            let [sum, magnitude] = sums(x, weight);
            let mut bound = (d + 8) as f64 * U * magnitude;
            for (x, weight) in x.chunks(group).zip(weight.chunks(group)) {
                // Each x is off by half a step of its group.
                let largest = x.iter().fold(0f32, |max, x| max.max(x.abs()));
                let step = f64::from(largest) / 127.0 * (1.0 + 1e-4);
                let weights: f64 = weight.iter().map(|w| f64::from(w.abs())).sum();
                bound += 0.5 * step * weights;
            }
            (sum, bound)
        })
    });
    assert_within(
        &format!("{packed:?} by {tokens} rounded rows"),
        &values(y),
        expected,
    );
}

/// To bfloat16, the nearest and ties to even, by the bits.
fn to_bf16(value: f32) -> f32 {
    let bits = value.to_bits();
    f32::from_bits((bits + 0x7fff + (bits >> 16 & 1)) & 0xffff_0000)
}

/// Forward and backward products with a matrix in bfloat16, a bias and a low-rank pair.
fn bf16_products() {
    for tokens in [1, 2, 11, 12, 13, 25] {
        for d in [1, 2, 3, 15, 31, 32, 33, 65, 641, 1290] {
            for out in [1, 15, 31, 32, 33, 65] {
                let seed = (tokens * d + out) as u64;
                let (x, weight) = (random(tokens, d, 1.0, seed), random(out, d, 1.0, seed + 1));
                let packed = Arc::new(Packed::bf16(&weight.data, d));
                let weight_bf16: Vec<f32> = weight.data.iter().copied().map(to_bf16).collect();
                assert_eq!(packed.to_vec(), weight_bf16, "{packed:?}");
                let what = format!("{packed:?} by {tokens} rows");
                let bias = random(1, out, 1.0, seed + 2);
                let (a, b) = (random(3, d, 1.0, seed + 3), random(out, 3, 1.0, seed + 4));
                bf16_forward(&what, &x, &packed, &weight, &bias);
                bf16_backward(&what, &x, &packed, &weight, [&a, &b]);
            }
        }
    }
}

/// Where both factors are as they were rounded, only the sum is rounded; where they are not, each is
/// off by at most 2^-8.
fn bf16_forward(what: &str, x: &Array, packed: &Arc<Packed>, weight: &Array, bias: &Array) {
    let [out, d] = weight.shape;
    let y = quantized_linear(shifted(x, d % 3), packed, Some(vector(&bias.data)));
    let found = values(y);
    let round = |array: &Array| array.data.iter().copied().map(to_bf16).collect::<Vec<_>>();
    let bias_of = |i: usize| f64::from(bias.data[i % out]);
    let rounded = reference(&round(x), &round(weight), d).into_iter();
    let rounded = rounded.enumerate().map(|(i, [sum, magnitude])| {
        let bound = (d + 4) as f64 * U * (magnitude + bias_of(i).abs());
        (sum + bias_of(i), bound)
    });
    assert_within(what, &found, rounded);
    let exact = reference(&x.data, &weight.data, d).into_iter();
    let exact = exact.enumerate().map(|(i, [sum, magnitude])| {
        let rounding = 2.0 * 2f64.powi(-8) + 2f64.powi(-16);
        let bound = (rounding + (d + 5) as f64 * U) * (magnitude + bias_of(i).abs());
        (sum + bias_of(i), bound)
    });
    assert_within(what, &found, exact);
}

/// The gradient of x: that of the output, rounded, by the matrix, and the low-rank pair as it is.
fn bf16_backward(what: &str, x: &Array, packed: &Arc<Packed>, weight: &Array, [a, b]: [&Array; 2]) {
    let [out, d] = weight.shape;
    let rank = a.shape[0];
    let tokens = x.shape[0];
    let device = Device::flex().autodiff();
    let x = x.tensor(&device).require_grad();
    let gradient = &random(tokens, out, 1.0, 99);
    let (a_tensor, b_tensor) = (a.tensor(&Device::flex()), b.tensor(&Device::flex()));
    let y = quantized_lora_linear(x.clone(), packed, None, a_tensor, b_tensor, 0.5);
    let grads = (y * gradient.tensor(&device)).sum().backward();
    let found = values(x.grad(&grads).unwrap());
    let gradient_bf16: Vec<f32> = gradient.data.iter().copied().map(to_bf16).collect();
    let weight_bf16: Vec<f32> = weight.data.iter().copied().map(to_bf16).collect();
    let expected = (0..tokens * d).map(|at| {
        let (token, column) = (at / d, at % d);
        let products = (0..out).map(|o| {
            f64::from(gradient_bf16[token * out + o]) * f64::from(weight_bf16[o * d + column])
        });
        let low_rank = (0..rank).flat_map(|r| {
            (0..out).map(move |o| {
                0.5 * f64::from(gradient.data[token * out + o])
                    * f64::from(b.data[o * rank + r])
                    * f64::from(a.data[r * d + column])
            })
        });
        let terms: Vec<f64> = products.chain(low_rank).collect();
        let magnitude: f64 = terms.iter().map(|term| term.abs()).sum();
        (terms.iter().sum(), (out + rank + 8) as f64 * U * magnitude)
    });
    assert_within(&format!("gradient of {what}"), &found, expected);
}

fn sparse_products() {
    for out in [1, 15, 16, 17, 40] {
        for d in [1, 15, 16, 17, 100, 129] {
            let mut weight = random(out, d, 1.0, (out + d) as u64).data;
            weight
                .iter_mut()
                .filter(|w| **w > -0.2)
                .for_each(|w| *w = 0.0);
            let sparse = Arc::new(Sparse::new(&weight, d));
            for tokens in [1, 4, 8, 9, 63, 64, 65] {
                let x = random(tokens, d, 1.0, (tokens * d) as u64);
                let y = sparse_linear(shifted(&x, (tokens + d) % 16), &sparse, None);
                let expected = reference(&x.data, &weight, d)
                    .into_iter()
                    .map(|[sum, magnitude]| (sum, (d + 4) as f64 * U * magnitude));
                assert_within(
                    &format!("{sparse:?} by {tokens} rows"),
                    &values(y),
                    expected,
                );
            }
        }
    }
}

fn spec(heads: usize, kv_heads: usize, dim: usize, causal: bool, len: usize) -> AttentionSpec {
    AttentionSpec {
        num_heads: heads,
        num_kv_heads: kv_heads,
        head_dim: dim,
        scale: 1.0 / (dim as f32).sqrt(),
        causal,
        window: None,
        cu_q: [0, len].into(),
        cu_k: [0, len].into(),
        softcap: None,
    }
}

/// One query's output of one head and the bound on its error.
fn attend(q: &[f32], keys: &[&[f32]], values: &[&[f32]], scale: f32) -> Vec<(f64, f64)> {
    let scores: Vec<[f64; 2]> = keys
        .iter()
        .map(|key| sums(q, key).map(|sum| sum * f64::from(scale)))
        .collect();
    let max = scores.iter().fold(f64::MIN, |max, [s, _]| max.max(*s));
    let weights: Vec<f64> = scores
        .iter()
        .map(|[score, _]| (score - max).exp())
        .collect();
    let total: f64 = weights.iter().sum();
    let score_error = scores.iter().fold(0.0, |worst: f64, [score, magnitude]| {
        let rounding = (q.len() + 4) as f64 * U * magnitude;
        worst.max(rounding + 4.0 * U * (score.abs() + max.abs()))
    });
    // Numerator and denominator are each off by the errors of the weights and of a sum.
    let relative = 2.0 * (score_error + 2.0 * EXP + (keys.len() + 8) as f64 * U);
    (0..values[0].len())
        .map(|i| {
            let terms = weights.iter().zip(values).map(|(w, v)| w * f64::from(v[i]));
            let (sum, magnitude) = terms.fold((0.0, 0.0), |(sum, all), term| {
                (sum + term, all + term.abs())
            });
            (sum / total, relative * magnitude / total)
        })
        .collect()
}

fn attention_of_sequences() {
    for dim in [1, 4, 15, 16, 17, 64] {
        for len in [1, 2, 16, 47, 48, 49, 257] {
            for causal in [true, false] {
                let [q, k, v] = [(2, 1), (1, 2), (1, 3)]
                    .map(|(heads, seed)| random(len, heads * dim, 1.0, seed + len as u64));
                let spec = spec(2, 1, dim, causal, len);
                let y = attention(
                    shifted(&q, len % 16),
                    shifted(&k, dim % 7),
                    shifted(&v, 1),
                    &spec,
                );
                let (keys, vals): (Vec<&[f32]>, Vec<&[f32]>) =
                    k.data.chunks(dim).zip(v.data.chunks(dim)).unzip();
                let expected = q.data.chunks(dim).enumerate().flat_map(|(row, q)| {
                    let seen = spec.visible(row / 2, len, len);
                    attend(q, &keys[seen.clone()], &vals[seen], spec.scale)
                });
                assert_within(&format!("attention {len} x {dim}"), &values(y), expected);
            }
        }
    }
}

fn attention_to_a_cache() {
    for cache_type in [CacheType::F32, CacheType::F16, CacheType::Int8] {
        for dim in [4, 16, 32, 33, 64] {
            for len in [1, 16, 255, 256, 257, 300] {
                let [k, v] = [4, 5].map(|seed| random(len, dim, 1.0, seed + len as u64));
                let q = random(1, 2 * dim, 1.0, 6);
                let mut cache = KeyValues::new(dim, cache_type);
                assert!(cache.append(&shifted(&k, 1), &shifted(&v, 2)));
                let spec = spec(2, 1, dim, true, 1);
                let y = cached_attention(shifted(&q, 3), &[&cache], &spec);
                // What the cache holds, not what it was given.
                let (k, v) = cache.tensors(&Device::flex());
                let (k, v) = (values(k), values(v));
                let (keys, vals): (Vec<&[f32]>, Vec<&[f32]>) =
                    k.chunks(dim).zip(v.chunks(dim)).unzip();
                let expected = q
                    .data
                    .chunks(dim)
                    .flat_map(|q| attend(q, &keys, &vals, spec.scale));
                let what = format!("attention to {len} x {dim} in {cache_type:?}");
                assert_within(&what, &values(y), expected);
            }
        }
    }
}

/// Norms, activations and the loss, row by row.
fn rows() {
    for width in [1, 7, 15, 16, 17, 31, 32, 33, 100, 700] {
        let (x, gate) = (random(5, width, 2.0, 1), random(5, width, 6.0, 2));
        let weight = random(1, width, 1.0, 3).data;
        let y = rms_norm(shifted(&x, width % 16), vector(&weight), 1e-5);
        let expected = x.data.chunks(width).flat_map(|row| {
            let mean = row.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>() / width as f64;
            let scale = 1.0 / (mean + 1e-5).sqrt();
            row.iter().zip(&weight).map(move |(x, w)| {
                let y = f64::from(*x) * scale * f64::from(*w);
                (y, y.abs() * (width + 8) as f64 * U)
            })
        });
        assert_within(&format!("rms_norm of {width}"), &values(y), expected);

        let y = swiglu(shifted(&gate, 1), shifted(&x, 2));
        let expected = gate.data.iter().zip(&x.data).map(|(gate, up)| {
            let (gate, up) = (f64::from(*gate), f64::from(*up));
            let y = gate / (1.0 + (-gate).exp()) * up;
            (y, y.abs() * (EXP + 8.0 * U))
        });
        assert_within(&format!("swiglu of {width}"), &values(y), expected);

        log_probs(width);
    }
}

fn log_probs(vocab: usize) {
    const D: usize = 9;
    let (hidden, weight) = (random(6, D, 1.0, 8), random(vocab, D, 1.0, 9));
    let targets: Vec<i32> = (0..6).map(|i| (i * 5 % vocab) as i32).collect();
    let found = token_log_probs(shifted(&hidden, 1), shifted(&weight, 2), None, &targets);
    let logits = reference(&hidden.data, &weight.data, D);
    let expected = logits.chunks(vocab).zip(&targets).map(|(logits, target)| {
        let max = logits
            .iter()
            .fold(f64::MIN, |max, [logit, _]| max.max(*logit));
        let total: f64 = logits.iter().map(|[logit, _]| (logit - max).exp()).sum();
        let lse = max + total.ln();
        let worst = logits.iter().fold(0f64, |worst, [_, sum]| worst.max(*sum));
        let rounding = 2.0 * (D + 4) as f64 * U * worst + (vocab + 8) as f64 * U + 2.0 * EXP;
        let logit = logits[*target as usize][0];
        (logit - lse, rounding + 8.0 * U * (lse.abs() + logit.abs()))
    });
    assert_within(&format!("log-probabilities of {vocab}"), &found, expected);
}
