//! # rsLoRA: rank-stabilised LoRA
//!
//! ## What it does
//! LoRA with a scale that keeps the size of the change, and of its gradients, the same at every
//! rank.
//!
//! ## Update rule
//! `y = x Wᵀ + s · x Aᵀ Bᵀ` with `s = lora_alpha / sqrt(r)`.
//!
//! ## When to use, when not
//! Instead of `lora` at high ranks (32 and more), where `lora_alpha / r` leaves most of the rank
//! unused. At low ranks the two differ only by a constant.
//!
//! ## Cost
//! That of LoRA at the same rank.
//!
//! ## Defaults and where they come from
//! `r = 32`, `lora_alpha = 16`: a rank at which the scale matters, and `s` of 2.8. The rest as in
//! `lora`.
//!
//! ## Departures from the paper
//! None. Files are LoRA files with `use_rslora`.
//!
//! ## References
//! - Kalajdzievski: A Rank Stabilization Scaling Factor for Fine-Tuning with LoRA, 2023, arXiv
//!   2312.03732.

use frugal_nn::{AdaptError, Adapter, BuildContext};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::method::{Family, Method, MethodConfig};
use crate::methods::low_rank::lora::{self, Lora, LoraConfig};
use crate::settings::Settings;
use crate::support::own_files;
use crate::support::per_linear::bad;

const NAME: &str = "rslora";

/// Registry entry.
pub const METHOD: Method = Method::of::<RsloraConfig>(
    Family::LowRank,
    "LoRA whose scale suits high ranks",
    include_str!("rslora.rs"),
)
.aliases(&["rank-stabilized-lora"])
.default_lr(3e-4)
.peft_variant(|config| {
    config.get("use_rslora") == Some(&Value::Bool(true))
        && config.get("use_dora") != Some(&Value::Bool(true))
});

/// LoRA's settings, with a rank and a scale of this method's own.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct RsloraConfig(pub LoraConfig);

impl Default for RsloraConfig {
    fn default() -> Self {
        Self(LoraConfig {
            r: 32,
            use_rslora: true,
            ..LoraConfig::default()
        })
    }
}

impl MethodConfig for RsloraConfig {
    const NAME: &'static str = NAME;
    const PEFT_TYPE: &'static str = "LORA";

    fn validate(&self) -> Result<(), AdaptError> {
        self.0.validate_for(NAME)?;
        if self.0.use_rslora {
            Ok(())
        } else {
            bad(
                NAME,
                "use_rslora",
                "is what this method is; use `lora` without it",
            )
        }
    }

    fn build(self, context: &BuildContext<'_>) -> Result<Box<dyn Adapter>, AdaptError> {
        Ok(Box::new(Lora::named(NAME, self.0, context)?))
    }

    fn parse(settings: &Settings) -> Result<Self, AdaptError> {
        own_files::parse(NAME, settings)
    }

    fn from_peft(config: &Settings) -> Result<Settings, AdaptError> {
        lora::variant_from_peft(NAME, config, &[])
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_scale_is_switched_on_by_itself() {
        let config = RsloraConfig::parse(&Settings::new()).unwrap().0;
        assert!(config.use_rslora && config.r == 32);
        let message = (METHOD.check)(&Settings::from_iter([(
            "use_rslora".to_owned(),
            json!(false),
        )]))
        .unwrap_err()
        .to_string();
        assert!(message.contains("use `lora`"), "{message}");
    }
}
