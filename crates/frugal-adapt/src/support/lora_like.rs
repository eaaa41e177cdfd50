//! Settings of methods that `peft` has as variants of LoRA, or whose result is a plain LoRA, and
//! that change each linear layer by itself.

use burn::prelude::Device;
use frugal_nn::{AdaptError, Parameter, SiteInfo, SiteTable, named_rng};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::methods::low_rank::lora_config::{peft_fields_without_use, variant_from_peft};
use crate::pattern::Patterns;
use crate::settings::Settings;
use crate::support::per_linear::{self, bad, check_dropout};
use crate::support::values::{kaiming, object};
use crate::target::{Targets, check_patterns, pattern_value};

/// LoRA's settings without those of its other variants.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct LoraLike {
    /// Rank.
    pub r: usize,
    /// Scale numerator.
    pub lora_alpha: f64,
    /// Probability of dropping an input element on the low-rank path while training.
    pub lora_dropout: f64,
    /// Scale by `lora_alpha / sqrt(r)`.
    pub use_rslora: bool,
    /// `true`: uniform `A`, zero `B`. `false`: both random, for tests.
    pub init_lora_weights: bool,
    /// Rank by path pattern.
    pub rank_pattern: Patterns<usize>,
    /// Scale numerator by path pattern.
    pub alpha_pattern: Patterns<f64>,
    /// Which layers.
    #[serde(flatten)]
    pub targets: Targets,
}

impl Default for LoraLike {
    fn default() -> Self {
        Self {
            r: 8,
            lora_alpha: 16.0,
            lora_dropout: 0.0,
            use_rslora: false,
            init_lora_weights: true,
            rank_pattern: Patterns::new(),
            alpha_pattern: Patterns::new(),
            targets: Targets::default(),
        }
    }
}

/// The factors of one layer, with their first values.
pub(crate) struct Factors {
    /// `[r, d_in]`.
    pub a: Parameter,
    /// `[d_out, r]`.
    pub b: Parameter,
    pub scale: f32,
}

impl LoraLike {
    /// Checks ranges.
    pub(crate) fn validate(&self, method: &'static str) -> Result<(), AdaptError> {
        if self.r == 0 || self.rank_pattern.values().any(|&r| r == 0) {
            return bad(method, "r", "the rank must be at least 1");
        }
        if !self.lora_alpha.is_finite() || self.alpha_pattern.values().any(|a| !a.is_finite()) {
            return bad(method, "lora_alpha", "must be a finite number");
        }
        check_dropout(method, "lora_dropout", self.lora_dropout)
    }

    /// Checks that every pattern names something of this model.
    pub(crate) fn check_patterns(&self, sites: &SiteTable) -> Result<(), AdaptError> {
        check_patterns("rank_pattern", &self.rank_pattern, sites)?;
        Ok(check_patterns("alpha_pattern", &self.alpha_pattern, sites)?)
    }

    /// Rank and scale of one layer.
    pub(crate) fn of(&self, info: &SiteInfo) -> Result<(usize, f32), AdaptError> {
        let r = pattern_value("rank_pattern", &self.rank_pattern, &info.path)?.unwrap_or(self.r);
        let alpha = pattern_value("alpha_pattern", &self.alpha_pattern, &info.path)?
            .unwrap_or(self.lora_alpha);
        let divisor = match self.use_rslora {
            true => (r as f64).sqrt(),
            false => r as f64,
        };
        Ok((r, (alpha / divisor) as f32))
    }

    /// `A` and `B` of these columns, which are fewer than the layer's and the rank's where a factor is
    /// made of blocks.
    pub(crate) fn factors(
        &self,
        info: &SiteInfo,
        columns: (usize, usize),
        seed: u64,
        device: &Device,
    ) -> Result<Factors, AdaptError> {
        let (r, scale) = self.of(info)?;
        let mut rng = named_rng(seed, &info.path);
        let a = kaiming(&mut rng, r * columns.0, columns.0);
        let b = match self.init_lora_weights {
            true => vec![0.0; info.d_out * columns.1],
            false => kaiming(&mut rng, info.d_out * columns.1, columns.1),
        };
        let new = |letter: char, shape: &[usize], values| {
            let name = format!("{}.lora_{letter}.weight", info.path);
            Parameter::new(name, shape, values, device)
        };
        Ok(Factors {
            a: new('A', &[r, columns.0], a),
            b: new('B', &[info.d_out, columns.1], b),
            scale,
        })
    }
}

/// What `peft` writes of such a variant beside its settings; `own` are the fields that make it one.
pub(crate) fn constants(own: Value) -> Value {
    let mut all = object(peft_fields_without_use());
    all.extend(object(
        json!({"bias": "none", "lora_bias": false, "fan_in_fan_out": false}),
    ));
    all.extend(object(own));
    Value::Object(all)
}

/// Settings of a variant from a configuration of `peft`; `own` are the fields that make it one.
pub(crate) fn from_peft<C: Default + Serialize>(
    method: &'static str,
    config: &Settings,
    own: &[&str],
) -> Result<Settings, AdaptError> {
    // What makes it a variant besides is refused.
    variant_from_peft(method, config, own)?;
    let none = [json!(false), json!("none")];
    let fixed = ["bias", "lora_bias"].map(|field| (field, &none[..]));
    let differing = json!({"lora_alpha": 8});
    let mut settings = per_linear::from_peft::<C>(method, config, differing, &fixed)?;
    // The values come from the file, so how they were first made no longer matters.
    settings.insert("init_lora_weights".into(), json!(true));
    Ok(settings)
}
