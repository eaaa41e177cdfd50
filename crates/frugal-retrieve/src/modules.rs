//! The folder of a sentence-transformers model: `modules.json` and what it names.

use std::collections::BTreeMap;
use std::path::Path;

use frugal_index::Metric;
use frugal_models::load::{SafetensorsFile, read_json};
use serde_json::Value;

use crate::RetrieveError;
use crate::pooling::SentencePooling;
use crate::prompt::Prompt;

/// What is done to pooled vectors by a `Dense` module: `f(x Wᵀ + b)`.
#[derive(Clone, Debug, PartialEq)]
pub struct DenseModule {
    /// `[out_features, in_features]`, by rows.
    pub weight: Vec<f32>,
    /// `[out_features]`.
    pub bias: Option<Vec<f32>>,
    /// Features in.
    pub in_features: usize,
    /// Features out.
    pub out_features: usize,
    /// `f`.
    pub activation: Activation,
}

/// Functions between a `Dense` module and the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// The value itself.
    Identity,
    /// Hyperbolic tangent.
    Tanh,
    /// `max(x, 0)`.
    Relu,
    /// `1 / (1 + e⁻ˣ)`.
    Sigmoid,
    /// GELU with the error function.
    Gelu,
}

/// What comes behind the transformer, and how texts are given to it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Modules {
    /// Pooling.
    pub pooling: SentencePooling,
    /// Layers over the pooled vectors, in order.
    pub dense: Vec<DenseModule>,
    /// Whether vectors have length 1.
    pub normalize: bool,
    /// Most tokens of a text.
    pub max_seq_length: Option<usize>,
    /// Whether texts are written in small letters first.
    pub do_lower_case: bool,
    /// Texts that go before a text, by name.
    pub prompts: BTreeMap<String, String>,
    /// The prompt that is used without being asked for.
    pub default_prompt_name: Option<String>,
    /// Whether the folder says all this, or it is what sentence-transformers assumes.
    pub found: bool,
}

/// Beside the modules: prompts, and to how many dimensions vectors are cut.
const SETTINGS: &str = "config_sentence_transformers.json";

/// What is asked of the transformer, and which of its outputs goes on: by an encoder of vectors, and
/// by a sparse one.
const HIDDEN_STATES: [&str; 2] = ["feature-extraction", "last_hidden_state"];
const LOGITS: [&str; 2] = ["fill-mask", "logits"];

fn wrong(path: &Path, reason: impl Into<String>) -> RetrieveError {
    RetrieveError::Module {
        path: path.into(),
        reason: reason.into(),
    }
}

/// Whether a path of a module stays in the model's folder.
pub(crate) fn is_inside(path: &str) -> bool {
    let mut parts = Path::new(path).components();
    parts.all(|part| matches!(part, std::path::Component::Normal(_)))
}

/// `truncate_dim` of the folder of a sentence-transformers model.
///
/// # Errors
/// A file that cannot be read; what is no number above 0.
pub(crate) fn truncate_dim(folder: &Path) -> Result<Option<usize>, RetrieveError> {
    let path = folder.join(SETTINGS);
    if !path.is_file() {
        return Ok(None);
    }
    let settings = read_json(&path)?;
    let Some(value) = settings.get("truncate_dim").filter(|v| !v.is_null()) else {
        return Ok(None);
    };
    let dim = value.as_u64().filter(|dim| *dim > 0);
    let dim = dim.and_then(|dim| usize::try_from(dim).ok());
    let refused = || {
        let reason = format!("`truncate_dim` is {value}, which is no number of dimensions");
        wrong(&path, reason)
    };
    dim.map(Some).ok_or_else(refused)
}

/// `similarity_fn_name` of the folder of a sentence-transformers model: how its vectors are to be
/// compared, the cosine where nothing is said.
///
/// # Errors
/// A file that cannot be read; functions by which no index compares, by name.
pub(crate) fn similarity(folder: &Path) -> Result<Metric, RetrieveError> {
    let path = folder.join(SETTINGS);
    if !path.is_file() {
        return Ok(Metric::Cosine);
    }
    let settings = read_json(&path)?;
    match settings.get("similarity_fn_name") {
        None | Some(Value::Null) => Ok(Metric::Cosine),
        Some(Value::String(name)) if name == "cosine" => Ok(Metric::Cosine),
        Some(Value::String(name)) if name == "dot" => Ok(Metric::Ip),
        Some(value) => {
            let reason = format!(
                "`similarity_fn_name` is {value}: an index compares vectors by `cosine` or `dot`"
            );
            Err(wrong(&path, reason))
        }
    }
}

impl Modules {
    /// Reads the folder of a model; one without `modules.json` is pooled by the mean of its tokens.
    ///
    /// # Errors
    /// Modules, keys and functions that are not computed here, by name; damaged files.
    pub fn read(folder: &Path) -> Result<Self, RetrieveError> {
        let path = folder.join("modules.json");
        let mut found = Self::default();
        if !path.is_file() {
            return Ok(found);
        }
        found.found = true;
        let Value::Array(modules) = read_json(&path)? else {
            return Err(wrong(&path, "not a list of modules"));
        };
        let mut pooled = false;
        for (i, module) in modules.iter().enumerate() {
            let text = |key: &str| module.get(key).and_then(Value::as_str);
            let Some(kind) = text("type") else {
                return Err(wrong(&path, format!("module {i} has no `type`")));
            };
            let inside = text("path").unwrap_or_default();
            if !is_inside(inside) {
                return Err(wrong(&path, format!("`path` {inside:?} leads elsewhere")));
            }
            let inside = folder.join(inside);
            let name = kind.rsplit('.').next().unwrap_or(kind);
            match (name, i, pooled) {
                ("Transformer", 0, _) => found.read_transformer(&inside, HIDDEN_STATES)?,
                ("Pooling", 1.., false) => {
                    let config = inside.join("config.json");
                    found.pooling = SentencePooling::read(&config, &read_json(&config)?)?;
                    pooled = true;
                }
                ("Dense", _, true) if !found.normalize => {
                    found.dense.push(DenseModule::read(&inside)?);
                }
                ("Normalize", _, true) => found.normalize = true,
                ("Dropout", _, _) => {}
                ("SpladePooling", ..) => {
                    let reason = "module `SpladePooling` makes weights of words, not vectors: `frugal embed --sparse` computes them";
                    return Err(wrong(&path, reason));
                }
                _ => {
                    let reason = format!(
                        "module {i} is `{kind}`: Transformer, Pooling, Dense and Normalize are computed, in this order"
                    );
                    return Err(wrong(&path, reason));
                }
            }
        }
        if !pooled {
            return Err(wrong(&path, "no Pooling module follows the transformer"));
        }
        found.read_prompts(&folder.join(SETTINGS))?;
        Ok(found)
    }

    /// What the folder of a sparse encoder, and that of its transformer, say about texts.
    ///
    /// # Errors
    /// As [`Modules::read`].
    pub(crate) fn of_masked_model(
        folder: &Path,
        transformer: &Path,
    ) -> Result<Self, RetrieveError> {
        let mut found = Self {
            found: true,
            ..Self::default()
        };
        found.read_transformer(transformer, LOGITS)?;
        found.read_prompts(&folder.join(SETTINGS))?;
        Ok(found)
    }

    fn read_transformer(
        &mut self,
        folder: &Path,
        [task, output]: [&str; 2],
    ) -> Result<(), RetrieveError> {
        let path = folder.join("sentence_bert_config.json");
        if !path.is_file() {
            return Ok(());
        }
        let Value::Object(config) = read_json(&path)? else {
            return Err(wrong(&path, "not an object"));
        };
        for (key, value) in &config {
            let refused = || {
                Err(wrong(
                    &path,
                    format!("`{key} = {value}` is not computed here"),
                ))
            };
            match (key.as_str(), value) {
                (_, Value::Null) => {}
                ("max_seq_length", _) => match value.as_u64().filter(|n| *n > 0) {
                    Some(length) => self.max_seq_length = usize::try_from(length).ok(),
                    None => return refused(),
                },
                ("do_lower_case", Value::Bool(lower)) => self.do_lower_case = *lower,
                ("transformer_task", Value::String(found)) if found == task => {}
                ("transformer_task", Value::String(found)) if found == "fill-mask" => {
                    let reason = "`transformer_task = \"fill-mask\"` is that of weights of words, not of vectors: `frugal embed --sparse` computes them";
                    return Err(wrong(&path, reason));
                }
                ("module_output_name", Value::String(name)) if name == "token_embeddings" => {}
                ("modality_config", Value::Object(kinds)) => {
                    let of = |key: &str| kinds.get("text").and_then(|text| text.get(key)?.as_str());
                    let found = of("method_output_name").unwrap_or(HIDDEN_STATES[1]);
                    if of("method") != Some("forward") || found != output {
                        return refused();
                    }
                }
                // They say how, not what is computed.
                ("unpad_inputs", Value::Bool(_)) => {}
                ("processing_kwargs", Value::Object(settings)) if settings.is_empty() => {}
                _ => return refused(),
            }
        }
        Ok(())
    }

    fn read_prompts(&mut self, path: &Path) -> Result<(), RetrieveError> {
        if !path.is_file() {
            return Ok(());
        }
        let config = read_json(path)?;
        if let Some(Value::Object(prompts)) = config.get("prompts") {
            for (name, prompt) in prompts {
                let Some(prompt) = prompt.as_str() else {
                    return Err(wrong(path, format!("prompt {name:?} is not a text")));
                };
                self.prompts.insert(name.clone(), prompt.into());
            }
        }
        let default = config.get("default_prompt_name").and_then(Value::as_str);
        if let Some(name) = default {
            if !self.prompts.contains_key(name) {
                let reason = format!("`default_prompt_name` {name:?} is not among its prompts");
                return Err(wrong(path, reason));
            }
            self.default_prompt_name = Some(name.into());
        }
        Ok(())
    }

    /// The text that goes before each text.
    ///
    /// # Errors
    /// [`RetrieveError::UnknownPrompt`].
    pub fn prompt<'a>(&'a self, prompt: &'a Prompt) -> Result<&'a str, RetrieveError> {
        let named = |name: &str| {
            let found = self.prompts.get(name).map(String::as_str);
            found.ok_or_else(|| RetrieveError::UnknownPrompt {
                name: name.into(),
                known: match self.prompts.len() {
                    0 => "none".into(),
                    _ => self.prompts.keys().cloned().collect::<Vec<_>>().join(", "),
                },
            })
        };
        match prompt {
            Prompt::Default => self.default_prompt_name.as_deref().map_or(Ok(""), named),
            Prompt::None => Ok(""),
            Prompt::Named(name) => named(name),
            Prompt::Text(text) => Ok(text),
        }
    }

    /// Width of the vectors over a model of this width.
    pub fn dimension(&self, hidden_size: usize) -> usize {
        let pooled = hidden_size * self.pooling.modes.len();
        self.dense.last().map_or(pooled, |dense| dense.out_features)
    }
}

impl DenseModule {
    fn read(folder: &Path) -> Result<Self, RetrieveError> {
        let path = folder.join("config.json");
        let config = read_json(&path)?;
        let size = |key: &str| {
            let value = config.get(key).and_then(Value::as_u64);
            let value = value.filter(|n| (1..=1 << 20).contains(n));
            value
                .map(|n| n as usize)
                .ok_or_else(|| wrong(&path, format!("`{key}` is missing or not a width")))
        };
        let (in_features, out_features) = (size("in_features")?, size("out_features")?);
        for key in ["module_input_name", "module_output_name"] {
            let name = config.get(key).filter(|name| !name.is_null());
            if let Some(name) = name.filter(|name| *name != "sentence_embedding") {
                return Err(wrong(
                    &path,
                    format!("`{key} = {name}` is not computed here"),
                ));
            }
        }
        let bias = match config.get("bias") {
            None => true,
            Some(Value::Bool(bias)) => *bias,
            Some(value) => return Err(wrong(&path, format!("`bias = {value}`"))),
        };
        let name = match config.get("activation_function") {
            None => "torch.nn.modules.activation.Tanh",
            Some(Value::String(name)) => name,
            Some(value) => {
                return Err(wrong(&path, format!("`activation_function = {value}`")));
            }
        };
        let activation = match name.rsplit('.').next().unwrap_or(name) {
            "Identity" => Activation::Identity,
            "Tanh" => Activation::Tanh,
            "ReLU" => Activation::Relu,
            "Sigmoid" => Activation::Sigmoid,
            "GELU" => Activation::Gelu,
            _ => {
                let reason = format!(
                    "`activation_function` {name:?} is none of Identity, Tanh, ReLU, Sigmoid, GELU"
                );
                return Err(wrong(&path, reason));
            }
        };
        let path = folder.join("model.safetensors");
        let file = SafetensorsFile::open(&path)?;
        let tensor = |name: &str, shape: &[usize]| -> Result<Vec<f32>, RetrieveError> {
            match file.shape(name) {
                Some(found) if found == shape => {}
                Some(found) => {
                    let reason = format!("`{name}` has the shape {found:?}, wanted is {shape:?}");
                    return Err(wrong(&path, reason));
                }
                None => return Err(wrong(&path, format!("`{name}` is missing"))),
            }
            let data = file.tensor(name)?.convert::<f32>();
            data.try_into_vec::<f32>()
                .map_err(|e| wrong(&path, format!("`{name}`: {e:?}")))
        };
        Ok(Self {
            weight: tensor("linear.weight", &[out_features, in_features])?,
            bias: bias
                .then(|| tensor("linear.bias", &[out_features]))
                .transpose()?,
            in_features,
            out_features,
            activation,
        })
    }
}
