//! # MiCA: minor component adaptation
//!
//! ## What it does
//! LoRA whose `B` is frozen at the left singular vectors of the smallest singular values: the change
//! stays in directions of the output that the weight hardly uses.
//!
//! ## Update rule
//! `y = x Wᵀ + s B A x` with `B [d_out, r]` the last `r` left singular vectors of `W`, frozen, and `A [r, d_in]`
//! trained from zero.
//!
//! ## When to use, when not
//! Where new knowledge is to be added and old knowledge kept. With half of LoRA's parameters it learns
//! less at the same rank; each weight is decomposed whole before training.
//!
//! ## Cost
//! Trainable: `r d_in` per layer. Extra compute: as LoRA. None after merging.
//!
//! ## Defaults and where they come from
//! Those of `lora`; the start is `init_lora_weights = "mica"` of Hugging Face `peft`. `B` is orthonormal
//! and far larger than a trained one, so the rate is below LoRA's.
//!
//! ## Departures from the paper
//! None known.
//!
//! ## References
//! - MiCA Learns More Knowledge Than LoRA and Full Fine-Tuning, 2026, arXiv 2604.01694.

use frugal_nn::linalg::svd;
use frugal_nn::{AdaptError, Adapter, BuildContext, to_vec};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::method::{Family, Method, MethodConfig};
use crate::methods::low_rank::lora::{self, Init, Lora, LoraConfig};
use crate::settings::Settings;
use crate::support::base_weights::linear_weights;
use crate::support::per_linear::{bad, linear_maps};

const NAME: &str = "mica";

/// Registry entry.
pub const METHOD: Method = Method::of::<MicaConfig>(
    Family::LowRank,
    "LoRA that trains only A, towards each weight's least used outputs",
    include_str!("mica.rs"),
)
.default_lr(5e-4)
.files_hold_what_follows_from_weights()
.peft_variant(|config| config.get("init_lora_weights") == Some(&json!("mica")));

/// Settings: those of LoRA.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct MicaConfig {
    /// LoRA's.
    #[serde(flatten)]
    pub lora: LoraConfig,
}

impl MethodConfig for MicaConfig {
    const NAME: &'static str = NAME;
    const PEFT_TYPE: &'static str = "LORA";

    fn validate(&self) -> Result<(), AdaptError> {
        if self.lora.init_lora_weights != Init::Default(true) {
            return bad(
                NAME,
                "init_lora_weights",
                "the initial values are this method's own",
            );
        }
        self.lora.validate_for(NAME)
    }

    fn build(self, context: &BuildContext<'_>) -> Result<Box<dyn Adapter>, AdaptError> {
        Ok(Box::new(build(self, context)?))
    }

    fn from_peft(config: &Settings) -> Result<Settings, AdaptError> {
        lora::variant_from_peft(NAME, config, &[])
    }
}

fn build(config: MicaConfig, context: &BuildContext<'_>) -> Result<Lora, AdaptError> {
    config.validate()?;
    let chosen = linear_maps(NAME, &config.lora.targets(), context)?;
    let mut adapter = Lora::named(NAME, config.lora, context)?;
    let weights = linear_weights(context);
    for &id in &chosen {
        let (info, Some(pair)) = (context.sites.info(id), adapter.pairs[id.index()].as_mut())
        else {
            continue;
        };
        let (r, d_in, d_out) = (pair.a.shape()[0], info.d_in, info.d_out);
        let most = d_in.min(d_out);
        if r > most {
            let reason = format!(
                "`{}` ({d_out} x {d_in}) has {most} singular vectors",
                info.path
            );
            return bad(NAME, "r", reason);
        }
        pair.a.set(vec![0.0; r * d_in]);
        if let Some(weight) = &weights[id.index()] {
            let found = svd(&to_vec(weight.clone()), d_out, d_in);
            let k = found.s.len();
            let last = (0..d_out * r)
                .map(|n| found.u[n / r * k + k - r + n % r])
                .collect();
            pair.b.set(last);
        }
        pair.b = pair.b.clone().freeze();
    }
    // As files have it.
    adapter.config.init_lora_weights = Init::Named(NAME.into());
    Ok(adapter)
}
