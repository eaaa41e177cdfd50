//! Tasks as data: where the records are, how they become prompts, what is asked of the model and
//! how answers are scored.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::EvalError;
use super::filter::Filter;
use super::functions;
use super::metric::{Aggregation, Metric};
use super::prompt::Record;
use frugal_core::suggest;

/// The tasks that need no file.
const BUILTIN: [(&str, &str); 7] = [
    ("gsm8k", include_str!("builtin/gsm8k.toml")),
    ("humaneval", include_str!("builtin/humaneval.toml")),
    ("humaneval_64", include_str!("builtin/humaneval_64.toml")),
    (
        "humaneval_instruct",
        include_str!("builtin/humaneval_instruct.toml"),
    ),
    (
        "multiple-choice",
        include_str!("builtin/multiple-choice.toml"),
    ),
    ("perplexity", include_str!("builtin/perplexity.toml")),
    ("sst2", include_str!("builtin/sst2.toml")),
];

/// What the model is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// The log-likelihood of each of several continuations.
    MultipleChoice,
    /// A text that it writes.
    GenerateUntil,
    /// The log-likelihood of the target.
    Loglikelihood,
    /// The log-likelihood of a whole text.
    LoglikelihoodRolling,
}

/// Where the records are. Paths are looked for in the data folder, beside the task's file, and as
/// they are.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Source {
    /// Records that are measured: JSONL (also `.gz`), JSON, CSV, TSV, or a text, which is one
    /// record with the field `text`.
    pub test: String,
    /// Records that examples are taken from; those of `test` if empty.
    pub fewshot: String,
    /// Each line of a text is a record, instead of the whole text.
    #[serde(skip_serializing_if = "is_false")]
    pub lines: bool,
    /// The data set of the hub that the files are parts of.
    #[serde(skip_serializing_if = "Hub::is_empty")]
    pub hub: Hub,
}

/// A data set of the hub: its name, its configuration, and the splits that are used.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Hub {
    /// `dataset_path`.
    pub path: String,
    /// `dataset_name`.
    pub name: String,
    /// Split that is measured.
    pub test: String,
    /// Split that examples come from.
    pub fewshot: String,
    /// What `dataset_kwargs` say of it; a file that the run names stands for all of this.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub settings: String,
}

impl Hub {
    fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

fn is_false(value: &bool) -> bool {
    !value
}

/// Which records become examples, and how they are written where that differs from the question.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Fewshot {
    /// The order in which they are taken.
    pub sampler: Sampler,
    /// Records given here, instead of those of a file.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub samples: Vec<Record>,
    /// Built-in function that changes the records, where it is not that of the questions.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub process_docs: Option<String>,
    /// How they are written.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompt: Option<Prompt>,
}

/// The order in which examples are taken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Sampler {
    /// Drawn for each question anew.
    #[default]
    Default,
    /// The first ones.
    FirstN,
}

/// How a record becomes text; the strings are Jinja templates over the fields of the record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Prompt {
    /// Text in front of everything.
    pub description: String,
    /// What is given. For multiple choice a number from 0 is the right choice, and the choices are
    /// what is given before `target`.
    pub text: String,
    /// What is right: a text or a list of texts that all count; for multiple choice the number of
    /// the choice from 0 (a text of digits is a number), its text, its letter, or a list of numbers.
    pub target: String,
    /// The continuations to choose from.
    pub choices: Vec<String>,
    /// Field of the record that lists the choices, or a Jinja expression that does, instead of
    /// `choices`.
    pub choices_field: String,
    /// A target `A` is the first choice, unless `A` is one itself.
    pub letters: bool,
    /// What the answer begins with: the model goes on from here.
    pub gen_prefix: String,
    /// Stands between text and target.
    pub target_delimiter: String,
    /// Stands after each example.
    pub fewshot_delimiter: String,
}

impl Default for Prompt {
    fn default() -> Self {
        Self {
            description: String::new(),
            text: String::new(),
            target: String::new(),
            choices: Vec::new(),
            choices_field: String::new(),
            letters: true,
            gen_prefix: String::new(),
            target_delimiter: " ".into(),
            fewshot_delimiter: "\n\n".into(),
        }
    }
}

/// How the model writes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Generation {
    /// Texts that end an answer and are not part of it.
    pub until: Vec<String>,
    /// Longest answer, in tokens.
    pub max_tokens: usize,
    /// 0 takes the likeliest token.
    pub temperature: f32,
    /// Draws among the likeliest tokens that together have this probability.
    pub top_p: f32,
    /// Draws among this many of the likeliest tokens; 0 for all.
    pub top_k: usize,
    /// Draws among tokens that are at least this share as likely as the likeliest.
    pub min_p: f32,
    /// Divides the positive and multiplies the negative logits of tokens that occurred.
    pub repetition_penalty: f32,
    /// The task says itself that nothing is drawn.
    #[serde(skip_serializing_if = "is_false")]
    pub greedy: bool,
}

impl Default for Generation {
    fn default() -> Self {
        Self {
            until: Vec::new(),
            max_tokens: 256,
            temperature: 0.0,
            top_p: 1.0,
            top_k: 0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            greedy: false,
        }
    }
}

/// A task.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Task {
    /// Its name.
    pub name: String,
    /// Changes whenever scores do.
    pub version: String,
    /// One line for people.
    #[serde(default)]
    pub description: String,
    /// What the model is asked for.
    pub kind: Kind,
    /// Examples in front of each question, unless the run says otherwise.
    #[serde(default)]
    pub num_fewshot: usize,
    /// There are never examples, whatever the run says.
    #[serde(default, skip_serializing_if = "is_false")]
    pub zero_shot: bool,
    /// Which examples, and how they are written.
    #[serde(default)]
    pub fewshot: Fewshot,
    /// Built-in function that changes the records before anything else.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub process_docs: String,
    /// Built-in function that scores answers.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub process_results: String,
    /// Where the records are.
    #[serde(default)]
    pub source: Source,
    /// How they become prompts.
    pub prompt: Prompt,
    /// How the model writes.
    #[serde(default)]
    pub generation: Generation,
    /// Answers to each question.
    #[serde(default = "one")]
    pub repeats: usize,
    /// Ways of finding the answer in what the model wrote; each gives scores of its own.
    #[serde(default)]
    pub filters: Vec<Filter>,
    /// How answers are scored.
    pub metrics: Vec<Metric>,
    /// What the scores of a metric come to, where that is not its own rule.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub aggregations: BTreeMap<String, Aggregation>,
    /// Whether more is better, where that is not the metric's own rule.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub directions: BTreeMap<String, bool>,
}

fn one() -> usize {
    1
}

impl Task {
    /// Reads a task from TOML.
    ///
    /// # Errors
    /// Malformed TOML, unknown keys, values that do not fit together; `origin` names the text in
    /// messages.
    pub fn from_toml(text: &str, origin: &str) -> Result<Self, EvalError> {
        let fail = |reason: String| EvalError::Task {
            task: origin.into(),
            reason,
        };
        let task: Self =
            toml::from_str(text).map_err(|e| fail(e.to_string().trim_end().to_owned()))?;
        task.check().map_err(fail)?;
        Ok(task)
    }

    /// A built-in task.
    pub fn builtin(name: &str) -> Option<Result<Self, EvalError>> {
        BUILTIN
            .iter()
            .find(|(known, _)| *known == name)
            .map(|(name, text)| Self::from_toml(text, name))
    }

    /// Names of the built-in tasks.
    pub fn names() -> impl Iterator<Item = &'static str> {
        BUILTIN.iter().map(|(name, _)| *name)
    }

    /// The task that `text` names: `NAME`, the path of a `.toml` file or of a `.yaml` of
    /// lm-evaluation-harness, each with `:FILE` behind it for data of one's own. Also says in which
    /// folder its data may be.
    ///
    /// # Errors
    /// Unknown names, files that are no tasks.
    pub fn find(text: &str) -> Result<(Self, Option<PathBuf>), EvalError> {
        let (name, file) = text
            .split_once(':')
            .map_or((text, None), |(name, file)| (name, Some(file)));
        let path = Path::new(name);
        let (mut task, folder) = match path.extension().and_then(|e| e.to_str()) {
            Some("toml") => {
                let bytes = frugal_core::fs::read(path)?;
                let toml = String::from_utf8(bytes).map_err(|_| EvalError::Task {
                    task: name.into(),
                    reason: "not UTF-8 text".into(),
                })?;
                (
                    Self::from_toml(&toml, name)?,
                    path.parent().map(Path::to_owned),
                )
            }
            Some("yaml" | "yml") => (super::yaml::read(path)?, path.parent().map(Path::to_owned)),
            _ => {
                let builtin = Self::builtin(name).ok_or_else(|| EvalError::UnknownTask {
                    name: name.into(),
                    suggestion: suggest::did_you_mean(name, Self::names()).map(str::to_owned),
                    known: Self::names().collect::<Vec<_>>().join(", "),
                })??;
                (builtin, None)
            }
        };
        if let Some(file) = file {
            task.source.test = file.into();
            if task.source.hub.path.is_empty() {
                task.source.fewshot.clear();
            }
        }
        if task.source.test.is_empty() && task.source.hub.path.is_empty() {
            return Err(EvalError::Task {
                task: name.into(),
                reason: format!("needs data: write `{name}:FILE`"),
            });
        }
        Ok((task, folder))
    }

    pub(super) fn check(&self) -> Result<(), String> {
        if self.metrics.is_empty() {
            return Err("`metrics`: give at least one".into());
        }
        if self.prompt.target.is_empty() {
            return Err("`prompt.target` is missing".into());
        }
        let choices = !self.prompt.choices.is_empty() || !self.prompt.choices_field.is_empty();
        if self.kind == Kind::MultipleChoice && !choices {
            return Err(
                "`kind = \"multiple_choice\"` needs `prompt.choices` or `prompt.choices_field`"
                    .into(),
            );
        }
        if choices && matches!(self.kind, Kind::Loglikelihood | Kind::LoglikelihoodRolling) {
            return Err(
                "`prompt.choices` and `prompt.choices_field` belong to `kind = \"multiple_choice\"` and `\"generate_until\"`".into(),
            );
        }
        if !self.filters.is_empty() && self.kind != Kind::GenerateUntil {
            return Err("`filters` belong to `kind = \"generate_until\"`".into());
        }
        if self.kind == Kind::GenerateUntil && self.generation.max_tokens == 0 {
            return Err("`generation.max_tokens` must be at least 1".into());
        }
        if !self.prompt.gen_prefix.is_empty() && self.kind == Kind::LoglikelihoodRolling {
            return Err(
                "`prompt.gen_prefix` has no meaning for `kind = \"loglikelihood_rolling\"`".into(),
            );
        }
        if self.repeats == 0
            || self.repeats > 1
                && (self.kind != Kind::GenerateUntil || self.generation.temperature <= 0.0)
        {
            return Err("`repeats` above 1 needs `kind = \"generate_until\"` and a `generation.temperature` above 0".into());
        }
        functions::check(self)?;
        if let Some(k) = self
            .metrics
            .iter()
            .filter_map(Metric::attempts)
            .find(|k| !(1..=self.repeats).contains(k))
        {
            return Err(format!("pass@{k} needs `repeats` of at least {}", k.max(1)));
        }
        if self.kind == Kind::LoglikelihoodRolling && self.num_fewshot > 0 {
            return Err(
                "`num_fewshot` has no meaning for `kind = \"loglikelihood_rolling\"`".into(),
            );
        }
        if let Some(metric) = self.metrics.iter().find(|m| !m.measures(self.kind)) {
            return Err(format!(
                "metric `{}` does not measure `{:?}` tasks",
                metric.name(),
                self.kind
            ));
        }
        self.filters.iter().try_for_each(Filter::check)?;
        self.metrics.iter().try_for_each(Metric::check)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn built_in_tasks_are_well_formed() {
        for name in Task::names() {
            let task = Task::builtin(name).unwrap().unwrap();
            assert_eq!(task.name, name);
            assert!(
                !task.version.is_empty() && !task.description.is_empty(),
                "{name}"
            );
        }
    }

    #[test]
    fn mistakes_in_a_task_are_named() {
        let refused = |text: &str, word: &str| {
            let error = Task::from_toml(text, "t.toml").unwrap_err().to_string();
            assert!(error.contains("t.toml") && error.contains(word), "{error}");
        };
        let base = "name='t'\nversion='1'\nkind='generate_until'\n[prompt]\ntext='x'\ntarget='y'\n";
        refused("name='t'", "version");
        refused(&format!("{base}[[metrics]]\nname='acc'\n"), "acc");
        refused(
            &format!("{base}colour='red'\n[[metrics]]\nname='exact_match'\n"),
            "colour",
        );
        refused(
            &format!("{base}[[metrics]]\nname='exact_match'\nregexes_to_ignore=['(']\n"),
            "(",
        );
        refused(
            &format!(
                "{base}[[filters]]\nname='f'\nsteps=[{{regex='['}}]\n[[metrics]]\nname='exact_match'\n"
            ),
            "[",
        );
        Task::from_toml(
            &format!("{base}[[metrics]]\nname='exact_match'\n"),
            "t.toml",
        )
        .unwrap();
    }

    #[test]
    fn unknown_names_get_a_suggestion() {
        assert!(
            Task::find("sst-2")
                .unwrap_err()
                .to_string()
                .contains("sst2")
        );
        assert!(
            Task::find("perplexity")
                .unwrap_err()
                .to_string()
                .contains("perplexity:FILE")
        );
        assert_eq!(
            Task::find("perplexity:a.txt").unwrap().0.source.test,
            "a.txt"
        );
    }
}
