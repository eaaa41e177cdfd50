//! Times each kernel against its portable composition, interleaved, at the shapes of a small
//! language model: `cargo build --release --workspace --examples`, then
//! `target/release/examples/compare [NAME]`.

#![allow(clippy::print_stdout, reason = "its output is the point")]

use std::sync::Arc;
use std::time::{Duration, Instant};

use burn::tensor::{Device, Distribution, Tensor};
use frugal_kernels::{AttentionSpec, CrossEntropyOptions, attention, portable};

const TOKENS: usize = 1024;
const D: usize = 576;
const D_FF: usize = 1536;
const VOCAB: usize = 49152;
const HEADS: usize = 9;
const KV_HEADS: usize = 3;
const HEAD_DIM: usize = 64;
const RANK: usize = 8;
const ROUNDS: usize = 11;

fn random(rows: usize, cols: usize) -> Tensor<2> {
    Tensor::random(
        [rows, cols],
        Distribution::Normal(0.0, 0.05),
        &Device::flex(),
    )
}

fn vector(n: usize) -> Tensor<1> {
    Tensor::random([n], Distribution::Normal(1.0, 0.1), &Device::flex())
}

fn tracked<const D: usize>(tensor: &Tensor<D>) -> Tensor<D> {
    tensor.clone().autodiff().require_grad()
}

/// The median and the smallest, in milliseconds.
fn summary(mut times: Vec<Duration>) -> [f64; 2] {
    times.sort();
    [times[times.len() / 2], times[0]].map(|time| time.as_secs_f64() * 1e3)
}

/// Runs all once to warm up, then in turns; prints the medians and the minima of the first two less
/// those of the third, and their ratio.
fn compare(name: &str, fused: &dyn Fn(), composed: &dyn Fn(), overhead: &dyn Fn()) {
    if std::env::args()
        .nth(1)
        .is_some_and(|only| !name.contains(&only))
    {
        return;
    }
    let mut times = [const { Vec::new() }; 3];
    for round in 0..=ROUNDS {
        for (run, times) in [fused, composed, overhead].iter().zip(&mut times) {
            let start = Instant::now();
            run();
            if round > 0 {
                times.push(start.elapsed());
            }
        }
    }
    let [fused, composed, overhead] = times.map(summary);
    print!("{name:<52}");
    for i in 0..2 {
        let (fused, composed) = (fused[i] - overhead[i], composed[i] - overhead[i]);
        print!(
            " {fused:>9.3} ms {composed:>9.3} ms {:>7.2}x   ",
            composed / fused
        );
    }
    println!();
}

/// [`compare`] of calls that cost nothing besides.
fn compare_calls(name: &str, fused: impl Fn(), composed: impl Fn()) {
    compare(name, &fused, &composed, &|| ());
}

/// Forward alone on the plain device, then forward and backward with the listed inputs tracked.
fn both<const N: usize>(
    name: &str,
    inputs: [Tensor<2>; N],
    track: [bool; N],
    fused: impl Fn([Tensor<2>; N]) -> Tensor<2>,
    composed: impl Fn([Tensor<2>; N]) -> Tensor<2>,
) {
    compare_calls(
        &format!("{name}, forward"),
        || drop(fused(inputs.clone())),
        || drop(composed(inputs.clone())),
    );
    let mut tracks = track.iter();
    let leaves = inputs.each_ref().map(|input| {
        if tracks.next() == Some(&true) {
            tracked(input)
        } else {
            input.clone()
        }
    });
    let [rows, cols] = fused(inputs).dims();
    // The gradient that arrives is not a constant, as in a model; making it is not the kernel's
    // cost.
    let weights = random(rows, cols);
    let output = tracked(&random(rows, cols));
    let step = |op: &dyn Fn([Tensor<2>; N]) -> Tensor<2>| {
        let grads = (op(leaves.clone()) * weights.clone()).sum().backward();
        for (leaf, track) in leaves.iter().zip(track) {
            assert!(!track || leaf.grad(&grads).is_some());
        }
    };
    let overhead = || {
        let grads = (output.clone() * weights.clone()).sum().backward();
        assert!(output.grad(&grads).is_some());
    };
    compare(
        &format!("{name}, forward + backward"),
        &|| step(&fused),
        &|| step(&composed),
        &overhead,
    );
}

fn spec(lengths: &[(usize, usize)]) -> AttentionSpec {
    let boundaries = |pick: fn(&(usize, usize)) -> usize| -> Arc<[usize]> {
        let mut end = 0;
        std::iter::once(0)
            .chain(lengths.iter().map(|length| {
                end += pick(length);
                end
            }))
            .collect()
    };
    AttentionSpec {
        num_heads: HEADS,
        num_kv_heads: KV_HEADS,
        head_dim: HEAD_DIM,
        scale: 0.125,
        causal: true,
        window: None,
        cu_q: boundaries(|l| l.0),
        cu_k: boundaries(|l| l.1),
        softcap: None,
    }
}

fn linear_maps() {
    for (d, out) in [(D, D), (D, D_FF), (D_FF, D)] {
        both(
            &format!("linear {d} to {out}"),
            [random(TOKENS, d), random(out, d)],
            [true, false],
            |[x, w]| frugal_kernels::linear(x, w, None),
            |[x, w]| portable::linear(x, w, None),
        );
        both(
            &format!("lora_linear {d} to {out}"),
            [
                random(TOKENS, d),
                random(out, d),
                random(RANK, d),
                random(out, RANK),
            ],
            [true, false, true, true],
            |[x, w, a, b]| frugal_kernels::lora_linear(x, w, None, a, b, 2.0),
            |[x, w, a, b]| portable::lora_linear(x, w, None, a, b, 2.0),
        );
    }
    both(
        "linear 576 to 1536, weight tracked",
        [random(TOKENS, D), random(D_FF, D)],
        [true, true],
        |[x, w]| frugal_kernels::linear(x, w, None),
        |[x, w]| portable::linear(x, w, None),
    );
    for rows in [1, 4, 8] {
        let (x, w, a, b) = (
            random(rows, D),
            random(D_FF, D),
            random(RANK, D),
            random(D_FF, RANK),
        );
        compare_calls(
            &format!("linear {D} to {D_FF}, {rows} rows"),
            || drop(frugal_kernels::linear(x.clone(), w.clone(), None)),
            || drop(portable::linear(x.clone(), w.clone(), None)),
        );
        compare_calls(
            &format!("lora_linear {D} to {D_FF}, {rows} rows"),
            || {
                drop(frugal_kernels::lora_linear(
                    x.clone(),
                    w.clone(),
                    None,
                    a.clone(),
                    b.clone(),
                    2.0,
                ))
            },
            || {
                drop(portable::lora_linear(
                    x.clone(),
                    w.clone(),
                    None,
                    a.clone(),
                    b.clone(),
                    2.0,
                ))
            },
        );
    }
    let (x, w) = (random(1, D), random(VOCAB, D));
    compare_calls(
        "linear 576 to 49152, 1 row",
        || drop(frugal_kernels::linear(x.clone(), w.clone(), None)),
        || drop(portable::linear(x.clone(), w.clone(), None)),
    );
}

fn losses() {
    let opts = CrossEntropyOptions::default();
    let targets: Vec<i32> = (0..TOKENS).map(|i| (i * 7919 % VOCAB) as i32).collect();
    both(
        "linear_cross_entropy",
        [random(TOKENS, D), random(VOCAB, D)],
        [true, false],
        |[h, w]| frugal_kernels::linear_cross_entropy(h, w, None, &targets, &opts).reshape([1, 1]),
        |[h, w]| portable::linear_cross_entropy(h, w, None, &targets, &opts).reshape([1, 1]),
    );
    let (h, w) = (random(TOKENS, D), random(VOCAB, D));
    compare_calls(
        "token_log_probs",
        || {
            drop(frugal_kernels::token_log_probs(
                h.clone(),
                w.clone(),
                None,
                &targets,
            ))
        },
        || {
            drop(portable::token_log_probs(
                h.clone(),
                w.clone(),
                None,
                &targets,
            ))
        },
    );
}

fn attentions() {
    let (width, kv_width) = (HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM);
    for (name, lengths) in [
        ("4 x 256", vec![(256, 256); 4]),
        ("1 x 1024", vec![(1024, 1024)]),
        ("32 x 32", vec![(32, 32); 32]),
    ] {
        let spec = spec(&lengths);
        both(
            &format!("attention {name}"),
            [
                random(TOKENS, width),
                random(TOKENS, kv_width),
                random(TOKENS, kv_width),
            ],
            [true; 3],
            |[q, k, v]| attention(q, k, v, &spec),
            |[q, k, v]| portable::attention(q, k, v, &spec),
        );
    }
    for cached in [128, 1024, 4096] {
        let (q, k, v) = (
            random(1, width),
            random(cached, kv_width),
            random(cached, kv_width),
        );
        let spec = spec(&[(1, cached)]);
        compare_calls(
            &format!("attention, 1 query, {cached} keys"),
            || drop(attention(q.clone(), k.clone(), v.clone(), &spec)),
            || drop(portable::attention(q.clone(), k.clone(), v.clone(), &spec)),
        );
    }
}

fn pointwise() {
    let pair = || [random(TOKENS, D_FF), random(TOKENS, D_FF)];
    both(
        "swiglu",
        pair(),
        [true; 2],
        |[g, u]| frugal_kernels::swiglu(g, u),
        |[g, u]| portable::swiglu(g, u),
    );
    both(
        "geglu_tanh",
        pair(),
        [true; 2],
        |[g, u]| frugal_kernels::geglu_tanh(g, u),
        |[g, u]| portable::geglu_tanh(g, u),
    );
    both(
        "silu",
        [random(TOKENS, D_FF)],
        [true],
        |[x]| frugal_kernels::silu(x),
        |[x]| portable::silu(x),
    );
    both(
        "gelu",
        [random(TOKENS, D_FF)],
        [true],
        |[x]| frugal_kernels::gelu(x),
        |[x]| portable::gelu(x),
    );
    both(
        "gelu_tanh",
        [random(TOKENS, D_FF)],
        [true],
        |[x]| frugal_kernels::gelu_tanh(x),
        |[x]| portable::gelu_tanh(x),
    );
    let (weight, bias) = (vector(D), vector(D));
    both(
        "rms_norm",
        [random(TOKENS, D)],
        [true],
        |[x]| frugal_kernels::rms_norm(x, weight.clone(), 1e-5),
        |[x]| portable::rms_norm(x, weight.clone(), 1e-5),
    );
    both(
        "layer_norm",
        [random(TOKENS, D)],
        [true],
        |[x]| frugal_kernels::layer_norm(x, weight.clone(), Some(bias.clone()), 1e-5),
        |[x]| portable::layer_norm(x, weight.clone(), Some(bias.clone()), 1e-5),
    );
    let (cos, sin) = (random(TOKENS, HEAD_DIM / 2), random(TOKENS, HEAD_DIM / 2));
    both(
        "rope",
        [random(TOKENS, D)],
        [true],
        |[x]| frugal_kernels::rope(x, cos.clone(), sin.clone(), HEAD_DIM),
        |[x]| portable::rope(x, cos.clone(), sin.clone(), HEAD_DIM),
    );
}

fn main() {
    println!(
        "{:<52} {:>12} {:>12} {:>8}   {:>12} {:>12} {:>8}",
        "median, minimum", "kernel", "portable", "ratio", "kernel", "portable", "ratio"
    );
    linear_maps();
    attentions();
    pointwise();
    losses();
}
