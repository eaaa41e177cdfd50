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
use frugal_nn::{AdaptError, Adapter, BuildContext};

use serde::{Deserialize, Serialize};

use crate::method::{Family, Method, MethodConfig};
use crate::methods::low_rank::lora::{self, LoraConfig};
use crate::settings::Settings;
use crate::support::residual::{self, Factors, Residual};

const NAME: &str = "olora";

/// Registry entry.
pub const METHOD: Method = Method::of::<OloraConfig>(
    Family::LowRank,
    "LoRA that starts from the QR decomposition of each weight",
    include_str!("olora.rs"),
)
.default_lr(3e-4)
// Files are those of `lora`.
.peft_variant(|_| false);

/// LoRA's settings.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct OloraConfig(pub LoraConfig);

impl MethodConfig for OloraConfig {
    const NAME: &'static str = NAME;
    const PEFT_TYPE: &'static str = "LORA";

    fn validate(&self) -> Result<(), AdaptError> {
        residual::validate(NAME, &self.0)
    }

    fn build(self, context: &BuildContext<'_>) -> Result<Box<dyn Adapter>, AdaptError> {
        Ok(Box::new(build(self.0, context)?))
    }

    fn from_peft(config: &Settings) -> Result<Settings, AdaptError> {
        lora::variant_from_peft(NAME, config, &[])
    }
}

fn build(config: LoraConfig, context: &BuildContext<'_>) -> Result<Residual, AdaptError> {
    Residual::new(NAME, config, context, |weight| {
        let qr = leading_qr(&weight.values, weight.d_out, weight.d_in, weight.rank);
        Factors { a: qr.r, b: qr.q }
    })
}
