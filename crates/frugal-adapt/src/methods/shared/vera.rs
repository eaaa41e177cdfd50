//! # VeRA: vector-based random matrix adaptation
//!
//! ## What it does
//! One pair of frozen random projections serves all layers; only two vectors of factors per layer are
//! trained.
//!
//! ## Update rule
//! `y = x Wᵀ + b ⊙ ((d ⊙ (x Aᵀ)) Bᵀ)` with `A [r, d_in]`, `B [d_out, r]` random and frozen, `d [r]`
//! and `b [d_out]` trained. Maps of different sizes use the leading part of the shared `A` and `B`.
//!
//! ## When to use, when not
//! Where many adapters of one model must be stored: with the projections drawn again from their key
//! (`save_projection = false`) a file holds `r + d_out` numbers per layer. Each step costs more than
//! LoRA's, because the rank must be high.
//!
//! ## Cost
//! Trainable: `r + d_out` per layer. Extra memory: `r (max d_in + max d_out)` once. Extra compute:
//! `2 r (d_in + d_out)` multiply-adds per token forward. None after merging.
//!
//! ## Defaults and where they come from
//! `r = 256`, `d_initial = 0.1`, `b` zero: paper and Hugging Face `peft`. The projections are
//! Kaiming-uniform and drawn by PyTorch's generator from `projection_prng_key`, exactly as `peft`
//! draws them. The learning rate is an order above LoRA's, as in the paper.
//!
//! ## Departures from the paper
//! None. Training biases (`bias` of `peft`) is not offered.
//!
//! ## References
//! - Kopiczko, Blankevoort, Asano: VeRA: Vector-based Random Matrix Adaptation, 2023, arXiv
//!   2310.11454.

use burn::prelude::*;
use frugal_nn::{AdaptError, Adapter, BuildContext, Mode, Parameter};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::method::{Family, Method, MethodConfig};
use crate::settings::Settings;
use crate::support::dropout::dropout;
use crate::support::layer_targets::LayerTargets;
use crate::support::per_linear::{self, LinearAdapter, LinearSite, PerLinear, bad};
use crate::support::torch_random::TorchGenerator;

const NAME: &str = "vera";

/// Registry entry.
pub const METHOD: Method = Method::of::<VeraConfig>(
    Family::Shared,
    "Factors on shared frozen random projections",
    include_str!("vera.rs"),
)
.default_lr(1.5e-2);

/// Settings, with `peft`'s names.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct VeraConfig {
    /// Rows of `A`.
    pub r: usize,
    /// Seed of the projections.
    pub projection_prng_key: u64,
    /// Whether files hold the projections.
    pub save_projection: bool,
    /// Probability of dropping an input element on the adapted path while training.
    pub vera_dropout: f64,
    /// Initial value of `d`.
    pub d_initial: f64,
    /// Which layers.
    #[serde(flatten)]
    pub targets: LayerTargets,
}

impl Default for VeraConfig {
    fn default() -> Self {
        Self {
            r: 256,
            projection_prng_key: 0,
            save_projection: true,
            vera_dropout: 0.0,
            d_initial: 0.1,
            targets: LayerTargets::default(),
        }
    }
}

impl MethodConfig for VeraConfig {
    const NAME: &'static str = NAME;
    const PEFT_TYPE: &'static str = "VERA";

    fn validate(&self) -> Result<(), AdaptError> {
        if self.r == 0 {
            return bad(NAME, "r", "must be at least 1");
        }
        per_linear::check_dropout(NAME, "vera_dropout", self.vera_dropout)
    }

    fn build(self, context: &BuildContext<'_>) -> Result<Box<dyn Adapter>, AdaptError> {
        Ok(Box::new(build(self, context)?))
    }

    fn from_peft(config: &Settings) -> Result<Settings, AdaptError> {
        per_linear::from_peft_without_bias::<VeraConfig>(NAME, config)
    }
}

fn build(config: VeraConfig, context: &BuildContext<'_>) -> Result<PerLinear<Factors>, AdaptError> {
    config.validate()?;
    let targets = config.targets.all();
    let (mut d_in, mut d_out) = (0, 0);
    let (r, device) = (config.r, &context.device);
    let constants = json!({"bias": "none", "init_weights": true, "fan_in_fan_out": false});
    let maps = PerLinear::new(&METHOD, &targets, context, &config, constants, |_, info| {
        (d_in, d_out) = (d_in.max(info.d_in), d_out.max(info.d_out));
        Ok(Factors {
            b: Parameter::new(
                format!("{}.vera_lambda_b", info.path),
                &[info.d_out],
                vec![0.0; info.d_out],
                device,
            ),
            d: Parameter::new(
                format!("{}.vera_lambda_d", info.path),
                &[r],
                vec![config.d_initial as f32; r],
                device,
            ),
            dropout: config.vera_dropout,
        })
    })?;
    let mut generator = TorchGenerator::new(config.projection_prng_key);
    let mut projection = |name: &str, rows: usize, cols: usize| {
        // Kaiming-uniform for a rectifier, by the number of columns.
        let bound = 3.0_f64.sqrt() * (2.0_f64.sqrt() / (cols as f64).sqrt());
        Parameter::frozen(
            format!("base_model.{name}"),
            &[rows, cols],
            generator.uniform(rows * cols, bound as f32),
            device,
        )
    };
    let (a, b) = (
        projection("vera_A", r, d_in),
        projection("vera_B", d_out, r),
    );
    Ok(maps.with_shared(vec![a, b], config.save_projection))
}

/// The factors of one layer; the projections are shared.
struct Factors {
    /// `[d_out]`.
    b: Parameter,
    /// `[r]`.
    d: Parameter,
    dropout: f64,
}

impl Factors {
    /// `A [r, d_in]` and `B [d_out, r]` for a layer of this size.
    fn projections(at: &LinearSite<'_>) -> (Tensor<2>, Tensor<2>) {
        let ([d_out, d_in], [a, b]) = (
            at.base.weight.dims(),
            [0, 1].map(|i| at.shared[i].get::<2>(Mode::Eval)),
        );
        (a.narrow(1, 0, d_in), b.narrow(0, 0, d_out))
    }
}

impl LinearAdapter for Factors {
    fn parameters(&self) -> Vec<&Parameter> {
        vec![&self.b, &self.d]
    }

    fn parameters_mut(&mut self) -> Vec<&mut Parameter> {
        vec![&mut self.b, &mut self.d]
    }

    fn delta(&self, at: &LinearSite<'_>) -> Tensor<2> {
        let (a, b) = Self::projections(at);
        let (scale_b, scale_d) = (self.b.get::<1>(Mode::Eval), self.d.get::<1>(Mode::Eval));
        (b * scale_b.unsqueeze_dim::<2>(1)).matmul(a * scale_d.unsqueeze_dim::<2>(1))
    }

    fn materializes_weight(&self) -> bool {
        false
    }

    fn forward(&self, at: &LinearSite<'_>, x: Tensor<2>) -> Tensor<2> {
        let (a, b) = Self::projections(at);
        let y = at.base.forward(x.clone());
        let x = match at.mode {
            Mode::Train { seed } if self.dropout > 0.0 => dropout(x, self.dropout, seed, at.path),
            _ => x,
        };
        let low = frugal_kernels::linear(x, a, None) * self.d.get::<1>(at.mode).unsqueeze::<2>();
        y + frugal_kernels::linear(low, b, None) * self.b.get::<1>(at.mode).unsqueeze::<2>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn projections_are_those_of_peft() {
        // Key 0, r = 8, sides 24 and 16, PyTorch 2.15.
        let mut generator = TorchGenerator::new(0);
        let bound = |fan_in: f32| (6.0 / fan_in).sqrt();
        let (a, b) = (
            generator.uniform(8 * 24, bound(24.0)),
            generator.uniform(16 * 8, bound(8.0)),
        );
        let close = |found: &[f32], expected: [f32; 4]| {
            found
                .iter()
                .zip(expected)
                .all(|(a, b)| (a - b).abs() < 1e-6)
        };
        assert!(
            close(
                &a,
                [-0.003_743_41, 0.268_221_8, -0.411_522_57, -0.367_969_5]
            ),
            "{:?}",
            &a[..4]
        );
        assert!(
            close(
                &b,
                [-0.610_875_5, 0.038_624_64, -0.610_490_86, -0.476_733_27]
            ),
            "{:?}",
            &b[..4]
        );
    }
}
