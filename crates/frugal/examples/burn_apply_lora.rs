//! Times LoRA on a stack of feed-forward blocks by Burn's own `apply_lora` and by the kernels of
//! this project, in turn.
//!
//! `cargo build --release --workspace --examples`, then
//! `target/release/examples/burn_apply_lora [PAIRS]` prints one JSON object. Burn adds `A B` to the
//! dense weight in every forward pass; here the product of the input with the two factors is added
//! to that with the frozen weight.

#![allow(clippy::print_stdout, reason = "its output is the point")]

use std::error::Error;
use std::time::Instant;

use burn::module::{Lora, Module, Param};
use burn::nn::{Linear, LinearConfig};
use burn::prelude::*;
use burn::tensor::{Distribution, activation::silu};
use serde_json::json;

const LAYERS: usize = 4;
const TOKENS: usize = 1024;
const D: usize = 576;
const D_FF: usize = 1536;
const RANK: usize = 8;
const ALPHA: f64 = 16.0;

#[derive(Module, Debug)]
struct Block {
    gate: Linear,
    up: Linear,
    down: Linear,
}

#[derive(Module, Debug)]
struct Stack {
    blocks: Vec<Block>,
}

impl Stack {
    /// The mean of the squared outputs.
    fn loss(&self, x: Tensor<2>) -> Tensor<1> {
        let mut x = x;
        for block in &self.blocks {
            let hidden = silu(block.gate.forward(x.clone())) * block.up.forward(x.clone());
            x = x + block.down.forward(hidden);
        }
        (x.clone() * x).mean()
    }
}

/// A frozen weight `[d_out, d_in]` with its low-rank pair.
struct Map {
    weight: Tensor<2>,
    a: Tensor<2>,
    b: Tensor<2>,
}

impl Map {
    fn new(weight: &Tensor<2>) -> Self {
        let [d_out, d_in] = weight.dims();
        let device = Device::flex();
        let a = Tensor::random(
            [RANK, d_in],
            Distribution::Normal(0.0, 1.0 / RANK as f64),
            &device,
        );
        let tracked = |tensor: Tensor<2>| Tensor::from_inner(tensor).require_grad();
        Self {
            weight: weight.clone(),
            a: tracked(a),
            b: tracked(Tensor::zeros([d_out, RANK], &device)),
        }
    }

    fn forward(&self, x: Tensor<2>) -> Tensor<2> {
        frugal_kernels::lora_linear(
            x,
            self.weight.clone(),
            None,
            self.a.clone(),
            self.b.clone(),
            (ALPHA / RANK as f64) as f32,
        )
    }
}

fn loss(blocks: &[[Map; 3]], x: Tensor<2>) -> Tensor<1> {
    let mut x = x;
    for [gate, up, down] in blocks {
        let hidden = frugal_kernels::swiglu(gate.forward(x.clone()), up.forward(x.clone()));
        x = x.clone() + down.forward(hidden);
    }
    (x.clone() * x).mean()
}

fn main() -> Result<(), Box<dyn Error>> {
    frugal::device::keep_freed_memory();
    let pairs: usize = std::env::args().nth(1).map_or(Ok(7), |n| n.parse())?;
    let device = Device::flex();
    let random =
        |rows, cols| Tensor::<2>::random([rows, cols], Distribution::Normal(0.0, 0.03), &device);
    let weights: Vec<[Tensor<2>; 3]> = (0..LAYERS)
        .map(|_| [random(D_FF, D), random(D_FF, D), random(D, D_FF)])
        .collect();
    let x = Tensor::<2>::random([TOKENS, D], Distribution::Normal(0.0, 1.0), &device);

    let autodiff = device.clone().autodiff();
    let linear = |weight: &Tensor<2>| {
        let [d_out, d_in] = weight.dims();
        let mut linear = LinearConfig::new(d_in, d_out)
            .with_bias(false)
            .init(&autodiff);
        // Burn holds weights transposed; written out once, so that both sides read theirs in order.
        let data = weight.clone().transpose().into_data();
        linear.weight = Param::from_tensor(Tensor::from_data(data, &autodiff));
        linear
    };
    let block = |[gate, up, down]: &[Tensor<2>; 3]| Block {
        gate: linear(gate),
        up: linear(up),
        down: linear(down),
    };
    let stack = Stack {
        blocks: weights.iter().map(block).collect(),
    }
    .apply_lora(Lora::new(RANK, ALPHA));
    let maps: Vec<[Map; 3]> = weights
        .iter()
        .map(|block| block.each_ref().map(Map::new))
        .collect();

    let value = |loss: &Tensor<1>| loss.clone().inner().into_scalar::<f32>();
    let (mut ratios, mut seconds, mut losses) = (Vec::new(), [Vec::new(), Vec::new()], [0.0; 2]);
    for round in 0..=pairs {
        let start = Instant::now();
        let ours = loss(&maps, x.clone());
        let _ = ours.backward();
        let frugal = start.elapsed().as_secs_f64();
        let start = Instant::now();
        let theirs = stack.loss(Tensor::from_inner(x.clone()));
        let _ = theirs.backward();
        let burn = start.elapsed().as_secs_f64();
        losses = [value(&ours), value(&theirs)];
        // The first round warms up.
        if round > 0 {
            ratios.push(burn / frugal);
            seconds[0].push(frugal);
            seconds[1].push(burn);
        }
    }
    if (losses[0] / losses[1] - 1.0).abs() > 1e-4 {
        return Err(format!("the two sides do not compute the same: {losses:?}").into());
    }
    ratios.sort_by(f64::total_cmp);
    let result = json!({
        "what": format!("forward and backward of {LAYERS} gated feed-forward blocks, {TOKENS} x {D}, hidden {D_FF}, LoRA rank {RANK}"),
        "speed_ratio": ratios[ratios.len() / 2], "ratios": ratios, "frugal_seconds": seconds[0], "burn_apply_lora_seconds": seconds[1],
        "losses": losses,
    });
    println!("{result}");
    Ok(())
}
