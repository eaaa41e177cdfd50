//! A folder of documents' parameters.
//!
//! `parametric.json` holds the settings, `start.safetensors` where all documents began, and
//! `documents/KEY.safetensors` one document, where KEY is the SHA-256 of its identifier and text: a
//! document whose text changes has no parameters until it is trained again. The header of the file
//! says what it was trained on.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use burn::prelude::*;
use frugal_core::fs::{FileError, create_dir, is_temporary, write_atomic};
use frugal_models::save::StoredType;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::config::{EncodeOptions, ParametricConfig};
use super::error::ParametricError;
use super::feed_forward::FeedForward;
use super::files::{pretty, read_document, read_settings, read_trained_on, write_document};
use super::translator::Translator;
use super::weights::DocumentWeights;

const CONFIG: &str = "parametric.json";
const START: &str = "start.safetensors";
const DOCUMENTS: &str = "documents";
const ENDING: &str = ".safetensors";
/// Folder of the translator that was trained on these documents.
const TRANSLATOR: &str = "translator";

/// What `parametric.json` holds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StoredConfig {
    /// What the user called the model.
    pub model: String,
    /// Fingerprint of its weights; empty where it is not known.
    #[serde(default)]
    pub base_sha256: String,
    /// What the parameters are.
    pub parameters: ParametricConfig,
    /// How they were trained.
    pub encode: EncodeOptions,
    /// Number format of the documents' files.
    pub dtype: StoreDtype,
}

impl StoredConfig {
    /// Why documents of these settings cannot stand beside those of others, if so. What the model is
    /// called is without weight where its weights are known to be the same.
    fn difference(&self, other: &Self) -> Option<String> {
        const WAY_OUT: &str = "choose another folder, or remove this one";
        if self.base_sha256.is_empty() {
            return Some(format!(
                "it does not say on which weights of `{}` the documents there were trained: {WAY_OUT}",
                self.model
            ));
        }
        if self.base_sha256 != other.base_sha256 {
            return Some(format!(
                "the documents there were trained on other weights than those of `{}` as they are now: {WAY_OUT}",
                other.model
            ));
        }
        let (here, there) = (other.settings(), self.settings());
        let (name, there) = there.into_iter().find(|(k, v)| here.get(k) != Some(v))?;
        let here = here.get(&name).cloned().unwrap_or_default();
        Some(format!(
            "the documents there were trained with other settings (`{name}` is {there}, not {here}): {WAY_OUT}"
        ))
    }

    /// Settings by their names.
    fn settings(&self) -> BTreeMap<String, Value> {
        let groups = [
            serde_json::to_value(self.parameters),
            serde_json::to_value(self.encode),
            serde_json::to_value(self.dtype).map(|dtype| json!({ "dtype": dtype })),
        ];
        let groups = groups.into_iter().flatten();
        groups
            .filter_map(|group| match group {
                Value::Object(fields) => Some(fields),
                _ => None,
            })
            .flatten()
            .collect()
    }
}

/// Number format of documents' files.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum StoreDtype {
    /// 32-bit.
    F32,
    /// 16-bit IEEE: half the space.
    #[default]
    F16,
}

impl From<StoreDtype> for StoredType {
    fn from(dtype: StoreDtype) -> Self {
        match dtype {
            StoreDtype::F32 => Self::F32,
            StoreDtype::F16 => Self::F16,
        }
    }
}

/// Parameters of documents in a folder.
#[derive(Clone, Debug)]
pub struct DocumentStore {
    folder: PathBuf,
    config: StoredConfig,
    places: FeedForward,
    start: DocumentWeights,
    device: Device,
}

impl DocumentStore {
    /// The folder's store, or a new one of these settings. Settings of a store that holds nothing yet
    /// are replaced.
    ///
    /// # Errors
    /// A store of documents that were trained with other settings or on other weights, files that
    /// cannot be read or written.
    pub fn create(
        folder: &Path,
        config: StoredConfig,
        places: &FeedForward,
        device: &Device,
    ) -> Result<Self, ParametricError> {
        if Self::is_in(folder) && holds_something(folder)? {
            let stored: StoredConfig = read_settings(&folder.join(CONFIG))?;
            if let Some(reason) = stored.difference(&config) {
                return Err(ParametricError::Folder {
                    path: folder.join(CONFIG),
                    reason,
                });
            }
            return Self::open(folder, places, device);
        }
        config.encode.validate()?;
        let start = DocumentWeights::start(places, &config.parameters, device)?;
        create_dir(&folder.join(DOCUMENTS))?;
        write_document(&folder.join(START), places, &start, StoredType::F32, "")?;
        // Last, so that a folder with settings is complete.
        let path = folder.join(CONFIG);
        write_atomic(&path, pretty(&path, &config)?.as_bytes())?;
        Ok(Self {
            folder: folder.to_owned(),
            config,
            places: places.clone(),
            start,
            device: device.clone(),
        })
    }

    /// Whether a folder is a store.
    pub fn is_in(folder: &Path) -> bool {
        folder.join(CONFIG).is_file()
    }

    /// The settings of a store, for which no model is needed.
    ///
    /// # Errors
    /// A folder that is none, settings that cannot be.
    pub fn read_config(folder: &Path) -> Result<StoredConfig, ParametricError> {
        if !Self::is_in(folder) {
            return Err(ParametricError::Folder {
                path: folder.to_owned(),
                reason: format!(
                    "there is no `{CONFIG}`: `frugal parametrize` makes documents' parameters"
                ),
            });
        }
        let config: StoredConfig = read_settings(&folder.join(CONFIG))?;
        config.parameters.validate()?;
        config.encode.validate()?;
        Ok(config)
    }

    /// Opens a store for a model of these matrices.
    ///
    /// # Errors
    /// A folder that is none, files that are damaged or of another model.
    pub fn open(
        folder: &Path,
        places: &FeedForward,
        device: &Device,
    ) -> Result<Self, ParametricError> {
        let config = Self::read_config(folder)?;
        places.check_rank(config.parameters.r)?;
        let start = read_document(&folder.join(START), places, config.parameters.r, device)?;
        Ok(Self {
            folder: folder.to_owned(),
            config,
            places: places.clone(),
            start,
            device: device.clone(),
        })
    }

    /// Its settings.
    pub fn config(&self) -> &StoredConfig {
        &self.config
    }

    /// The matrices that are changed.
    pub fn places(&self) -> &FeedForward {
        &self.places
    }

    /// Its folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Where all documents began.
    pub fn start(&self) -> &DocumentWeights {
        &self.start
    }

    /// Where its translator is, or will be.
    pub fn translator(&self) -> PathBuf {
        self.folder.join(TRANSLATOR)
    }

    fn path(&self, id: &str, text: &str) -> PathBuf {
        let mut hash = Sha256::new();
        hash.update((id.len() as u64).to_le_bytes());
        hash.update(id.as_bytes());
        hash.update(text.as_bytes());
        let key: String = hash
            .finalize()
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        self.folder.join(DOCUMENTS).join(key + ENDING)
    }

    /// Whether a document with this text has parameters.
    pub fn contains(&self, id: &str, text: &str) -> bool {
        self.path(id, text).is_file()
    }

    /// What the parameters of a document with this text were trained on, as [`Self::put`] was told;
    /// `None` where it has none.
    ///
    /// # Errors
    /// A damaged file.
    pub fn trained_on(&self, id: &str, text: &str) -> Result<Option<String>, ParametricError> {
        let path = self.path(id, text);
        if !path.is_file() {
            return Ok(None);
        }
        read_trained_on(&path).map(Some)
    }

    /// Writes a document's parameters; `trained_on` says of what they come ([`digest`]).
    ///
    /// # Errors
    /// Parameters of another model, a file that cannot be written.
    ///
    /// [`digest`]: super::digest
    pub fn put(
        &self,
        id: &str,
        text: &str,
        weights: &DocumentWeights,
        trained_on: &str,
    ) -> Result<(), ParametricError> {
        let (path, dtype) = (self.path(id, text), self.config.dtype.into());
        write_document(&path, &self.places, weights, dtype, trained_on)
    }

    /// A document's parameters; `None` where it has none, or its text is another by now.
    ///
    /// # Errors
    /// A file that is damaged or of another model.
    pub fn get(&self, id: &str, text: &str) -> Result<Option<DocumentWeights>, ParametricError> {
        let path = self.path(id, text);
        if !path.is_file() {
            return Ok(None);
        }
        let rank = self.config.parameters.r;
        read_document(&path, &self.places, rank, &self.device).map(Some)
    }

    /// Bytes of a document's file; `None` where it has none.
    pub fn bytes(&self, id: &str, text: &str) -> Option<u64> {
        let metadata = std::fs::metadata(self.path(id, text));
        metadata.ok().map(|metadata| metadata.len())
    }

    /// Files of all documents but these (identifier and text): of others, or of earlier texts.
    ///
    /// # Errors
    /// A folder that cannot be read.
    pub fn others<'d>(
        &self,
        documents: impl Iterator<Item = (&'d str, &'d str)>,
    ) -> Result<Vec<PathBuf>, ParametricError> {
        let known: BTreeSet<PathBuf> = documents.map(|(id, text)| self.path(id, text)).collect();
        let mut files = documents_in(&self.folder)?;
        files.retain(|path| !known.contains(path));
        Ok(files)
    }

    /// Removes the parameters of all documents but these (identifier and text); how many were removed.
    ///
    /// # Errors
    /// A folder that cannot be read, a file that cannot be removed.
    pub fn keep_only<'d>(
        &self,
        documents: impl Iterator<Item = (&'d str, &'d str)>,
    ) -> Result<usize, ParametricError> {
        let others = self.others(documents)?;
        for path in &others {
            std::fs::remove_file(path).map_err(FileError::at(path, "cannot remove"))?;
        }
        Ok(others.len())
    }
}

/// Files of documents in the folder of a store.
fn documents_in(folder: &Path) -> Result<Vec<PathBuf>, ParametricError> {
    let folder = folder.join(DOCUMENTS);
    let entries = std::fs::read_dir(&folder).map_err(FileError::at(&folder, "cannot read"))?;
    let mut found = Vec::new();
    for entry in entries {
        let path = entry.map_err(FileError::at(&folder, "cannot read"))?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if name.ends_with(ENDING) && !is_temporary(&name) {
            found.push(path);
        }
    }
    Ok(found)
}

/// Whether documents or a translator were trained in the folder of a store.
fn holds_something(folder: &Path) -> Result<bool, ParametricError> {
    Ok(Translator::is_in(&folder.join(TRANSLATOR)) || !documents_in(folder)?.is_empty())
}
