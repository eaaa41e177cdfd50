//! The folder of a state.
//!
//! | file | holds |
//! |---|---|
//! | `adapter_config.json`, `adapter_model.safetensors` | where adapters begin, in the layout of `peft` |
//! | `perk.safetensors` | `weighting.fc1.weight [128, d]`, `weighting.fc1.bias [128]`, `weighting.fc2.weight [1, 128]`, `weighting.fc2.bias [1]` of the token weights, and `rates.KEY [inner_steps + 1]` for each tensor of the adapter, all `F32` |
//! | `perk.json` | the settings, with the version of the format; a folder that has it is complete |

use std::collections::HashMap;
use std::path::Path;

use frugal_adapt::peft;
use frugal_core::fs::{read, write_atomic};
use frugal_core::stage::Stage;
use frugal_nn::{Backbone, LoadedAdapter};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use serde_json::{Map, Value, json};

use super::config::PerkConfig;
use super::error::PerkError;
use super::fast::{FastWeights, context};
use super::state::PerkState;
use super::weights::{NAMES, TokenWeights};

/// The settings.
pub const CONFIG_FILE: &str = "perk.json";
/// Token weights and learning rates.
pub const TENSORS_FILE: &str = "perk.safetensors";
/// Version of the format.
const VERSION: u32 = 1;

fn wrong<T>(path: &Path, reason: impl Into<String>) -> Result<T, PerkError> {
    Err(PerkError::File {
        path: path.into(),
        reason: reason.into(),
    })
}

/// Writes a state; files of the same names are replaced, all of them or none.
///
/// # Errors
/// A folder that cannot be written to.
pub fn save(
    folder: &Path,
    state: &PerkState,
    backbone: &dyn Backbone,
    base_model: &str,
) -> Result<(), PerkError> {
    let stage = Stage::replace(folder)?;
    write(stage.path(), state, backbone, base_model)?;
    Ok(stage.finish(CONFIG_FILE)?)
}

/// The same into a folder that is already this process's, in which nobody reads yet.
///
/// # Errors
/// A folder that cannot be written to.
pub fn write(
    folder: &Path,
    state: &PerkState,
    backbone: &dyn Backbone,
    base_model: &str,
) -> Result<(), PerkError> {
    let adapter = state.adapter(backbone, &state.fast.values)?;
    let entry = LoadedAdapter {
        adapter,
        head: None,
    };
    peft::save(folder, &entry, backbone.info(), base_model)?;
    let mut tensors: Vec<(String, Vec<usize>, Vec<u8>)> = Vec::new();
    let bytes = |values: &[f32]| values.iter().flat_map(|v| v.to_le_bytes()).collect();
    if let Some(net) = &state.weights {
        let shapes = TokenWeights::shapes(backbone.info().hidden_size);
        for ((name, shape), values) in NAMES.iter().zip(shapes).zip(&net.values) {
            tensors.push((format!("weighting.{name}"), shape, bytes(values)));
        }
    }
    for (name, rates) in state.fast.names().zip(&state.rates) {
        tensors.push((format!("rates.{name}"), vec![rates.len()], bytes(rates)));
    }
    let path = folder.join(TENSORS_FILE);
    let views = tensors.iter().map(|(name, shape, bytes)| {
        let view = TensorView::new(Dtype::F32, shape.clone(), bytes);
        view.map(|view| (name.as_str(), view))
    });
    let views = views.collect::<Result<Vec<_>, _>>();
    let file = views.and_then(|views| safetensors::serialize(views, None));
    match file {
        Ok(file) => write_atomic(&path, &file)?,
        Err(error) => return wrong(&path, error.to_string()),
    }
    let mut stored = json!({"version": VERSION});
    if let (Value::Object(stored), Ok(Value::Object(config))) =
        (&mut stored, serde_json::to_value(&state.config))
    {
        stored.extend(config);
    }
    let path = folder.join(CONFIG_FILE);
    write_atomic(&path, format!("{stored:#}\n").as_bytes())?;
    Ok(())
}

/// The settings of a state.
///
/// # Errors
/// A folder that is none of a state, another version, settings that cannot be.
pub fn read_config(folder: &Path) -> Result<PerkConfig, PerkError> {
    let path = folder.join(CONFIG_FILE);
    if !path.is_file() {
        return wrong(
            &path,
            "is not there: the folder holds no meta-learned state, which `frugal meta-train` writes",
        );
    }
    let mut stored: Map<String, Value> = match serde_json::from_slice(&read(&path)?) {
        Ok(stored) => stored,
        Err(error) => return wrong(&path, error.to_string()),
    };
    let version = stored.remove("version").unwrap_or_default();
    if version != json!(VERSION) {
        return wrong(
            &path,
            format!("`version` is {version}, and this program reads {VERSION}"),
        );
    }
    let config: PerkConfig = match serde_json::from_value(Value::Object(stored)) {
        Ok(config) => config,
        Err(error) => return wrong(&path, error.to_string()),
    };
    if let Err(error) = config.validate() {
        return wrong(&path, error.to_string());
    }
    Ok(config)
}

/// Reads a state for a model. Settings and shapes are compared with the model before anything of
/// their size is made.
///
/// # Errors
/// Files that are missing, damaged, or of another model; values that are not finite.
pub fn load(folder: &Path, backbone: &dyn Backbone) -> Result<PerkState, PerkError> {
    let config = read_config(folder)?;
    let (entry, _) = peft::load(folder, &context(backbone, 0), false)?;
    let fast = FastWeights::of(entry.adapter.as_ref(), backbone)?;
    let config_file = folder.join(CONFIG_FILE);
    let expected = FastWeights::shapes_of(&config, backbone)?;
    if expected != fast.places() {
        return wrong(
            &config_file,
            "rank, scale or targets are not those of the adapter beside it",
        );
    }
    let path = folder.join(TENSORS_FILE);
    let hidden_size = backbone.info().hidden_size;
    let mut wanted: Vec<(String, Vec<usize>)> = Vec::new();
    if config.token_weights {
        let shapes = TokenWeights::shapes(hidden_size);
        wanted.extend(NAMES.iter().map(|n| format!("weighting.{n}")).zip(shapes));
    }
    let rates = fast.names().map(|name| format!("rates.{name}"));
    wanted.extend(rates.map(|name| (name, vec![config.inner_steps + 1])));
    let mut found = tensors(&path, &wanted)?;
    let rates = found.split_off(if config.token_weights { NAMES.len() } else { 0 });
    let weights = config
        .token_weights
        .then(|| TokenWeights::with_values(hidden_size, found));
    Ok(PerkState {
        config,
        fast,
        weights,
        rates,
    })
}

/// The values of exactly these tensors.
fn tensors(path: &Path, wanted: &[(String, Vec<usize>)]) -> Result<Vec<Vec<f32>>, PerkError> {
    let values: usize = wanted
        .iter()
        .map(|(_, s)| s.iter().product::<usize>())
        .sum();
    // The header of a tensor is at most some hundred bytes.
    let most = 4 * values as u64 + 1024 * (wanted.len() as u64 + 16);
    match std::fs::metadata(path) {
        Ok(found) if found.len() > most => {
            return wrong(
                path,
                format!("has {} bytes, at most {most} are expected", found.len()),
            );
        }
        _ => {}
    }
    let bytes = read(path)?;
    let file = match SafeTensors::deserialize(&bytes) {
        Ok(file) => file,
        Err(error) => return wrong(path, error.to_string()),
    };
    let mut views: HashMap<String, TensorView<'_>> = file.tensors().into_iter().collect();
    let mut out = Vec::with_capacity(wanted.len());
    for (name, shape) in wanted {
        let Some(view) = views.remove(name) else {
            return wrong(path, format!("the tensor `{name}` is missing"));
        };
        if view.dtype() != Dtype::F32 || view.shape() != shape {
            return wrong(
                path,
                format!(
                    "`{name}` is {:?} {:?}, but F32 {shape:?} is expected",
                    view.dtype(),
                    view.shape()
                ),
            );
        }
        let (chunks, _) = view.data().as_chunks::<4>();
        let of: Vec<f32> = chunks.iter().map(|b| f32::from_le_bytes(*b)).collect();
        if of.iter().any(|v| !v.is_finite()) {
            return wrong(path, format!("`{name}` has values that are not finite"));
        }
        out.push(of);
    }
    match views.keys().min() {
        Some(name) => wrong(path, format!("the tensor `{name}` is not expected")),
        None => Ok(out),
    }
}
