//! A folder of an adapter whose method is known: its files, and how its tensors are read.

use std::path::{Path, PathBuf};

use burn::tensor::TensorData;
use frugal_core::label_names::label_names;
use frugal_formats::safetensors::LoadReport;
use frugal_models::load::{SafetensorsFile, read_json};
use frugal_nn::{
    AdaptError, Adapter, BackboneInfo, BuildContext, Head, HeadConfig, LoadedAdapter, ModelError,
    Parameter, Pooling, ProblemType, SiteTable,
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::method::{Family, Method};
use crate::overlay::Overlay;
use crate::peft_fused;
use crate::peft_read::{
    Beside, Stray, check_modules, check_task, is_bare, labels_tokens, stray, with_prefix,
};
use crate::settings::Settings;

/// Settings file of an adapter.
pub const CONFIG_FILE: &str = "adapter_config.json";
/// Tensors of an adapter.
pub const WEIGHTS_FILE: &str = "adapter_model.safetensors";
/// What `peft` has no field for.
pub const EXTRA_FILE: &str = "frugal.json";

/// The tensors of a prompt.
const PROMPT: [&str; 3] = ["prompt_embeddings", "prefix_task_cols", "prefix_task_rows"];

/// What `frugal.json` holds.
#[derive(Serialize, Deserialize)]
pub(crate) struct Extra {
    pub method: String,
    pub version: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub head: Option<HeadConfig>,
    /// Why `peft` does not read the folder though it has the method.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_in_peft: Option<String>,
}

/// Whether paths in files lack a level: `peft` wraps models for prompts itself, and for other methods by
/// a tuner, of which the prompts of single blocks have one too.
fn wraps_once_less(method: &Method) -> bool {
    method.family == Family::Prompt && method.peft_type != "ADAPTION_PROMPT"
}

/// How an adapter's tensors are called in its file.
pub(crate) struct Keys<'a> {
    pub method: &'a Method,
    /// What bare base models leave out of paths.
    pub base_prefix: &'a str,
    pub bare: bool,
}

impl Keys<'_> {
    pub fn parameter(&self, name: &str) -> String {
        // Prompts have no prefix; what the layers share stands above the model and has its own.
        let is_prompt = self.method.family == Family::Prompt && PROMPT.contains(&name);
        if is_prompt || name.starts_with("base_model.") {
            return name.into();
        }
        let name = if self.bare {
            name.strip_prefix(self.base_prefix).unwrap_or(name)
        } else {
            name
        };
        // What is trained of the model itself.
        self.head(name)
    }

    pub fn head(&self, name: &str) -> String {
        if wraps_once_less(self.method) {
            format!("base_model.{name}")
        } else {
            format!("base_model.model.{name}")
        }
    }
}

/// What the files of a folder say before its method is known.
pub(crate) struct Files {
    /// `adapter_config.json`.
    pub config: Settings,
    /// Its `peft_type`.
    pub peft_type: String,
    /// `frugal.json`, if this program wrote the folder.
    pub extra: Option<Extra>,
}

impl Files {
    /// Reads the configuration of an adapter folder.
    ///
    /// # Errors
    /// A folder without configuration, or with one of a task that is not supported.
    pub fn read(folder: &Path) -> Result<Self, AdaptError> {
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
            .ok_or_else(|| bad(&path, "the key `peft_type` is missing".into()))?
            .to_owned();
        check_task(&config, None, &path)?;
        check_modules(&config, &path)?;
        Ok(Self {
            config: with_what_weights_say(config, folder)?,
            peft_type,
            extra: read_extra(&folder.join(EXTRA_FILE))?,
        })
    }

    /// The method's settings in these files, as far as they speak of this model, and what they
    /// train beside it. `bare` is the model where they were made for one without its prefix.
    pub fn settings(
        &self,
        method: &Method,
        sites: &SiteTable,
        bare: Option<&BackboneInfo>,
    ) -> Result<(Settings, Beside), AdaptError> {
        let mut config = self.config.clone();
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

    /// Reads the adapter, which is of this method, for the backbone that `context` describes; see
    /// [`load`](crate::peft::load).
    ///
    /// # Errors
    /// Variants that are not supported, files that do not fit the model, values that are not finite.
    pub fn load(
        self,
        folder: &Path,
        method: &Method,
        context: &BuildContext<'_>,
        allow_partial: bool,
    ) -> Result<(LoadedAdapter, LoadReport), AdaptError> {
        let bad = |path: &Path, reason: String| AdaptError::Folder {
            path: path.to_owned(),
            reason,
        };
        let weights_path = folder.join(WEIGHTS_FILE);
        if !weights_path.exists() {
            let reason = if folder.join("adapter_model.bin").exists() {
                "only `adapter_model.bin` is there, a Python pickle, which is not read: save it again with `safe_serialization=True`".into()
            } else {
                format!("`{WEIGHTS_FILE}` is missing")
            };
            return Err(bad(folder, reason));
        }
        let file = SafetensorsFile::open(&weights_path).map_err(frugal_nn::ModelError::from)?;
        let file = peft_fused::split(&file, &weights_path, context.info)?.unwrap_or(file);
        check_task(&self.config, Some(context.info), &folder.join(CONFIG_FILE))?;
        let names = file.names();
        // Names do not tell where a level is missing.
        let bare = match wraps_once_less(method) {
            true => self.config.get("task_type") == Some(&json!("FEATURE_EXTRACTION")),
            false => is_bare(&names, context.info, context.sites),
        };
        let (settings, beside) =
            self.settings(method, context.sites, bare.then_some(context.info))?;
        // What a new adapter would form of the weights is replaced by what the file holds.
        let rule = &method.file_rule;
        let adapter = match rule.hold_what_follows_from_weights {
            true => method.make(&settings, &without_weights(context))?,
            false => method.make(&settings, context)?,
        };
        if method.family == Family::Prompt {
            check_model_sizes(method, &self.config, &adapter.peft_config())?;
        }
        let wanted = beside.wanted(method, adapter.as_ref(), context, (&names, bare))?;
        let adapter: Box<dyn Adapter> = if wanted.is_empty() {
            adapter
        } else {
            Box::new(Overlay::new(adapter, wanted, context)?)
        };
        let known = self.extra.and_then(|e| e.head);
        let tokens = labels_tokens(&self.config, context.info);
        let head = head_for(&file, known, (method, tokens), context)?;
        let mut entry = LoadedAdapter { adapter, head };
        let report = fill(
            &mut entry,
            &file,
            &weights_path,
            (method, bare),
            context,
            allow_partial,
        );
        let report = report.map_err(|error| match &error {
            AdaptError::Tensors { path, report } => match (rule.misfit)(report) {
                Some(reason) => AdaptError::Folder {
                    path: path.clone(),
                    reason,
                },
                None => error,
            },
            _ => error,
        })?;
        (rule.check)(entry.adapter.as_ref())?;
        Ok((entry, report))
    }
}

fn without_weights<'a>(context: &BuildContext<'a>) -> BuildContext<'a> {
    BuildContext {
        backbone: None,
        device: context.device.clone(),
        ..*context
    }
}

/// Sizes of the model that the files of prompts state must be those of this model, as `own` has
/// them.
fn check_model_sizes(method: &Method, config: &Settings, own: &Settings) -> Result<(), AdaptError> {
    for field in ["token_dim", "num_layers", "num_attention_heads"] {
        let given = config.get(field).filter(|value| !value.is_null());
        if let (Some(given), Some(own)) = (given, own.get(field))
            && given != own
        {
            return Err(AdaptError::Config {
                method: method.name,
                field,
                reason: format!(
                    "it is {given}, and {own} with this model: the adapter was made for another one"
                ),
            });
        }
    }
    Ok(())
}

/// What more is adapted than these settings say shows in the weights.
fn with_what_weights_say(config: Settings, folder: &Path) -> Result<Settings, AdaptError> {
    let weights = folder.join(WEIGHTS_FILE);
    if asks_for_factors(&config) && weights.exists() {
        let file = SafetensorsFile::open(&weights).map_err(frugal_nn::ModelError::from)?;
        return Ok(with_factors_of(config, &file));
    }
    let more = config.get("target_parameters").is_some_and(Value::is_array)
        || config.get("ensure_weight_tying") == Some(&Value::Bool(true));
    if !more || !weights.exists() {
        return Ok(config);
    }
    let file = SafetensorsFile::open(&weights).map_err(frugal_nn::ModelError::from)?;
    let names = file.names();
    let config = peft_fused::with_maps(config, &names)?;
    Ok(peft_fused::with_tied_head(config, &names))
}

const BOFT_FACTORS: &str = "boft_n_butterfly_factor";

fn asks_for_factors(config: &Settings) -> bool {
    config.get("peft_type").and_then(Value::as_str) == Some("BOFT")
        && config.get(BOFT_FACTORS).and_then(Value::as_u64) > Some(1)
}

/// Where its CUDA kernel is missing, `peft` trains and reads BOFT with one factor whatever the
/// configuration says, which it saves as it was.
fn with_factors_of(mut config: Settings, file: &SafetensorsFile) -> Settings {
    let names = file.names();
    let mut shapes = names
        .iter()
        .filter(|name| name.ends_with(".boft_R"))
        .filter_map(|name| file.shape(name))
        .peekable();
    if shapes.peek().is_some() && shapes.all(|shape| shape.first() == Some(&1)) {
        config.insert(BOFT_FACTORS.into(), json!(1));
    }
    config
}

pub(crate) fn read_extra(path: &Path) -> Result<Option<Extra>, AdaptError> {
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
    (method, labels_tokens): (&Method, bool),
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
    let labels = || {
        label_names(&context.info.raw, rows).map_err(|reason| ModelError::Config {
            source_name: "config.json".into(),
            key: "id2label".into(),
            reason,
        })
    };
    let named = context
        .info
        .raw
        .get("problem_type")
        .is_some_and(|p| !p.is_null());
    // The classes that label tokens do not look at `problem_type`.
    let problem_type = if named && !labels_tokens {
        ProblemType::of_config(&context.info.raw, rows).map_err(|reason| ModelError::Config {
            source_name: "config.json".into(),
            key: "problem_type".into(),
            reason,
        })?
    } else {
        ProblemType::SingleLabel
    };
    let config = match known.filter(|k| k.labels.len() == rows) {
        Some(known) => known,
        None => HeadConfig {
            labels: labels()?,
            pooling: match labels_tokens {
                true => Pooling::Tokens,
                false => Pooling::default_for(context.info),
            },
            problem_type,
        },
    };
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
        // Copies of what is tied must be like the first.
        for copy in parameter.further_names().map(|name| keys.parameter(name)) {
            if file.shape(&copy).is_some()
                && file.shape(&key).is_some()
                && file
                    .tensor(&copy)?
                    .iter::<f32>()
                    .eq(file.tensor(&key)?.iter::<f32>())
            {
                unused.retain(|name| *name != copy);
            }
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
