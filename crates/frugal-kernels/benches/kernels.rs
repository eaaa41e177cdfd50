//! Times every kernel at the shapes of a training step of SmolLM2-135M: 1,024 tokens, width 576,
//! feed-forward width 1536.
//!
//! `cargo bench --workspace --bench kernels [FILTER]`. With `--checks [NAME ...]` it prints one
//! number for each result instead, which `benches/peers/kernels.py` compares with those of PyTorch,
//! whose operations it times at the same shapes.
//!
//! Operations are timed with their backward pass and keep everything between the two, as PyTorch
//! does. Those that keep the shape are applied eight times in a row, so that the loss at the end
//! costs little.

#![allow(clippy::print_stdout, reason = "its output is the point")]
#![recursion_limit = "256"]

use std::cell::LazyCell;
use std::sync::Arc;

use burn::tensor::{Device, Tensor, TensorData};
use criterion::Criterion;
use frugal_formats::gguf::GgmlType;
use frugal_kernels::{
    ActivationQuant, AdamWStep, AttentionSpec, Blockwise, CacheType, CrossEntropyOptions,
    KeyValues, LowRankRows, Packed, SavePolicy, ScoreBias, adamw_8bit_step, adamw_step,
    add_layer_norm, add_rms_norm, attention, biased_attention, cached_attention, geglu_tanh, gelu,
    gelu_tanh, grad_norm_sq, keep_freed_memory, layer_norm, linear, linear_cross_entropy,
    lora_linear, multi_lora_linear, on_pool, quantized_linear, rms_norm, rope, silu, swiglu,
};

const TOKENS: usize = 1024;
const D: usize = 576;
const D_FF: usize = 1536;
const VOCAB: usize = 49_152;
const HEADS: usize = 9;
const KV_HEADS: usize = 3;
const HEAD_DIM: usize = 64;
const RANK: usize = 8;
/// Pairs that share the rows of a product.
const ADAPTERS: usize = 4;
/// Times that an operation which keeps the shape is applied.
const CHAIN: usize = 8;
/// Trained tensors of LoRA on all linear layers, and elements of each.
const TRAINED: (usize, usize) = (420, 5_817);

/// What both sides compute with.
fn values(len: usize, seed: usize, scale: f64) -> Vec<f32> {
    (0..len)
        .map(|k| (scale * (0.37 * k as f64 + seed as f64).sin()) as f32)
        .collect()
}

fn matrix(rows: usize, cols: usize, seed: usize, scale: f64) -> Tensor<2> {
    Tensor::from_data(
        TensorData::new(values(rows * cols, seed, scale), [rows, cols]),
        &Device::flex(),
    )
}

fn vector(len: usize, seed: usize, scale: f64) -> Tensor<1> {
    Tensor::from_data(
        TensorData::new(values(len, seed, scale), [len]),
        &Device::flex(),
    )
}

fn tracked(tensor: &Tensor<2>) -> Tensor<2> {
    Tensor::from_inner(tensor.clone()).require_grad()
}

/// Computes a result and its gradients.
type Run = Box<dyn Fn() -> Vec<Tensor<2>>>;

/// A kernel, and how its inputs are made.
struct Case {
    name: &'static str,
    make: Box<dyn Fn() -> Run>,
}

/// Forward and backward pass of `op`, whose result is weighted by a fixed matrix; gradients of all
/// of `inputs`.
fn step(inputs: Vec<Tensor<2>>, op: impl Fn(&[Tensor<2>]) -> Tensor<2> + 'static) -> Run {
    let [rows, cols] = op(&inputs).dims();
    let weights = matrix(rows, cols, 5, 1.0);
    Box::new(move || {
        let inputs: Vec<Tensor<2>> = inputs.iter().map(tracked).collect();
        let y = SavePolicy::Fast.scope(|| op(&inputs));
        let gradients = (y.clone() * weights.clone()).sum().backward();
        std::iter::once(y.inner())
            .chain(inputs.iter().filter_map(|x| x.grad(&gradients)))
            .collect()
    })
}

/// Forward pass only.
fn forward(run: impl Fn() -> Tensor<2> + 'static) -> Run {
    Box::new(move || vec![run()])
}

fn case(name: &'static str, make: impl Fn() -> Run + 'static) -> Case {
    Case {
        name,
        make: Box::new(make),
    }
}

fn chain(x: &Tensor<2>, f: impl Fn(Tensor<2>) -> Tensor<2>) -> Tensor<2> {
    (0..CHAIN).fold(x.clone(), |x, _| f(x))
}

fn attention_spec(sequences: usize) -> AttentionSpec {
    let boundaries: Arc<[usize]> = (0..=sequences).map(|i| i * TOKENS / sequences).collect();
    AttentionSpec {
        num_heads: HEADS,
        num_kv_heads: KV_HEADS,
        head_dim: HEAD_DIM,
        scale: (HEAD_DIM as f32).sqrt().recip(),
        causal: true,
        window: None,
        cu_q: boundaries.clone(),
        cu_k: boundaries,
        softcap: None,
    }
}

fn elementwise() -> Vec<Case> {
    fn narrow(f: impl Fn(Tensor<2>) -> Tensor<2> + 'static) -> Run {
        step(vec![matrix(TOKENS, D, 1, 2.0)], move |t| chain(&t[0], &f))
    }
    // The norm is what is added next.
    fn residual(f: impl Fn(Tensor<2>, Tensor<2>) -> [Tensor<2>; 2] + 'static) -> Run {
        step(
            [1, 2].map(|seed| matrix(TOKENS, D, seed, 2.0)).into(),
            move |t| {
                let start = [t[0].clone(), t[1].clone()];
                let [_, norm] = (0..CHAIN).fold(start, |[sum, norm], _| f(sum, norm));
                norm
            },
        )
    }
    fn wide(f: fn(Tensor<2>) -> Tensor<2>) -> Run {
        step(vec![matrix(TOKENS, D_FF, 1, 2.0)], move |t| chain(&t[0], f))
    }
    // A second factor for each, as in a model.
    fn gated(f: fn(Tensor<2>, Tensor<2>) -> Tensor<2>) -> Run {
        let inputs = (1..=CHAIN + 1)
            .map(|seed| matrix(TOKENS, D_FF, seed, 2.0))
            .collect();
        step(inputs, move |t| {
            t[1..]
                .iter()
                .fold(t[0].clone(), |gate, up| f(gate, up.clone()))
        })
    }
    let gain = || vector(D, 3, 1.5);
    vec![
        case("rms_norm", move || {
            let gain = gain();
            narrow(move |x| rms_norm(x, gain.clone(), 1e-5))
        }),
        case("layer_norm", move || {
            let (gain, bias) = (gain(), vector(D, 4, 0.5));
            narrow(move |x| layer_norm(x, gain.clone(), Some(bias.clone()), 1e-5))
        }),
        case("add_rms_norm", move || {
            let gain = gain();
            residual(move |x, y| add_rms_norm(x, y, gain.clone(), 1e-5))
        }),
        case("add_layer_norm", move || {
            let (gain, bias) = (gain(), vector(D, 4, 0.5));
            residual(move |x, y| add_layer_norm(x, y, gain.clone(), Some(bias.clone()), 1e-5))
        }),
        case("silu", || wide(silu)),
        case("gelu", || wide(gelu)),
        case("gelu_tanh", || wide(gelu_tanh)),
        case("swiglu", || gated(swiglu)),
        case("geglu_tanh", || gated(geglu_tanh)),
        case("rope", || {
            let (cos, sin) = (
                matrix(TOKENS, HEAD_DIM / 2, 6, 1.0),
                matrix(TOKENS, HEAD_DIM / 2, 7, 1.0),
            );
            narrow(move |x| rope(x, cos.clone(), sin.clone(), HEAD_DIM))
        }),
    ]
}

fn attentions() -> Vec<Case> {
    fn inputs() -> Vec<Tensor<2>> {
        let keys = |seed| matrix(TOKENS, KV_HEADS * HEAD_DIM, seed, 1.0);
        vec![matrix(TOKENS, HEADS * HEAD_DIM, 1, 1.0), keys(2), keys(3)]
    }
    fn whole(sequences: usize) -> Run {
        let spec = attention_spec(sequences);
        step(inputs(), move |t| {
            attention(t[0].clone(), t[1].clone(), t[2].clone(), &spec)
        })
    }
    vec![
        case("attention_4x256", || whole(4)),
        case("attention_1x1024", || whole(1)),
        // A trained bias by position for each head, in both directions.
        case("attention_bias_4x256", || {
            let spec = AttentionSpec {
                causal: false,
                ..attention_spec(4)
            };
            let inputs = [
                inputs(),
                vec![matrix(HEADS * TOKENS / 4, TOKENS / 4, 4, 1.0)],
            ]
            .concat();
            step(inputs, move |t| {
                let bias =
                    ScoreBias::Positions(t[3].clone().reshape([HEADS, TOKENS / 4, TOKENS / 4]));
                biased_attention(t[0].clone(), t[1].clone(), t[2].clone(), &bias, &spec)
            })
        }),
        // Four texts of 256 queries over 64 keys each.
        case("cross_attention_4x256x64", || {
            let spec = AttentionSpec {
                causal: false,
                cu_k: (0..=4).map(|i| i * 64).collect(),
                ..attention_spec(4)
            };
            let keys = |t: &Tensor<2>| t.clone().narrow(0, 0, 256);
            let [q, k, v] =
                [&inputs()[0], &keys(&inputs()[1]), &keys(&inputs()[2])].map(Clone::clone);
            step(vec![q, k, v], move |t| {
                attention(t[0].clone(), t[1].clone(), t[2].clone(), &spec)
            })
        }),
        case("cached_attention_1024", || {
            let mut cache = KeyValues::new(KV_HEADS * HEAD_DIM, CacheType::F32);
            assert!(
                cache.append(&inputs()[1], &inputs()[2]),
                "the cache takes rows of the CPU"
            );
            let (query, spec) = (matrix(1, HEADS * HEAD_DIM, 1, 1.0), attention_spec(1));
            forward(move || cached_attention(query.clone(), &[&cache], &spec))
        }),
    ]
}

fn products() -> Vec<Case> {
    fn weight() -> Tensor<2> {
        matrix(D_FF, D, 2, 0.05)
    }
    fn rows(tokens: usize) -> Tensor<2> {
        matrix(tokens, D, 1, 1.0)
    }
    let mut cases = vec![
        case("linear", || {
            let weight = weight();
            step(vec![rows(TOKENS)], move |t| {
                linear(t[0].clone(), weight.clone(), None)
            })
        }),
        case("linear_1_row", || {
            let (x, weight) = (rows(1), weight());
            forward(move || linear(x.clone(), weight.clone(), None))
        }),
        case("lora_linear", || {
            let weight = weight();
            let inputs = vec![
                rows(TOKENS),
                matrix(RANK, D, 3, 0.1),
                matrix(D_FF, RANK, 4, 0.1),
            ];
            step(inputs, move |t| {
                lora_linear(
                    t[0].clone(),
                    weight.clone(),
                    None,
                    t[1].clone(),
                    t[2].clone(),
                    2.0,
                )
            })
        }),
        case("multi_lora_linear", || {
            let weight = weight();
            let pair = |i: usize| {
                [
                    matrix(RANK, D, 2 * i + 3, 0.1),
                    matrix(D_FF, RANK, 2 * i + 4, 0.1),
                ]
            };
            let inputs = std::iter::once(rows(TOKENS))
                .chain((0..ADAPTERS).flat_map(pair))
                .collect();
            step(inputs, move |t| {
                let share = TOKENS / ADAPTERS;
                let pairs = t[1..]
                    .as_chunks::<2>()
                    .0
                    .iter()
                    .enumerate()
                    .map(|(i, [a, b])| LowRankRows {
                        rows: i * share..(i + 1) * share,
                        a: a.clone(),
                        b: b.clone(),
                        scale: 2.0,
                    });
                multi_lora_linear(
                    t[0].clone(),
                    weight.clone(),
                    None,
                    &pairs.collect::<Vec<_>>(),
                )
            })
        }),
        case("linear_cross_entropy", || {
            let head = matrix(VOCAB, D, 2, 0.05);
            let targets: Vec<i32> = (0..TOKENS).map(|i| (i * 7919 % VOCAB) as i32).collect();
            step(vec![rows(TOKENS)], move |t| {
                linear_cross_entropy(
                    t[0].clone(),
                    head.clone(),
                    None,
                    &targets,
                    &CrossEntropyOptions::default(),
                )
                .reshape([1, 1])
            })
        }),
    ];
    let packings: [(_, _, fn(&[f32]) -> Option<Packed>); 6] = [
        ("bf16_linear", "bf16_linear_1_row", |w| {
            Some(Packed::bf16(w, D))
        }),
        (
            "quantized_linear_int8",
            "quantized_linear_int8_1_row",
            |w| Some(Packed::int8(w, D)),
        ),
        ("quantized_linear_nf4", "quantized_linear_nf4_1_row", |w| {
            Some(Packed::nf4(w, D))
        }),
        (
            "quantized_linear_q4_0",
            "quantized_linear_q4_0_1_row",
            |w| Packed::to_ggml(GgmlType::Q4_0, w, D),
        ),
        ("w8a8_linear", "w8a8_linear_1_row", |w| {
            Some(Packed::int8(w, D).with_activations(ActivationQuant::Int8))
        }),
        ("w4a8_linear", "w4a8_linear_1_row", |w| {
            Some(Packed::to_ggml(GgmlType::Q4_0, w, D)?.with_activations(ActivationQuant::Int8))
        }),
    ];
    for (many, few, pack) in packings {
        let packed =
            move || Arc::new(pack(&values(D_FF * D, 2, 0.05)).expect("rows are whole blocks"));
        cases.push(case(many, move || {
            let packed = packed();
            step(vec![rows(TOKENS)], move |t| {
                quantized_linear(t[0].clone(), &packed, None)
            })
        }));
        cases.push(case(few, move || {
            let (x, packed) = (rows(1), packed());
            forward(move || quantized_linear(x.clone(), &packed, None))
        }));
    }
    cases
}

fn optimizer() -> [(&'static str, Box<dyn FnMut() -> f64>); 3] {
    let (count, len) = TRAINED;
    let gradients: Vec<Vec<f32>> = (0..count).map(|i| values(len, i, 0.1)).collect();
    let mut state: Vec<[Vec<f32>; 3]> = (0..count)
        .map(|i| [values(len, i + 1, 1.0), vec![0.0; len], vec![0.0; len]])
        .collect();
    let mut eight_bit: Vec<(Vec<f32>, [Blockwise; 2])> = (0..count)
        .map(|i| {
            (
                values(len, i + 1, 1.0),
                [true, false].map(|signed| Blockwise::zeros(len, signed)),
            )
        })
        .collect();
    let settings = |step| AdamWStep {
        lr: 1e-3,
        beta1: 0.9,
        beta2: 0.999,
        eps: 1e-8,
        weight_decay: 0.01,
        step,
        grad_scale: 1.0,
    };
    let mut step = 0;
    let (same, again) = (gradients.clone(), gradients.clone());
    let mut step_8bit = 0;
    let adamw_8bit = move || {
        step_8bit += 1;
        for ((param, [exp_avg, exp_avg_sq]), gradient) in eight_bit.iter_mut().zip(&again) {
            adamw_8bit_step(param, gradient, exp_avg, exp_avg_sq, &settings(step_8bit));
        }
        f64::from(eight_bit[0].0[0])
    };
    let adamw = move || {
        step += 1;
        let h = settings(step);
        for ([param, exp_avg, exp_avg_sq], gradient) in state.iter_mut().zip(&gradients) {
            adamw_step(param, gradient, exp_avg, exp_avg_sq, &h);
        }
        f64::from(state[0][0][0])
    };
    let grad_norm = move || same.iter().map(|g| grad_norm_sq(g)).sum::<f64>().sqrt();
    [
        ("adamw", Box::new(adamw)),
        ("adamw_8bit", Box::new(adamw_8bit)),
        ("grad_norm", Box::new(grad_norm)),
    ]
}

/// The sum of the magnitudes of each result: says whether two sides computed the same.
fn magnitudes(results: Vec<Tensor<2>>) -> String {
    let sums = results
        .into_iter()
        .map(|t| format!("{:e}", t.abs().sum().into_scalar::<f32>()));
    sums.collect::<Vec<_>>().join(",")
}

fn main() {
    keep_freed_memory();
    // As generation does: short operations then need not wake the threads from outside.
    on_pool(run);
}

fn run() {
    let cases = elementwise()
        .into_iter()
        .chain(attentions())
        .chain(products());
    let mut arguments = std::env::args().skip(1);
    if arguments
        .next()
        .is_some_and(|argument| argument == "--checks")
    {
        let wanted: Vec<String> = arguments.collect();
        let is_wanted = |name: &str| wanted.is_empty() || wanted.iter().any(|w| w == name);
        cases
            .filter(|case| is_wanted(case.name))
            .for_each(|case| println!("{} {}", case.name, magnitudes((case.make)()())));
        optimizer()
            .into_iter()
            .filter(|(name, _)| is_wanted(name))
            .for_each(|(name, mut run)| println!("{name} {:e}", run()));
        return;
    }
    let mut criterion = Criterion::default().configure_from_args();
    for case in cases {
        // Made when it is wanted: the filter may leave it out.
        let run = LazyCell::new(|| (case.make)());
        criterion.bench_function(case.name, |b| b.iter(&*run));
    }
    for (name, mut run) in optimizer() {
        criterion.bench_function(name, |b| b.iter(&mut run));
    }
    criterion.final_summary();
}
