//! Times the product with a sparse matrix against the one with the same matrix held densely, in
//! turn, at the shapes of SmolLM2-135M: `cargo build --release --workspace --examples`, then
//! `target/release/examples/sparse [ROUNDS]` prints one JSON line for each case.
//!
//! `cached` uses one matrix again and again, `streamed` goes through as many different ones as 256
//! MB of dense weights, as a model does with each token that it generates.

#![allow(clippy::print_stdout, reason = "its output is the point")]

use std::sync::Arc;
use std::time::{Duration, Instant};

use burn::tensor::{Device, Distribution, Tensor};
use frugal_kernels::{Sparse, linear, sparse_linear};

const SHAPES: [[usize; 2]; 3] = [[576, 576], [1536, 576], [576, 1536]];
const STREAM: usize = 256 << 20;

/// Normal weights whose smallest are zero, dense and sparse.
fn pruned([out, d]: [usize; 2], sparsity: f64) -> (Tensor<2>, Arc<Sparse>) {
    let device = Device::flex();
    let weight = Tensor::<2>::random([out, d], Distribution::Normal(0.0, 0.05), &device);
    let mut values: Vec<f32> = weight.into_data().try_into_vec().expect("single precision");
    let mut sorted: Vec<f32> = values.iter().map(|v| v.abs()).collect();
    sorted.sort_by(f32::total_cmp);
    let border = sorted[(sparsity * sorted.len() as f64) as usize];
    values
        .iter_mut()
        .filter(|v| v.abs() < border)
        .for_each(|v| *v = 0.0);
    let sparse = Arc::new(Sparse::new(&values, d));
    (sparse.dense(&device), sparse)
}

fn median(mut times: Vec<Duration>) -> f64 {
    times.sort();
    times[times.len() / 2].as_secs_f64() * 1e6
}

fn main() {
    let rounds: usize = std::env::args()
        .nth(1)
        .and_then(|n| n.parse().ok())
        .unwrap_or(21);
    for shape @ [out, d] in SHAPES {
        for sparsity in [0.5, 0.7, 0.9] {
            let different = STREAM / (4 * out * d);
            let matrices: Vec<_> = (0..different).map(|_| pruned(shape, sparsity)).collect();
            for (weights, matrices) in [("cached", &matrices[..1]), ("streamed", &matrices[..])] {
                for rows in [1, 8, 32, 256] {
                    let x = Tensor::<2>::random(
                        [rows, d],
                        Distribution::Normal(0.0, 1.0),
                        &Device::flex(),
                    );
                    // Short products are timed together, each with its matrix.
                    let calls = (256 / rows).max(8).max(if weights == "streamed" {
                        matrices.len()
                    } else {
                        0
                    });
                    let mut times = [Vec::new(), Vec::new()];
                    for round in 0..=rounds {
                        let start = Instant::now();
                        (0..calls).for_each(|i| {
                            drop(linear(
                                x.clone(),
                                matrices[i % matrices.len()].0.clone(),
                                None,
                            ))
                        });
                        let dense = start.elapsed() / calls as u32;
                        let start = Instant::now();
                        (0..calls).for_each(|i| {
                            drop(sparse_linear(
                                x.clone(),
                                &matrices[i % matrices.len()].1,
                                None,
                            ))
                        });
                        let sparse = start.elapsed() / calls as u32;
                        // The first round warms up.
                        if round > 0 {
                            times[0].push(dense);
                            times[1].push(sparse);
                        }
                    }
                    let memory = matrices[0].1.bytes() as f64 / (4 * out * d) as f64;
                    let [dense, sparse] = times.map(median);
                    println!(
                        r#"{{"out": {out}, "in": {d}, "sparsity": {sparsity}, "weights": "{weights}", "rows": {rows}, "dense_us": {dense:.1}, "sparse_us": {sparse:.1}, "speed_ratio": {:.2}, "memory_ratio": {memory:.3}}}"#,
                        dense / sparse
                    );
                }
            }
        }
    }
}
