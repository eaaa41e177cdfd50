//! From an ONNX file to a model folder.

use std::path::{Component, Path, PathBuf};

use frugal_core::fs::create_dir;
use frugal_core::stage::Stage;
use frugal_formats::onnx::{ConvertError, Converted, to_safetensors};
use frugal_models::load::{Lookup, ModelFiles, read_json};
use serde_json::Value;

use super::{RunError, carry};
use crate::device::device;

/// What stands beside the weights of an encoder and says how they are used.
const SETTINGS: [&str; 9] = [
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "modules.json",
    "sentence_bert_config.json",
    "config_sentence_transformers.json",
];

/// Files of a module.
const OF_MODULE: [&str; 2] = ["config.json", "model.safetensors"];

/// Writes a Hugging Face folder with the weights of an ONNX file, in f32, and the settings that lie
/// beside the file or in the folder above: `config.json`, the tokenizer, modules of
/// sentence-transformers. The folder appears once the model in it has been read, so that a file
/// without some of its weights leaves nothing.
///
/// # Errors
/// ONNX files that are damaged or not read; models that are no encoders, whose layouts differ; a
/// folder without `config.json`; weights that are missing.
pub fn convert_onnx(onnx: &Path, out: &Path) -> Result<Converted, RunError> {
    let beside = onnx.parent().unwrap_or(Path::new(""));
    let beside = match beside.as_os_str().is_empty() {
        true => PathBuf::from("."),
        false => beside.to_owned(),
    };
    let folders = [beside.clone(), beside.join("..")];
    let there = |folder: &&PathBuf| folder.join("config.json").is_file();
    let Some(settings) = folders.iter().find(there) else {
        return Err(RunError::Invalid(format!(
            "{}: there is no `config.json` beside it or in the folder above, which says what model it is",
            onnx.display()
        )));
    };
    let stage = Stage::begin(out)?;
    let folder = stage.path();
    let converted = to_safetensors(onnx, &folder.join("model.safetensors"))?;
    let copy = |name: &Path| -> Result<(), RunError> {
        let (from, to) = (settings.join(name), folder.join(name));
        if from.is_file() {
            create_dir(to.parent().unwrap_or(folder))?;
            carry::copy_file(&from, &to)?;
        }
        Ok(())
    };
    copy(Path::new("config.json"))?;
    for name in SETTINGS {
        copy(Path::new(name))?;
    }
    let modules = settings.join("modules.json");
    if modules.is_file()
        && let Value::Array(modules) = read_json(&modules)?
    {
        for path in modules.iter().filter_map(|m| m.get("path")?.as_str()) {
            let path = Path::new(path);
            let inside = |part| matches!(part, Component::Normal(_));
            if path.as_os_str().is_empty() || !path.components().all(inside) {
                continue;
            }
            for name in OF_MODULE {
                copy(&path.join(name))?;
            }
        }
    }
    let files = ModelFiles::open(&folder.to_string_lossy(), &Lookup::default())?;
    if !files.info().is_encoder {
        return Err(RunError::Invalid(format!(
            "{}: its `config.json` is of a `{}`; ONNX files of encoders (`bert`, `roberta`) are converted",
            onnx.display(),
            files.config().model_type()
        )));
    }
    let device = device("cpu")?;
    files.load(&device)?;
    files.head(&device)?;
    drop(files);
    stage.finish("config.json")?;
    Ok(converted)
}

impl From<ConvertError> for RunError {
    fn from(error: ConvertError) -> Self {
        match error {
            ConvertError::File(error) => error.into(),
            ConvertError::Onnx(error) => Self::Onnx(error),
        }
    }
}
