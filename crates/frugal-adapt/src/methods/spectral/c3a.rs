//! # C3A: circular convolution
//!
//! ## What it does
//! The change of a weight is made of circulant blocks, each of which is one trained row, rotated.
//!
//! ## Update rule
//! `ΔW[m b + p, n b + q] = w[m, n, (q − p) mod b] / d_in` with trained
//! `w [d_out / b, d_in / b, b]`.
//!
//! ## When to use, when not
//! For a change of full rank with `d_in d_out / b` numbers. Larger blocks give smaller files; LoRA
//! at the same size is the safer start.
//!
//! ## Cost
//! Trainable: `d_in d_out / b` per layer. Extra compute: forming `ΔW` per layer and step, and a
//! gradient of the whole weight backward. None after merging.
//!
//! ## Defaults and where they come from
//! Random initial values (Xavier-uniform), so the model changes a little before training, as in
//! Hugging Face `peft`; `init_weights = true` starts at zero. `block_size = 64`, which divides the
//! sides of most small models; `peft` has 256.
//!
//! ## Departures from the paper
//! `ΔW` is formed by copying rows instead of multiplying in the frequency domain; the numbers are
//! the same. The gradients are those of this formula: in `peft` 0.21 the hand-written gradient of
//! the input mirrors the kernel.
//!
//! ## References
//! - Chen, Yang, Zhang, Li, Zhao, Wu, Zhang, Li: Parameter-Efficient Fine-Tuning via Circular
//!   Convolution, 2024, arXiv 2407.19342.

use burn::prelude::*;
use frugal_nn::{AdaptError, Adapter, BuildContext, Parameter, named_rng, standard_normal};
use rand::Rng;
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::method::{Family, Method, MethodConfig};
use crate::methods::low_rank::lora::Init;
use crate::pattern::Patterns;
use crate::settings::Settings;
use crate::support::layer_targets::LayerTargets;
use crate::support::per_linear::{self, LinearAdapter, LinearSite, PerLinear, bad};
use crate::target::{check_patterns, pattern_value};

const NAME: &str = "c3a";

/// Registry entry.
pub const METHOD: Method = Method::of::<C3aConfig>(
    Family::Spectral,
    "Circulant blocks as the change of each weight",
    include_str!("c3a.rs"),
)
.aliases(&["circular-convolution"])
.default_lr(1e-1)
.without_identity();

/// Settings, with `peft`'s names.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct C3aConfig {
    /// Size of the circulant blocks; divides both sides of every layer.
    pub block_size: usize,
    /// Block size by path pattern.
    pub block_size_pattern: Patterns<usize>,
    /// `"xavier_uniform"` (`false` means the same), `"kaiming_uniform"`, `"gaussian"`, or `true`
    /// for zero.
    pub init_weights: Init,
    /// Which layers.
    #[serde(flatten)]
    pub targets: LayerTargets,
}

impl Default for C3aConfig {
    fn default() -> Self {
        Self {
            block_size: 64,
            block_size_pattern: Patterns::new(),
            init_weights: Init::Named("xavier_uniform".into()),
            targets: LayerTargets::default(),
        }
    }
}

impl MethodConfig for C3aConfig {
    const NAME: &'static str = NAME;
    const PEFT_TYPE: &'static str = "C3A";

    fn validate(&self) -> Result<(), AdaptError> {
        if self.block_size == 0 || self.block_size_pattern.values().any(|&b| b == 0) {
            return bad(NAME, "block_size", "must be at least 1");
        }
        match &self.init_weights {
            Init::Named(name)
                if !["xavier_uniform", "kaiming_uniform", "gaussian"].contains(&name.as_str()) =>
            {
                let known = "true, false, \"xavier_uniform\", \"kaiming_uniform\", \"gaussian\"";
                bad(
                    NAME,
                    "init_weights",
                    format!("`{name}` is not supported; supported: {known}"),
                )
            }
            _ => Ok(()),
        }
    }

    fn build(self, context: &BuildContext<'_>) -> Result<Box<dyn Adapter>, AdaptError> {
        Ok(Box::new(build(self, context)?))
    }

    fn from_peft(config: &Settings) -> Result<Settings, AdaptError> {
        per_linear::from_peft::<C3aConfig>(
            NAME,
            config,
            json!({"block_size": 256}),
            &[("bias", &[json!("none")])],
        )
    }
}

fn build(config: C3aConfig, context: &BuildContext<'_>) -> Result<PerLinear<Kernel>, AdaptError> {
    config.validate()?;
    check_patterns(
        "block_size_pattern",
        &config.block_size_pattern,
        context.sites,
    )?;
    let targets = config.targets.all();
    PerLinear::new(
        &METHOD,
        &targets,
        context,
        &config,
        json!({"bias": "none"}),
        |_, info| {
            let b = pattern_value("block_size_pattern", &config.block_size_pattern, &info.path)?
                .unwrap_or(config.block_size);
            if !info.d_in.is_multiple_of(b) || !info.d_out.is_multiple_of(b) {
                return bad(
                    NAME,
                    "block_size",
                    format!(
                        "{b} does not divide both sides of `{}` ({} x {})",
                        info.path, info.d_out, info.d_in
                    ),
                );
            }
            let shape = [info.d_out / b, info.d_in / b, b];
            let mut rng = named_rng(context.seed, &info.path);
            let mut uniform = |variance: f64| {
                let bound = (3.0 * variance).sqrt() as f32;
                rng.random_range(-bound..bound)
            };
            let (d_in, d_out) = (info.d_in as f64, info.d_out as f64);
            let len = shape.iter().product::<usize>();
            let values = match &config.init_weights {
                Init::Default(true) => vec![0.0; len],
                Init::Named(name) if name == "gaussian" => {
                    let mut rng = named_rng(context.seed, &info.path);
                    (0..len).map(|_| standard_normal(&mut rng)).collect()
                }
                Init::Named(name) if name == "kaiming_uniform" => {
                    (0..len).map(|_| uniform(1.0 / (3.0 * d_in))).collect()
                }
                _ => (0..len).map(|_| uniform(2.0 / (d_in + d_out))).collect(),
            };
            Ok(Kernel {
                w: Parameter::new(
                    format!("{}.c3a_kernel", info.path),
                    &shape,
                    values,
                    &context.device,
                ),
            })
        },
    )
}

/// The rows of one layer's blocks.
struct Kernel {
    /// `[d_out / b, d_in / b, b]`.
    w: Parameter,
}

impl LinearAdapter for Kernel {
    fn parameters(&self) -> Vec<&Parameter> {
        vec![&self.w]
    }

    fn parameters_mut(&mut self) -> Vec<&mut Parameter> {
        vec![&mut self.w]
    }

    fn delta(&self, at: &LinearSite<'_>) -> Tensor<2> {
        let (w, d_in) = (self.w.get::<3>(at.mode), at.base.weight.dims()[1]);
        circulant(w) / d_in as f32
    }
}

/// The matrix `[m b, n b]` of circulant blocks with these first rows `[m, n, b]`.
fn circulant(w: Tensor<3>) -> Tensor<2> {
    let [m, n, b] = w.dims();
    let places: Vec<i64> = (0..b * b)
        .map(|i| ((i % b + b - i / b) % b) as i64)
        .collect();
    let places =
        Tensor::<1, Int>::from_data(TensorData::from(places.as_slice()), &w.device().inner());
    w.select(2, places)
        .reshape([m, n, b, b])
        .swap_dims(1, 2)
        .reshape([m * b, n * b])
}

#[cfg(test)]
mod tests {
    use super::*;
    use frugal_nn::to_vec;

    #[test]
    fn each_row_of_a_block_is_the_one_before_it_rotated() {
        let w = Tensor::<3>::from_data([[[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]], &Device::flex());
        let expected = [
            [1.0, 2.0, 3.0, 4.0, 5.0, 6.0],
            [3.0, 1.0, 2.0, 6.0, 4.0, 5.0],
            [2.0, 3.0, 1.0, 5.0, 6.0, 4.0],
        ];
        assert_eq!(to_vec(circulant(w)), expected.concat());
    }
}
