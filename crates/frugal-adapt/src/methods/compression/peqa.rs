//! # PEQA: tuning the scales of quantised weights
//!
//! ## What it does
//! Rounds each weight to few bits and trains nothing but the scales of the rounded values: a task is a
//! set of scales over the same integers.
//!
//! ## Update rule
//! `W' = (s₀ + Δs) ⊙ (Q − z)`, where `Q = clamp(round(W / s₀) + z, 0, 2ᵇ − 1)` are integers, and each group of
//! `group_size` inputs of a row has a scale `s₀`, a zero point `z` and a trained `Δs`.
//!
//! ## When to use, when not
//! Where the model is served in few bits and must take on several tasks without leaving them. It cannot
//! turn directions: LoRA over the same rounded weights (`--quantize`) learns more.
//!
//! ## Cost
//! Trainable: `d_out d_in / group_size` per layer, `d_out` with whole rows. Extra memory: a rounded copy of
//! each weight in single precision while training. Extra compute: a product with the whole weight per
//! step. None after merging.
//!
//! ## Defaults and where they come from
//! Four bits and whole rows (`group_size = 0`), asymmetric rounding to the nearest over the range of the
//! group: paper. Its rate is that of full tuning; here it is relative to the scales, which are small,
//! and so higher.
//!
//! ## Departures from the paper
//! What is trained is `Δs / s₀`, so that one rate fits all layers. The integers are made of the base when
//! the adapter is made and are not in its file: the file goes with the same base only.
//!
//! ## References
//! - Kim, Lee, Kim, Park, Yoo, Kwon, Lee: Memory-Efficient Fine-Tuning of Compressed Large Language
//!   Models via sub-4-bit Integer Quantization, 2023, arXiv 2305.14152.

use burn::prelude::*;
use frugal_nn::{AdaptError, Adapter, BuildContext, MergedLinear, Parameter, to_vec};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::method::{Family, Method, MethodConfig};
use crate::support::base_weights::linear_weights;
use crate::support::per_linear::{LinearAdapter, LinearSite, PerLinear, bad};
use crate::target::Targets;

const NAME: &str = "peqa";

/// Registry entry.
pub const METHOD: Method = Method::of::<PeqaConfig>(
    Family::Compression,
    "Rounds weights to few bits and trains their scales",
    include_str!("peqa.rs"),
)
.default_lr(1e-3)
.without_identity();

/// Settings.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct PeqaConfig {
    /// Bits of a rounded value.
    pub bits: u32,
    /// Inputs that share a scale; 0 for all of a row.
    pub group_size: usize,
    /// Which layers.
    #[serde(flatten)]
    pub targets: Targets,
}

impl Default for PeqaConfig {
    fn default() -> Self {
        Self {
            bits: 4,
            group_size: 0,
            targets: Targets::default(),
        }
    }
}

impl MethodConfig for PeqaConfig {
    const NAME: &'static str = NAME;
    const PEFT_TYPE: &'static str = "PEQA";

    fn validate(&self) -> Result<(), AdaptError> {
        if (1..=8).contains(&self.bits) {
            Ok(())
        } else {
            bad(NAME, "bits", "must be from 1 to 8")
        }
    }

    fn build(self, context: &BuildContext<'_>) -> Result<Box<dyn Adapter>, AdaptError> {
        Ok(Box::new(build(self, context)?))
    }
}

fn build(config: PeqaConfig, context: &BuildContext<'_>) -> Result<PerLinear<Scales>, AdaptError> {
    config.validate()?;
    let weights = linear_weights(context);
    PerLinear::new(
        &METHOD,
        &config.targets,
        context,
        &config,
        json!({}),
        |id, info| {
            let group = match config.group_size {
                0 => info.d_in,
                size => size,
            };
            if !info.d_in.is_multiple_of(group) {
                let reason = format!(
                    "{group} does not divide the {} inputs of `{}`",
                    info.d_in, info.path
                );
                return bad(NAME, "group_size", reason);
            }
            let groups = info.d_in / group;
            let rounded = weights[id.index()].as_ref().map(|weight| {
                let values = rounded(&to_vec(weight.clone()), group, config.bits);
                let data = TensorData::new(values, [info.d_out * groups, group]);
                Tensor::from_data(data, &weight.device())
            });
            let name = format!("{}.peqa_scale", info.path);
            let zeros = vec![0.0; info.d_out * groups];
            Ok(Scales {
                change: Parameter::new(name, &[info.d_out, groups], zeros, &context.device),
                rounded,
            })
        },
    )
}

/// Each group rounded to `2ᵇ` values over its range, zero among them.
fn rounded(values: &[f32], group: usize, bits: u32) -> Vec<f32> {
    let most = ((1_u32 << bits) - 1) as f32;
    let round = |row: &[f32]| -> Vec<f32> {
        let low = row.iter().copied().fold(0.0, f32::min);
        let high = row.iter().copied().fold(0.0, f32::max);
        let scale = (high - low) / most;
        if scale <= 0.0 {
            return vec![0.0; row.len()];
        }
        let zero = (-low / scale).round_ties_even();
        let integer = |v: &f32| ((v / scale).round_ties_even() + zero).clamp(0.0, most);
        row.iter().map(|v| (integer(v) - zero) * scale).collect()
    };
    values.chunks(group).flat_map(round).collect()
}

/// The scales of one layer.
struct Scales {
    /// Relative to the first scales, `[d_out, groups]`.
    change: Parameter,
    /// The rounded weight, `[d_out groups, group_size]`; nothing when planning.
    rounded: Option<Tensor<2>>,
}

impl Scales {
    fn weight(&self, at: &LinearSite<'_>) -> Tensor<2> {
        let ([d_out, d_in], groups) = (at.base.weight.dims(), self.change.len());
        let Some(rounded) = &self.rounded else {
            return at.base.weight.dense();
        };
        let scale = self.change.get::<2>(at.mode).reshape([groups, 1]) + 1.0;
        (rounded.clone() * scale).reshape([d_out, d_in])
    }
}

impl LinearAdapter for Scales {
    fn parameters(&self) -> Vec<&Parameter> {
        vec![&self.change]
    }

    fn parameters_mut(&mut self) -> Vec<&mut Parameter> {
        vec![&mut self.change]
    }

    fn delta(&self, at: &LinearSite<'_>) -> Tensor<2> {
        self.weight(at) - at.base.weight.dense()
    }

    fn forward(&self, at: &LinearSite<'_>, x: Tensor<2>) -> Tensor<2> {
        frugal_kernels::linear(x, self.weight(at), at.base.bias.clone())
    }

    fn merged(&self, at: &LinearSite<'_>) -> MergedLinear {
        MergedLinear {
            weight: self.weight(at),
            bias: at.base.bias.clone(),
        }
    }

    fn unmerged(&self, _at: &LinearSite<'_>) -> Result<MergedLinear, String> {
        Err("what rounding took from the weight is gone: load the base model instead".into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_rounded_over_the_range_of_their_group() {
        // Two bits over -1 to 2: steps of 1, zero point 1.
        let found = rounded(&[-1.0, 0.4, 2.0, 1.6], 4, 2);
        assert_eq!(found, [-1.0, 0.0, 2.0, 2.0]);
        // A group of zeros stays.
        assert_eq!(rounded(&[0.0, 0.0], 2, 4), [0.0, 0.0]);
    }
}
