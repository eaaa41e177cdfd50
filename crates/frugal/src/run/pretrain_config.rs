//! What a pre-training run is: its configuration, and the model that it describes.

use std::path::PathBuf;

use frugal_core::suggest::did_you_mean;
use frugal_core::tokenizer::TextTokenizer;
use frugal_models::fresh::FreshSizes;
use frugal_models::save::StoredType;
use frugal_models::{ModelConfig, fresh_memory, initializer_range, registry};
use frugal_nn::ModelError;
use frugal_train::{Named, PRETRAINED_TO, ParamGroup, Scheduler, TrainConfig};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::decay_data::{self, DecayData};
use super::estimate::process_bytes;
use super::fit::available;
use super::pretrain_objective::named_mixture;
use super::{RunError, pretrain_memory};

/// Marks the end of a document.
pub(super) const END: &str = "<|endoftext|>";

/// The new model, a decoder with tied embeddings.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Shape {
    /// Which architecture: a `model_type` of which new models are made ([`architectures`]).
    pub arch: String,
    /// Tokens of the new tokenizer.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width of the feed-forward layer.
    pub intermediate_size: usize,
    /// Blocks.
    pub num_hidden_layers: usize,
    /// Query heads.
    pub num_attention_heads: usize,
    /// Key and value heads.
    pub num_key_value_heads: usize,
    /// Longest sequence.
    pub max_position_embeddings: usize,
    /// Of `llama`: how blocks attend.
    pub attention: AttentionKind,
    /// Further keys of the architecture's `config.json`.
    #[serde(flatten)]
    pub own: toml::Table,
}

/// What folders of earlier versions say of every model, and what is meant without it. The
/// architectures were `llama` and `mamba`.
const SAID_OF_ALL: [(&str, f64); 6] = [
    ("num_local_experts", 0.0),
    ("num_experts_per_tok", 2.0),
    ("router_aux_loss_coef", 0.01),
    ("state_size", 16.0),
    ("expand", 2.0),
    ("conv_kernel", 4.0),
];

fn number(value: &toml::Value) -> Option<f64> {
    let integer = value.as_integer().map(|n| n as f64);
    integer.or_else(|| value.as_float())
}

/// The architectures of which new models are made, with what they are.
pub fn architectures() -> impl Iterator<Item = (&'static str, &'static str)> {
    registry::FAMILIES
        .iter()
        .filter(|family| !family.reads_images())
        .filter_map(|family| Some((family.model_type, family.fresh?.about)))
}

/// Ways to attend.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AttentionKind {
    /// Keys and values for groups of heads: `num_key_value_heads` from 1 (multi-query) to the
    /// number of heads (multi-head).
    #[default]
    Grouped,
    /// Multi-head latent attention.
    Latent,
    /// Native sparse attention.
    Sparse,
}

impl Shape {
    /// Rows of a projection to queries that belong to one head.
    fn head_dim(&self) -> usize {
        let own = self.own.get("head_dim").and_then(toml::Value::as_integer);
        own.and_then(|rows| usize::try_from(rows).ok())
            .unwrap_or(self.hidden_size / self.num_attention_heads.max(1))
            .max(1)
    }
}

impl Default for Shape {
    fn default() -> Self {
        Self {
            arch: "llama".into(),
            vocab_size: 4096,
            hidden_size: 192,
            intermediate_size: 512,
            num_hidden_layers: 6,
            num_attention_heads: 6,
            num_key_value_heads: 2,
            max_position_embeddings: 1024,
            attention: AttentionKind::Grouped,
            own: toml::Table::new(),
        }
    }
}

/// A pre-training run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PretrainConfig {
    /// Text file; each line, or each block between blank lines, is a document.
    pub data: String,
    /// Model whose weights and tokenizer the run begins with, in place of new ones of `shape`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    /// Folder of a pre-training run that this one begins as a fork of: with the parameters, the
    /// optimizer's state and the place in the data of one of its checkpoints.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fork: Option<PathBuf>,
    /// The step of that checkpoint; 0 for the newest.
    #[serde(skip_serializing_if = "is_newest")]
    pub fork_step: u64,
    /// What is learnt from during the decay of `warmup_stable_decay`, beside the text.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub decay_data: Vec<DecayData>,
    /// Share of the documents held out to measure on.
    pub validation_share: f64,
    /// Longest piece of a document in tokens.
    pub max_length: usize,
    /// Output folder.
    pub out: PathBuf,
    /// Where to compute.
    pub device: String,
    /// Decides every random choice.
    pub seed: u64,
    /// Number format of the saved weights.
    pub dtype: StoredType,
    /// Sizes.
    pub shape: Shape,
    /// What the linear layers of the blocks are while they are trained, by its name in
    /// [`REPARAMETERIZATIONS`](frugal_adapt::pretraining::REPARAMETERIZATIONS), with settings of its
    /// own; plain weights where there is none.
    #[serde(skip_serializing_if = "Named::is_unset")]
    pub reparam: Named,
    /// What is learnt of the text: plain next tokens where there is none, or a mixture of objectives
    /// by its name in [`MIXTURES`](frugal_train::mixture::MIXTURES), with settings of its own.
    #[serde(skip_serializing_if = "Named::is_unset")]
    pub objective: Named,
    /// Training.
    pub train: TrainConfig,
}

fn is_newest(step: &u64) -> bool {
    *step == 0
}

impl Default for PretrainConfig {
    fn default() -> Self {
        Self {
            data: String::new(),
            from: None,
            fork: None,
            fork_step: 0,
            decay_data: Vec::new(),
            validation_share: 0.01,
            max_length: 256,
            out: PathBuf::new(),
            device: "cpu".into(),
            seed: 0,
            dtype: StoredType::F16,
            shape: Shape::default(),
            reparam: Named::default(),
            objective: Named::default(),
            train: TrainConfig {
                lr: 3e-3,
                epochs: 1.0,
                packing: true,
                max_tokens: 4096,
                weight_decay: 0.1,
                adam_beta2: 0.95,
                lr_scheduler_type: Scheduler::Cosine,
                warmup_ratio: 0.02,
                min_lr_ratio: PRETRAINED_TO,
                group_by_length: false,
                ..TrainConfig::default()
            },
        }
    }
}

impl PretrainConfig {
    /// Fills in what depends on other settings.
    pub fn resolve(&mut self) {
        self.train.seed = self.seed;
        self.shape.own = self.shape.meant();
        // The gate of forgetting of a Gated SSM does not decay (arXiv 2411.01030, section 3.1).
        if self.shape.arch == "gated_ssm"
            && self.from.is_none()
            && self.reparam.is_unset()
            && self.train.param_groups.is_empty()
        {
            self.train.param_groups.push(ParamGroup {
                pattern: "f_proj".into(),
                lr_scale: 1.0,
                weight_decay: Some(0.0),
            });
        }
        // A model says itself how wide its heads are.
        if self.from.is_none() {
            pretrain_memory::resolve(&mut self.train, &self.reparam, self.shape.head_dim());
        }
    }

    /// Checks values, not files: (dotted key, what is wrong).
    pub fn problems(&self) -> Vec<(String, String)> {
        let mut found = Vec::new();
        let mut add = |key: &str, reason: String| found.push((key.to_owned(), reason));
        if self.data.is_empty() {
            add("data", "no text: give `--data FILE`".into());
        }
        if self.out.as_os_str().is_empty() {
            add("out", "no output folder: give `--out DIR`".into());
        }
        if !(self.validation_share > 0.0 && self.validation_share < 1.0) {
            add(
                "validation_share",
                format!(
                    "{} given, but it must be above 0 and below 1",
                    self.validation_share
                ),
            );
        }
        let is_new = self.from.is_none();
        if self.fork.is_none() && self.fork_step > 0 {
            add(
                "fork_step",
                "there is no `fork` that it is a step of".into(),
            );
        }
        if !is_new && self.shape != Shape::default() {
            add(
                "shape",
                "a run from a model has the model's: leave it out, or `from`".into(),
            );
        }
        if !is_new && !self.reparam.is_unset() {
            let reason =
                "factors in place of a model's weights would lose these: leave it out, or `from`";
            add("reparam", reason.into());
        }
        if self.max_length < 2 || is_new && self.max_length > self.shape.max_position_embeddings {
            add(
                "max_length",
                format!(
                    "{} given, but it must be 2 to shape.max_position_embeddings",
                    self.max_length
                ),
            );
        }
        // The name of a file is in no error of a configuration that is not written yet.
        if is_new && let Err(error) = self.shape.config(None, self.dtype) {
            match error {
                ModelError::Config { key, reason, .. } => add(&format!("shape.{key}"), reason),
                other => add("shape", other.to_string()),
            }
        }
        if let Err((key, reason)) = named_mixture(&self.objective) {
            let key = if key.is_empty() {
                "objective".into()
            } else {
                format!("objective.{key}")
            };
            add(&key, reason);
        }
        if let Err(error) = crate::device::known(&self.device) {
            add("device", error.to_string());
        }
        let mut train = self.train.clone();
        pretrain_memory::resolve(&mut train, &Named::default(), self.shape.head_dim());
        let learns_more = self.fork.is_some() || !self.decay_data.is_empty();
        if learns_more && named_mixture(&self.objective).is_ok_and(|mixture| mixture.is_some()) {
            let reason = "forks and data of the decay learn the next token: leave `objective` out";
            add("objective", reason.into());
        }
        if self.fork.is_some() {
            train.lr_scheduler_type = Scheduler::WarmupStableDecay;
        }
        // How many examples there are is not known before the data are read.
        if !self.decay_data.is_empty() {
            train.decay_mixture =
                decay_data::mixture(&self.decay_data, 1, &vec![1; self.decay_data.len()]);
        }
        for problem in train.validate().err().into_iter().flatten() {
            add(&format!("train.{}", problem.field), problem.reason);
        }
        found.extend(pretrain_memory::problems(&self.reparam, &self.train));
        found.extend(decay_data::problems(&self.decay_data, &self.train));
        found
    }

    /// What is said of settings that change nothing.
    pub fn idle(&self) -> Vec<String> {
        if self.from.is_some() {
            return Vec::new();
        }
        let kind = self.shape.model_type().unwrap_or(&self.shape.arch);
        let idle = self.shape.idle().into_iter();
        idle.map(|key| format!("`shape.{key}` has no effect: `{kind}` models have no use for it"))
            .collect()
    }

    pub(super) fn model(&self, tokenizer: &TextTokenizer) -> Result<ModelConfig, RunError> {
        Ok(self.shape.config(tokenizer.id(END), self.dtype)?)
    }
}

impl Shape {
    /// The architecture's own keys, without those that say what is meant anyway.
    fn meant(&self) -> toml::Table {
        let mut keys = self.own.clone();
        if ["llama", "mamba"].contains(&self.arch.as_str()) {
            keys.retain(|key, value| {
                let said = (key, number(value).unwrap_or(f64::NAN));
                !SAID_OF_ALL.contains(&said)
            });
        }
        keys
    }

    /// The `model_type` that is meant.
    fn model_type(&self) -> Result<&str, ModelError> {
        let own = self.meant();
        let experts = own.get("num_local_experts").and_then(number);
        match (self.arch.as_str(), self.attention) {
            ("llama", AttentionKind::Latent) => Ok("deepseek_v3"),
            ("llama", AttentionKind::Sparse) => Ok("native_sparse"),
            ("llama", AttentionKind::Grouped) if experts.is_some() => Ok("mixtral"),
            (arch, AttentionKind::Grouped) => Ok(arch),
            (arch, _) => Err(refuse("attention", format!("`{arch}` has no choice of it"))),
        }
    }

    /// The keys of a model that reads images.
    pub(super) fn image_keys(&self) -> Result<serde_json::Value, ModelError> {
        let config = self.config(None, StoredType::F32)?;
        let mut raw = config.raw.clone();
        if let Some(keys) = raw.as_object_mut() {
            // Of tokens, which there are none of.
            for key in ["vocab_size", "bos_token_id", "eos_token_id", "pad_token_id"] {
                keys.remove(key);
            }
        }
        Ok(raw)
    }

    /// The configuration of the model; `end` is the token that begins, ends and pads.
    fn config(&self, end: Option<u32>, dtype: StoredType) -> Result<ModelConfig, ModelError> {
        let model_type = self.model_type()?;
        let Some(family) = registry::find(model_type).filter(|family| family.fresh.is_some())
        else {
            let names: Vec<&str> = architectures().map(|(name, _)| name).collect();
            let near = did_you_mean(model_type, names.iter().copied())
                .map_or(String::new(), |near| format!("; did you mean `{near}`?"));
            let reason = format!(
                "no new `{model_type}` models are made{near} (one of {})",
                names.join(", ")
            );
            return Err(refuse("arch", reason));
        };
        let (sizes, own) = (self.sizes(), self.own_keys()?);
        let mut raw = family.fresh_config(&sizes, &own, end, SOURCE)?;
        raw["dtype"] = dtype.torch_name().into();
        let deviation = initializer_range(&raw, SOURCE)?;
        dtype
            .check_deviation(deviation.into())
            .map_err(|reason| refuse("initializer_range", reason))?;
        let config = ModelConfig::from_json(raw, SOURCE)?;
        if let Some(available) = available(process_bytes()) {
            fresh_memory::check_memory(&config, sizes, &own, [LEAST_BYTES, available])?;
        }
        Ok(config)
    }

    fn sizes(&self) -> FreshSizes {
        FreshSizes {
            vocab_size: self.vocab_size,
            hidden_size: self.hidden_size,
            intermediate_size: self.intermediate_size,
            num_hidden_layers: self.num_hidden_layers,
            num_attention_heads: self.num_attention_heads,
            num_key_value_heads: self.num_key_value_heads,
            max_position_embeddings: self.max_position_embeddings,
        }
    }

    /// The architecture's own keys as JSON, which has no numbers that are not finite: there they would
    /// become `null`, which means the default.
    fn own_keys(&self) -> Result<Map<String, Value>, ModelError> {
        let own = self.meant();
        if let Some((key, value)) = own.iter().find(|(_, value)| !is_finite(value)) {
            return Err(refuse(
                key,
                format!("{value} given, which is no finite number"),
            ));
        }
        match serde_json::to_value(own) {
            Ok(Value::Object(own)) => Ok(own),
            _ => Err(refuse("arch", "its keys have no JSON form")),
        }
    }

    /// Sizes that were given and that the architecture has no use for.
    fn idle(&self) -> Vec<&'static str> {
        let (Ok(model_type), Ok(own)) = (self.model_type(), self.own_keys()) else {
            return Vec::new();
        };
        let Some(family) = registry::find(model_type) else {
            return Vec::new();
        };
        let usual = Self::default();
        let given = |key: &&str| match *key {
            "intermediate_size" => self.intermediate_size != usual.intermediate_size,
            "num_attention_heads" => self.num_attention_heads != usual.num_attention_heads,
            "num_key_value_heads" => self.num_key_value_heads != usual.num_key_value_heads,
            // The longest piece of the text is checked against it.
            _ => false,
        };
        let sizes = self.sizes();
        family.idle_sizes(&sizes, &own).filter(given).collect()
    }
}

/// Weights and gradients of a parameter while it is trained.
const LEAST_BYTES: u64 = 8;

fn is_finite(value: &toml::Value) -> bool {
    match value {
        toml::Value::Float(number) => number.is_finite(),
        toml::Value::Array(values) => values.iter().all(is_finite),
        toml::Value::Table(values) => values.values().all(is_finite),
        _ => true,
    }
}

/// What errors call the configuration of the new model.
const SOURCE: &str = "shape";

fn refuse(key: &str, reason: impl Into<String>) -> ModelError {
    ModelError::Config {
        source_name: SOURCE.into(),
        key: key.into(),
        reason: reason.into(),
    }
}
