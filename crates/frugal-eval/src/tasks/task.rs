//! Tasks as data: where the records are, how they become prompts, what is asked of the model and
//! how answers are scored.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::EvalError;
use super::filter::Filter;
use super::kind::Kind;
use super::metric::{Aggregation, Metric};
use super::record::Record;

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
