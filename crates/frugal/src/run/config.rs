//! What a run is: the configuration file of `frugal tune` and `frugal pretrain`.

use std::path::PathBuf;

use frugal_adapt::registry;
use frugal_kernels::ActivationQuant;
use frugal_models::Quantize;
use frugal_nn::{Pooling, ProblemType};
use frugal_train::TrainConfig;
use frugal_train::objective::{self, LearnsFrom};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// What a model is trained and judged on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Task {
    /// One label for each text.
    #[default]
    #[serde(alias = "seq-cls", alias = "sequence-classification")]
    Classification,
    /// One label for each image.
    #[serde(alias = "image_classification", alias = "image-cls")]
    ImageClassification,
    /// One label for each word of a text, as for named entities.
    #[serde(alias = "token-cls", alias = "token_classification", alias = "ner")]
    TokenClassification,
    /// The next token.
    #[serde(alias = "causal_lm", alias = "lm")]
    CausalLm,
    /// Vectors of texts that are near where the texts belong together.
    Embedding,
    /// A score for each text of a query, which is read together with it (cross-encoder).
    Reranking,
}

impl Task {
    /// Whether its records are of several texts that belong together.
    pub fn is_ranked(self) -> bool {
        matches!(self, Self::Embedding | Self::Reranking)
    }
}

/// Whether prompts and completions go through the chat template.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Template {
    /// Where the model has one and no `prompt_template` is given.
    #[default]
    Auto,
    /// Never: they are joined as they are.
    None,
}

/// Where examples come from and how they are read.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DataConfig {
    /// Training file, the name of a built-in data set (`sms-spam`), `org/name` of a data set on the
    /// Hugging Face hub, or `-` for standard input. A list of files, or a pattern with `*`, is read
    /// as one; in memory the names of a list stand on a line each.
    #[serde(with = "super::paths")]
    pub train: String,
    /// Validation file; without one a part of the training file is held out.
    #[serde(with = "super::paths::optional")]
    pub validation: Option<String>,
    /// Test file, only used for the final comparison; without one the validation part serves.
    #[serde(with = "super::paths::optional")]
    pub test: Option<String>,
    /// Share of the training file held out when there is no validation file.
    pub validation_share: f64,
    /// Share of the training file held out for the final comparison when there is no test file,
    /// before anything else is taken from it.
    #[serde(skip_serializing_if = "is_zero")]
    pub test_share: f64,
    /// Decides which records are held out; the run's seed by default. Runs of several seeds that
    /// are compared on held-out records must share it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub split_seed: Option<u64>,
    /// Form of the records; recognised from the first record if absent.
    pub format: Option<frugal_core::data::Format>,
    /// Which column plays which role, for example `{ text = "sentence", label = "gold" }`.
    pub columns: std::collections::BTreeMap<String, String>,
    /// Whether the first row of a table holds column names; recognised if absent.
    pub header: Option<bool>,
    /// Where a document of a text file ends; recognised if absent.
    pub documents: Option<frugal_core::data::Documents>,
    /// What stands between the labels of a text that has several; `|` if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub label_separator: Option<String>,
    /// Names of the tags of words in the order of their numbers, where the file holds numbers.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub label_names: Vec<String>,
    /// Whether every token of a word is trained on its tag, or the first alone; those behind the
    /// first of `B-PER` then have `I-PER`.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub label_all_tokens: bool,
    /// Text around every prompt, with `{prompt}` where it goes.
    pub prompt_template: Option<String>,
    /// Whether prompts and completions are written as a question and its answer by the chat
    /// template.
    pub template: Template,
    /// Chat template in place of the model's: a Jinja file, or a name such as `chatml`. It is saved
    /// with the adapter.
    pub chat_template: Option<String>,
    /// Only the first so many training examples; 0 for all.
    pub max_train_rows: usize,
    /// Only the first so many validation and test examples; 0 for all.
    pub max_eval_rows: usize,
    /// Longest example in tokens; 0 for what the model allows.
    pub max_length: usize,
    /// Cut longer examples instead of refusing them.
    pub truncate: bool,
    /// Train on the completion or the assistant's turns only, not on the prompt.
    pub completion_only: bool,
}

impl Default for DataConfig {
    fn default() -> Self {
        Self {
            train: String::new(),
            validation: None,
            test: None,
            validation_share: 0.1,
            test_share: 0.0,
            split_seed: None,
            format: None,
            columns: std::collections::BTreeMap::new(),
            header: None,
            documents: None,
            label_separator: None,
            label_names: Vec::new(),
            label_all_tokens: false,
            prompt_template: None,
            template: Template::Auto,
            chat_template: None,
            max_train_rows: 0,
            max_eval_rows: 0,
            max_length: 0,
            truncate: false,
            completion_only: true,
        }
    }
}

/// What is held out for a test by default goes without saying: older files lack the key.
fn is_zero(share: &f64) -> bool {
    *share == 0.0
}

impl DataConfig {
    /// The training files on one line.
    pub fn train_names(&self) -> String {
        self.train.replace('\n', ", ")
    }
}

/// A method and its settings, side by side in the file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct MethodConfig {
    /// Name of the method; `frugal methods` lists them.
    pub name: String,
    /// Its settings.
    #[serde(flatten)]
    pub settings: Map<String, Value>,
}

impl Default for MethodConfig {
    fn default() -> Self {
        Self {
            name: "lora".into(),
            settings: Map::new(),
        }
    }
}

/// A fine-tuning run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TuneConfig {
    /// A registered name, a folder, a GGUF file, or `org/name`; `builtin` is the embedded model.
    pub model: String,
    /// Folder of an adapter to train on from; without one a new adapter is trained.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub adapter: Option<PathBuf>,
    /// What is learned.
    pub task: Task,
    /// What a classification head learns, as transformers spells it: one label of several
    /// (`single_label_classification`, which is meant if absent), any number of them
    /// (`multi_label_classification`), or numbers (`regression`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub problem_type: Option<ProblemType>,
    /// Run folder.
    pub out: PathBuf,
    /// How the frozen weights are held: `none` for single precision, `stored` for the codes of a
    /// GGUF file, or `bf16`, `int8`, `nf4`, `q8_0`, `q4_0`, `q4_1`, or `sparse` for a pruned model.
    pub quantize: Quantize,
    /// What products with weights in few bits do with their other factor: `exact` (single
    /// precision), or `int8`, rounded to 8 bits for each token, so that the forward pass is of
    /// integers.
    pub activations: ActivationQuant,
    /// Where to compute.
    pub device: String,
    /// Decides every random choice of the run.
    pub seed: u64,
    /// Which positions a classification head reads; the model's own way if absent.
    pub pooling: Option<Pooling>,
    /// Also judge the model before training (a classifier's head is random then).
    pub evaluate_base: bool,
    /// Also measure what the model lost on text that has nothing to do with the task.
    pub measure_forgetting: bool,
    /// Examples.
    pub data: DataConfig,
    /// Method.
    pub method: MethodConfig,
    /// Training. A learning rate of 0, in files `auto`, means the method's own.
    pub train: TrainConfig,
}

impl Default for TuneConfig {
    fn default() -> Self {
        Self {
            model: "builtin".into(),
            adapter: None,
            task: Task::default(),
            problem_type: None,
            out: PathBuf::new(),
            quantize: Quantize::None,
            activations: ActivationQuant::Exact,
            device: "cpu".into(),
            seed: 0,
            pooling: None,
            evaluate_base: true,
            measure_forgetting: false,
            data: DataConfig::default(),
            method: MethodConfig::default(),
            train: TrainConfig {
                lr: 0.0,
                epochs: 1.0,
                batch_size: 16,
                ..TrainConfig::default()
            },
        }
    }
}

impl DataConfig {
    /// Settings that texts alone are read by, and whether they are given.
    pub(super) fn of_text(&self) -> [(&'static str, bool); 9] {
        [
            ("data.format", self.format.is_some()),
            ("data.columns", !self.columns.is_empty()),
            ("data.header", self.header.is_some()),
            ("data.documents", self.documents.is_some()),
            ("data.label_separator", self.label_separator.is_some()),
            ("data.prompt_template", self.prompt_template.is_some()),
            ("data.chat_template", self.chat_template.is_some()),
            ("data.max_length", self.max_length > 0),
            ("data.truncate", self.truncate),
        ]
    }
}

/// What is wrong with a run on images.
fn image_problems(config: &TuneConfig) -> Vec<(String, String)> {
    let text = "it has a part in tasks on text alone: leave it out";
    let one = "an image has one class: leave it out";
    let own = "images have no text to measure it on: leave it out";
    let all = [
        ("problem_type", !config.problem().is_single_label(), one),
        ("measure_forgetting", config.measure_forgetting, own),
        (
            "train.packing",
            config.train.packing,
            "an image is an example whatever the number of its pixels: leave it out",
        ),
    ];
    let of_text = config.data.of_text().into_iter();
    let of_text = of_text.map(|(key, given)| (key, given, text));
    let wrong = of_text.chain(all).filter(|(_, wrong, _)| *wrong);
    wrong
        .map(|(key, _, why)| (key.to_owned(), why.to_owned()))
        .collect()
}

impl TuneConfig {
    /// Fills in what depends on other settings: the method's learning rate, the seed of the
    /// training part.
    pub fn resolve(&mut self) {
        if self.train.lr == 0.0
            && let Ok(method) = registry::find(&self.method.name)
        {
            self.train.lr = method.default_lr;
        }
        self.train.seed = self.seed;
    }

    /// What a classification head learns.
    pub fn problem(&self) -> ProblemType {
        self.problem_type.unwrap_or_default()
    }

    /// What is wrong with what is learned.
    fn objective_problems(&self) -> Vec<(String, String)> {
        let mut found = Vec::new();
        let mut add = |key: &str, reason: String| found.push((key.to_owned(), reason));
        if self.task.is_ranked() {
            return ranked_problems(self);
        }
        let usual = match (self.task, self.problem()) {
            (Task::CausalLm, _) => "causal_lm",
            (Task::ImageClassification, _) => "image_classification",
            (Task::TokenClassification, _) => "token_classification",
            (_, ProblemType::SingleLabel) => "classification",
            (_, ProblemType::MultiLabel) => "multi_label",
            (_, ProblemType::Regression) => "regression",
        };
        let pools_tokens = self.pooling == Some(Pooling::Tokens);
        if pools_tokens && self.task != Task::TokenClassification {
            let reason =
                "a head that reads every token is trained with `--task token-classification`";
            add("pooling", reason.into());
        }
        if self.task == Task::CausalLm && self.problem_type.is_some() {
            let reason = "it says what a classification head learns: leave it out, or give `--task classification`";
            add("problem_type", reason.into());
        }
        if self.task == Task::ImageClassification {
            found.extend(image_problems(self));
        }
        if self.task == Task::TokenClassification {
            found.extend(tag_problems(self));
        } else {
            for (key, given) in [
                ("data.label_names", !self.data.label_names.is_empty()),
                ("data.label_all_tokens", self.data.label_all_tokens),
            ] {
                if given {
                    let reason =
                        "it has a part in `--task token-classification` alone: leave it out";
                    found.push((key.into(), reason.into()));
                }
            }
        }
        let mut add = |key: &str, reason: String| found.push((key.to_owned(), reason));
        let named = frugal_train::objective::canonical(&self.train.objective.name);
        // Preferences are learnt by what predicts the next token.
        let prefers = self.task == Task::CausalLm && named == "dpo";
        // The labels are read as the problem type says, whatever is minimised then.
        if self.train.objective.name.is_empty() {
            let mut named = self.train.objective.clone();
            named.name = usual.into();
            if let Err(reason) = frugal_train::objective::made(&named, &self.train) {
                add("train.objective", reason);
            }
        } else if named != usual && !prefers {
            let (name, problem) = (&self.train.objective.name, self.problem().name());
            add(
                "train.objective",
                format!(
                    "{name:?} does not fit a run that learns `{usual}`: say what is learned with `task` and `problem_type` (now {problem})"
                ),
            );
        }
        if self.data.label_separator.as_deref() == Some("") {
            add("data.label_separator", "it is empty".into());
        }
        found
    }

    /// Checks values, not files: (dotted key, what is wrong).
    pub fn problems(&self) -> Vec<(String, String)> {
        let mut found = Vec::new();
        let mut add = |key: &str, reason: String| found.push((key.to_owned(), reason));
        if self.data.train.is_empty() {
            add(
                "data.train",
                "no training data: give `--data FILE`, or `sms-spam` for the built-in set".into(),
            );
        }
        if !(0.0..1.0).contains(&self.data.validation_share) {
            add(
                "data.validation_share",
                format!(
                    "{} given, but it must be at least 0 and below 1",
                    self.data.validation_share
                ),
            );
        }
        if !(0.0..1.0).contains(&self.data.test_share) {
            let share = self.data.test_share;
            add(
                "data.test_share",
                format!("{share} given, but it must be at least 0 and below 1"),
            );
        } else if self.data.test_share > 0.0 && self.data.test.is_some() {
            let reason = "there is a test file, so nothing is held out for a test: leave one out";
            add("data.test_share", reason.into());
        }
        if self.data.chat_template.is_some() && self.data.prompt_template.is_some() {
            let reason = "a prompt template and a chat template exclude each other: leave one out";
            add("data.prompt_template", reason.into());
        }
        self.objective_problems()
            .into_iter()
            .for_each(|(key, reason)| add(&key, reason));
        if let Err(error) = crate::device::known(&self.device) {
            add("device", error.to_string());
        }
        // A configuration has no null: so are numbers written that are none.
        let no_numbers = self
            .method
            .settings
            .iter()
            .filter(|(_, value)| value.is_null());
        let no_numbers: Vec<&String> = no_numbers.map(|(key, _)| key).collect();
        for key in &no_numbers {
            add(
                &format!("method.{key}"),
                "it must be a finite number".into(),
            );
        }
        match registry::find(&self.method.name) {
            Ok(_) if !no_numbers.is_empty() => {}
            Err(error) => add("method.name", error.to_string()),
            Ok(method) => {
                if let Err(error) = (method.check)(&self.method.settings) {
                    add("method", error.to_string());
                }
            }
        }
        let mut train = self.train.clone();
        if train.lr == 0.0 {
            train.lr = 1.0;
        }
        for problem in train.validate().err().into_iter().flatten() {
            add(&format!("train.{}", problem.field), problem.reason);
        }
        found
    }
}

/// What is wrong with the settings of a run on words with tags.
fn tag_problems(config: &TuneConfig) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let data = &config.data;
    for (key, given) in [
        ("problem_type", config.problem_type.is_some()),
        (
            "pooling",
            config.pooling.is_some_and(|p| p != Pooling::Tokens),
        ),
        ("data.prompt_template", data.prompt_template.is_some()),
        ("data.chat_template", data.chat_template.is_some()),
        ("data.label_separator", data.label_separator.is_some()),
        ("data.documents", data.documents.is_some()),
    ] {
        if given {
            let reason = "it has no part in `--task token-classification`: leave it out";
            found.push((key.to_owned(), reason.to_owned()));
        }
    }
    let names = &data.label_names;
    let twice = names
        .iter()
        .enumerate()
        .find(|(i, name)| names[..*i].contains(name));
    if let Some((_, name)) = twice {
        found.push(("data.label_names".into(), format!("{name:?} comes twice")));
    }
    found
}

/// What is wrong with the settings of a run on records of several texts.
fn ranked_problems(config: &TuneConfig) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut add = |key: &str, reason: String| found.push((key.to_owned(), reason));
    let (task, wanted) = match config.task {
        Task::Reranking => ("reranking", LearnsFrom::Lists),
        _ => ("embedding", LearnsFrom::Vectors),
    };
    let named = &config.train.objective;
    if named.name.is_empty() && !named.settings.is_empty() {
        add(
            "train.objective",
            "settings of an objective, but no `name`".into(),
        );
    } else if !named.name.is_empty() {
        match objective::find(&named.name) {
            Err(reason) => add("train.objective", reason),
            Ok(entry) if entry.learns_from != wanted => add(
                "train.objective",
                format!(
                    "{:?} does not fit `--task {task}`, which learns by {}",
                    named.name,
                    names(wanted)
                ),
            ),
            Ok(_) => {
                if let Err(reason) = objective::made(named, &config.train) {
                    add("train.objective", reason);
                }
            }
        }
    }
    let unused = |what: &str| format!("it has no part in `--task {task}`: leave {what} out");
    if config.problem_type.is_some() {
        add("problem_type", unused("it"));
    }
    if config.pooling.is_some() && config.task == Task::Embedding {
        let reason =
            "how an encoder pools stands in its folder (`1_Pooling/config.json`): leave it out";
        add("pooling", reason.into());
    }
    let data = &config.data;
    for (key, given) in [
        ("data.prompt_template", data.prompt_template.is_some()),
        ("data.chat_template", data.chat_template.is_some()),
        ("data.label_separator", data.label_separator.is_some()),
        ("data.format", data.format.is_some()),
        ("data.documents", data.documents.is_some()),
        ("data.label_names", !data.label_names.is_empty()),
        ("data.label_all_tokens", data.label_all_tokens),
    ] {
        if given {
            add(key, unused("it"));
        }
    }
    if config.measure_forgetting {
        add("measure_forgetting", unused("it"));
    }
    found
}

fn names(wanted: LearnsFrom) -> String {
    let entries = objective::OBJECTIVES.iter();
    let fitting = entries.filter(|entry| entry.learns_from == wanted);
    fitting
        .map(|entry| entry.name)
        .collect::<Vec<_>>()
        .join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_of_0_does_not_mean_the_methods_own() {
        let load = |set: &str| frugal_core::config::load::<TuneConfig>(None, &[set.to_owned()]);
        for set in ["train.lr=0", "train.lr=0.0", "train.learning_rate=0"] {
            let error = load(set).unwrap_err().to_string();
            let key = set.split('=').next().unwrap();
            assert_eq!(
                error,
                format!("override `{set}`: `{key}`: 0 given, but it must be a positive number")
            );
        }
        let own = registry::find("lora").unwrap().default_lr;
        for (set, lr) in [
            ("train.lr=auto", own),
            ("train.epochs=2", own),
            ("model=x", own),
            ("train.lr=0.25", 0.25),
        ] {
            let mut config = load(set).unwrap();
            config.resolve();
            assert_eq!(config.train.lr, lr, "{set}");
        }
    }
}
