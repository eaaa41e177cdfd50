//! # DeLoRA: decoupled low-rank adaptation
//!
//! ## What it does
//! LoRA whose rank-one parts have unit length, so that how far a weight moves is one trained number
//! and where it moves is the rest.
//!
//! ## Update rule
//! `ΔW = (λ / r) Σᵢ bᵢ aᵢᵀ / (‖bᵢ‖ ‖aᵢ‖) · diag(n)` with `A [r, d_in]`, `B [d_out, r]` and `λ` trained, `n
//! [d_in]` the lengths of the weight's columns. `‖ΔW‖` is bounded by `λ` relative to the weight.
//!
//! ## When to use, when not
//! Where LoRA diverges at high rates or long runs: the bound holds whatever the optimiser does. It
//! has more to compute per step than LoRA, and `λ` is one more number to choose.
//!
//! ## Cost
//! Trainable: `r (d_in + d_out) + 1` per layer. Extra memory: `d_in` frozen numbers. Extra compute: as
//! LoRA. None after merging.
//!
//! ## Defaults and where they come from
//! `r = 8`, `delora_lambda = 15`: Hugging Face `peft`. `A` is Kaiming-uniform with `a = sqrt(5)`, `B`
//! zero; lengths below 1e-4 count as 1e-4, so zero `B` has a gradient.
//!
//! ## Departures from the paper
//! The paper starts from random `B` and takes the first change out of the weight; `peft` starts from
//! zero `B`, as here. The lengths of columns are kept in the file.
//!
//! ## References
//! - Bini, Girrbach, Akata: DeLoRA: Decoupling Angles and Strength in Low-rank Adaptation, 2025,
//!   arXiv 2503.18225.

use burn::prelude::*;
use frugal_nn::{AdaptError, Adapter, BuildContext, Mode, Parameter, named_rng, to_vec};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::method::{Family, Method, MethodConfig};
use crate::pattern::Patterns;
use crate::settings::Settings;
use crate::support::base_weights::linear_weights;
use crate::support::dropout::dropout;
use crate::support::per_linear::{self, LinearAdapter, LinearSite, PerLinear, bad};
use crate::support::values::kaiming;
use crate::target::{Targets, check_patterns, pattern_value};

const NAME: &str = "delora";

/// Shortest length that a vector is divided by.
const SHORTEST: f32 = 1e-4;

/// Registry entry.
pub const METHOD: Method = Method::of::<DeloraConfig>(
    Family::LowRank,
    "LoRA of unit directions and one trained strength",
    include_str!("delora.rs"),
);

/// Settings, with `peft`'s names.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct DeloraConfig {
    /// Rank.
    pub r: usize,
    /// First value of the strength.
    pub delora_lambda: f64,
    /// Probability of dropping an input element on the adapted path while training.
    pub module_dropout: f64,
    /// Start without a change; otherwise with a random one, for tests.
    pub init_weights: bool,
    /// Rank by path pattern.
    pub rank_pattern: Patterns<usize>,
    /// First strength by path pattern.
    pub lambda_pattern: Patterns<f64>,
    /// Which layers.
    #[serde(flatten)]
    pub targets: Targets,
}

impl Default for DeloraConfig {
    fn default() -> Self {
        Self {
            r: 8,
            delora_lambda: 15.0,
            module_dropout: 0.0,
            init_weights: true,
            rank_pattern: Patterns::new(),
            lambda_pattern: Patterns::new(),
            targets: Targets::default(),
        }
    }
}

impl MethodConfig for DeloraConfig {
    const NAME: &'static str = NAME;
    const PEFT_TYPE: &'static str = "DELORA";

    fn validate(&self) -> Result<(), AdaptError> {
        if self.r == 0 || self.rank_pattern.values().any(|&r| r == 0) {
            return bad(NAME, "r", "the rank must be at least 1");
        }
        if !self.delora_lambda.is_finite() || self.lambda_pattern.values().any(|l| !l.is_finite()) {
            return bad(NAME, "delora_lambda", "must be a finite number");
        }
        per_linear::check_dropout(NAME, "module_dropout", self.module_dropout)
    }

    fn build(self, context: &BuildContext<'_>) -> Result<Box<dyn Adapter>, AdaptError> {
        Ok(Box::new(build(self, context)?))
    }

    fn from_peft(config: &Settings) -> Result<Settings, AdaptError> {
        per_linear::from_peft_without_bias::<DeloraConfig>(NAME, config)
    }
}

fn build(
    config: DeloraConfig,
    context: &BuildContext<'_>,
) -> Result<PerLinear<Directions>, AdaptError> {
    config.validate()?;
    check_patterns("rank_pattern", &config.rank_pattern, context.sites)?;
    check_patterns("lambda_pattern", &config.lambda_pattern, context.sites)?;
    let weights = linear_weights(context);
    let constants = json!({"bias": "none"});
    PerLinear::new(
        &METHOD,
        &config.targets,
        context,
        &config,
        constants,
        |id, info| {
            let (path, d_in, d_out) = (&info.path, info.d_in, info.d_out);
            let r = pattern_value("rank_pattern", &config.rank_pattern, path)?.unwrap_or(config.r);
            let lambda = pattern_value("lambda_pattern", &config.lambda_pattern, path)?
                .unwrap_or(config.delora_lambda);
            let mut rng = named_rng(context.seed, path);
            let a = kaiming(&mut rng, r * d_in, d_in);
            let b = match config.init_weights {
                true => vec![0.0; r * d_out],
                false => kaiming(&mut rng, r * d_out, r),
            };
            let lengths = match &weights[id.index()] {
                Some(weight) => to_vec(weight.clone().powi_scalar(2).sum_dim(0).sqrt()),
                None => vec![1.0; d_in],
            };
            let new = |name: &str, shape: &[usize], values| {
                Parameter::new(
                    format!("{path}.delora_{name}"),
                    shape,
                    values,
                    &context.device,
                )
            };
            Ok(Directions {
                a: new("A", &[r, d_in], a),
                b: new("B", &[d_out, r], b),
                lambda: new("lambda", &[1], vec![lambda as f32]),
                lengths: new("w_norm", &[d_in], lengths).freeze(),
                dropout: config.module_dropout,
            })
        },
    )
}

/// The directions of one layer and their strength.
struct Directions {
    /// `[r, d_in]`.
    a: Parameter,
    /// `[d_out, r]`.
    b: Parameter,
    /// `[1]`.
    lambda: Parameter,
    /// Of the weight's columns, `[d_in]`.
    lengths: Parameter,
    dropout: f64,
}

impl Directions {
    /// What the low-rank part is multiplied by, `[1, r]`.
    fn scales(&self, mode: Mode) -> Tensor<2> {
        let length = |squares: Tensor<2>| squares.clamp_min(SHORTEST * SHORTEST).sqrt();
        let a = length(self.a.get::<2>(mode).powi_scalar(2).sum_dim(1)).transpose();
        let b = length(self.b.get::<2>(mode).powi_scalar(2).sum_dim(0));
        let r = self.a.shape()[0] as f32;
        (a * b).recip() * self.lambda.get::<1>(mode).unsqueeze::<2>() / r
    }

    fn change(&self, x: Tensor<2>, mode: Mode) -> Tensor<2> {
        let x = x * self.lengths.get::<1>(Mode::Eval).unsqueeze::<2>();
        let low = frugal_kernels::linear(x, self.a.get::<2>(mode), None) * self.scales(mode);
        frugal_kernels::linear(low, self.b.get::<2>(mode), None)
    }
}

impl LinearAdapter for Directions {
    fn parameters(&self) -> Vec<&Parameter> {
        vec![&self.a, &self.b, &self.lambda, &self.lengths]
    }

    fn parameters_mut(&mut self) -> Vec<&mut Parameter> {
        vec![
            &mut self.a,
            &mut self.b,
            &mut self.lambda,
            &mut self.lengths,
        ]
    }

    fn delta(&self, at: &LinearSite<'_>) -> Tensor<2> {
        let low = self.b.get::<2>(at.mode) * self.scales(at.mode);
        low.matmul(self.a.get::<2>(at.mode)) * self.lengths.get::<1>(Mode::Eval).unsqueeze::<2>()
    }

    fn materializes_weight(&self) -> bool {
        false
    }

    fn forward(&self, at: &LinearSite<'_>, x: Tensor<2>) -> Tensor<2> {
        let y = at.base.forward(x.clone());
        let x = match at.mode {
            Mode::Train { seed } if self.dropout > 0.0 => dropout(x, self.dropout, seed, at.path),
            _ => x,
        };
        y + self.change(x, at.mode)
    }
}
