//! # LoRA-XS: a small matrix between singular vectors
//!
//! ## What it does
//! LoRA whose factors are frozen at each weight's own largest singular vectors, with a trained `r × r`
//! matrix between them.
//!
//! ## Update rule
//! `y = x Wᵀ + s B R A x` with `B = U_r Σ_r [d_out, r]`, `A = V_rᵀ [r, d_in]` frozen, `R [r, r]` trained, `s = alpha / r`.
//!
//! ## When to use, when not
//! For very small files whose size does not grow with the model's width. What is new lies between
//! directions that the weight already has, so it teaches less than LoRA.
//!
//! ## Cost
//! Trainable: `r²` per layer. Extra memory: `r (d_in + d_out)` frozen numbers per layer. Extra compute: as
//! LoRA. None after merging.
//!
//! ## Defaults and where they come from
//! `r = 16`, scale 1 (`lora_alpha = 16`); `R` is normal with deviation 1e-5, as in the official code, so the
//! model changes a little before training.
//!
//! ## Departures from the paper
//! The vectors are stored in the file, because those of close singular values depend on rounding. The
//! `svfit` method with `core = "dense"` and `relative` is the same with the values on the other side.
//!
//! ## References
//! - Bałazy, Banaei, Aberer, Tabor: LoRA-XS: Low-Rank Adaptation with Extremely Small Number of
//!   Parameters, 2024, arXiv 2405.17604.

use burn::prelude::*;
use frugal_nn::{AdaptError, Adapter, BuildContext, Mode, Parameter, named_rng, standard_normal};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::method::{Family, Method, MethodConfig};
use crate::support::base_weights::linear_weights;
use crate::support::dropout::dropout;
use crate::support::per_linear::{LinearAdapter, LinearSite, PerLinear, bad, check_dropout};
use crate::support::singular::{kept, triples};
use crate::target::Targets;

const NAME: &str = "lora-xs";

/// Deviation of first values.
const SMALL: f32 = 1e-5;

/// Registry entry.
pub const METHOD: Method = Method::of::<LoraXsConfig>(
    Family::Spectral,
    "A small trained matrix between each weight's singular vectors",
    include_str!("lora_xs.rs"),
)
.aliases(&["loraxs"])
.default_lr(4e-3)
.without_identity()
.files_hold_what_follows_from_weights();

/// Settings.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct LoraXsConfig {
    /// Sides of the trained matrix; at most the smaller side of a layer.
    pub r: usize,
    /// Scale numerator.
    pub lora_alpha: f64,
    /// Probability of dropping an input element on the adapted path while training.
    pub lora_dropout: f64,
    /// Which layers.
    #[serde(flatten)]
    pub targets: Targets,
}

impl Default for LoraXsConfig {
    fn default() -> Self {
        Self {
            r: 16,
            lora_alpha: 16.0,
            lora_dropout: 0.0,
            targets: Targets::default(),
        }
    }
}

impl MethodConfig for LoraXsConfig {
    const NAME: &'static str = NAME;
    const PEFT_TYPE: &'static str = "LORA_XS";

    fn validate(&self) -> Result<(), AdaptError> {
        if self.r == 0 {
            return bad(NAME, "r", "must be at least 1");
        }
        if !self.lora_alpha.is_finite() {
            return bad(NAME, "lora_alpha", "must be a finite number");
        }
        check_dropout(NAME, "lora_dropout", self.lora_dropout)
    }

    fn build(self, context: &BuildContext<'_>) -> Result<Box<dyn Adapter>, AdaptError> {
        Ok(Box::new(build(self, context)?))
    }
}

fn build(config: LoraXsConfig, context: &BuildContext<'_>) -> Result<PerLinear<Core>, AdaptError> {
    config.validate()?;
    let weights = linear_weights(context);
    PerLinear::new(
        &METHOD,
        &config.targets,
        context,
        &config,
        json!({}),
        |id, info| {
            let r = config.r.min(info.d_in).min(info.d_out);
            let found = triples(weights[id.index()].as_ref(), info, r, context.seed);
            let b = found
                .u
                .iter()
                .enumerate()
                .map(|(n, u)| u * found.s[n % r])
                .collect();
            let mut rng = named_rng(context.seed, &info.path);
            let core = (0..r * r)
                .map(|_| SMALL * standard_normal(&mut rng))
                .collect();
            let name = format!("{}.lora_R", info.path);
            Ok(Core {
                a: kept(
                    info,
                    "lora_A.weight",
                    [r, info.d_in],
                    found.vt,
                    &context.device,
                ),
                b: kept(info, "lora_B.weight", [info.d_out, r], b, &context.device),
                core: Parameter::new(name, &[r, r], core, &context.device),
                scale: (config.lora_alpha / config.r as f64) as f32,
                dropout: config.lora_dropout,
            })
        },
    )
}

/// The matrix of one layer and what it lies between.
struct Core {
    /// `[r, d_in]`.
    a: Parameter,
    /// `[d_out, r]`.
    b: Parameter,
    /// `[r, r]`.
    core: Parameter,
    scale: f32,
    dropout: f64,
}

impl LinearAdapter for Core {
    fn parameters(&self) -> Vec<&Parameter> {
        vec![&self.a, &self.b, &self.core]
    }

    fn parameters_mut(&mut self) -> Vec<&mut Parameter> {
        vec![&mut self.a, &mut self.b, &mut self.core]
    }

    fn delta(&self, at: &LinearSite<'_>) -> Tensor<2> {
        let left = self
            .b
            .get::<2>(Mode::Eval)
            .matmul(self.core.get::<2>(at.mode));
        left.matmul(self.a.get::<2>(Mode::Eval)) * self.scale
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
        let low = frugal_kernels::linear(x, self.a.get::<2>(Mode::Eval), None);
        let low = frugal_kernels::linear(low, self.core.get::<2>(at.mode), None);
        y + frugal_kernels::linear(low, self.b.get::<2>(Mode::Eval), None) * self.scale
    }
}
