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

use frugal_nn::AdaptError;
use serde_json::{Value, json};

use crate::method::{Capabilities, Family, Method};
use crate::methods::low_rank::lora::{self, Lora, LoraConfig};
use crate::settings::{self, Settings};
use crate::support::per_linear::bad;

const NAME: &str = "rslora";

/// Registry entry.
pub const METHOD: Method = Method {
    name: NAME,
    aliases: &["rank-stabilized-lora"],
    family: Family::LowRank,
    summary: "LoRA whose scale suits high ranks",
    default_lr: 3e-4,
    peft_type: "LORA",
    peft_variant: Some(|config| {
        config.get("use_rslora") == Some(&Value::Bool(true))
            && config.get("use_dora") != Some(&Value::Bool(true))
    }),
    load_rule: None,
    capabilities: Capabilities {
        merge: true,
        identity_at_init: true,
        mixed_batch: true,
    },
    source: include_str!("rslora.rs"),
    defaults: || with_defaults(&settings::defaults::<LoraConfig>(), true),
    check: |settings| parse(settings).map(|_| ()),
    build: |settings, context| Ok(Box::new(Lora::named(NAME, parse(settings)?, context)?)),
    from_peft: |config| lora::variant_from_peft(NAME, config, &[]),
};

/// LoRA's settings with this method's defaults.
fn with_defaults(settings: &Settings, replace: bool) -> Settings {
    let mut all = settings.clone();
    for (key, value) in [("use_rslora", json!(true)), ("r", json!(32))] {
        if replace || !all.contains_key(key) {
            all.insert(key.into(), value);
        }
    }
    all
}

fn parse(settings: &Settings) -> Result<LoraConfig, AdaptError> {
    let config: LoraConfig = settings::parse(NAME, &with_defaults(settings, false))?;
    config.validate_for(NAME)?;
    if config.use_rslora {
        Ok(config)
    } else {
        bad(
            NAME,
            "use_rslora",
            "is what this method is; use `lora` without it",
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_scale_is_switched_on_by_itself() {
        let config = parse(&Settings::new()).unwrap();
        assert!(config.use_rslora && config.r == 32);
        let message = parse(&Settings::from_iter([(
            "use_rslora".to_owned(),
            json!(false),
        )]))
        .unwrap_err()
        .to_string();
        assert!(message.contains("use `lora`"), "{message}");
    }
}
