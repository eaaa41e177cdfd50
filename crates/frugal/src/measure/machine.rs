//! What the machine can do at most, so that every figure can be read as a share of it.

use std::hint::black_box;
use std::time::{Duration, Instant};

use burn::prelude::*;
use burn::tensor::Distribution;
use frugal_eval::efficiency::{Efficiency, training_flops};
use frugal_eval::report::RunRecord;
use rayon::prelude::*;
use serde::Serialize;

/// Measured ceilings.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Ceilings {
    /// Matrix products in f32, 10⁹ floating-point operations per second (a multiply-add counts
    /// two).
    pub gemm_gflops: f64,
    /// The same at the median of the repetitions, as figures of longer work are.
    pub gemm_gflops_sustained: f64,
    /// Reading memory with all cores, 10⁹ bytes per second.
    pub read_gb_per_s: f64,
}

/// Measures for about `budget` on this device; the best of the repetitions is the ceiling, since
/// others use the machine too.
pub fn ceilings(device: &Device, budget: Duration) -> Ceilings {
    let [gemm_gflops, gemm_gflops_sustained] = gemm_gflops(device, budget / 2);
    Ceilings {
        gemm_gflops,
        gemm_gflops_sustained,
        read_gb_per_s: read_gb_per_s(budget / 2),
    }
}

/// Best and median rate over `budget` of the product that a transformer spends its time on: many
/// tokens times a weight matrix.
pub fn gemm_gflops(device: &Device, budget: Duration) -> [f64; 2] {
    const ROWS: usize = 1024;
    const WIDTH: usize = 768;
    let x = Tensor::<2>::random([ROWS, WIDTH], Distribution::Default, device);
    let w = Tensor::<2>::random([WIDTH, WIDTH], Distribution::Default, device);
    let operations = 2.0 * (ROWS * WIDTH * WIDTH) as f64;
    repeat(budget, || {
        let product = frugal_kernels::linear(x.clone(), w.clone(), None);
        // Devices work on their own and are waited for; one that fails says so where it is used.
        device.sync().ok();
        drop(black_box(product));
    })
    .map(|seconds| operations / seconds / 1e9)
}

/// Best rate over `budget` of summing an array that no cache holds.
pub fn read_gb_per_s(budget: Duration) -> f64 {
    const ELEMENTS: usize = 32 << 20;
    let data = vec![1.0f32; ELEMENTS];
    let sum = || {
        let parts = data.par_chunks(1 << 16).map(|chunk| {
            let mut lanes = [0.0f32; 16];
            chunk
                .as_chunks::<16>()
                .0
                .iter()
                .for_each(|block| lanes.iter_mut().zip(block).for_each(|(l, v)| *l += v));
            lanes.iter().sum::<f32>()
        });
        black_box(parts.sum::<f32>());
    };
    let [best, _] = repeat(budget, sum);
    (ELEMENTS * size_of::<f32>()) as f64 / best / 1e9
}

/// The shortest and the median time of the repetitions that `budget` allows, in seconds.
fn repeat(budget: Duration, mut work: impl FnMut()) -> [f64; 2] {
    work();
    let start = Instant::now();
    let mut seconds = Vec::new();
    while seconds.is_empty() || start.elapsed() < budget {
        let begin = Instant::now();
        work();
        seconds.push(begin.elapsed().as_secs_f64());
    }
    seconds.sort_by(f64::total_cmp);
    [seconds[0], seconds[seconds.len() / 2]]
}

/// Time over which the machine's matrix products are measured.
const PROBE: Duration = Duration::from_millis(500);

/// Adds what share of the machine's operations a finished training used; `peak` in 10⁹ a second,
/// measured without it.
pub fn with_flops(found: Efficiency, record: &RunRecord, peak: Option<f64>) -> Efficiency {
    let train = &record.train_info;
    let flops = training_flops(
        train.num_total_params as f64,
        train.num_trainable_params as f64,
        train.train_tokens as f64,
    );
    if flops == 0.0 {
        return found;
    }
    let peak = peak.or_else(|| {
        let device = crate::device::device("cpu").ok()?;
        Some(gemm_gflops(&device, PROBE)[0])
    });
    found.with_flops(peak.unwrap_or(0.0), flops, train.train_time)
}
