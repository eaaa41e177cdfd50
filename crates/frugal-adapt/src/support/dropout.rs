//! Dropout with a seed of its own for each place.

use burn::prelude::*;
use frugal_nn::named_rng;
use rand::Rng;

/// Zeroes elements with probability `p` and scales the rest by `1 / (1 - p)`; the mask follows from
/// seed and place.
pub(crate) fn dropout(x: Tensor<2>, p: f64, seed: u64, place: &str) -> Tensor<2> {
    let dims = x.dims();
    let mut rng = named_rng(seed, place);
    let keep = (1.0 / (1.0 - p)) as f32;
    let mask: Vec<f32> = (0..dims[0] * dims[1])
        .map(|_| {
            if rng.random::<f32>() < p as f32 {
                0.0
            } else {
                keep
            }
        })
        .collect();
    let device = x.device().inner();
    x * Tensor::from_data(TensorData::new(mask, dims), &device)
}
