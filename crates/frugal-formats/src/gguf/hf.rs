//! Reading Hugging Face's `config.json` values.

use serde_json::Value as Json;

use super::{Architecture, GgufProblem};

fn wrong(key: &str, why: &str) -> GgufProblem {
    GgufProblem::Unsupported(format!("config.json: {key}: {why}"))
}

/// The family of the config's `model_type`.
pub(super) fn architecture(config: &Json) -> Result<Architecture, GgufProblem> {
    let model_type = config
        .get("model_type")
        .and_then(Json::as_str)
        .ok_or_else(|| wrong("model_type", "missing or not text"))?;
    Architecture::from_model_type(model_type)
}

/// A positive count that fits the file's 32 bits.
pub(super) fn count(config: &Json, key: &str) -> Result<usize, GgufProblem> {
    let value = config
        .get(key)
        .and_then(Json::as_u64)
        .and_then(|n| u32::try_from(n).ok());
    value
        .filter(|&n| n > 0)
        .map(|n| n as usize)
        .ok_or_else(|| wrong(key, "missing, or not a positive whole number"))
}

/// As [`count`], or `None` when the key is absent or null.
pub(super) fn optional_count(config: &Json, key: &str) -> Result<Option<usize>, GgufProblem> {
    if config.get(key).is_none_or(Json::is_null) {
        Ok(None)
    } else {
        count(config, key).map(Some)
    }
}

/// A number.
pub(super) fn number(config: &Json, key: &str) -> Result<f64, GgufProblem> {
    optional_number(config, key)?.ok_or_else(|| wrong(key, "missing"))
}

/// As [`number`], or `None` when the key is absent or null.
pub(super) fn optional_number(config: &Json, key: &str) -> Result<Option<f64>, GgufProblem> {
    match config.get(key) {
        None | Some(Json::Null) => Ok(None),
        Some(value) => value
            .as_f64()
            .map(Some)
            .ok_or_else(|| wrong(key, "not a number")),
    }
}

/// Dimension of a head: `head_dim`, else Gemma's own, else hidden size / heads.
pub(super) fn head_dim(config: &Json) -> Result<usize, GgufProblem> {
    match optional_count(config, "head_dim")? {
        Some(dim) => Ok(dim),
        None if architecture(config)? == Architecture::Gemma3 => Ok(256),
        None => Ok(count(config, "hidden_size")? / count(config, "num_attention_heads")?),
    }
}

/// The rotary settings, from `rope_parameters` (transformers 5) or `rope_theta` and `rope_scaling`
/// (before).
pub(super) struct Rope {
    pub(super) theta: f64,
    /// Base of Gemma's sliding layers.
    pub(super) local_theta: Option<f64>,
    /// The scaling's settings; its type is in `kind`.
    pub(super) scaling: Json,
    /// `default`, `linear`, `llama3`, `yarn`, ...
    pub(super) kind: String,
}

pub(super) fn rope(config: &Json) -> Result<Rope, GgufProblem> {
    let parameters = config
        .get("rope_parameters")
        .filter(|value| value.is_object());
    let (scaling, theta, local_theta) = match parameters {
        Some(p) => match p.get("full_attention") {
            Some(full) => {
                let local = p
                    .get("sliding_attention")
                    .map(|local| number(local, "rope_theta"))
                    .transpose()?;
                (full.clone(), optional_number(full, "rope_theta")?, local)
            }
            None => (p.clone(), optional_number(p, "rope_theta")?, None),
        },
        None => (
            config.get("rope_scaling").cloned().unwrap_or(Json::Null),
            optional_number(config, "rope_theta")?,
            optional_number(config, "rope_local_base_freq")?,
        ),
    };
    let kind = ["rope_type", "type"]
        .iter()
        .find_map(|key| scaling.get(key).and_then(Json::as_str))
        .unwrap_or("default")
        .to_owned();
    let usual = if architecture(config)? == Architecture::Gemma3 {
        1_000_000.0
    } else {
        10_000.0
    };
    Ok(Rope {
        theta: theta.unwrap_or(usual),
        local_theta,
        scaling,
        kind,
    })
}
