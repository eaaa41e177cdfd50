//! # LoRA+: two learning rates
//!
//! ## What it does
//! LoRA whose matrix `B` is trained at a higher rate than `A`.
//!
//! ## Update rule
//! That of `lora`; the optimiser steps `B` (and a bias on it) at `loraplus_lr_ratio · lr` and `A`
//! at `lr`.
//!
//! ## When to use, when not
//! Where LoRA learns slowly: with equal rates `A` moves too much for `B` in wide models. Costs
//! nothing extra, but the base rate must be lower than LoRA's.
//!
//! ## Cost
//! That of LoRA.
//!
//! ## Defaults and where they come from
//! `loraplus_lr_ratio = 16`, the paper's recommendation; the rest as in `lora`.
//!
//! ## Departures from the paper
//! The paper also has a rate of its own for adapters on token tables; here `B` of a table has the
//! ratio, too. Files are plain LoRA files, as in Hugging Face `peft`, where LoRA+ is a way to build
//! the optimiser.
//!
//! ## References
//! - Hayou, Ghosh, Yu: LoRA+: Efficient Low Rank Adaptation of Large Models, 2024, arXiv
//!   2402.12354.

use frugal_nn::{AdaptError, Adapter, BuildContext};
use serde::{Deserialize, Serialize};

use crate::method::{Family, Method, MethodConfig};
use crate::methods::low_rank::lora::{self, Lora, LoraConfig};
use crate::settings::Settings;
use crate::support::per_linear::bad;

const NAME: &str = "lora-plus";

/// Registry entry.
pub const METHOD: Method = Method::of::<LoraPlusConfig>(
    Family::LowRank,
    "LoRA with a higher learning rate for B",
    include_str!("lora_plus.rs"),
)
.aliases(&["lora+", "loraplus"])
.default_lr(3e-4)
// Files do not show it.
.peft_variant(|_| false);

/// Settings: those of LoRA and the ratio of the rates.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct LoraPlusConfig {
    /// Learning rate of `B` over that of `A`.
    pub loraplus_lr_ratio: f64,
    /// The rest.
    #[serde(flatten)]
    pub lora: LoraConfig,
}

impl Default for LoraPlusConfig {
    fn default() -> Self {
        Self {
            loraplus_lr_ratio: 16.0,
            lora: LoraConfig::default(),
        }
    }
}

impl MethodConfig for LoraPlusConfig {
    const NAME: &'static str = NAME;
    const PEFT_TYPE: &'static str = "LORA";

    fn validate(&self) -> Result<(), AdaptError> {
        self.lora.validate_for(NAME)?;
        let ratio = self.loraplus_lr_ratio;
        if ratio.is_finite() && ratio > 0.0 {
            Ok(())
        } else {
            bad(NAME, "loraplus_lr_ratio", "must be above 0")
        }
    }

    fn build(self, context: &BuildContext<'_>) -> Result<Box<dyn Adapter>, AdaptError> {
        Ok(Box::new(build(self, context)?))
    }

    fn from_peft(config: &Settings) -> Result<Settings, AdaptError> {
        lora::variant_from_peft(NAME, config, &[])
    }
}

fn build(config: LoraPlusConfig, context: &BuildContext<'_>) -> Result<Lora, AdaptError> {
    let mut adapter = Lora::named(NAME, config.lora, context)?;
    for pair in adapter.pairs.iter_mut().flatten() {
        for b in std::iter::once(&mut pair.b).chain(&mut pair.b_bias) {
            *b = b.clone().with_lr_scale(config.loraplus_lr_ratio);
        }
    }
    Ok(adapter)
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::prelude::Device;
    use frugal_models::ModelConfig;
    use frugal_nn::Adapter;
    use serde_json::json;

    #[test]
    fn only_b_has_the_higher_rate() {
        let config = json!({"model_type": "llama", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1,
            "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 64});
        let config = ModelConfig::from_json(config, "test").unwrap();
        let sites = config.sites();
        let context = BuildContext {
            info: &config.info(),
            sites: &sites,
            backbone: None,
            device: Device::flex(),
            seed: 0,
            tokenize: None,
        };
        let adapter = build(LoraPlusConfig::parse(&Settings::new()).unwrap(), &context).unwrap();
        for parameter in adapter.parameters() {
            assert_eq!(
                parameter.lr_scale(),
                if parameter.name().contains("lora_B") {
                    16.0
                } else {
                    1.0
                },
                "{}",
                parameter.name()
            );
        }
    }
}
