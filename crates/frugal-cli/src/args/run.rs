//! The flags that describe a fine-tuning run; `tune`, `plan` and `validate` share them.
//!
//! None has a value unless it was given, so that a configuration file keeps what the command line
//! does not say.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::Args;
use frugal::model::load::Lookup;
use frugal::model::{ActivationQuant, Quantize};
use frugal::run::{Task, TuneConfig, describe_adapter};
use frugal_core::config;
use toml::{Table, Value};

use super::{Config, Dtype, Layer, Output, count_value, path_value};
use crate::ui;

/// The data of the run that needs no arguments.
const BUILTIN_DATA: &str = "sms-spam";
/// Its settings.
const BUILTIN: &str = include_str!("builtin.toml");
/// Settings that go together under a name.
const PRESETS: [(&str, &str); 6] = [
    ("qlora", include_str!("presets/qlora.toml")),
    ("qdora", include_str!("presets/qdora.toml")),
    ("lora-all", include_str!("presets/lora-all.toml")),
    (
        "lora-attention",
        include_str!("presets/lora-attention.toml"),
    ),
    ("dora", include_str!("presets/dora.toml")),
    ("rslora", include_str!("presets/rslora.toml")),
];

/// What a run is made of.
#[derive(Clone, Debug, Args)]
pub struct RunFlags {
    /// Name (see `frugal models`), folder, GGUF file, or org/name on the Hugging Face hub [default:
    /// builtin]
    #[arg(long, short, value_name = "MODEL", help_heading = "What")]
    pub model: Option<String>,
    /// What is learned [default: classification]
    #[arg(long, value_name = "TASK", value_parser = ["classification", "image-classification", "token-classification", "causal-lm", "embedding", "reranking"], help_heading = "What")]
    pub task: Option<String>,
    /// What a classifier learns: one label of several, any number of labels, or numbers [default:
    /// single_label_classification]
    #[arg(long, value_name = "TYPE", value_parser = ["single_label_classification", "multi_label_classification", "regression"], help_heading = "What")]
    pub problem_type: Option<String>,
    /// How much each label counts: balanced, or numbers as in ham=1,spam=3 [default: all the same]
    #[arg(long, value_name = "WEIGHTS", help_heading = "Training")]
    pub class_weights: Option<String>,
    /// Which positions a classifier reads [default: last, encoders cls]
    #[arg(long, value_name = "WAY", value_parser = ["last", "cls", "mean"], help_heading = "What")]
    pub pooling: Option<String>,
    /// How frozen weights are held: none, stored, bf16, int8, nf4, nf4_double, q8_0, q4_0, q4_1,
    /// sparse [default: none]
    #[arg(long, value_name = "NAME", help_heading = "What")]
    pub quantize: Option<String>,
    /// Numbers in which weights are held and multiplied: f32, bf16, or auto for what the processor
    /// is fastest at; adapters and sums stay in f32
    #[arg(
        long,
        visible_alias = "precision",
        value_name = "NAME",
        hide_possible_values = true,
        conflicts_with = "quantize",
        help_heading = "What"
    )]
    pub dtype: Option<Dtype>,
    /// Inputs of products with weights in few bits: exact, or int8 for products of integers
    /// [default: exact]
    #[arg(long, value_name = "NAME", value_parser = ["exact", "int8"], help_heading = "What")]
    pub activations: Option<String>,

    /// Training file (JSONL, JSON, CSV, TSV, text or Parquet, perhaps .gz or .zst), a pattern such
    /// as 'part-*.jsonl', - for standard input, org/name on the Hugging Face hub, or sms-spam, the
    /// built-in set; repeatable
    #[arg(long, short, value_name = "FILE", help_heading = "Data")]
    pub data: Vec<String>,
    /// Validation file, repeatable [default: a tenth of the training file]
    #[arg(long, value_name = "FILE", help_heading = "Data")]
    pub eval_data: Vec<String>,
    /// Test file for the final comparison, repeatable [default: the validation part]
    #[arg(long, value_name = "FILE", help_heading = "Data")]
    pub test_data: Vec<String>,
    /// Which column plays which role, for example text=sentence; repeatable
    #[arg(long = "column", value_name = "ROLE=NAME", value_parser = super::pair, help_heading = "Data")]
    pub columns: Vec<(String, String)>,
    /// How prompts and completions are written: auto, by the chat template where the model has one,
    /// or none, joined as they are [default: auto]
    #[arg(long, value_name = "NAME", value_parser = ["auto", "none"], help_heading = "Data")]
    pub template: Option<String>,
    /// Chat template in place of the model's, saved with the adapter: a Jinja file, or chatml,
    /// gemma, llama2, llama3, mistral, phi3, vicuna, zephyr
    #[arg(long, value_name = "FILE|NAME", help_heading = "Data")]
    pub chat_template: Option<String>,
    /// Longest example in tokens [default: what the model allows]
    #[arg(long, value_name = "N", help_heading = "Data")]
    pub max_length: Option<u64>,
    /// Cut longer examples instead of refusing them
    #[arg(long, help_heading = "Data")]
    pub truncate: bool,
    /// Only the first N training examples
    #[arg(long, value_name = "N", help_heading = "Data")]
    pub max_train_rows: Option<u64>,
    /// Only the first N validation and test examples
    #[arg(long, value_name = "N", help_heading = "Data")]
    pub max_eval_rows: Option<u64>,

    /// Method; `frugal methods` lists them [default: lora]
    #[arg(long, value_name = "NAME", help_heading = "Method")]
    pub method: Option<String>,
    /// Settings that go together; other flags win over them: qlora, qdora, lora-all,
    /// lora-attention, dora, rslora
    #[arg(long, value_name = "NAME", value_parser = PRESETS.map(|(name, _)| name), help_heading = "Method")]
    pub preset: Option<String>,
    /// The same as --preset qlora: LoRA on all linear layers over weights in 4 bits
    #[arg(long, conflicts_with = "preset", help_heading = "Method")]
    pub qlora: bool,
    /// Adapter to train on from, with its method and settings; the schedule starts anew
    #[arg(long, short, value_name = "DIR", help_heading = "What")]
    pub adapter: Option<PathBuf>,
    /// Rank of a low-rank method [default: the method's]
    #[arg(long, value_name = "N", help_heading = "Method")]
    pub r: Option<u64>,
    /// Scale numerator of LoRA [default: the method's]
    #[arg(long, value_name = "X", help_heading = "Method")]
    pub lora_alpha: Option<f64>,
    /// Share of inputs dropped on LoRA's path while training [default: the method's]
    #[arg(long, value_name = "P", help_heading = "Method")]
    pub lora_dropout: Option<f64>,
    /// Endings of the layers to adapt, comma-separated, or all-linear [default: the method's]
    #[arg(
        long,
        value_name = "NAMES",
        value_delimiter = ',',
        help_heading = "Method"
    )]
    pub target_modules: Vec<String>,

    /// Peak learning rate [default: the method's]
    #[arg(long, value_name = "X", help_heading = "Training")]
    pub lr: Option<f64>,
    /// Passes over the data [default: 1]
    #[arg(long, value_name = "X", help_heading = "Training")]
    pub epochs: Option<f64>,
    /// Optimiser steps; wins over --epochs
    #[arg(long, value_name = "N", help_heading = "Training")]
    pub max_steps: Option<u64>,
    /// Examples of a micro-batch [default: 16]
    #[arg(long, value_name = "N", help_heading = "Training")]
    pub batch_size: Option<u64>,
    /// Micro-batches of an optimiser step [default: 1]
    #[arg(long, value_name = "N", help_heading = "Training")]
    pub gradient_accumulation_steps: Option<u64>,
    /// Fill micro-batches with whole examples up to train.max_tokens tokens
    #[arg(long, help_heading = "Training")]
    pub packing: bool,
    /// What is kept for the backward pass: low, balanced, fast; the result is the same [default:
    /// balanced]
    #[arg(long, value_name = "NAME", help_heading = "Training")]
    pub memory: Option<String>,
    /// Shape of the learning rate: constant, linear, cosine, warmup_stable_decay [default: linear]
    #[arg(long, value_name = "NAME", help_heading = "Training")]
    pub lr_scheduler_type: Option<String>,
    /// Share of the steps spent on warm-up [default: 0.03]
    #[arg(long, value_name = "P", help_heading = "Training")]
    pub warmup_ratio: Option<f64>,
    /// Noise on the input embeddings while training (NEFTune), such as 5 [default: 0]
    #[arg(long, value_name = "X", help_heading = "Training")]
    pub neftune_noise_alpha: Option<f64>,
    /// Decoupled weight decay [default: 0]
    #[arg(long, value_name = "X", help_heading = "Training")]
    pub weight_decay: Option<f64>,
    /// Steps between log lines [default: 10]
    #[arg(long, value_name = "N", help_heading = "Training")]
    pub logging_steps: Option<u64>,
    /// Steps between evaluations [default: once per epoch]
    #[arg(long, value_name = "N", help_heading = "Training")]
    pub eval_steps: Option<u64>,
    /// Steps between checkpoints [default: once per epoch]
    #[arg(long, value_name = "N", help_heading = "Training")]
    pub save_steps: Option<u64>,
    /// Stop after N evaluations without improvement [default: never]
    #[arg(long, value_name = "N", help_heading = "Training")]
    pub early_stopping_patience: Option<u64>,
    /// Decides every random choice of the run [default: 0]
    #[arg(long, value_name = "N", help_heading = "Training")]
    pub seed: Option<u64>,

    /// Where to compute: cpu, or cuda, rocm, vulkan, metal, webgpu in builds with that feature
    /// [default: cpu]
    #[arg(long, value_name = "NAME", help_heading = "Machine")]
    pub device: Option<String>,
    /// Never use the network; also set by HF_HUB_OFFLINE=1
    #[arg(long, help_heading = "Machine")]
    pub offline: bool,

    #[command(flatten)]
    pub config: Config,

    /// Run folder; a flag of the commands that write one.
    #[arg(skip)]
    pub out: Option<PathBuf>,
}

impl RunFlags {
    /// The flags as a layer over the configuration file.
    fn layer(&self) -> Result<Layer> {
        let built_in = self.is_silent();
        let own_method =
            self.method.is_some() || self.preset().is_some() || self.overrides("method.name");
        let mut layer = match self.preset() {
            Some(name) => {
                let preset = PRESETS.iter().find(|(known, _)| *known == name);
                Layer::from_toml(preset.map_or("", |(_, text)| text))
            }
            None if built_in && !own_method => Layer::from_toml(BUILTIN),
            None => Layer::default(),
        };
        if let Some(folder) = &self.adapter {
            self.set_from_adapter(folder, &mut layer)?;
        }
        layer.set("model", self.model.clone());
        layer.set("task", self.task.clone());
        layer.set("problem_type", self.problem_type.clone());
        layer.set("pooling", self.pooling.clone());
        layer.set(
            "quantize",
            self.dtype
                .map(Dtype::quantize_name)
                .or_else(|| self.quantize.clone()),
        );
        layer.set("activations", self.activations.clone());
        layer.set("device", self.device.clone());
        layer.set("seed", count_value(self.seed));
        layer.set("out", path_value(&self.out));

        layer.set(
            "data.train",
            files(&self.data).or_else(|| built_in.then(|| BUILTIN_DATA.into())),
        );
        layer.set("data.validation", files(&self.eval_data));
        layer.set("data.test", files(&self.test_data));
        layer.set("data.template", self.template.clone());
        layer.set("data.chat_template", self.chat_template.clone());
        let columns: Table = super::columns(&self.columns)?
            .into_iter()
            .map(|(role, name)| (role, Value::from(name)))
            .collect();
        layer.set("data.columns", (!columns.is_empty()).then_some(columns));
        layer.set("data.max_length", count_value(self.max_length));
        layer.switch("data.truncate", self.truncate);
        layer.set("data.max_train_rows", count_value(self.max_train_rows));
        layer.set("data.max_eval_rows", count_value(self.max_eval_rows));

        layer.set("method.name", self.method.clone());
        layer.set("method.r", count_value(self.r));
        layer.set("method.lora_alpha", self.lora_alpha);
        layer.set("method.lora_dropout", self.lora_dropout);
        layer.set("method.target_modules", self.targets());

        layer.set("train.lr", self.lr);
        layer.set("train.epochs", self.epochs);
        layer.set("train.max_steps", count_value(self.max_steps));
        layer.set("train.batch_size", count_value(self.batch_size));
        layer.set(
            "train.gradient_accumulation_steps",
            count_value(self.gradient_accumulation_steps),
        );
        layer.switch("train.packing", self.packing);
        layer.set("train.objective.class_weights", self.class_weights.clone());
        layer.set("train.memory", self.memory.clone());
        layer.set("train.lr_scheduler_type", self.lr_scheduler_type.clone());
        layer.set("train.warmup_ratio", self.warmup_ratio);
        layer.set("train.neftune_noise_alpha", self.neftune_noise_alpha);
        layer.set("train.weight_decay", self.weight_decay);
        layer.set("train.logging_steps", count_value(self.logging_steps));
        layer.set("train.eval_steps", count_value(self.eval_steps));
        layer.set("train.save_steps", count_value(self.save_steps));
        layer.set(
            "train.early_stopping_patience",
            count_value(self.early_stopping_patience),
        );
        Ok(layer)
    }

    /// Name of the preset that was asked for.
    fn preset(&self) -> Option<&str> {
        if self.qlora {
            Some("qlora")
        } else {
            self.preset.as_deref()
        }
    }

    /// What an adapter says of itself, where nothing else was said: its model, method and task.
    fn set_from_adapter(&self, folder: &Path, layer: &mut Layer) -> Result<()> {
        let adapter = describe_adapter(folder)?;
        let file = self.config.config.as_deref().map(read_table).transpose()?;
        let is_said = |key: &str| {
            let in_file = file.as_ref().is_some_and(|table| {
                let mut value = table.get(key.split('.').next().unwrap_or(key));
                for part in key.split('.').skip(1) {
                    value = value.and_then(|inner| inner.get(part));
                }
                value.is_some()
            });
            in_file || self.overrides(key)
        };
        layer.set("adapter", Some(folder.to_string_lossy().into_owned()));
        if !is_said("model") {
            layer.set("model", adapter.base_model);
        }
        if !is_said("method.name") && self.preset().is_none() {
            layer.set("method.name", Some(adapter.method));
        }
        if !is_said("task") {
            let task = if adapter.labels_tokens {
                "token-classification"
            } else if adapter.is_classifier {
                "classification"
            } else {
                "causal-lm"
            };
            layer.set("task", Some(task));
        }
        Ok(())
    }

    /// Whether nothing was said about what to adapt and to what: then both are the built-in ones.
    /// With a model of one's own, data must be given.
    fn is_silent(&self) -> bool {
        let flags = self.model.is_none()
            && self.data.is_empty()
            && self.task.is_none()
            && self.adapter.is_none()
            && self.config.config.is_none();
        flags
            && !["model", "data.train", "task", "adapter"]
                .into_iter()
                .any(|key| self.overrides(key))
    }

    fn overrides(&self, key: &str) -> bool {
        self.config.overrides.iter().any(|o| o.starts_with(key))
    }

    /// `all-linear` is a word of its own; anything else is a list of endings.
    fn targets(&self) -> Option<Value> {
        match self.target_modules.as_slice() {
            [] => None,
            [word] if word == "all-linear" => Some(Value::from(word.as_str())),
            names => Some(names.to_vec().into()),
        }
    }

    /// How models are looked up.
    pub fn lookup(&self) -> Lookup {
        super::lookup(self.offline)
    }

    /// Says which of the flags that were given change nothing of this run.
    pub fn warn_of_idle(&self, config: &TuneConfig, output: Output) {
        for (flag, why) in self.idle(config) {
            ui::warn(output, &format!("`{flag}` has no effect: {why}"));
        }
    }

    fn sets(&self, key: &str) -> bool {
        let mut given = self.config.overrides.iter();
        given.any(|text| {
            text.split('=')
                .next()
                .is_some_and(|name| name.trim() == key)
        })
    }

    fn idle(&self, config: &TuneConfig) -> Vec<(&'static str, &'static str)> {
        let classifies = [Task::Classification, Task::ImageClassification].contains(&config.task);
        let whole = "a classifier reads the whole text as it is";
        let exact = config.activations == ActivationQuant::Exact;
        let all = [
            ("--template", self.template.is_some() && classifies, whole),
            (
                "--chat-template",
                self.chat_template.is_some() && classifies,
                whole,
            ),
            (
                "--pooling",
                self.pooling.is_some() && config.task == Task::CausalLm,
                "only a classifier pools",
            ),
            (
                "--activations int8",
                !exact && config.quantize == Quantize::None,
                "no weights are held in few bits; give `--quantize` too",
            ),
            (
                "--activations int8",
                !exact && config.quantize == Quantize::Bf16,
                "weights in bf16 are multiplied in bf16; give `--quantize int8` for products of \
                 integers",
            ),
            (
                "--set data.validation_share",
                self.sets("data.validation_share") && config.data.validation.is_some(),
                "there is a validation file, so nothing is held out",
            ),
            (
                "--batch-size",
                self.batch_size.is_some() && config.train.packing,
                "with packing, `train.max_tokens` says how much a micro-batch holds",
            ),
        ];
        let idle = all.into_iter().filter(|(_, idle, _)| *idle);
        idle.map(|(flag, _, why)| (flag, why)).collect()
    }

    /// File, flags and overrides together, checked and with everything filled in that depends on
    /// other settings.
    ///
    /// # Errors
    /// All mistakes of the settings together, or an adapter that cannot be read.
    pub fn resolve(&self) -> Result<TuneConfig> {
        let layer = self.layer()?;
        let mut config: TuneConfig = config::load_with(
            self.config.config.as_deref(),
            layer.table(),
            &self.config.overrides,
            TuneConfig::problems,
        )?;
        config.resolve();
        Ok(config)
    }
}

/// The tables of a configuration file.
fn read_table(path: &Path) -> Result<Table> {
    let text = String::from_utf8(frugal_core::fs::read_data(path)?)
        .with_context(|| format!("{}: cannot read", path.display()))?;
    // What is wrong in it is told with all other mistakes.
    Ok(toml::from_str(&text).unwrap_or_default())
}

/// One file by its name, several as a list.
fn files(names: &[String]) -> Option<Value> {
    match names {
        [] => None,
        [one] => Some(Value::from(one.as_str())),
        several => Some(several.to_vec().into()),
    }
}

#[cfg(test)]
mod tests {
    use clap::{Command, FromArgMatches};

    use super::*;

    fn flags(words: &str) -> RunFlags {
        let matches = RunFlags::augment_args(Command::new("test").no_binary_name(true))
            .get_matches_from(words.split_whitespace());
        RunFlags::from_arg_matches(&matches).unwrap()
    }

    #[test]
    fn every_flag_reaches_its_setting() {
        let words = "--model m --task causal-lm --pooling mean --quantize nf4 --activations int8 --data d --data d2 --eval-data e --test-data t --template none --chat-template chatml --column text=a --column label=b \
                     --max-length 9 --truncate --max-train-rows 8 --max-eval-rows 7 --method lora --r 6 --lora-alpha 5 --lora-dropout 0.25 \
                     --target-modules q_proj,v_proj --lr 0.5 --epochs 4 --max-steps 3 --batch-size 2 --gradient-accumulation-steps 11 \
                     --packing --memory low --lr-scheduler-type cosine --warmup-ratio 0.125 --weight-decay 0.75 --logging-steps 12 --eval-steps 13 \
                     --save-steps 14 --early-stopping-patience 15 --seed 16 --device cpu --set train.max_grad_norm=17";
        let config = serde_json::to_value(flags(words).resolve().unwrap()).unwrap();
        let expected = serde_json::json!({
            "model": "m", "task": "causal-lm", "pooling": "mean", "quantize": "nf4", "activations": "int8", "device": "cpu", "seed": 16,
            "data": {
                "train": ["d", "d2"], "validation": "e", "test": "t", "template": "none", "chat_template": "chatml", "columns": { "text": "a", "label": "b" }, "max_length": 9,
                "truncate": true, "max_train_rows": 8, "max_eval_rows": 7,
            },
            "method": { "name": "lora", "r": 6, "lora_alpha": 5.0, "lora_dropout": 0.25, "target_modules": ["q_proj", "v_proj"] },
            "train": {
                "lr": 0.5, "epochs": 4.0, "max_steps": 3, "batch_size": 2, "gradient_accumulation_steps": 11, "packing": true,
                "memory": "low", "lr_scheduler_type": "cosine", "warmup_ratio": 0.125, "weight_decay": 0.75, "logging_steps": 12, "eval_steps": 13,
                "save_steps": 14, "early_stopping_patience": 15, "max_grad_norm": 17.0, "seed": 16,
            },
        });
        assert_contains(&config, &expected, "");
    }

    fn assert_contains(found: &serde_json::Value, expected: &serde_json::Value, at: &str) {
        match expected.as_object() {
            Some(map) => map.iter().for_each(|(key, value)| {
                assert_contains(&found[key], value, &format!("{at}.{key}"))
            }),
            None => assert_eq!(found, expected, "{at}"),
        }
    }

    #[test]
    fn the_help_tells_the_defaults() {
        let defaults = serde_json::to_value(TuneConfig::default()).unwrap();
        let command = RunFlags::augment_args(Command::new("test"));
        let mut checked = 0;
        for (flag, key) in [
            ("model", "/model"),
            ("task", "/task"),
            ("quantize", "/quantize"),
            ("activations", "/activations"),
            ("device", "/device"),
            ("seed", "/seed"),
            ("method", "/method/name"),
            ("epochs", "/train/epochs"),
            ("batch_size", "/train/batch_size"),
            (
                "gradient_accumulation_steps",
                "/train/gradient_accumulation_steps",
            ),
            ("memory", "/train/memory"),
            ("lr_scheduler_type", "/train/lr_scheduler_type"),
            ("warmup_ratio", "/train/warmup_ratio"),
            ("weight_decay", "/train/weight_decay"),
            ("logging_steps", "/train/logging_steps"),
        ] {
            let help = command
                .get_arguments()
                .find(|a| a.get_id() == flag)
                .unwrap()
                .get_help()
                .unwrap()
                .to_string();
            let told = help
                .split("[default: ")
                .nth(1)
                .and_then(|d| d.split(']').next())
                .unwrap_or_else(|| panic!("{flag}: {help}"));
            match defaults.pointer(key).unwrap() {
                serde_json::Value::String(text) => assert_eq!(told, text, "{flag}"),
                number => assert_eq!(told.parse::<f64>().ok(), number.as_f64(), "{flag}"),
            }
            checked += 1;
        }
        assert_eq!(checked, 15);
    }

    #[test]
    fn the_built_in_data_is_not_put_under_a_model_of_ones_own() {
        let silent = flags("--r 4 --lr 0.5").resolve().unwrap();
        assert_eq!(
            (
                silent.data.train.as_str(),
                silent.train.lr,
                silent.train.epochs
            ),
            ("sms-spam", 0.5, 2.0)
        );
        // Another method keeps its own settings.
        let other = flags("--method prompt-tuning").resolve().unwrap();
        assert_eq!(
            (
                other.data.train.as_str(),
                other.train.lr,
                other.train.epochs
            ),
            ("sms-spam", 0.03, 1.0)
        );
        let error = flags("--model smollm2-135m")
            .resolve()
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("`data.train`") && error.contains("--data FILE"),
            "{error}"
        );
    }
}
