//! `frugal models inspect`.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use frugal::adapt::peft;
use frugal::model::load::{ModelFiles, SafetensorsFile, read_json};
use frugal_core::human;
use serde_json::{Value, json};

use crate::args::{Output, lookup};
use crate::ui::{self, table};

/// Shows a model, or an adapter if the folder is one.
pub fn run(model: &str, offline: bool, output: Output) -> Result<()> {
    let folder = Path::new(model);
    if folder.join(peft::CONFIG_FILE).exists() {
        return inspect_adapter(folder, output);
    }
    inspect_model(&ModelFiles::open(model, &lookup(offline))?, output)
}

fn inspect_model(model: &ModelFiles, output: Output) -> Result<()> {
    let config = model.config();
    let parameters = model.sites().num_parameters() as u64;
    let types = model.stored_types();
    let tokenizer = model.tokenizer().ok();
    let files = files(model.path());
    if output.json {
        let types: serde_json::Map<String, Value> = types
            .into_iter()
            .map(|(name, n)| (name, n.into()))
            .collect();
        return ui::print_json(&json!({
            "name": model.name(),
            "path": model.path(),
            "model_type": config.model_type(),
            "parameters": parameters,
            "num_hidden_layers": config.num_hidden_layers,
            "hidden_size": config.hidden_size,
            "intermediate_size": config.intermediate_size,
            "num_attention_heads": config.num_attention_heads,
            "num_key_value_heads": config.num_key_value_heads,
            "head_dim": config.head_dim,
            "vocab_size": config.vocab_size,
            "max_sequence": config.max_sequence(),
            "tie_word_embeddings": config.tie_word_embeddings,
            "stored_bytes": model.stored_bytes(),
            "stored_types": types,
            "memory_mapped": model.is_mapped(),
            "tokenizer_vocab_size": tokenizer.map(|t| t.vocab_size()),
            "chat_template": tokenizer.is_some_and(|t| t.has_chat_template()),
            "files": files.iter().map(|(path, bytes)| json!({ "path": path, "bytes": bytes })).collect::<Vec<_>>(),
        }));
    }
    let heads = match (config.num_attention_heads, config.num_key_value_heads) {
        _ if config.cost().recurrence.is_some() => "none, state spaces".into(),
        (heads, kv) if heads == kv => format!("{heads} of {}", config.head_dim),
        (heads, kv) => format!(
            "{heads} of {}, sharing {kv} keys and values",
            config.head_dim
        ),
    };
    let tied = if config.tie_word_embeddings {
        ", tied to the output"
    } else {
        ""
    };
    let kinds = types
        .iter()
        .map(|(name, n)| format!("{n} × {name}"))
        .collect::<Vec<_>>()
        .join(", ");
    let use_ = if model.is_mapped() {
        ", used where they are mapped"
    } else {
        ", converted when loaded"
    };
    let tokens = match tokenizer {
        Some(t) => format!(
            "{} entries, {} chat template",
            human::count(t.vocab_size() as u64),
            if t.has_chat_template() {
                "with a"
            } else {
                "no"
            }
        ),
        None => "none".into(),
    };
    ui::print(&table::pairs(&[
        ("model", model.name().into()),
        ("path", model.path().display().to_string()),
        ("architecture", config.model_type().into()),
        ("parameters", human::count(parameters)),
        ("layers", config.num_hidden_layers.to_string()),
        (
            "width",
            format!("{}, inner {}", config.hidden_size, config.intermediate_size),
        ),
        ("heads", heads),
        (
            "vocabulary",
            format!("{}{tied}", human::count(config.vocab_size as u64)),
        ),
        (
            "longest input",
            format!("{} tokens", human::count(config.max_sequence() as u64)),
        ),
        (
            "weights",
            format!("{}: {kinds}{use_}", human::bytes(model.stored_bytes())),
        ),
        ("tokenizer", tokens),
    ]));
    print_files(&files);
    Ok(())
}

fn inspect_adapter(folder: &Path, output: Output) -> Result<()> {
    let path = folder.join(peft::CONFIG_FILE);
    let config = read_json(&path)?;
    if !config.is_object() {
        bail!("{}: expected a JSON object", path.display());
    }
    let weights = SafetensorsFile::open(&folder.join(peft::WEIGHTS_FILE))?;
    let shapes: Vec<(String, Vec<usize>)> = weights
        .names()
        .into_iter()
        .map(|name| (weights.shape(&name).unwrap_or_default(), name))
        .map(|(shape, name)| (name, shape))
        .collect();
    let elements: usize = shapes
        .iter()
        .map(|(_, shape)| shape.iter().product::<usize>())
        .sum();
    let extra = folder.join(peft::EXTRA_FILE);
    let extra = if extra.exists() {
        read_json(&extra)?
    } else {
        Value::Null
    };
    let files = files(folder);
    if output.json {
        let tensors: Vec<_> = shapes
            .iter()
            .map(|(name, shape)| json!({ "name": name, "shape": shape }))
            .collect();
        let files: Vec<_> = files
            .iter()
            .map(|(path, bytes)| json!({ "path": path, "bytes": bytes }))
            .collect();
        return ui::print_json(
            &json!({ "path": folder, "adapter_config": config, "frugal": extra, "elements": elements, "tensors": tensors, "files": files }),
        );
    }
    let shown = |value: &Value| {
        value
            .as_str()
            .map_or_else(|| value.to_string(), str::to_owned)
    };
    let setting = |key: &str| config.get(key).filter(|v| !v.is_null()).map(shown);
    let labels = extra
        .pointer("/head/labels")
        .and_then(Value::as_array)
        .map(|l| l.iter().map(shown).collect::<Vec<_>>().join(", "));
    let fields = [
        ("adapter", Some(folder.display().to_string())),
        ("peft_type", setting("peft_type")),
        ("base model", setting("base_model_name_or_path")),
        ("task", setting("task_type")),
        ("rank", setting("r")),
        ("alpha", setting("lora_alpha")),
        (
            "targets",
            setting("target_modules").map(|t| t.replace(['[', ']', '"'], "").replace(',', ", ")),
        ),
        ("virtual tokens", setting("num_virtual_tokens")),
        ("classes", labels),
        (
            "tensors",
            Some(format!(
                "{} with {} elements",
                human::count(shapes.len() as u64),
                human::count(elements as u64)
            )),
        ),
    ];
    let rows: Vec<(&str, String)> = fields
        .into_iter()
        .filter_map(|(name, value)| Some((name, value?)))
        .collect();
    ui::print(&table::pairs(&rows));
    print_files(&files);
    Ok(())
}

/// The file, or the files of the folder, with their sizes, sorted by name.
fn files(path: &Path) -> Vec<(PathBuf, u64)> {
    let mut paths: Vec<PathBuf> = match std::fs::read_dir(path) {
        Ok(entries) => entries
            .flatten()
            .map(|e| e.path())
            .filter(|p| p.is_file())
            .collect(),
        Err(_) => frugal_formats::gguf::files_of(path),
    };
    paths.sort_unstable();
    paths
        .into_iter()
        .filter_map(|p| std::fs::metadata(&p).ok().map(|m| (p, m.len())))
        .collect()
}

fn print_files(files: &[(PathBuf, u64)]) {
    if files.is_empty() {
        return;
    }
    let rows: Vec<(String, String)> = files
        .iter()
        .map(|(path, bytes)| {
            (
                format!(
                    "  {}",
                    path.file_name().unwrap_or_default().to_string_lossy()
                ),
                human::bytes(*bytes),
            )
        })
        .collect();
    ui::print("files");
    ui::print(&table::pairs(&rows));
}
