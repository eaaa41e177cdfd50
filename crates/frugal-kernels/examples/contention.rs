//! Times a program of small operations alone, and two of them at once on the same processors:
//! `cargo run --release -p frugal-kernels --example contention`.
//!
//! Threads that wait for work by looking for it must give way to another process: two at once
//! should take little more than twice as long as one.

#![allow(clippy::print_stdout, reason = "an example shows what it measures")]

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use burn::tensor::{Device, Distribution, Tensor};
use frugal_kernels::{
    AttentionSpec, attention, keep_freed_memory, lora_linear, on_pool, rms_norm, swiglu,
};

const D: usize = 576;
const D_FF: usize = 1536;
const RANK: usize = 8;
const LAYERS: usize = 6;
const ROUNDS: usize = 5;

fn random(rows: usize, cols: usize) -> Tensor<2> {
    let spread = Distribution::Normal(0.0, 0.05);
    Tensor::random([rows, cols], spread, &Device::flex())
}

struct Adapted {
    weight: Tensor<2>,
    a: Tensor<2>,
    b: Tensor<2>,
}

impl Adapted {
    fn new(out: usize, d: usize) -> Self {
        Self {
            weight: random(out, d),
            a: random(RANK, d).autodiff().require_grad(),
            b: random(out, RANK).autodiff().require_grad(),
        }
    }

    fn forward(&self, x: Tensor<2>) -> Tensor<2> {
        let [a, b] = [&self.a, &self.b].map(Clone::clone);
        lora_linear(x, self.weight.clone(), None, a, b, 1.0)
    }
}

/// Steps of training of a small decoder with `tokens` tokens.
fn steps(count: usize, tokens: usize) {
    let norm: Tensor<1> = Tensor::ones([D], &Device::flex());
    let layers: Vec<[Adapted; 4]> = (0..LAYERS)
        .map(|_| [(D, D), (D_FF, D), (D_FF, D), (D, D_FF)].map(|(out, d)| Adapted::new(out, d)))
        .collect();
    let spec = AttentionSpec {
        num_heads: 9,
        num_kv_heads: 9,
        head_dim: 64,
        scale: 0.125,
        causal: true,
        window: None,
        cu_q: [0, tokens].into(),
        cu_k: [0, tokens].into(),
        softcap: None,
    };
    for _ in 0..count {
        let mut x = random(tokens, D).autodiff();
        for [qkv, gate, up, down] in &layers {
            let q = qkv.forward(rms_norm(x.clone(), norm.clone(), 1e-5));
            x = x + attention(q.clone(), q.clone(), q, &spec);
            let h = rms_norm(x.clone(), norm.clone(), 1e-5);
            x = x + down.forward(swiglu(gate.forward(h.clone()), up.forward(h)));
        }
        let gradients = x.sum().backward();
        assert!(layers[0][0].a.grad(&gradients).is_some());
    }
}

/// Runs some programs at once; the time until all have ended.
fn at_once(programs: usize, tokens: usize) -> Duration {
    let this = std::env::current_exe().expect("the path of this program");
    let start = Instant::now();
    let running: Vec<_> = (0..programs)
        .map(|_| {
            Command::new(&this)
                .arg(tokens.to_string())
                .stdout(Stdio::null())
                .spawn()
                .expect("this program starts again")
        })
        .collect();
    for mut program in running {
        assert!(program.wait().expect("an exit status").success());
    }
    start.elapsed()
}

fn median(mut times: Vec<f64>) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

fn main() {
    if let Some(tokens) = std::env::args().nth(1) {
        let tokens: usize = tokens.parse().expect("a number of tokens");
        keep_freed_memory();
        on_pool(|| steps(6000 / tokens, tokens));
        return;
    }
    for tokens in [16, 128, 512] {
        let mut times = [const { Vec::new() }; 2];
        for _ in 0..ROUNDS {
            for (i, times) in times.iter_mut().enumerate() {
                times.push(at_once(i + 1, tokens).as_secs_f64());
            }
        }
        let [one, two] = times.map(median);
        println!(
            "{tokens:>4} tokens: one {one:.2} s, two at once {two:.2} s, {:.2} times as long",
            two / one
        );
    }
}
