//! Finding and reading models: Hugging Face folders, GGUF files, names of the registry, `org/name`
//! on the hub.

mod builtin;
mod files;
mod fingerprint;
mod gguf;
#[cfg(feature = "hub")]
mod hub;
mod safetensors;

use std::io;
use std::path::{Path, PathBuf};

use thiserror::Error;

pub use files::{Lookup, ModelFiles, names};
pub use gguf::GgufSource;
pub use safetensors::{SafetensorsFile, SafetensorsSource};

/// What can go wrong while finding and reading files of a model or adapter.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum LoadError {
    /// A file cannot be read.
    #[error("{}: cannot read: {source}", path.display())]
    Read {
        /// File.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// A JSON file is malformed or lacks a key.
    #[error("{}: {reason}", path.display())]
    Json {
        /// File.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// A safetensors file is damaged or holds a type that cannot be read.
    #[error("{}: {reason}", path.display())]
    Safetensors {
        /// File.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// No model of this name, no file or folder of this path.
    #[error("no model `{model}`{}: neither a folder, a GGUF file, a known name ({known}) nor `org/name`", suggestion.as_ref().map_or(String::new(), |s| format!(" (did you mean `{s}`?)")))]
    NotFound {
        /// What was asked for.
        model: String,
        /// Nearest name.
        suggestion: Option<String>,
        /// Names.
        known: String,
    },
    /// A registered model that is not in the cache.
    #[error("model `{name}` is not in the cache yet: run `frugal models fetch {name}`")]
    NotFetched {
        /// Name.
        name: String,
    },
    /// An adapter given as a model.
    #[error("{}: this is an adapter, not a model: give its base with `--model` and this folder with `--adapter`", folder.display())]
    AdapterFolder {
        /// Folder.
        folder: PathBuf,
    },
    /// The folder of a run that trained the whole model, given as a model or as an adapter.
    #[error("{}: the run in this folder trained the whole model instead of an adapter: give `--model {}`", folder.display(), model.display())]
    FullRun {
        /// Folder of the run.
        folder: PathBuf,
        /// Folder of the model in it.
        model: PathBuf,
    },
    /// A model without a tokenizer.
    #[error("{}: no `tokenizer.json` there: save the model's fast tokenizer beside it", folder.display())]
    NoTokenizer {
        /// Folder.
        folder: PathBuf,
    },
    /// A repository that cannot be had.
    #[error("`{repository}` from the hub: {reason}")]
    Hub {
        /// Repository.
        repository: String,
        /// What went wrong.
        reason: String,
    },
    /// A damaged or unsupported GGUF file.
    #[error(transparent)]
    Gguf(#[from] frugal_formats::gguf::GgufError),
    /// A tokenizer that cannot be used.
    #[error(transparent)]
    Tokenizer(#[from] frugal_core::tokenizer::TokenizerError),
    /// A folder without weights.
    #[error("{}: no `model.safetensors` and no `model.safetensors.index.json` there; PyTorch `.bin` files are not read, convert them first", folder.display())]
    NoWeights {
        /// Folder.
        folder: PathBuf,
    },
}

/// Folder of the model in the folder of a run that trained the whole of it.
pub const MODEL_FOLDER: &str = "model";

impl LoadError {
    /// [`LoadError::FullRun`], if `folder` is that of such a run.
    pub fn full_run(folder: &Path) -> Option<Self> {
        let model = folder.join(MODEL_FOLDER);
        model.join("config.json").is_file().then(|| Self::FullRun {
            folder: folder.into(),
            model,
        })
    }
}

/// Reads a JSON file.
///
/// # Errors
/// When the file cannot be read or is not JSON; the message has line and column.
pub fn read_json(path: &Path) -> Result<serde_json::Value, LoadError> {
    let bytes = std::fs::read(path).map_err(|source| LoadError::Read {
        path: path.into(),
        source,
    })?;
    serde_json::from_slice(&bytes).map_err(|e| LoadError::Json {
        path: path.into(),
        reason: format!("malformed JSON: {e}"),
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
