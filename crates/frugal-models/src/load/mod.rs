//! Finding and reading models: Hugging Face folders, GGUF files, names of the registry, `org/name`
//! on the hub.

mod builtin;
mod files;
mod fingerprint;
mod generation;
mod gguf;
mod gguf_identity;
mod head;
#[cfg(feature = "hub")]
mod hub;
mod safetensors;

use std::path::Path;

pub use frugal_nn::LoadError;
pub use frugal_nn::error::MODEL_FOLDER;

pub use files::{Lookup, ModelFiles, names};
pub use gguf::GgufSource;
pub use gguf_identity::check_gguf;
pub use safetensors::{SafetensorsFile, SafetensorsSource};

/// Reads a JSON file.
///
/// # Errors
/// When the file cannot be read or is not JSON; the message has line and column.
pub fn read_json(path: &Path) -> Result<serde_json::Value, LoadError> {
    let bytes = frugal_core::fs::read(path).map_err(|error| LoadError::Read {
        path: path.into(),
        source: error.source,
    })?;
    frugal_core::json::parse(&bytes).map_err(|e| LoadError::Json {
        path: path.into(),
        reason: match bytes.starts_with(b"\xef\xbb\xbf") {
            true => "it begins with a byte order mark, which JSON has not: save it without".into(),
            false => format!("malformed JSON: {e}"),
        },
    })
}

/// How often each name occurs, by falling count.
fn count(names: impl Iterator<Item = String>) -> Vec<(String, usize)> {
    let mut counts = std::collections::BTreeMap::new();
    names.for_each(|name| *counts.entry(name).or_insert(0) += 1);
    let mut counts: Vec<(String, usize)> = counts.into_iter().collect();
    counts.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    counts
}
