//! Adapter folders in the layout of Hugging Face `peft`: `adapter_config.json` +
//! `adapter_model.safetensors`.
//!
//! What `peft` has no field for (class names, pooling, the method's name) stands in `frugal.json`
//! beside them, so that Python readers see nothing unknown.

pub(crate) mod folder;

use std::path::Path;

use frugal_core::fs::write_atomic;
use frugal_formats::safetensors::LoadReport;
use frugal_models::LoadOptions;
use frugal_models::load::read_json;
use frugal_models::save::{Stored, StoredType, write_safetensors};
use frugal_nn::{
    AdaptError, BackboneInfo, BuildContext, HeadConfig, LoadedAdapter, Operation, Parameter,
    SiteTable,
};
use serde_json::{Map, Value, json};

use crate::method::Method;
use crate::peft::folder::{Extra, Files, Keys, read_extra};
use crate::peft_read::without_prefix;
use crate::settings::Settings;
use crate::{peft_support, registry};

pub use crate::peft::folder::{CONFIG_FILE, EXTRA_FILE, WEIGHTS_FILE};

/// Written as `peft_version`: the version whose format this is.
const PEFT_VERSION: &str = "0.21.2";

/// Types whose configuration has no `modules_to_save`: `peft` does not keep a classification head
/// with them.
const WITHOUT_MODULES_TO_SAVE: [&str; 2] = ["ADAPTION_PROMPT", "TRAINABLE_TOKENS"];

/// Writes an adapter folder. `base_model` is what `base_model_name_or_path` will say.
///
/// # Errors
/// When a file cannot be written.
pub fn save(
    folder: &Path,
    entry: &LoadedAdapter,
    model: &BackboneInfo,
    base_model: &str,
) -> Result<(), AdaptError> {
    let finished = entry.adapter.to_inference();
    let adapter = finished.as_deref().unwrap_or(entry.adapter.as_ref());
    let method = registry::find(adapter.method())?;
    let task_type = match &entry.head {
        Some(head) if head.config().labels_tokens() => "TOKEN_CLS",
        Some(_) => "SEQ_CLS",
        None if model.is_encoder => "FEATURE_EXTRACTION",
        None => "CAUSAL_LM",
    };
    let mut config = Map::from_iter([
        ("task_type".to_owned(), json!(task_type)),
        ("base_model_name_or_path".to_owned(), json!(base_model)),
        ("revision".to_owned(), Value::Null),
        ("inference_mode".to_owned(), json!(true)),
        ("auto_mapping".to_owned(), Value::Null),
        ("peft_version".to_owned(), json!(PEFT_VERSION)),
        (
            "modules_to_save".to_owned(),
            if entry.head.is_some() {
                json!(["classifier", "score"])
            } else {
                Value::Null
            },
        ),
    ]);
    for (key, value) in adapter.peft_config() {
        if !(key == "modules_to_save" && value.is_null()) {
            config.insert(key, value);
        }
    }
    if WITHOUT_MODULES_TO_SAVE.contains(&method.peft_type) {
        config.remove("modules_to_save");
    }
    let bare = task_type == "FEATURE_EXTRACTION";
    if bare {
        config = without_prefix(config, model);
    }
    config.sort_keys();
    let extra = Extra {
        method: method.name.into(),
        version: env!("CARGO_PKG_VERSION").into(),
        head: entry.head.as_ref().map(|h| h.config().clone()),
        not_in_peft: peft_support::obstacle(method, adapter, model).filter(|_| method.is_in_peft()),
    };
    let keys = Keys {
        method,
        base_prefix: model.base_prefix,
        bare,
    };
    let mut tensors: Vec<(String, Stored<'_>)> = Vec::new();
    for p in adapter.parameters() {
        let names = std::iter::once(p.name()).chain(p.further_names());
        tensors.extend(names.map(|name| (keys.parameter(name), stored(p))));
    }
    if let Some(head) = &entry.head {
        tensors.extend(
            head.parameters()
                .into_iter()
                .map(|p| (keys.head(p.name()), stored(p))),
        );
    }
    write_safetensors(&folder.join(WEIGHTS_FILE), tensors)?;
    write_json(&folder.join(EXTRA_FILE), &json!(extra))?;
    let head: usize = entry.head.as_ref().map_or(0, |head| {
        head.parameters().into_iter().map(Parameter::len).sum()
    });
    write_atomic(
        &folder.join("README.md"),
        card(
            method,
            base_model,
            (adapter.num_trainable(), head),
            extra.not_in_peft.as_deref(),
        )
        .as_bytes(),
    )?;
    write_json(&folder.join(CONFIG_FILE), &Value::Object(config))
}

fn stored(parameter: &Parameter) -> Stored<'_> {
    if parameter.is_whole_numbers() {
        let values = parameter.to_vec().into_iter().map(|v| v as i32).collect();
        return match parameter.stored_below() {
            Some(limit) => Stored::indices(parameter.shape(), values, limit),
            None => Stored::whole_numbers(parameter.shape(), values),
        };
    }
    Stored::new(parameter.shape(), StoredType::F32, || parameter.to_vec())
}

fn write_json(path: &Path, value: &Value) -> Result<(), AdaptError> {
    let text = serde_json::to_string_pretty(value).map_err(|e| AdaptError::Folder {
        path: path.into(),
        reason: e.to_string(),
    })?;
    Ok(write_atomic(path, (text + "\n").as_bytes())?)
}

/// The model card, with the numbers of trained parameters of the adapter and of its head, and why
/// `peft` does not read the folder though it has the method.
fn card(
    method: &Method,
    base_model: &str,
    (adapter, head): (usize, usize),
    obstacle: Option<&str>,
) -> String {
    let (library, use_it) = match (method.is_in_peft(), obstacle) {
        (true, None) => (
            "library_name: peft\n",
            "Written by Frugal in the layout of `peft`: load it with `PeftModel.from_pretrained` or".to_owned(),
        ),
        (true, Some(reason)) => (
            "",
            format!("Written by Frugal; `peft` does not read it ({reason}): load it with"),
        ),
        (false, _) => (
            "",
            "Written by Frugal; `peft` does not have this method: load it with".to_owned(),
        ),
    };
    let of_head = if head > 0 {
        format!(", {head} of them in the classification head")
    } else {
        String::new()
    };
    format!(
        "---\nbase_model: {base_model}\n{library}---\n\n# {} adapter for {base_model}\n\n{}. {} trained parameters{of_head}. \
         {use_it} `frugal eval --adapter DIR`.\n",
        method.name,
        method.summary,
        adapter + head
    )
}

/// Why `peft` does not read the adapter in `folder`, though it has the method; `None` where it does.
pub fn obstacle_of(folder: &Path) -> Option<String> {
    read_extra(&folder.join(EXTRA_FILE)).ok()??.not_in_peft
}

/// How the weights of a model are read for the adapter in `folder`: as `options` say, but for one
/// that goes with weights rounded in its own way.
///
/// # Errors
/// When the folder's configuration cannot be read.
pub fn load_options(
    folder: Option<&Path>,
    sites: &SiteTable,
    options: LoadOptions,
) -> Result<LoadOptions, AdaptError> {
    let Some(folder) = folder else {
        return Ok(options);
    };
    let files = Files::read(folder)?;
    let method = method_of(&files)?;
    let settings = files.settings(method, sites, None)?.0;
    method.load_options(&settings, sites, None, options)
}

/// Refuses an operation that the settings of the adapter in `folder` do not allow, before any
/// weight is read.
///
/// # Errors
/// [`AdaptError::Unsupported`] for such an adapter, or when the folder's configuration cannot be
/// read.
pub fn allow(folder: &Path, operation: Operation) -> Result<(), AdaptError> {
    let files = Files::read(folder)?;
    method_of(&files)?.allow(&files.config, operation)
}

/// What came of reading the adapter in `folder` for the model that the user calls `model`: where
/// the two do not fit and the adapter was made for another model, the error says so first.
///
/// # Errors
/// Those of `found`.
pub fn made_for<T>(
    folder: &Path,
    model: &str,
    found: Result<T, AdaptError>,
) -> Result<T, AdaptError> {
    // Models are moved and have several owners, so the last part of a path or repository counts.
    let last = |name: &str| Path::new(name).file_name().map(ToOwned::to_owned);
    found.map_err(|error| match base_model(folder) {
        Some(base_model) if error.is_misfit() && last(&base_model) != last(model) => {
            AdaptError::OtherModel {
                base_model,
                model: model.into(),
                source: Box::new(error),
            }
        }
        _ => error,
    })
}

fn base_model(folder: &Path) -> Option<String> {
    Some(
        read_json(&folder.join(CONFIG_FILE))
            .ok()?
            .get("base_model_name_or_path")?
            .as_str()
            .filter(|name| !name.is_empty())?
            .to_owned(),
    )
}

/// Whose adapter these files hold.
pub(crate) fn method_of(files: &Files) -> Result<&'static Method, AdaptError> {
    let Some(extra) = &files.extra else {
        return registry::find_peft(&files.peft_type, &files.config);
    };
    let method = registry::find(&extra.method)?;
    if method.peft_type == files.peft_type {
        return Ok(method);
    }
    Err(AdaptError::PeftType {
        peft_type: files.peft_type.clone(),
        hint: format!(
            " beside a `{EXTRA_FILE}` of method `{}`, whose type is {}: the two files are of different adapters",
            method.name, method.peft_type
        ),
    })
}

/// What an adapter folder says of itself, without its weights.
#[derive(Clone, Debug)]
pub struct Described {
    /// Name of the method.
    pub method: &'static str,
    /// All settings of the method.
    pub settings: Settings,
    /// The classification head, if this program wrote the folder: others do not name its classes.
    pub head: Option<HeadConfig>,
    /// Whether it is for classification, of texts or of tokens.
    pub is_classifier: bool,
    /// Whether it labels every token.
    pub labels_tokens: bool,
    /// The model that it was made for.
    pub base_model: Option<String>,
}

/// Reads what an adapter is.
///
/// # Errors
/// A folder without configuration, unsupported methods or variants.
pub fn describe(folder: &Path) -> Result<Described, AdaptError> {
    let files = Files::read(folder)?;
    let method = method_of(&files)?;
    let config = files.config;
    let mut settings = (method.from_peft)(&config)?;
    settings.retain(|_, value| !value.is_null());
    let task_type = config.get("task_type").and_then(Value::as_str);
    Ok(Described {
        method: method.name,
        settings,
        is_classifier: ["SEQ_CLS", "TOKEN_CLS"].map(Some).contains(&task_type),
        labels_tokens: task_type == Some("TOKEN_CLS"),
        head: files.extra.and_then(|extra| extra.head),
        base_model: base_model(folder),
    })
}

/// Reads an adapter folder for the backbone that `context` describes.
///
/// Every tensor must be there, have its shape, and be expected; `allow_partial` accepts missing and
/// unexpected ones and returns the report.
///
/// # Errors
/// Unsupported methods or variants, files that do not fit the model, values that are not finite.
pub fn load(
    folder: &Path,
    context: &BuildContext<'_>,
    allow_partial: bool,
) -> Result<(LoadedAdapter, LoadReport), AdaptError> {
    let files = Files::read(folder)?;
    let method = method_of(&files)?;
    files.load(folder, method, context, allow_partial)
}

#[cfg(test)]
mod tests;
