//! # OLoRA: orthonormal LoRA
//!
//! ## What it does
//! LoRA that starts from the leading part of each weight's QR decomposition, with orthonormal
//! columns in `B`.
//!
//! ## Update rule
//! `W = Q R`; `B₀` are the first `r` columns of `Q`, `A₀` the first `r` rows of `R`; the layer is
//! `W + s (B A − B₀ A₀)`.
//!
//! ## When to use, when not
//! As `pissa`, with a cheaper decomposition; the directions are those of the first columns of the
//! weight, not the largest ones.
//!
//! ## Cost
//! Trainable: LoRA's. Extra compute: twice LoRA's, and once `r` reflections of each weight. Files
//! hold twice the rank. None after merging.
//!
//! ## Defaults and where they come from
//! Those of `lora`; signs of the factors as LAPACK has them, so that the initial values are those
//! of Hugging Face `peft`.
//!
//! ## Departures from the paper
//! The frozen residual is not stored: the initial factors are subtracted in the forward pass. Files
//! are plain LoRA files of rank `2r` for the original model; read back they are a `lora` adapter.
//!
//! ## References
//! - Büyükakyüz: OLoRA: Orthonormal Low-Rank Adaptation of Large Language Models, 2024, arXiv
//!   2406.01775.

use frugal_nn::linalg::leading_qr;
use frugal_nn::{AdaptError, BuildContext};

use crate::method::{Capabilities, Family, Method};
use crate::methods::low_rank::lora::{self, LoraConfig};
use crate::settings::{self, Settings};
use crate::support::residual::{self, Factors, Residual};

const NAME: &str = "olora";

/// Registry entry.
pub const METHOD: Method = Method {
    name: NAME,
    aliases: &[],
    family: Family::LowRank,
    summary: "LoRA that starts from the QR decomposition of each weight",
    default_lr: 3e-4,
    peft_type: "LORA",
    // Files are those of `lora`.
    peft_variant: Some(|_| false),
    load_rule: None,
    capabilities: Capabilities {
        merge: true,
        identity_at_init: true,
        mixed_batch: true,
    },
    source: include_str!("olora.rs"),
    defaults: settings::defaults::<LoraConfig>,
    check: |settings| parse(settings).map(|_| ()),
    build: |settings, context| Ok(Box::new(build(parse(settings)?, context)?)),
    from_peft: |config| lora::variant_from_peft(NAME, config, &[]),
};

fn parse(settings: &Settings) -> Result<LoraConfig, AdaptError> {
    let config: LoraConfig = settings::parse(NAME, settings)?;
    residual::validate(NAME, &config).map(|()| config)
}

fn build(config: LoraConfig, context: &BuildContext<'_>) -> Result<Residual, AdaptError> {
    Residual::new(NAME, config, context, |weight| {
        let qr = leading_qr(&weight.values, weight.d_out, weight.d_in, weight.rank);
        Factors { a: qr.r, b: qr.q }
    })
}
