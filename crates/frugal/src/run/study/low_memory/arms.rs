//! What is compared.

use frugal_train::Named;
use serde_json::{Value, json};

use super::size::{Model, Size};

pub(super) const ADAMW: &str = "AdamW";
pub(super) const GALORE: &str = "GaLore";
pub(super) const FIRA: &str = "Fira";
pub(super) const LOW_RANK: &str = "Low rank";
pub(super) const LOW_RANK_RESTARTS: &str = "Low rank, restarts";
pub(super) const LOW_RANK_RESET: &str = "Low rank, resets alone";
pub(super) const LOW_RANK_REFACTORED: &str = "Low rank, balancing alone";
pub(super) const RELORA: &str = "ReLoRA";
pub(super) const SLTRAIN: &str = "SLTrain";
pub(super) const SLTRAIN_RESTARTS: &str = "SLTrain, restarts";

/// One way to pre-train.
pub(super) struct Arm {
    pub name: &'static str,
    pub optim: Named,
    /// Plain weights without a name.
    pub reparam: Named,
    /// Steps between two resets of the moments; 0 for none.
    pub moment_reset_steps: u64,
    /// The rate in the middle of those tried.
    pub rate: f64,
}

fn named(name: &str, settings: Value) -> Named {
    let settings = match settings {
        Value::Object(settings) => settings,
        _ => serde_json::Map::new(),
    };
    Named {
        name: name.to_owned(),
        settings,
    }
}

/// All arms of a model.
pub(super) fn arms(model: &Model, size: &Size) -> Vec<Arm> {
    let (rank, every) = (model.rank, size.restart_steps);
    let head_dim = model.hidden_size / model.num_attention_heads;
    let low = |more: Value| {
        let mut settings = json!({ "rank": rank, "update_proj_gap": every, "scale": 1.0 });
        if let (Some(all), Value::Object(more)) = (settings.as_object_mut(), more) {
            all.extend(more);
        }
        settings
    };
    let optimizers = [
        (ADAMW, "adamw", json!({}), 6e-3),
        ("AdamW, 8 bits", "adamw_8bit", json!({}), 6e-3),
        ("SGD", "sgd", json!({}), 0.3),
        ("Lion", "lion", json!({}), 1e-3),
        ("Adafactor", "adafactor", json!({}), 0.1),
        (
            "Adam-mini",
            "adam_mini",
            json!({ "head_dim": head_dim }),
            6e-3,
        ),
        ("Muon", "muon", json!({}), 1e-2),
        (GALORE, "galore", low(json!({})), 6e-3),
        (
            "GoLore",
            "golore",
            low(json!({ "svd_steps": size.steps / 2 })),
            6e-3,
        ),
        (FIRA, "fira", low(json!({})), 6e-3),
        ("APOLLO", "apollo", low(json!({})), 6e-3),
        (
            "APOLLO-Mini",
            "apollo",
            low(json!({ "rank": 1, "scale": 128.0, "scale_type": "tensor" })),
            6e-3,
        ),
        (
            "SPAM",
            "spam",
            json!({ "delta_t": every, "warmup_steps": every / 4 }),
            6e-3,
        ),
        (
            "Stable-SPAM",
            "stable_spam",
            json!({ "update_proj_gap": every, "total_t": size.steps }),
            6e-3,
        ),
    ];
    let whole = optimizers
        .into_iter()
        .map(|(name, optim, settings, rate)| Arm {
            name,
            optim: named(optim, settings),
            reparam: Named::default(),
            moment_reset_steps: 0,
            rate,
        });
    let factored = |name, reparam, restart_steps: u64, moment_reset_steps| Arm {
        name,
        optim: "adamw".into(),
        reparam: named(
            reparam,
            json!({ "rank": rank, "restart_steps": restart_steps }),
        ),
        moment_reset_steps,
        rate: 6e-3,
    };
    let loro = Arm {
        optim: named("loro", json!({ "update_k": every })),
        rate: 2e-2,
        ..factored("LORO", "low_rank", 0, 0)
    };
    whole
        .chain([
            factored(LOW_RANK, "low_rank", 0, 0),
            factored(LOW_RANK_RESET, "low_rank", 0, every),
            factored(LOW_RANK_REFACTORED, "low_rank", every, 0),
            factored(LOW_RANK_RESTARTS, "low_rank", every, every),
            loro,
            factored("LoRA from random weights", "relora", 0, 0),
            factored(RELORA, "relora", every, every),
            factored(SLTRAIN, "sltrain", 0, 0),
            factored(SLTRAIN_RESTARTS, "sltrain", every, every),
        ])
        .collect()
}
