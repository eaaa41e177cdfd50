//! Mixtures of experts as transformers 5 keeps them: all experts of a block in two tensors, on which
//! `peft` puts one LoRA each (`target_parameters`). Here every expert has maps of its own.

use std::path::Path;

use frugal_models::load::SafetensorsFile;
use frugal_models::save::{Stored, StoredType};
use frugal_nn::{AdaptError, BackboneInfo, ModelError};
use serde_json::{Map, Value, json};

use crate::settings::Settings;

const FIELD: &str = "target_parameters";
const EXPERTS: &str = ".mlp.experts.";
const ROUTER: &str = ".mlp.gate.";
/// What a fused parameter is called, the layers that it is here, and where its tensors are.
const PARAMETERS: [(&str, &[&str], &str); 3] = [
    ("gate_up_proj", &["w1", "w3"], EXPERTS),
    ("down_proj", &["w2"], EXPERTS),
    ("gate.weight", &["gate"], ROUTER),
];
/// What may stand before it in a name or a pattern.
const BEFORE: [&str; 6] = [
    "",
    ".*\\.",
    "experts.",
    "mlp.experts.",
    "experts\\.",
    "mlp\\.experts\\.",
];

fn bad(field: &'static str, reason: String) -> AdaptError {
    AdaptError::Config {
        method: "lora",
        field,
        reason,
    }
}

/// The settings with the head among the targets where the file has its half of a tied pair:
/// `peft` writes it with `ensure_weight_tying`, and names the table alone.
pub(crate) fn with_tied_head(mut config: Settings, names: &[String]) -> Settings {
    let head = |name: &&String| name.ends_with(".lm_head.lora_A.weight");
    if config.get("ensure_weight_tying") == Some(&json!(true))
        && names.iter().any(|name| head(&name))
        && let Some(Value::Array(targets)) = config.get_mut("target_modules")
    {
        targets.push(json!("lm_head"));
    }
    config
}

/// The settings with maps in the place of parameters; `names` are the tensors of the file.
///
/// # Errors
/// Parameters of other kinds, patterns over them that cannot be told of layers, a choice of blocks.
pub(crate) fn with_maps(mut config: Settings, names: &[String]) -> Result<Settings, AdaptError> {
    let Some(Value::Array(given)) = config.get(FIELD).cloned() else {
        return Ok(config);
    };
    if given.is_empty() {
        return Ok(config);
    }
    let mut maps: Vec<&str> = Vec::new();
    for name in given.iter().filter_map(Value::as_str) {
        let Some((_, of_it, place)) = parameter(name) else {
            let known = PARAMETERS.map(|(name, ..)| name).join(", ");
            return Err(bad(
                FIELD,
                format!("`{name}` is not read; of mixtures of experts these are: {known}"),
            ));
        };
        // `all-linear` names them for models of the family that have no experts, too.
        if names.iter().any(|name| name.contains(place)) {
            maps.extend(of_it);
        }
    }
    config.insert(FIELD.into(), Value::Null);
    if maps.is_empty() {
        return Ok(config);
    }
    let all = |value: &Value| value.is_null() || value == &json!([]);
    if config.get("layers_to_transform").is_some_and(|v| !all(v)) {
        let reason = "does not choose among `target_parameters` in peft, which is not supported";
        return Err(bad("layers_to_transform", reason.into()));
    }
    let targets = match config.get("target_modules") {
        Some(Value::String(pattern)) => {
            json!(format!("(?:{pattern})|(?:.*\\.(?:{}))", maps.join("|")))
        }
        Some(Value::Array(names)) => {
            let mut names = names.clone();
            names.extend(maps.iter().map(|map| json!(map)));
            json!(names)
        }
        _ => json!(maps),
    };
    config.insert("target_modules".into(), targets);
    for field in ["rank_pattern", "alpha_pattern"] {
        if let Some(Value::Object(patterns)) = config.get_mut(field) {
            let renamed: Result<Map<String, Value>, AdaptError> = std::mem::take(patterns)
                .into_iter()
                .map(|(key, value)| Ok((pattern(field, &key, &maps)?, value)))
                .collect();
            *patterns = renamed?;
        }
    }
    Ok(config)
}

fn parameter(name: &str) -> Option<(&'static str, &'static [&'static str], &'static str)> {
    PARAMETERS.into_iter().find(|(end, ..)| {
        let before = name.strip_suffix(end).map(|b| b.trim_start_matches("mlp."));
        before.is_some_and(|before| before.is_empty() || before == "experts.")
    })
}

/// A pattern over parameters as one over maps.
fn pattern(field: &'static str, key: &str, maps: &[&str]) -> Result<String, AdaptError> {
    for (name, of_it, _) in PARAMETERS {
        let Some(before) = key.strip_suffix(name) else {
            continue;
        };
        if !of_it.iter().any(|map| maps.contains(map)) {
            continue;
        }
        if !BEFORE.contains(&before) {
            let reason = format!("`{key}`: a choice among blocks is not supported here");
            return Err(bad(field, reason));
        }
        let names = of_it.join("|");
        return Ok(match before {
            ".*\\." => format!(".*\\.(?:{names})"),
            _ => format!("(?:{names})"),
        });
    }
    Ok(key.to_owned())
}

/// Sizes of the experts of a block.
struct Experts {
    count: usize,
    hidden: usize,
    inner: usize,
}

/// The file with a LoRA for each expert's maps, and routers under the names that they have here;
/// `None` where it holds nothing of the kind.
///
/// # Errors
/// Tensors that cannot be read.
pub(crate) fn split(
    file: &SafetensorsFile,
    path: &Path,
    model: &BackboneInfo,
) -> Result<Option<SafetensorsFile>, AdaptError> {
    let names = file.names();
    let is_fused = |name: &String| name.contains(EXPERTS) || name.contains(ROUTER);
    if model.model_type != "mixtral" || !names.iter().any(is_fused) {
        return Ok(None);
    }
    let size = |key: &str, usual: usize| {
        let given = model.raw.get(key).and_then(Value::as_u64);
        given.map_or(usual, |n| n as usize)
    };
    let experts = Experts {
        count: size("num_local_experts", 8),
        hidden: model.hidden_size,
        inner: size("intermediate_size", 14_336),
    };
    let mut tensors: Vec<(String, Vec<usize>, Vec<f32>)> = Vec::new();
    let mut done: Vec<String> = Vec::new();
    for name in &names {
        if let Some((second, pairs)) = experts.pairs(file, name)? {
            done.extend([name.clone(), second]);
            tensors.extend(pairs);
        }
    }
    for name in names.iter().filter(|name| !done.contains(name)) {
        let values = values(file, name)?;
        let shape = file.shape(name).unwrap_or_default();
        let name = name.replace(ROUTER, ".block_sparse_moe.gate.");
        tensors.push((name, shape, values));
    }
    let stored = tensors.iter().map(|(name, shape, values)| {
        let stored = Stored::new(shape, StoredType::F32, move || values.clone());
        (name.clone(), stored)
    });
    let split = SafetensorsFile::of(stored.collect(), path).map_err(ModelError::from)?;
    Ok(Some(split))
}

fn values(file: &SafetensorsFile, name: &str) -> Result<Vec<f32>, AdaptError> {
    Ok(file.tensor(name)?.iter::<f32>().collect())
}

type Tensors = Vec<(String, Vec<usize>, Vec<f32>)>;

impl Experts {
    /// The factors of each expert's maps of which `first` holds all experts' A, and the name of the
    /// tensor with their B.
    fn pairs(
        &self,
        file: &SafetensorsFile,
        first: &str,
    ) -> Result<Option<(String, Tensors)>, AdaptError> {
        let Some((block, rest)) = first.split_once(EXPERTS) else {
            return Ok(None);
        };
        let Some(level) = rest.strip_suffix("lora_A.weight") else {
            return Ok(None);
        };
        let second = format!("{block}{EXPERTS}{level}lora_B.weight");
        let (Some(a_shape), Some(b_shape)) = (file.shape(first), file.shape(&second)) else {
            return Ok(None);
        };
        let (&[rows, d_in], &[d_out, columns]) = (a_shape.as_slice(), b_shape.as_slice()) else {
            return Ok(None);
        };
        // Which of the two tensors it is shows in its shape.
        let maps: &[&str] = match (d_out, d_in) {
            (out, width) if out == 2 * self.inner && width == self.hidden => &["w1", "w3"],
            (out, width) if out == self.hidden && width == self.inner => &["w2"],
            _ => return Ok(None),
        };
        if rows != columns || !rows.is_multiple_of(self.count) {
            return Ok(None);
        }
        let (rank, a, b) = (
            rows / self.count,
            values(file, first)?,
            values(file, &second)?,
        );
        let mut found = Vec::new();
        for expert in 0..self.count {
            let factor = &a[expert * rank * d_in..(expert + 1) * rank * d_in];
            let share = d_out / maps.len();
            for (i, map) in maps.iter().enumerate() {
                let path = format!("{block}.block_sparse_moe.experts.{expert}.{map}");
                // The experts of B alternate from column to column.
                let column = |row: usize, k: usize| b[row * columns + k * self.count + expert];
                let up = (i * share..(i + 1) * share)
                    .flat_map(|row| (0..rank).map(move |k| column(row, k)))
                    .collect();
                let weight = |side: &str| format!("{path}.lora_{side}.weight");
                found.push((weight("A"), vec![rank, d_in], factor.to_vec()));
                found.push((weight("B"), vec![share, rank], up));
            }
        }
        Ok(Some((second, found)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_that_are_no_experts_are_refused_by_name() {
        let config = |list: Value| {
            let Value::Object(config) = json!({"target_parameters": list, "r": 4}) else {
                unreachable!()
            };
            config
        };
        let names = ["base_model.model.model.layers.0.mlp.experts.lora_A.weight".to_owned()];
        let error = with_maps(config(json!(["q_proj.weight"])), &names)
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("target_parameters") && error.contains("q_proj.weight"),
            "{error}"
        );
        // Of a model without experts the names say nothing.
        let found = with_maps(config(json!(["gate_up_proj"])), &[]).unwrap();
        assert_eq!(found.get("target_modules"), None);
        let found = with_maps(config(json!(["mlp.experts.down_proj"])), &names).unwrap();
        assert_eq!(found["target_modules"], json!(["w2"]));
        let mut chosen = config(json!(["down_proj"]));
        chosen.insert("layers_to_transform".into(), json!([1]));
        assert!(with_maps(chosen, &names).is_err());
    }
}
