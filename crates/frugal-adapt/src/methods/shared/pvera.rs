//! # PVeRA: VeRA with a distribution in place of each number between the projections
//!
//! ## What it does
//! As VeRA, one pair of frozen random projections serves all layers and two vectors per layer are
//! trained; between the projections stands a normal distribution, from which training samples.
//!
//! ## Update rule
//! `y = x Wᵀ + b ⊙ (z Bᵀ)` with `z = μ + exp(ν / 2) ⊙ ε`, `[μ; ν] = d ⊙ (x Aᵀ)`, `A [2r, d_in]`,
//! `B [d_out, r]` random and frozen, `d [2r]` and `b [d_out]` trained, `ε` standard normal for every
//! token in training and 0 otherwise.
//!
//! ## When to use, when not
//! Where VeRA overfits: with few examples the noise regularises. Elsewhere it learns more slowly, and
//! the rates that suit VeRA are too high for it.
//!
//! ## Cost
//! Trainable: `2r + d_out` per layer. Extra memory: `2r max d_in + r max d_out` once. Extra compute:
//! `r (2 d_in + d_out)` multiply-adds per token forward. None after merging.
//!
//! ## Defaults and where they come from
//! `r = 256`, `d_initial = 0.1`, `b` zero: Hugging Face `peft`. The projections are drawn by PyTorch's
//! generator from `projection_prng_key`, as `peft` draws them. The noise follows from the run's seed
//! and, where it is given, `generator_seed`.
//!
//! ## Departures from the paper
//! None of `peft`'s reading. Sampling outside of training (`sample_at_inference`) is refused: an
//! answer would not be repeatable, nor could the adapter be merged. Training biases is not offered.
//!
//! ## References
//! - PVeRA: Probabilistic Vector-Based Random Matrix Adaptation, 2025, arXiv 2512.07703; the
//!   arithmetic follows Hugging Face `peft`.

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

const NAME: &str = "pvera";

/// Registry entry.
pub const METHOD: Method = Method::of::<PveraConfig>(
    Family::Shared,
    "VeRA that samples between its projections",
    include_str!("pvera.rs"),
)
.default_lr(1e-3);

/// Settings, with `peft`'s names.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct PveraConfig {
    /// Columns of `B`.
    pub r: usize,
    /// Seed of the projections.
    pub projection_prng_key: u64,
    /// Whether files hold the projections.
    pub save_projection: bool,
    /// Probability of dropping an input element on the adapted path while training.
    pub pvera_dropout: f64,
    /// Initial value of `d`.
    pub d_initial: f64,
    /// Changes the noise of training beside the run's seed.
    pub generator_seed: Option<u64>,
    /// Which layers.
    #[serde(flatten)]
    pub targets: LayerTargets,
}

impl Default for PveraConfig {
    fn default() -> Self {
        Self {
            r: 256,
            projection_prng_key: 0,
            save_projection: true,
            pvera_dropout: 0.0,
            d_initial: 0.1,
            generator_seed: None,
            targets: LayerTargets::default(),
        }
    }
}

impl MethodConfig for PveraConfig {
    const NAME: &'static str = NAME;
    const PEFT_TYPE: &'static str = "PVERA";

    fn validate(&self) -> Result<(), AdaptError> {
        if self.r == 0 {
            return bad(NAME, "r", "must be at least 1");
        }
        if !self.d_initial.is_finite() {
            return bad(NAME, "d_initial", "must be a finite number");
        }
        per_linear::check_dropout(NAME, "pvera_dropout", self.pvera_dropout)
    }

    fn build(self, context: &BuildContext<'_>) -> Result<Box<dyn Adapter>, AdaptError> {
        Ok(Box::new(build(self, context)?))
    }

    fn from_peft(config: &Settings) -> Result<Settings, AdaptError> {
        per_linear::from_peft::<PveraConfig>(
            NAME,
            config,
            json!({}),
            &[
                ("bias", &[json!("none")]),
                ("sample_at_inference", &[json!(false)]),
            ],
        )
    }
}

fn build(
    config: PveraConfig,
    context: &BuildContext<'_>,
) -> Result<PerLinear<Factors>, AdaptError> {
    config.validate()?;
    let targets = config.targets.all();
    let (mut d_in, mut d_out) = (0, 0);
    let (r, device) = (config.r, &context.device);
    let constants = json!({"bias": "none", "init_weights": true, "fan_in_fan_out": false, "sample_at_inference": false});
    let maps = PerLinear::new(&METHOD, &targets, context, &config, constants, |_, info| {
        (d_in, d_out) = (d_in.max(info.d_in), d_out.max(info.d_out));
        let new = |letter: char, values: Vec<f32>| {
            let name = format!("{}.pvera_lambda_{letter}", info.path);
            Parameter::new(name, &[values.len()], values, device)
        };
        Ok(Factors {
            b: new('b', vec![0.0; info.d_out]),
            d: new('d', vec![config.d_initial as f32; 2 * r]),
            dropout: config.pvera_dropout,
            noise: config.generator_seed.unwrap_or(0),
        })
    })?;
    let mut generator = TorchGenerator::new(config.projection_prng_key);
    let mut projection = |name: &str, rows: usize, cols: usize| {
        // Kaiming-uniform for a rectifier, by the number of columns.
        let bound = 3.0_f64.sqrt() * (2.0_f64.sqrt() / (cols as f64).sqrt());
        let values = generator.uniform(rows * cols, bound as f32);
        Parameter::frozen(format!("base_model.{name}"), &[rows, cols], values, device)
    };
    let (a, b) = (
        projection("pvera_A", 2 * r, d_in),
        projection("pvera_B", d_out, r),
    );
    Ok(maps.with_shared(vec![a, b], config.save_projection))
}

/// The factors of one layer; the projections are shared.
struct Factors {
    /// `[d_out]`.
    b: Parameter,
    /// `[2r]`.
    d: Parameter,
    dropout: f64,
    /// Added to the seed of the noise.
    noise: u64,
}

impl Factors {
    /// `A [2r, d_in]` and `B [d_out, r]` for a layer of this size.
    fn projections(at: &LinearSite<'_>) -> (Tensor<2>, Tensor<2>) {
        let ([d_out, d_in], [a, b]) = (
            at.base.weight.dims(),
            [0, 1].map(|i| at.shared[i].get::<2>(Mode::Eval)),
        );
        (a.narrow(1, 0, d_in), b.narrow(0, 0, d_out))
    }

    fn mean(&self) -> usize {
        self.d.len() / 2
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
        let (r, (a, b)) = (self.mean(), Self::projections(at));
        let scale = |p: &Parameter| p.get::<1>(Mode::Eval).unsqueeze_dim::<2>(1);
        let a = (a * scale(&self.d)).narrow(0, 0, r);
        (b * scale(&self.b)).matmul(a)
    }

    fn samples(&self) -> bool {
        true
    }

    fn materializes_weight(&self) -> bool {
        false
    }

    fn forward(&self, at: &LinearSite<'_>, x: Tensor<2>) -> Tensor<2> {
        let (r, (a, b)) = (self.mean(), Self::projections(at));
        let y = at.base.forward(x.clone());
        let d = self.d.get::<1>(at.mode).unsqueeze::<2>();
        let low = match at.mode {
            Mode::Train { seed } => {
                let x = match self.dropout > 0.0 {
                    true => dropout(x, self.dropout, seed, at.path),
                    false => x,
                };
                let low = frugal_kernels::linear(x, a, None) * d;
                let tokens = low.dims()[0];
                let seed = seed.wrapping_add(self.noise);
                let noise = TorchGenerator::of_place(seed, at.path).randn(tokens * r);
                let device = low.device().inner();
                let noise = Tensor::<2>::from_data(TensorData::new(noise, [tokens, r]), &device);
                let deviation = (low.clone().narrow(1, r, r) * 0.5).exp();
                low.narrow(1, 0, r) + deviation * noise
            }
            Mode::Eval => frugal_kernels::linear(x, a.narrow(0, 0, r), None) * d.narrow(1, 0, r),
        };
        y + frugal_kernels::linear(low, b, None) * self.b.get::<1>(at.mode).unsqueeze::<2>()
    }
}
