//! # PiSSA: principal singular values and vectors
//!
//! ## What it does
//! LoRA that starts from the largest singular directions of each weight instead of from nothing,
//! and freezes the rest.
//!
//! ## Update rule
//! `W = U diag(σ) Vᵀ`; `A₀ = diag(√(σ/s)) Vᵀ` and `B₀ = U diag(√(σ/s))` of the `r` largest triples;
//! the layer is `W + s (B A − B₀ A₀)`.
//!
//! ## When to use, when not
//! Where LoRA learns too slowly at first: the trained directions are those that matter most to the
//! model. It forgets more than LoRA at the same rate, so lower the rate before the rank.
//!
//! ## Cost
//! Trainable: LoRA's. Extra compute: twice LoRA's, and once a singular value decomposition per layer.
//! Files hold twice the rank. None after merging.
//!
//! ## Defaults and where they come from
//! `r = 8`, `lora_alpha = 8`, so `s = 1`, as the paper has `alpha = r`. `pissa_niter = 4`: the
//! randomised decomposition with four power iterations and as many additional directions as the
//! rank, at least eight; 0 for the exact one.
//!
//! ## Departures from the paper
//! The frozen residual is not stored: the initial factors are subtracted in the forward pass. Files
//! are plain LoRA files of rank `2r` for the original model, as Hugging Face `peft` writes them
//! with `path_initial_model_for_weight_conversion`; read back they are a `lora` adapter. `peft`
//! spells the iterations `init_lora_weights = "pissa_niter_4"`.
//!
//! ## References
//! - Meng, Wang, Zhang: PiSSA: Principal Singular Values and Singular Vectors Adaptation of Large
//!   Language Models, 2024, arXiv 2404.02948.

use frugal_nn::linalg::{Svd, randomised_svd, svd};
use frugal_nn::{AdaptError, Adapter, BuildContext};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::method::{Family, Method, MethodConfig};
use crate::methods::low_rank::lora::{self, LoraConfig};
use crate::settings::{self, Settings};
use crate::support::per_linear::bad;
use crate::support::residual::{self, Factors, Residual, Weight};

const NAME: &str = "pissa";

/// Registry entry.
pub const METHOD: Method = Method::of::<PissaConfig>(
    Family::LowRank,
    "LoRA that starts from the largest singular directions of each weight",
    include_str!("pissa.rs"),
)
.default_lr(2e-4)
// Files do not show it.
.peft_variant(|_| false);

/// Settings: those of LoRA and how the weights are decomposed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct PissaConfig {
    /// Power iterations of the randomised decomposition; 0 for the exact one.
    pub pissa_niter: usize,
    /// The rest.
    #[serde(flatten)]
    pub lora: LoraConfig,
}

impl Default for PissaConfig {
    fn default() -> Self {
        Self {
            pissa_niter: 4,
            lora: LoraConfig {
                lora_alpha: 8.0,
                ..LoraConfig::default()
            },
        }
    }
}

impl MethodConfig for PissaConfig {
    const NAME: &'static str = NAME;
    const PEFT_TYPE: &'static str = "LORA";

    fn build(self, context: &BuildContext<'_>) -> Result<Box<dyn Adapter>, AdaptError> {
        Ok(Box::new(build(self, context)?))
    }

    fn parse(settings: &Settings) -> Result<Self, AdaptError> {
        let mut all = settings.clone();
        all.entry("lora_alpha").or_insert(json!(8.0));
        let config: Self = settings::parse(NAME, &all)?;
        residual::validate(NAME, &config.lora)?;
        // The singular values are divided by the scale.
        if config.lora.lora_alpha <= 0.0 {
            return bad(
                NAME,
                "lora_alpha",
                format!("{} is not a positive number", config.lora.lora_alpha),
            );
        }
        if let Some((path, alpha)) = config
            .lora
            .alpha_pattern
            .iter()
            .find(|(_, alpha)| **alpha <= 0.0)
        {
            return bad(
                NAME,
                "alpha_pattern",
                format!("{alpha} for `{path}` is not a positive number"),
            );
        }
        Ok(config)
    }

    fn from_peft(config: &Settings) -> Result<Settings, AdaptError> {
        lora::variant_from_peft(NAME, config, &[])
    }
}

fn build(config: PissaConfig, context: &BuildContext<'_>) -> Result<Residual, AdaptError> {
    let niter = config.pissa_niter;
    Residual::new(NAME, config.lora, context, |weight| {
        let (rows, cols) = (weight.d_out, weight.d_in);
        let found = match niter {
            0 => svd(&weight.values, rows, cols),
            _ => randomised_svd(
                &weight.values,
                rows,
                cols,
                weight.rank,
                weight.rank.max(8),
                niter,
                context.seed,
            ),
        };
        principal(&found, weight)
    })
}

/// `√(σ/s)` on both sides of the largest triples.
fn principal(found: &Svd, weight: &Weight) -> Factors {
    let (k, r) = (found.s.len(), weight.rank);
    let root: Vec<f32> = found.s[..r]
        .iter()
        .map(|s| (s / weight.scale).sqrt())
        .collect();
    let a = (0..r * weight.d_in)
        .map(|n| root[n / weight.d_in] * found.vt[n])
        .collect();
    let b = (0..weight.d_out * r)
        .map(|n| found.u[n / r * k + n % r] * root[n % r])
        .collect();
    Factors { a, b }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scales_are_positive() {
        let parsed = |settings: serde_json::Value| {
            PissaConfig::parse(settings.as_object().unwrap()).map_err(|e| e.to_string())
        };
        assert!(
            parsed(json!({"lora_alpha": 0.0}))
                .unwrap_err()
                .contains("lora_alpha")
        );
        assert!(
            parsed(json!({"alpha_pattern": {"q_proj": -1.0}}))
                .unwrap_err()
                .contains("alpha_pattern")
        );
        assert!(parsed(json!({"alpha_pattern": {"q_proj": 4.0}})).is_ok());
    }
}
