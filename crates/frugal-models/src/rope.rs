//! Rotary position embeddings: frequencies for every supported kind of context extension.
//!
//! Follows `transformers` (`modeling_rope_utils.py`), whose arithmetic the files in the wild were
//! made for.

use burn::prelude::*;

use crate::config::{RopeConfig, RopeScaling};

/// Cosines and sines of a batch's positions, each `[tokens, head_dim / 2]`.
#[derive(Clone, Debug)]
pub struct RotaryTable {
    /// Cosines.
    pub cos: Tensor<2>,
    /// Sines.
    pub sin: Tensor<2>,
}

/// Inverse frequencies `[head_dim / 2]` and the factor on cosine and sine.
///
/// `longest` is the length of the longest sequence, which only the dynamic kind looks at.
pub fn inverse_frequencies(
    rope: &RopeConfig,
    head_dim: usize,
    max_positions: usize,
    longest: usize,
) -> (Vec<f32>, f32) {
    let dim = head_dim as f64;
    let plain = |theta: f64| -> Vec<f64> {
        (0..head_dim / 2)
            .map(|i| theta.powf(-(2.0 * i as f64) / dim))
            .collect()
    };
    let mut attention = 1.0;
    let frequencies = match rope.scaling {
        RopeScaling::None => plain(rope.theta),
        RopeScaling::Linear { factor } => plain(rope.theta).iter().map(|f| f / factor).collect(),
        RopeScaling::Dynamic { factor } => {
            let (trained, length) = (max_positions as f64, longest.max(max_positions) as f64);
            plain(rope.theta * (factor * length / trained - (factor - 1.0)).powf(dim / (dim - 2.0)))
        }
        RopeScaling::Llama3 {
            factor,
            low_freq_factor,
            high_freq_factor,
            original_max_position_embeddings: original,
        } => {
            let (low, high) = (original / low_freq_factor, original / high_freq_factor);
            let blend = |f: f64| {
                let wavelength = std::f64::consts::TAU / f;
                if wavelength > low {
                    f / factor
                } else if wavelength < high {
                    f
                } else {
                    let smooth = (original / wavelength - low_freq_factor)
                        / (high_freq_factor - low_freq_factor);
                    (1.0 - smooth) * f / factor + smooth * f
                }
            };
            plain(rope.theta).into_iter().map(blend).collect()
        }
        RopeScaling::Yarn {
            factor,
            original_max_position_embeddings: original,
            beta_fast,
            beta_slow,
            attention_factor,
        } => {
            attention = attention_factor;
            let dimension = |rotations: f64| {
                dim * (original / (rotations * std::f64::consts::TAU)).ln()
                    / (2.0 * rope.theta.ln())
            };
            let low = dimension(beta_fast).floor().max(0.0);
            let high = dimension(beta_slow).ceil().min(dim - 1.0);
            let span = if high > low { high - low } else { 0.001 };
            let ramp = |i: usize, f: f64| {
                let kept = 1.0 - ((i as f64 - low) / span).clamp(0.0, 1.0);
                f / factor * (1.0 - kept) + f * kept
            };
            plain(rope.theta)
                .into_iter()
                .enumerate()
                .map(|(i, f)| ramp(i, f))
                .collect()
        }
    };
    (
        frequencies.into_iter().map(|f| f as f32).collect(),
        attention as f32,
    )
}

/// Table for these positions.
pub fn rotary_table(
    rope: &RopeConfig,
    head_dim: usize,
    max_positions: usize,
    position_ids: &[u32],
    device: &Device,
) -> RotaryTable {
    let longest = position_ids.iter().max().map_or(0, |&p| p as usize + 1);
    let (frequencies, factor) = inverse_frequencies(rope, head_dim, max_positions, longest);
    let (mut cos, mut sin) = (
        Vec::with_capacity(position_ids.len() * head_dim / 2),
        Vec::with_capacity(position_ids.len() * head_dim / 2),
    );
    for &position in position_ids {
        for &frequency in &frequencies {
            let angle = position as f32 * frequency;
            cos.push(angle.cos() * factor);
            sin.push(angle.sin() * factor);
        }
    }
    let shape = [position_ids.len(), head_dim / 2];
    RotaryTable {
        cos: Tensor::from_data(TensorData::new(cos, shape), device),
        sin: Tensor::from_data(TensorData::new(sin, shape), device),
    }
}
