//! Adapter folders in the layout of Hugging Face `peft`: `adapter_config.json` +
//! `adapter_model.safetensors`.
//!
//! What `peft` has no field for (class names, pooling, the method's name) stands in `frugal.json`
//! beside them, so that Python readers see nothing unknown.

use std::path::{Path, PathBuf};

use burn::tensor::TensorData;
use frugal_core::fs::write_atomic;
use frugal_formats::safetensors::LoadReport;
use frugal_models::LoadOptions;
use frugal_models::load::{SafetensorsFile, read_json};
use frugal_models::save::{Stored, StoredType, write_safetensors};
use frugal_nn::{
    AdaptError, Adapter, BackboneInfo, BuildContext, Head, HeadConfig, LoadedAdapter, Operation,
    Parameter, Pooling, SiteTable,
};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::method::{Family, Method};
use crate::overlay::Overlay;
use crate::peft_read::{Beside, Stray, check_task, is_bare, stray, with_prefix, without_prefix};
use crate::settings::Settings;
use crate::{peft_fused, peft_support, registry};

/// Settings file of an adapter.
pub const CONFIG_FILE: &str = "adapter_config.json";
/// Tensors of an adapter.
pub const WEIGHTS_FILE: &str = "adapter_model.safetensors";
/// What `peft` has no field for.
pub const EXTRA_FILE: &str = "frugal.json";

/// Written as `peft_version`: the version whose format this is.
const PEFT_VERSION: &str = "0.21.2";

/// Types whose configuration has no `modules_to_save`: `peft` does not keep a classification head
/// with them.
const WITHOUT_MODULES_TO_SAVE: [&str; 1] = ["TRAINABLE_TOKENS"];

#[derive(Serialize, Deserialize)]
struct Extra {
    method: String,
    version: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    head: Option<HeadConfig>,
    /// Why `peft` does not read the folder though it has the method.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    not_in_peft: Option<String>,
}

/// How an adapter's tensors are called in its file.
struct Keys<'a> {
    method: &'a Method,
    /// What bare base models leave out of paths.
    base_prefix: &'a str,
    bare: bool,
}

impl Keys<'_> {
    fn parameter(&self, name: &str) -> String {
        // Prompts have no prefix; what the layers share stands above the model and has its own.
        if self.method.family == Family::Prompt || name.starts_with("base_model.") {
            return name.into();
        }
        let name = if self.bare {
            name.strip_prefix(self.base_prefix).unwrap_or(name)
        } else {
            name
        };
        format!("base_model.model.{name}")
    }

    fn head(&self, name: &str) -> String {
        // Prompt methods wrap the model once less.
        if self.method.family == Family::Prompt {
            format!("base_model.{name}")
        } else {
            format!("base_model.model.{name}")
        }
    }
}

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
        let names = std::iter::once(p.name()).chain(p.second_name());
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
        return Stored::whole_numbers(
            parameter.shape(),
            parameter.to_vec().into_iter().map(|v| v as i32).collect(),
        );
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
    let (config, method) = read_config(folder)?;
    let settings = settings(method, &config, sites, None)?.0;
    method.load_options(&settings, sites, None, options)
}

/// Refuses an operation that the settings of the adapter in `folder` do not allow, before any
/// weight is read.
///
/// # Errors
/// [`AdaptError::Unsupported`] for such an adapter, or when the folder's configuration cannot be
/// read.
pub fn allow(folder: &Path, operation: Operation) -> Result<(), AdaptError> {
    let (config, method) = read_config(folder)?;
    method.allow(&config, operation)
}

/// The method's settings in a file, as far as they speak of this model, and what the file trains
/// beside it. `bare` is the model where the file was made for one without its prefix.
fn settings(
    method: &Method,
    config: &Settings,
    sites: &SiteTable,
    bare: Option<&BackboneInfo>,
) -> Result<(Settings, Beside), AdaptError> {
    let mut config = config.clone();
    let mut beside = Beside::take(method, &mut config);
    let mut settings = (method.from_peft)(&config)?;
    if let Some(model) = bare {
        settings = with_prefix(settings, model);
    }
    beside.exclude(method, &mut settings, sites);
    let mut settings = crate::target::for_model(settings, sites);
    beside.without_biases(&mut settings, sites);
    Ok((settings, beside))
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

/// The configuration of an adapter folder, and whose it is.
fn read_config(folder: &Path) -> Result<(Settings, &'static Method), AdaptError> {
    let path = folder.join(CONFIG_FILE);
    let bad = |path: &Path, reason: String| AdaptError::Folder {
        path: path.to_owned(),
        reason,
    };
    if !path.exists() {
        return Err(bad(
            folder,
            format!("no `{CONFIG_FILE}` there: this is not an adapter folder"),
        ));
    }
    let Value::Object(config) = read_json(&path).map_err(frugal_nn::ModelError::from)? else {
        return Err(bad(&path, "expected a JSON object".into()));
    };
    let peft_type = config
        .get("peft_type")
        .and_then(Value::as_str)
        .ok_or_else(|| bad(&path, "the key `peft_type` is missing".into()))?;
    check_task(&config, None, &path)?;
    let method = match read_extra(&folder.join(EXTRA_FILE))? {
        Some(extra) => registry::find(&extra.method)?,
        None => registry::find_peft(peft_type, &config)?,
    };
    // What more is adapted than these settings say shows in the weights.
    let weights = folder.join(WEIGHTS_FILE);
    let more = config.get("target_parameters").is_some_and(Value::is_array)
        || config.get("ensure_weight_tying") == Some(&json!(true));
    if !more || !weights.exists() {
        return Ok((config, method));
    }
    let file = SafetensorsFile::open(&weights).map_err(frugal_nn::ModelError::from)?;
    let names = file.names();
    let config = peft_fused::with_maps(config, &names)?;
    Ok((peft_fused::with_tied_head(config, &names), method))
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
    /// Whether it is for classification.
    pub is_classifier: bool,
    /// The model that it was made for.
    pub base_model: Option<String>,
}

/// Reads what an adapter is.
///
/// # Errors
/// A folder without configuration, unsupported methods or variants.
pub fn describe(folder: &Path) -> Result<Described, AdaptError> {
    let (config, method) = read_config(folder)?;
    let mut settings = (method.from_peft)(&config)?;
    settings.retain(|_, value| !value.is_null());
    Ok(Described {
        method: method.name,
        settings,
        is_classifier: config.get("task_type").and_then(Value::as_str) == Some("SEQ_CLS"),
        head: read_extra(&folder.join(EXTRA_FILE))?.and_then(|extra| extra.head),
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
    let bad = |path: &Path, reason: String| AdaptError::Folder {
        path: path.to_owned(),
        reason,
    };
    let (config, method) = read_config(folder)?;
    let weights_path = folder.join(WEIGHTS_FILE);
    if !weights_path.exists() {
        let reason = if folder.join("adapter_model.bin").exists() {
            "only `adapter_model.bin` is there, a Python pickle, which is not read: save it again with `safe_serialization=True`".into()
        } else {
            format!("`{WEIGHTS_FILE}` is missing")
        };
        return Err(bad(folder, reason));
    }
    let extra = read_extra(&folder.join(EXTRA_FILE))?;
    let file = SafetensorsFile::open(&weights_path).map_err(frugal_nn::ModelError::from)?;
    let file = peft_fused::split(&file, &weights_path, context.info)?.unwrap_or(file);
    check_task(&config, Some(context.info), &folder.join(CONFIG_FILE))?;
    let names = file.names();
    let bare = is_bare(&names, context.info, context.sites);
    let (settings, beside) =
        settings(method, &config, context.sites, bare.then_some(context.info))?;
    let adapter = method.make(&settings, context)?;
    let wanted = beside.wanted(method, adapter.as_ref(), context, (&names, bare))?;
    let adapter: Box<dyn Adapter> = if wanted.is_empty() {
        adapter
    } else {
        Box::new(Overlay::new(adapter, wanted, context)?)
    };
    let head = head_for(&file, extra.and_then(|e| e.head), method, context)?;
    let mut entry = LoadedAdapter { adapter, head };
    let report = fill(
        &mut entry,
        &file,
        &weights_path,
        (method, bare),
        context,
        allow_partial,
    )?;
    Ok((entry, report))
}

fn read_extra(path: &Path) -> Result<Option<Extra>, AdaptError> {
    if !path.exists() {
        return Ok(None);
    }
    let value = read_json(path).map_err(frugal_nn::ModelError::from)?;
    serde_json::from_value(value)
        .map(Some)
        .map_err(|e| AdaptError::Folder {
            path: path.into(),
            reason: e.to_string(),
        })
}

/// The classification head that the file holds, with names from `frugal.json`, the base's
/// `id2label`, or numbers.
fn head_for(
    file: &SafetensorsFile,
    known: Option<HeadConfig>,
    method: &Method,
    context: &BuildContext<'_>,
) -> Result<Option<Head>, AdaptError> {
    let keys = Keys {
        method,
        base_prefix: "",
        bare: false,
    };
    let outputs = [
        "score.weight",
        "classifier.weight",
        "classifier.out_proj.weight",
    ];
    let Some(shape) = outputs.iter().find_map(|name| file.shape(&keys.head(name))) else {
        return Ok(None);
    };
    let rows = shape.first().copied().unwrap_or(0);
    let labels = || -> Vec<String> {
        let names = context.info.raw.get("id2label");
        let name = |i: usize| {
            names
                .and_then(|n| n.get(i.to_string()))
                .and_then(Value::as_str)
                .map_or_else(|| format!("LABEL_{i}"), str::to_owned)
        };
        (0..rows).map(name).collect()
    };
    let config = known
        .filter(|k| k.labels.len() == rows)
        .unwrap_or_else(|| HeadConfig {
            labels: labels(),
            pooling: Pooling::default_for(context.info),
        });
    Ok(Some(Head::new(
        config,
        context.info,
        &context.device,
        context.seed,
    )))
}

fn fill(
    entry: &mut LoadedAdapter,
    file: &SafetensorsFile,
    path: &Path,
    (method, bare): (&Method, bool),
    context: &BuildContext<'_>,
    allow_partial: bool,
) -> Result<LoadReport, AdaptError> {
    let keys = Keys {
        method,
        base_prefix: context.info.base_prefix,
        bare,
    };
    let mut unused: Vec<String> = file.names();
    let mut report = LoadReport::default();
    let adapter = entry
        .adapter
        .parameters_mut()
        .into_iter()
        .map(|p| (keys.parameter(p.name()), p));
    let head = entry
        .head
        .iter_mut()
        .flat_map(Head::parameters_mut)
        .map(|p| (keys.head(p.name()), p));
    for (key, parameter) in adapter.chain(head) {
        report.expected.push(key.clone());
        // The second copy of what is tied must be like the first.
        if let Some(second) = parameter.second_name().map(|name| keys.parameter(name))
            && file.shape(&second).is_some()
            && file.shape(&key).is_some()
            && file
                .tensor(&second)?
                .iter::<f32>()
                .eq(file.tensor(&key)?.iter::<f32>())
        {
            unused.retain(|name| *name != second);
        }
        match file.shape(&key) {
            None => report.missing.push(key.clone()),
            Some(shape) if shape != parameter.shape() => {
                report
                    .mis_shaped
                    .push((key.clone(), parameter.shape().to_vec(), shape))
            }
            Some(_) => {
                let values = finite(&key, path, file.tensor(&key)?)?;
                check_indices(&key, path, parameter, &values)?;
                parameter.set(values);
            }
        }
        unused.retain(|name| *name != key);
    }
    for key in unused {
        match stray(&key, file, context, bare)? {
            Stray::Same => {}
            Stray::Rounded => report.rounded.push(key),
            Stray::Differs => {
                return Err(AdaptError::Folder {
                    path: path.into(),
                    reason: format!(
                        "`{key}` is a copy of the model's own weight, but differs from it: the adapter was trained on other \
                         weights, or with a table of another size; give the model that it was trained on"
                    ),
                });
            }
            Stray::Unknown => report.unexpected.push(key),
        }
    }
    let usable = report.mis_shaped.is_empty() && (allow_partial || report.is_exact());
    if usable {
        Ok(report)
    } else {
        Err(AdaptError::Tensors {
            path: path.into(),
            report: Box::new(report),
        })
    }
}

fn check_indices(
    key: &str,
    path: &Path,
    parameter: &Parameter,
    values: &[f32],
) -> Result<(), AdaptError> {
    let Some((value, limit)) = parameter.outside(values) else {
        return Ok(());
    };
    Err(AdaptError::Folder {
        path: path.into(),
        reason: format!(
            "`{key}` holds the index {value}, which is not a whole number from 0 to {}: the adapter is damaged or of another model",
            limit.saturating_sub(1)
        ),
    })
}

fn finite(key: &str, path: &Path, data: TensorData) -> Result<Vec<f32>, AdaptError> {
    let values: Vec<f32> = data.iter::<f32>().collect();
    match values.iter().position(|v| !v.is_finite()) {
        None => Ok(values),
        Some(i) => Err(AdaptError::Folder {
            path: PathBuf::from(path),
            reason: format!(
                "`{key}`: element {i} is {}: the adapter is damaged",
                values[i]
            ),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_card_counts_the_head_and_names_what_can_load_it() {
        let of =
            |method: &str, head| card(registry::find(method).unwrap(), "base", (10, head), None);
        let lora = of("lora", 4);
        assert!(
            lora.contains("library_name: peft") && lora.contains("PeftModel.from_pretrained"),
            "{lora}"
        );
        assert!(
            lora.contains(" 14 trained parameters, 4 of them in the classification head. "),
            "{lora}"
        );
        let own = of("houlsby", 0);
        assert!(
            !own.contains("library_name")
                && !own.contains("PeftModel")
                && own.contains(" 10 trained parameters. "),
            "{own}"
        );
        assert!(
            [&lora, &own]
                .iter()
                .all(|card| card.contains("`frugal eval --adapter DIR`"))
        );
    }
}
