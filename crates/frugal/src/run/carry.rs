//! What belongs to a model beside its backbone, for folders made of it: heads of its task, and the
//! files around its weights.

use std::path::Path;

use frugal_core::fs::{FileError, create_dir};
use frugal_models::load::{ModelFiles, read_json};
use frugal_models::save::{Stored, StoredType};
use frugal_models::{Loaded, ModelConfig, WeightSource};
use frugal_nn::{ModelError, SiteTable};
use serde_json::{Value, json};

use super::RunError;

/// Endings of files that hold weights.
const WEIGHTS: [&str; 14] = [
    "safetensors",
    "bin",
    "pt",
    "pth",
    "ckpt",
    "h5",
    "msgpack",
    "onnx",
    "onnx_data",
    "ot",
    "gguf",
    "npz",
    "tflite",
    "xml",
];

/// Buffers that old checkpoints hold and nobody reads.
const BUFFERS: [&str; 5] = [
    "position_ids",
    "inv_freq",
    "masked_bias",
    "attn.bias",
    "token_type_ids",
];

/// Nesting of folders that is followed.
const MAX_DEPTH: usize = 8;

/// The tensors of a model that are no part of its backbone (`classifier`, `cls`, `lm_head.dense`,
/// `qa_outputs`, a pooler), as its folder has them.
///
/// # Errors
/// A tensor that cannot be read.
pub(super) fn tensors(
    files: &ModelFiles,
    stored_type: StoredType,
) -> Result<Vec<(String, Stored<'static>)>, RunError> {
    let (source, config, sites) = (files.source(), files.config(), files.sites());
    let names = source.names();
    let prefix = bare_prefix(source, config, &sites);
    let mut carried = Vec::new();
    for name in names {
        let full = full_name(&name, prefix);
        if !is_further(&full, config, &sites) {
            continue;
        }
        let Some(shape) = source.shape(&name) else {
            continue;
        };
        let values = values(source, &name)?;
        carried.push((
            full,
            Stored::new(&shape, stored_type, move || values.clone()),
        ));
    }
    carried.sort_by(|a, b| a.0.cmp(&b.0));
    Ok(carried)
}

fn values(source: &dyn WeightSource, name: &str) -> Result<Vec<f32>, ModelError> {
    Ok(match source.load(name)? {
        Loaded::Data(data) => data.iter::<f32>().collect(),
        Loaded::Matrix(tensor) => frugal_nn::to_vec(tensor),
        Loaded::Vector(tensor) => frugal_nn::to_vec(tensor),
    })
}

/// What a file of a bare base model leaves out of its names.
fn bare_prefix<'a>(
    source: &dyn WeightSource,
    config: &'a ModelConfig,
    sites: &SiteTable,
) -> &'a str {
    let prefix = config.family.base_prefix;
    let first = sites.iter().next().map(|(_, site)| site.path.as_str());
    let is_bare = first.is_some_and(|path| {
        let short = path.strip_prefix(prefix).unwrap_or(path);
        source.shape(&format!("{path}.weight")).is_none()
            && source.shape(&format!("{short}.weight")).is_some()
    });
    if is_bare { prefix } else { "" }
}

/// Heads stand beside the base model, everything else in it.
fn full_name(name: &str, prefix: &str) -> String {
    const HEADS: [&str; 5] = ["cls.", "lm_head.", "classifier.", "score.", "qa_outputs."];
    if HEADS.iter().any(|head| name.starts_with(head)) {
        return name.to_owned();
    }
    format!("{prefix}{name}")
}

/// Whether a tensor is neither the backbone's, nor a buffer, nor the token table once more.
fn is_further(name: &str, config: &ModelConfig, sites: &SiteTable) -> bool {
    // Most sites hold a `weight` and a `bias`; a bare parameter is stored under its own path.
    let parent = name.rsplit_once('.').map_or(name, |(parent, _)| parent);
    let is_own = [name, parent].iter().any(|path| sites.find(path).is_some());
    let is_buffer = BUFFERS
        .iter()
        .any(|buffer| name == *buffer || name.ends_with(&format!(".{buffer}")));
    let tied = config
        .raw
        .get("tie_word_embeddings")
        .and_then(Value::as_bool)
        .unwrap_or(true);
    let is_table = tied
        && config.family.is_encoder
        && ["cls.predictions.decoder.weight", "lm_head.decoder.weight"].contains(&name);
    !is_own && !is_buffer && !is_table
}

/// Copies everything that lies beside the weights of a model folder, but for what was written
/// already; a model without a folder gives its tokenizer and the tokens that end a text.
///
/// # Errors
/// A file that cannot be read or written.
pub(super) fn files(files: &ModelFiles, out: &Path) -> Result<(), RunError> {
    let from = files.path();
    if from.is_dir() {
        let modules = module_folders(from);
        copy_folder(from, out, &|name, path| {
            if path.is_dir() {
                modules.iter().any(|module| module == name) || !holds_weights(path, 0)
            } else {
                is_beside(name)
            }
        })?;
    } else {
        generation_config(files, out)?;
    }
    if !out.join("tokenizer.json").exists()
        && let Ok(tokenizer) = files.tokenizer()
    {
        tokenizer.save(out)?;
    }
    Ok(())
}

/// The tokens that end a text, where there is more than the one of the tokenizer.
fn generation_config(files: &ModelFiles, out: &Path) -> Result<(), RunError> {
    let Ok(tokenizer) = files.tokenizer() else {
        return Ok(());
    };
    let ends = tokenizer.eos_ids();
    if files.info().is_encoder || ends.is_empty() {
        return Ok(());
    }
    let text = format!(
        "{:#}\n",
        json!({"bos_token_id": tokenizer.bos_id(), "eos_token_id": ends})
    );
    frugal_core::fs::write_atomic(&out.join("generation_config.json"), text.as_bytes())?;
    Ok(())
}

/// Whether a file at the top of a model folder goes with a model made of it.
fn is_beside(name: &str) -> bool {
    let written = name == "config.json" || name.starts_with("adapter_");
    // What is said of the run that made the model is not said of what is made of it.
    let of_run = [
        "record.json",
        "log.jsonl",
        "base.json",
        "pretrain.toml",
        "config.toml",
    ];
    if of_run.contains(&name) || name.starts_with("events.out.tfevents") {
        return false;
    }
    !written && !is_weights(name)
}

fn is_weights(name: &str) -> bool {
    let ending = name.rsplit_once('.').map_or("", |(_, ending)| ending);
    WEIGHTS.contains(&ending.to_ascii_lowercase().as_str())
        || name.ends_with(".index.json")
        || name.contains(".onnx_data")
}

/// The folders that sentence-transformers' `modules.json` names: they hold layers of their own.
fn module_folders(folder: &Path) -> Vec<String> {
    let Ok(Value::Array(modules)) = read_json(&folder.join("modules.json")) else {
        return Vec::new();
    };
    let path = |module: &Value| Some(module.get("path")?.as_str()?.to_owned());
    modules
        .iter()
        .filter_map(path)
        .filter(|p| !p.is_empty())
        .collect()
}

/// Whether a folder holds another form of the weights (`onnx`, `openvino`), which would no longer
/// be this model's.
fn holds_weights(folder: &Path, depth: usize) -> bool {
    let Ok(entries) = std::fs::read_dir(folder) else {
        return false;
    };
    depth > MAX_DEPTH
        || entries.flatten().any(|entry| {
            let path = entry.path();
            if path.is_dir() {
                holds_weights(&path, depth + 1)
            } else {
                is_weights(&entry.file_name().to_string_lossy())
            }
        })
}

/// Copies the entries of a folder that `wanted` names, with all that lies in its folders; hidden
/// ones are left, and so is `to` itself.
fn copy_folder(
    from: &Path,
    to: &Path,
    wanted: &dyn Fn(&str, &Path) -> bool,
) -> Result<(), FileError> {
    copy_entries(from, to, wanted, &to.canonicalize().ok(), 0)
}

fn copy_entries(
    from: &Path,
    to: &Path,
    wanted: &dyn Fn(&str, &Path) -> bool,
    out: &Option<std::path::PathBuf>,
    depth: usize,
) -> Result<(), FileError> {
    let entries = std::fs::read_dir(from).map_err(FileError::at(from, "cannot read the folder"))?;
    for entry in entries.flatten() {
        let (name, path) = (entry.file_name(), entry.path());
        let name = name.to_string_lossy();
        let is_out = out.is_some() && path.canonicalize().ok() == *out;
        if name.starts_with('.') || is_out || !wanted(&name, &path) {
            continue;
        }
        let target = to.join(entry.file_name());
        if path.is_dir() {
            if depth < MAX_DEPTH {
                create_dir(&target)?;
                copy_entries(&path, &target, &|_, _| true, out, depth + 1)?;
            }
        } else if path.is_file() {
            copy_file(&path, &target)?;
        }
    }
    Ok(())
}

pub(super) fn copy_file(from: &Path, to: &Path) -> Result<(), FileError> {
    let mut file = std::fs::File::open(from).map_err(FileError::at(from, "cannot read"))?;
    frugal_core::fs::write_atomic_with(to, |out| std::io::copy(&mut file, out).map(|_| ()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_are_told_from_what_lies_beside_them() {
        for name in [
            "generation_config.json",
            "modules.json",
            "special_tokens_map.json",
            "chat_template.jinja",
            "preprocessor_config.json",
            "vocab.txt",
            "tokenizer.model",
            "LICENSE",
            "modeling_custom.py",
        ] {
            assert!(is_beside(name), "{name}");
        }
        for name in [
            "config.json",
            "model.safetensors",
            "model-00001-of-00002.safetensors",
            "model.safetensors.index.json",
            "pytorch_model.bin",
            "model.onnx",
            "adapter_config.json",
        ] {
            assert!(!is_beside(name), "{name}");
        }
    }
}
