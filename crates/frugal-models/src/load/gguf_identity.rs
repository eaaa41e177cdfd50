//! Whether a GGUF file says all that a configuration does: from configuration to metadata and back
//! must change no number.

use frugal_formats::gguf::{Gguf, TensorInfo, TensorSpec, Value as Metadata, hf_config};
use frugal_nn::{LoadError, ModelError};
use serde_json::Value;

use crate::architecture::ModelConfig;
use crate::keys::bad;

/// Relative difference that comes from single precision.
const TOLERANCE: f64 = 1e-6;
/// The same of frequencies whose settings are found again from a table.
const OF_FREQUENCIES: f64 = 1e-3;

/// Reads the configuration back from what is about to be written, and compares.
///
/// `rope_freqs` are the values of the tensor of that name, where there is one.
///
/// # Errors
/// [`ModelError::Config`] that names the first key which the file cannot express, or that readers
/// of it take to be something else.
pub fn check_gguf(
    config: &ModelConfig,
    metadata: &[(String, Metadata)],
    tensors: &[TensorSpec],
    rope_freqs: &[f32],
) -> Result<(), ModelError> {
    let bytes: Vec<u8> = rope_freqs.iter().flat_map(|v| v.to_le_bytes()).collect();
    let info = |spec: &TensorSpec| TensorInfo {
        name: spec.name.clone(),
        dims: spec.shape.iter().rev().copied().collect(),
        ggml_type: spec.ggml_type,
        part: 0,
        range: match spec.name == "rope_freqs.weight" {
            true => 0..bytes.len(),
            false => 0..0,
        },
    };
    let name = "the GGUF file to be written";
    let file = Gguf::planned(name, metadata.to_vec(), tensors.iter().map(info).collect());
    let raw = hf_config(&file, &bytes).map_err(LoadError::from)?;
    let back = ModelConfig::from_json(raw, name)?;
    let (ours, theirs) = (config.arithmetic(), back.arithmetic());
    let empty = serde_json::Map::new();
    let (ours, theirs) = (
        ours.as_object().unwrap_or(&empty),
        theirs.as_object().unwrap_or(&empty),
    );
    for (key, value) in ours {
        let read = theirs.get(key).unwrap_or(&Value::Null);
        let tolerance = match key.starts_with("rope_") {
            true => OF_FREQUENCIES,
            false => TOLERANCE,
        };
        if !same(value, read, tolerance) {
            let reason = format!(
                "GGUF files of this architecture cannot say it, readers would take {}: keep the Hugging Face folder (`frugal merge`)",
                short(read)
            );
            return Err(bad(&config.source, key, reason));
        }
    }
    Ok(())
}

fn same(a: &Value, b: &Value, tolerance: f64) -> bool {
    match (a, b) {
        (Value::Array(a), Value::Array(b)) => {
            a.len() == b.len() && a.iter().zip(b).all(|(a, b)| same(a, b, tolerance))
        }
        _ => match (a.as_f64(), b.as_f64()) {
            (Some(a), Some(b)) => (a - b).abs() <= tolerance * a.abs().max(b.abs()),
            _ => a == b,
        },
    }
}

fn short(value: &Value) -> String {
    match value.to_string() {
        text if text.len() <= 40 => format!("`{text}`"),
        _ => "other values".into(),
    }
}
