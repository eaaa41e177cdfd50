//! LoRA's settings, and what `peft` calls them.

use frugal_nn::AdaptError;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::pattern::Patterns;
use crate::settings::Settings;
use crate::target::{Layers, Names, Targets, pattern_value};

pub(crate) const NAME: &str = "lora";

/// Initial values of `A` and `B`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged, expecting = "must be true, false or a name")]
pub enum Init {
    /// `true`: Kaiming-uniform `A`, zero `B`. `false`: both random, for tests of merging.
    Default(bool),
    /// `"gaussian"`: normal `A` with standard deviation `1/r`, zero `B`. `"loftq"`: what rounding
    /// the weights lost.
    Named(String),
}

/// Which biases are trained.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Bias {
    /// None.
    #[default]
    None,
    /// Those of the adapted layers.
    LoraOnly,
    /// Those of every linear layer and norm.
    All,
}

/// Settings, with `peft`'s names.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LoraConfig {
    /// Rank.
    pub r: usize,
    /// Scale numerator.
    pub lora_alpha: f64,
    /// Probability of dropping an input element on the low-rank path while training.
    pub lora_dropout: f64,
    /// Scale by `lora_alpha / sqrt(r)`.
    pub use_rslora: bool,
    /// Initial values.
    pub init_lora_weights: Init,
    /// How the weights are rounded, with `init_lora_weights = "loftq"`.
    pub loftq_config: Option<LoftqConfig>,
    /// Rank by path pattern.
    pub rank_pattern: Patterns<usize>,
    /// Scale numerator by path pattern.
    pub alpha_pattern: Patterns<f64>,
    /// Which biases are trained too.
    pub bias: Bias,
    /// A bias on `B`, scaled like it.
    pub lora_bias: bool,
    /// Path endings, one regular expression over the whole path, or `all-linear`.
    pub target_modules: Names,
    /// Same grammar; wins over the targets.
    pub exclude_modules: Option<Names>,
    /// Only these blocks.
    pub layers_to_transform: Option<Layers>,
    /// Name of the list of blocks in the path.
    pub layers_pattern: Option<Names>,
}

impl Default for LoraConfig {
    fn default() -> Self {
        let targets = Targets::default();
        Self {
            r: 8,
            lora_alpha: 16.0,
            lora_dropout: 0.0,
            use_rslora: false,
            init_lora_weights: Init::Default(true),
            loftq_config: None,
            rank_pattern: Patterns::new(),
            alpha_pattern: Patterns::new(),
            bias: Bias::None,
            lora_bias: false,
            target_modules: targets.target_modules,
            exclude_modules: None,
            layers_to_transform: None,
            layers_pattern: None,
        }
    }
}

impl LoraConfig {
    /// The same for a method built on this one.
    pub(crate) fn validate_for(&self, method: &'static str) -> Result<(), AdaptError> {
        let bad = |field, reason: String| {
            Err(AdaptError::Config {
                method,
                field,
                reason,
            })
        };
        if self.r == 0 || self.rank_pattern.values().any(|&r| r == 0) {
            return bad("r", "the rank must be at least 1".into());
        }
        if !(0.0..=1.0).contains(&self.lora_dropout) {
            return bad(
                "lora_dropout",
                format!("{} is not within 0 (none) and 1 (all)", self.lora_dropout),
            );
        }
        if !self.lora_alpha.is_finite() || self.alpha_pattern.values().any(|a| !a.is_finite()) {
            return bad("lora_alpha", "must be a finite number".into());
        }
        match &self.init_lora_weights {
            Init::Named(name) if name == "loftq" => {
                self.loftq_config.unwrap_or_default().validate(method)
            }
            _ if self.loftq_config.is_some() => bad(
                "loftq_config",
                "needs `init_lora_weights = \"loftq\"`".into(),
            ),
            Init::Named(name) if name != "gaussian" => bad(
                "init_lora_weights",
                format!(
                    "`{name}` is not supported; supported: true, false, \"gaussian\", \"loftq\""
                ),
            ),
            _ => Ok(()),
        }
    }

    /// The target selection.
    pub fn targets(&self) -> Targets {
        Targets {
            target_modules: self.target_modules.clone(),
            exclude_modules: self.exclude_modules.clone(),
            layers_to_transform: self.layers_to_transform.clone(),
            layers_pattern: self.layers_pattern.clone(),
        }
    }

    /// How the weights are to be rounded, where these settings ask for it.
    pub(crate) fn loftq(&self) -> Option<LoftqConfig> {
        let asked = matches!(&self.init_lora_weights, Init::Named(name) if name == "loftq");
        asked.then(|| self.loftq_config.unwrap_or_default())
    }

    /// Rank of the pair of a layer.
    pub(crate) fn rank(&self, path: &str) -> Result<usize, AdaptError> {
        Ok(pattern_value("rank_pattern", &self.rank_pattern, path)?.unwrap_or(self.r))
    }

    pub(crate) fn scale(&self, alpha: f64, rank: usize) -> f64 {
        if self.use_rslora {
            alpha / (rank as f64).sqrt()
        } else {
            alpha / rank as f64
        }
    }
}

/// Fields of `peft`'s configuration that mean the same here.
const PEFT_FIELDS: [&str; 13] = [
    "r",
    "lora_alpha",
    "lora_dropout",
    "use_rslora",
    "init_lora_weights",
    "rank_pattern",
    "alpha_pattern",
    "bias",
    "lora_bias",
    "target_modules",
    "exclude_modules",
    "layers_to_transform",
    "layers_pattern",
];

/// What `peft` writes of a plain LoRA beside the settings that it has here.
pub(crate) fn peft_fields_without_use() -> Value {
    json!({
        "use_dora": false, "target_parameters": null, "trainable_token_indices": null, "loftq_config": {}, "eva_config": null,
        "corda_config": null, "lora_ga_config": null, "megatron_config": null, "megatron_core": "megatron.core",
        "layer_replication": null, "use_qalora": false, "qalora_group_size": 16, "alora_invocation_tokens": null,
        "arrow_config": null, "use_bdlora": null, "velora_config": null, "kasa_config": null, "monteclora_config": null,
        "ensure_weight_tying": false,
    })
}

/// Variants of `peft`'s LoRA that are another method; truthy values are refused.
const PEFT_VARIANTS: [&str; 13] = [
    "use_dora",
    "use_qalora",
    "use_bdlora",
    "alora_invocation_tokens",
    "arrow_config",
    "kasa_config",
    "velora_config",
    "monteclora_config",
    "layer_replication",
    "target_parameters",
    "trainable_token_indices",
    "megatron_config",
    "ensure_weight_tying",
];

/// Initialisations of `peft` that changed the base weights when training began.
const PEFT_MUTATING_INITS: [&str; 4] = ["pissa", "olora", "corda", "lora_ga"];

/// Settings of a method built on this one; `own` are the fields of `peft` that make it another
/// method.
pub(crate) fn variant_from_peft(
    method: &'static str,
    config: &Settings,
    own: &[&str],
) -> Result<Settings, AdaptError> {
    let bad = |field, reason: String| AdaptError::Config {
        method,
        field,
        reason,
    };
    let truthy = |value: &Value| {
        !matches!(value, Value::Null | Value::Bool(false))
            && value != &json!({})
            && value != &json!([])
    };
    if let Some(field) = PEFT_VARIANTS
        .into_iter()
        .find(|f| !own.contains(f) && config.get(*f).is_some_and(truthy))
    {
        return Err(bad(field, "this variant of LoRA is not supported".into()));
    }
    if let Some(init) = config.get("init_lora_weights").and_then(Value::as_str)
        && PEFT_MUTATING_INITS
            .iter()
            .any(|name| init.starts_with(name))
    {
        let reason = format!(
            "`{init}` changed the base weights when training began, so the file alone is not enough: convert it to a plain LoRA in peft first"
        );
        return Err(bad("init_lora_weights", reason));
    }
    if !config
        .get("target_modules")
        .is_some_and(|t| t.is_array() || t.is_string())
    {
        return Err(bad(
            "target_modules",
            "must be a list of names or a pattern".into(),
        ));
    }
    // Absent fields mean peft's defaults, which differ from those here in one.
    let mut settings = Map::from_iter([("lora_alpha".to_owned(), json!(8))]);
    settings.extend(PEFT_FIELDS.into_iter().filter_map(|f| {
        Some((
            f.to_owned(),
            config.get(f).filter(|v| !v.is_null())?.clone(),
        ))
    }));
    if config.get("init_lora_weights") == Some(&json!("loftq")) {
        // The weights must be rounded as they were then.
        settings.extend(
            config
                .get("loftq_config")
                .map(|value| ("loftq_config".to_owned(), value.clone())),
        );
        return Ok(settings);
    }
    // The values come from the file, so how they were first made no longer matters.
    settings.insert("init_lora_weights".into(), json!(true));
    Ok(settings)
}

/// How the weights are rounded, with `peft`'s names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LoftqConfig {
    /// 4 for 4-bit NormalFloat, 8 for 8 bits with a scale for each row.
    pub loftq_bits: u32,
    /// How often rounding and decomposition take turns.
    pub loftq_iter: usize,
}

impl Default for LoftqConfig {
    fn default() -> Self {
        Self {
            loftq_bits: 4,
            loftq_iter: 1,
        }
    }
}

impl LoftqConfig {
    pub(crate) fn validate(self, method: &'static str) -> Result<(), AdaptError> {
        if method != NAME {
            let reason = "`loftq` is a start of `lora` only".into();
            return Err(AdaptError::Config {
                method,
                field: "init_lora_weights",
                reason,
            });
        }
        match self {
            Self {
                loftq_bits: 4 | 8,
                loftq_iter: 1..,
            } => Ok(()),
            Self {
                loftq_bits,
                loftq_iter,
            } => {
                let reason = format!(
                    "`loftq_bits` must be 4 or 8 and `loftq_iter` at least 1, not {loftq_bits} and {loftq_iter}"
                );
                Err(AdaptError::Config {
                    method,
                    field: "loftq_config",
                    reason,
                })
            }
        }
    }
}
