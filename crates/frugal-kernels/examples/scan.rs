//! Times the selective scan at one length: `scan LENGTH [forward|step] [SECONDS]` prints the median
//! in seconds, and the sums of the magnitudes of the outputs and, of a `step`, of all gradients, by
//! which `benches/peers/scan.py` tells whether PyTorch computes the same.
//!
//! The width is that of Mamba-130M: 1536 channels that remember 16 numbers each.

#![allow(clippy::print_stdout, reason = "its output is the point")]

use std::time::Instant;

use burn::tensor::{Device, Tensor, TensorData};
use frugal_kernels::{SelectiveScan, selective_scan};

const CHANNELS: usize = 1536;
const STATES: usize = 16;

/// `scale * sin(0.37 k + seed) + shift`, as the script makes it.
fn wave(shape: [usize; 2], seed: f64, scale: f64, shift: f64) -> Tensor<2> {
    let value = |k: usize| (scale * (0.37 * k as f64 + seed).sin() + shift) as f32;
    let values: Vec<f32> = (0..shape[0] * shape[1]).map(value).collect();
    Tensor::from_data(TensorData::new(values, shape), &Device::flex())
}

/// x, delta, a, b, c, z, and the weights of the outputs in the loss.
fn inputs(length: usize) -> [Tensor<2>; 7] {
    let a: Vec<f32> = (0..CHANNELS * STATES)
        .map(|i| -((i % STATES + 1) as f32))
        .collect();
    [
        wave([length, CHANNELS], 1.0, 1.0, 0.0),
        wave([length, CHANNELS], 2.0, 1.5, -3.0),
        Tensor::from_data(TensorData::new(a, [CHANNELS, STATES]), &Device::flex()),
        wave([length, STATES], 3.0, 1.0, 0.0),
        wave([length, STATES], 4.0, 1.0, 0.0),
        wave([length, CHANNELS], 5.0, 2.0, 0.0),
        wave([length, CHANNELS], 6.0, 1.0, 0.0),
    ]
}

fn run(inputs: &[Tensor<2>; 7], length: usize, step: bool) -> Vec<Tensor<2>> {
    let tracked: Vec<Tensor<2>> = inputs[..6]
        .iter()
        .map(|x| match step {
            true => Tensor::from_inner(x.clone()).require_grad(),
            false => x.clone(),
        })
        .collect();
    let [x, delta, a, b, c, z] = &tracked[..] else {
        unreachable!("six inputs")
    };
    let y = selective_scan(SelectiveScan {
        x: x.clone(),
        delta: delta.clone(),
        a: a.clone(),
        b: b.clone(),
        c: c.clone(),
        d: Some(Tensor::ones([CHANNELS], &Device::flex())),
        z: Some(z.clone()),
        delta_bias: None,
        softplus: true,
        initial_state: None,
        cu_seqlens: [0, length].into(),
    });
    if !step {
        return vec![y];
    }
    let gradients = (y.clone() * inputs[6].clone()).sum().backward();
    let of = |x: &Tensor<2>| x.grad(&gradients).expect("a gradient");
    std::iter::once(y.inner())
        .chain(tracked.iter().map(of))
        .collect()
}

fn main() {
    let mut arguments = std::env::args().skip(1);
    let length = arguments.next().and_then(|n| n.parse().ok());
    let length: usize = length.expect("a length in tokens");
    let step = arguments.next().is_some_and(|mode| mode == "step");
    let seconds: f64 = arguments.next().and_then(|s| s.parse().ok()).unwrap_or(1.0);
    let inputs = inputs(length);
    frugal_kernels::on_pool(|| {
        let sums: Vec<f64> = run(&inputs, length, step)
            .into_iter()
            .map(|t| {
                let values: Vec<f32> = t.into_data().try_into_vec().expect("single precision");
                values.iter().map(|v| f64::from(v.abs())).sum()
            })
            .collect();
        let (begin, mut times) = (Instant::now(), Vec::new());
        while times.len() < 3 || begin.elapsed().as_secs_f64() < seconds {
            let start = Instant::now();
            drop(run(&inputs, length, step));
            times.push(start.elapsed().as_secs_f64());
        }
        times.sort_by(f64::total_cmp);
        let sums: Vec<String> = sums.iter().map(f64::to_string).collect();
        println!("{} {}", times[times.len() / 2], sums.join(","));
    });
}
