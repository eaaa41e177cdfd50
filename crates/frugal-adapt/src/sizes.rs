//! Sizes in settings, checked against the model before anything is made of them: adapter files and
//! flags may hold any number.

use frugal_nn::{AdaptError, Adapter, BuildContext, SiteKind, SiteTable};
use serde_json::Value;

use crate::method::Method;
use crate::settings::Settings;

/// Settings that multiply the sides of a layer.
const RANKS: [&str; 25] = [
    "r",
    "init_r",
    "target_r",
    "mini_r",
    "target_rank",
    "equivalent_rank",
    "private_rank",
    "score_r",
    "bottleneck_dim",
    "inside_dim",
    "aside_dim",
    "encoder_hidden_size",
    "phm_rank",
    "phm_dim",
    "top_h",
    "incre_rank_num",
    "top_k",
    "shards_per_vector",
    "rank_pattern",
    "groups",
    "hybrid_r",
    "gralora_k",
    "depth",
    "nblocks",
    "num_experts",
];

/// Settings that say how often something is done.
const REPEATS: [(&str, u64); 5] = [
    ("encoder_num_layers", 64),
    ("num_cayley_neumann_terms", 1000),
    ("pissa_niter", 1000),
    ("loftq_iter", 1000),
    ("psoft_svd_lowrank_niter", 1000),
];

/// Methods for which a rank above a layer's sides means the whole layer.
const CLAMPED: [(&str, &str); 3] = [("lokr", "r"), ("lokr", "rank_pattern"), ("oft", "r")];

/// No method has a use for more elements than this many times those of the layer that it changes ...
const MAX_TIMES: u64 = 8;
/// ... but small layers may have this many.
const ALWAYS: u64 = 1 << 20;

impl Method {
    /// Builds an adapter from settings, after their sizes were checked against the model, so that
    /// none is too large to make.
    ///
    /// # Errors
    /// Bad settings, sizes beyond all use, no matching place.
    pub fn make(
        &self,
        settings: &Settings,
        context: &BuildContext<'_>,
    ) -> Result<Box<dyn Adapter>, AdaptError> {
        check(self, settings, context)?;
        (self.build)(settings, context)
    }
}

/// Checks every number that decides how much is made.
///
/// # Errors
/// [`AdaptError::Config`] that names the setting.
fn check(
    method: &Method,
    settings: &Settings,
    context: &BuildContext<'_>,
) -> Result<(), AdaptError> {
    let defaults = (method.defaults)();
    let ranks = rank_limit(context.sites);
    let positions = context.info.max_sequence as u64;
    for (key, known) in &defaults {
        let Some(value) = settings.get(key) else {
            continue;
        };
        let all = numbers(value);
        if let Some(number) = all.iter().find(|n| n.abs() > f64::from(f32::MAX)) {
            return bad(
                method,
                key,
                format!("{number:e} is beyond the numbers of single precision"),
            );
        }
        let most = |limit: u64| {
            let found = all.iter().copied().find(|&n| n > limit as f64);
            found.map(|n| (n, limit))
        };
        let repeats = REPEATS.iter().find(|(name, _)| *name == key.as_str());
        let beyond = if key == "num_virtual_tokens" {
            most(positions)
                .map(|(n, limit)| format!("{n} is more than the {limit} positions of the model"))
        } else if let Some((_, limit)) = repeats {
            most(*limit).map(|(n, limit)| format!("{n} is more than {limit}"))
        } else if RANKS.contains(&key.as_str())
            && !known.is_string()
            && !CLAMPED.contains(&(method.name, key.as_str()))
        {
            most(ranks).map(|(n, limit)| {
                format!("{n} is more than this model has a use for: at most {limit}")
            })
        } else {
            None
        };
        if let Some(reason) = beyond {
            return bad(method, key, reason);
        }
    }
    if method.name == "vblora" {
        return vector_bank(method, settings, &defaults, context.sites);
    }
    Ok(())
}

fn bad(method: &Method, field: &str, reason: String) -> Result<(), AdaptError> {
    Err(AdaptError::Settings {
        method: method.name,
        reason: format!("`{field}`: {reason}"),
    })
}

/// The number, or the numbers in a list or by pattern.
fn numbers(value: &Value) -> Vec<f64> {
    match value {
        Value::Number(number) => number.as_f64().into_iter().collect(),
        Value::Array(list) => list.iter().flat_map(numbers).collect(),
        Value::Object(map) => map.values().flat_map(numbers).collect(),
        _ => Vec::new(),
    }
}

/// Elements that a method may have at a layer of these sides.
fn room(d_in: usize, d_out: usize) -> u64 {
    let elements = (d_in as u64).saturating_mul(d_out as u64);
    elements.saturating_mul(MAX_TIMES).max(ALWAYS)
}

/// The highest rank that has a use at a layer of these sides.
pub(crate) fn most_rank(d_in: usize, d_out: usize) -> usize {
    let rank = room(d_in, d_out) / (d_in.saturating_add(d_out)).max(1) as u64;
    usize::try_from(rank).unwrap_or(usize::MAX)
}

/// The highest rank that has a use at some layer.
fn rank_limit(sites: &SiteTable) -> u64 {
    sites
        .iter()
        .filter(|(_, s)| s.kind.is_inner_linear())
        .map(|(_, s)| most_rank(s.d_in, s.d_out) as u64)
        .max()
        .unwrap_or(1 << 14)
}

/// VB-LoRA has a logit for every vector of the bank at every piece of its factors.
fn vector_bank(
    method: &Method,
    settings: &Settings,
    defaults: &Settings,
    sites: &SiteTable,
) -> Result<(), AdaptError> {
    let value = |key: &str| {
        let value = settings.get(key).or_else(|| defaults.get(key));
        value.and_then(Value::as_u64).unwrap_or(1).max(1)
    };
    let (r, vectors, length) = (value("r"), value("num_vectors"), value("vector_length"));
    let linear = sites
        .iter()
        .filter(|(_, s)| s.kind == SiteKind::Linear || s.kind == SiteKind::Conv1d);
    let most = linear
        .map(|(_, s)| {
            let pieces = ((s.d_in + s.d_out) as u64 / length)
                .max(1)
                .saturating_mul(r);
            room(s.d_in, s.d_out) / pieces
        })
        .max();
    match most {
        Some(most) if vectors > most => bad(
            method,
            "num_vectors",
            format!("{vectors} is more than this model has a use for: at most {most}"),
        ),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use burn::prelude::Device;
    use frugal_models::ModelConfig;
    use serde_json::json;

    use super::*;
    use crate::registry;

    #[test]
    fn what_is_repeated_without_bound_did_not_end() {
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
        for (name, key) in [
            ("psoft", "psoft_svd_lowrank_niter"),
            ("pissa", "pissa_niter"),
            ("oft", "num_cayley_neumann_terms"),
            ("psoft", "num_cayley_neumann_terms"),
        ] {
            let method = registry::METHODS.iter().find(|m| m.name == name).unwrap();
            let settings = json!({ (key): 1_000_000_000_000_u64 });
            let found = method.make(settings.as_object().unwrap(), &context);
            let error = found.err().map(|e| e.to_string()).unwrap_or_default();
            assert!(error.contains(key), "{name}: {error}");
        }
    }
}
