//! Files of documents' parameters and of translators.
//!
//! Tensors of a document are called as PEFT calls them
//! (`base_model.model.PATH.lora_A.weight`, `... .lora_B.weight`), and the header says in `trained_on`
//! what it was trained on; those of a translator
//! `PATH.a.0.weight` (`U^A`), `PATH.a.1.weight` (`V^A`), `PATH.b.0.weight`, `PATH.b.1.weight`, beside
//! its settings in `translator.json`.

use std::collections::HashMap;
use std::path::Path;

use burn::prelude::*;
use frugal_core::fs::{create_dir, write_atomic};
use frugal_formats::safetensors::LoadReport;
use frugal_models::load::{SafetensorsFile, read_json};
use frugal_models::save::{Stored, StoredType, write_safetensors};
use frugal_nn::{Parameter, to_vec};
use serde::{Deserialize, Serialize};

use super::config::TranslatorConfig;
use super::error::ParametricError;
use super::feed_forward::FeedForward;
use super::translator::Translator;
use super::weights::{DocumentWeights, Factors};

/// Settings of a translator.
const TRANSLATOR_CONFIG: &str = "translator.json";
/// Its weights.
const TRANSLATOR_WEIGHTS: &str = "translator.safetensors";
/// Key of the header that says what a document was trained on.
const TRAINED_ON: &str = "trained_on";

/// Compares names and shapes of a file with what is expected of it.
fn check(
    file: &SafetensorsFile,
    path: &Path,
    expected: &[(String, Vec<usize>)],
) -> Result<(), ParametricError> {
    let mut report = LoadReport {
        expected: expected.iter().map(|(name, _)| name.clone()).collect(),
        ..LoadReport::default()
    };
    for (name, shape) in expected {
        match file.shape(name) {
            None => report.missing.push(name.clone()),
            Some(found) if found != *shape => {
                report.mis_shaped.push((name.clone(), shape.clone(), found));
            }
            Some(_) => {}
        }
    }
    let known: std::collections::HashSet<&str> =
        expected.iter().map(|(name, _)| name.as_str()).collect();
    let names = file.names();
    report.unexpected = names
        .into_iter()
        .filter(|name| !known.contains(name.as_str()))
        .collect();
    if report.is_exact() {
        return Ok(());
    }
    Err(ParametricError::Tensors {
        path: path.to_owned(),
        report: Box::new(report),
    })
}

/// The finite values of a tensor that was checked to be there.
fn values(file: &SafetensorsFile, path: &Path, name: &str) -> Result<Vec<f32>, ParametricError> {
    let data = file.tensor(name)?.convert::<f32>();
    let values = data
        .try_into_vec::<f32>()
        .map_err(|e| ParametricError::Folder {
            path: path.to_owned(),
            reason: format!("tensor `{name}`: {e:?}"),
        })?;
    if values.iter().all(|value| value.is_finite()) {
        return Ok(values);
    }
    Err(ParametricError::Folder {
        path: path.to_owned(),
        reason: format!(
            "tensor `{name}` holds values that are no finite numbers: the file is damaged"
        ),
    })
}

fn document_names(path: &str) -> [String; 2] {
    ["A", "B"].map(|side| format!("base_model.model.{path}.lora_{side}.weight"))
}

/// Writes a document's parameters, and in the header of the file `trained_on`.
pub(super) fn write_document(
    path: &Path,
    places: &FeedForward,
    weights: &DocumentWeights,
    dtype: StoredType,
    trained_on: &str,
) -> Result<(), ParametricError> {
    weights.check(places)?;
    let mut tensors = Vec::with_capacity(2 * places.places().len());
    for (place, pair) in places.places().iter().zip(&weights.factors) {
        let [a, b] = document_names(&place.path);
        for (name, tensor) in [(a, &pair.a), (b, &pair.b)] {
            let values = to_vec(tensor.clone().inner());
            let values = move || values.clone();
            tensors.push((name, Stored::new(&tensor.dims(), dtype, values)));
        }
    }
    let metadata = [("format", "pt"), (TRAINED_ON, trained_on)];
    let metadata = metadata.map(|(key, value)| (key.to_owned(), value.to_owned()));
    let file = safetensors::serialize(tensors, Some(HashMap::from(metadata)));
    let file = file.map_err(|error| ParametricError::Folder {
        path: path.to_owned(),
        reason: error.to_string(),
    })?;
    Ok(write_atomic(path, &file)?)
}

/// What a document's file says it was trained on; nothing where it does not.
pub(super) fn read_trained_on(path: &Path) -> Result<String, ParametricError> {
    let file = SafetensorsFile::open(path)?;
    let metadata = file.header_metadata().as_ref();
    let found = metadata.and_then(|metadata| metadata.get(TRAINED_ON).cloned());
    Ok(found.unwrap_or_default())
}

/// Reads a document's parameters of this rank.
pub(super) fn read_document(
    path: &Path,
    places: &FeedForward,
    rank: usize,
    device: &Device,
) -> Result<DocumentWeights, ParametricError> {
    let file = SafetensorsFile::open(path)?;
    let expected: Vec<(String, Vec<usize>)> = places
        .places()
        .iter()
        .flat_map(|place| {
            let [a, b] = document_names(&place.path);
            [(a, vec![rank, place.d_in]), (b, vec![place.d_out, rank])]
        })
        .collect();
    check(&file, path, &expected)?;
    let mut factors = Vec::with_capacity(places.places().len());
    for place in places.places() {
        let [a, b] = document_names(&place.path);
        let read = |name: &str, shape: [usize; 2]| {
            let values = values(&file, path, name)?;
            Ok::<_, ParametricError>(Tensor::from_data(TensorData::new(values, shape), device))
        };
        factors.push(Factors {
            a: read(&a, [rank, place.d_in])?,
            b: read(&b, [place.d_out, rank])?,
        });
    }
    Ok(DocumentWeights { rank, factors })
}

/// What `translator.json` holds.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct TranslatorFile {
    model: String,
    hidden_size: usize,
    config: TranslatorConfig,
}

impl Translator {
    /// Writes it into a folder; `model` is what the user calls the model that it was trained for.
    /// The settings are written last, so that a folder with them is complete.
    ///
    /// # Errors
    /// A folder that cannot be written.
    pub fn save(&self, folder: &Path, model: &str) -> Result<(), ParametricError> {
        create_dir(folder)?;
        let tensors = self.parameters().map(|parameter| {
            let stored = Stored::new(parameter.shape(), StoredType::F32, || parameter.to_vec());
            (parameter.name().to_owned(), stored)
        });
        write_safetensors(&folder.join(TRANSLATOR_WEIGHTS), tensors.collect())?;
        let settings = TranslatorFile {
            model: model.to_owned(),
            hidden_size: self.places().hidden_size(),
            config: *self.config(),
        };
        let path = folder.join(TRANSLATOR_CONFIG);
        write_atomic(&path, pretty(&path, &settings)?.as_bytes())?;
        Ok(())
    }

    /// Whether a folder holds a translator.
    pub fn is_in(folder: &Path) -> bool {
        folder.join(TRANSLATOR_CONFIG).is_file()
    }

    /// Reads one from a folder, for a model of these matrices.
    ///
    /// # Errors
    /// Files that are missing, damaged or of another model; every tensor is checked by name and shape.
    pub fn load(
        folder: &Path,
        places: &FeedForward,
        device: &Device,
    ) -> Result<Self, ParametricError> {
        let path = folder.join(TRANSLATOR_CONFIG);
        let settings: TranslatorFile = read_settings(&path)?;
        if settings.hidden_size != places.hidden_size() {
            return Err(ParametricError::Folder {
                path,
                reason: format!(
                    "the translator was trained for `{}`, whose states have {} numbers; this model's have {}",
                    settings.model,
                    settings.hidden_size,
                    places.hidden_size()
                ),
            });
        }
        Self::check(places, &settings.config)?;
        let path = folder.join(TRANSLATOR_WEIGHTS);
        let file = SafetensorsFile::open(&path)?;
        check(&file, &path, &Self::expected(places, &settings.config))?;
        Self::of(places, settings.config, &mut |_, name, shape| {
            let values = values(&file, &path, name)?;
            Ok(Parameter::new(name, &shape, values, device))
        })
    }
}

/// Settings as a file holds them.
pub(super) fn pretty<T: Serialize>(path: &Path, value: &T) -> Result<String, ParametricError> {
    let text = serde_json::to_string_pretty(value);
    let text = text.map_err(|e| ParametricError::Folder {
        path: path.to_owned(),
        reason: e.to_string(),
    })?;
    Ok(text + "\n")
}

/// Settings from a file.
pub(super) fn read_settings<T: serde::de::DeserializeOwned>(
    path: &Path,
) -> Result<T, ParametricError> {
    serde_json::from_value(read_json(path)?).map_err(|e| ParametricError::Folder {
        path: path.to_owned(),
        reason: e.to_string(),
    })
}
