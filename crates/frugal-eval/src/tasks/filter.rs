//! Finding the answer in what a model wrote.

use std::collections::BTreeMap;

use fancy_regex::Regex;
use serde::{Deserialize, Serialize};

use super::record::Record;
use super::{functions, python};

/// What an answer is when nothing in the text matches.
pub const INVALID: &str = "[invalid]";

/// Steps that turn texts into answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Filter {
    /// Name beside the scores.
    pub name: String,
    /// Applied one after another.
    pub steps: Vec<Step>,
}

/// One step.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged, deny_unknown_fields)]
pub enum Step {
    /// A match of a regular expression as Python has them: its first group that took part, or all
    /// of it.
    Regex {
        /// The expression.
        regex: String,
        /// Which match: from 0, or from the end with -1.
        #[serde(default)]
        select: i64,
        /// The answer where nothing matches, instead of [`INVALID`].
        #[serde(default, skip_serializing_if = "Option::is_none")]
        fallback: Option<String>,
    },
    /// The text up to the first occurrence.
    Until {
        /// Where it ends.
        until: String,
    },
    /// The text with a prefix, which may hold fields of the record in Jinja; filled in where
    /// prompts are made.
    Prepend {
        /// Template of the prefix.
        prepend: String,
    },
    /// The text without white space at its ends, in capitals or small letters.
    Form {
        /// Which of these.
        form: Form,
    },
    /// Another text in place of one that is listed.
    Map {
        /// What stands for what.
        map: BTreeMap<String, String>,
        /// What stands for everything else.
        default: String,
    },
    /// The first texts of several.
    Take {
        /// How many.
        take: usize,
    },
    /// The most frequent of several texts.
    Majority {
        /// Always `most_frequent`.
        vote: Vote,
    },
    /// A built-in function over text and record.
    Function {
        /// Its name.
        function: String,
    },
}

/// Forms of a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Form {
    /// Without white space at its ends.
    Stripped,
    /// In small letters.
    Lower,
    /// In capitals.
    Upper,
}

/// How several texts become one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Vote {
    /// The most frequent one, of equally frequent ones the first.
    MostFrequent,
}

impl Filter {
    pub(super) fn check(&self) -> Result<(), String> {
        self.steps.iter().try_for_each(|step| match step {
            Step::Regex { regex, .. } => python::regex(regex)
                .map(|_| ())
                .map_err(|e| format!("filter `{}`: {e}", self.name)),
            Step::Take { take: 0 } => {
                Err(format!("filter `{}`: `take` must be at least 1", self.name))
            }
            Step::Function { function } if !functions::is_filter(function) => Err(format!(
                "filter `{}`: `{function}` is no built-in filter",
                self.name
            )),
            _ => Ok(()),
        })
    }

    /// The answers in `texts`; `render` fills in templates and `call` applies built-in functions.
    ///
    /// # Errors
    /// What `render` and `call` say.
    pub(super) fn apply<E>(
        &self,
        texts: &[&str],
        render: impl Fn(&str) -> Result<String, E>,
        call: impl Fn(&str, &str) -> Result<String, E>,
    ) -> Result<Vec<String>, E> {
        let mut texts: Vec<String> = texts.iter().map(|t| (*t).to_owned()).collect();
        for step in &self.steps {
            let each = |change: &dyn Fn(&str) -> String| -> Vec<String> {
                texts.iter().map(|t| change(t)).collect()
            };
            texts = match step {
                Step::Regex {
                    regex,
                    select,
                    fallback,
                } => {
                    let fallback = fallback.as_deref().unwrap_or(INVALID);
                    // Patterns were compiled once when the task was read.
                    let regex = python::regex(regex).ok();
                    each(&|text| {
                        regex
                            .as_ref()
                            .and_then(|regex| matched(text, regex, *select))
                            .unwrap_or_else(|| fallback.to_owned())
                    })
                }
                Step::Until { until } => each(&|text| {
                    text.split(until.as_str())
                        .next()
                        .unwrap_or_default()
                        .to_owned()
                }),
                Step::Prepend { prepend } => {
                    let prefix = render(prepend)?;
                    each(&|text| format!("{prefix}{text}"))
                }
                Step::Form { form } => each(&|text| match form {
                    Form::Stripped => text.trim().to_owned(),
                    Form::Lower => text.to_lowercase(),
                    Form::Upper => text.to_uppercase(),
                }),
                Step::Map { map, default } => {
                    each(&|text| map.get(text).unwrap_or(default).clone())
                }
                Step::Take { take } => {
                    texts.truncate(*take);
                    texts
                }
                Step::Majority { .. } => most_frequent(&texts).into_iter().collect(),
                Step::Function { function } => texts
                    .iter()
                    .map(|text| call(function, text))
                    .collect::<Result<_, _>>()?,
            };
        }
        Ok(texts)
    }

    /// The same for a record.
    pub(super) fn of_record(
        &self,
        texts: &[&str],
        renderer: &super::template::Renderer,
        record: &Record,
        row: usize,
    ) -> Result<Vec<String>, super::EvalError> {
        self.apply(
            texts,
            |template| renderer.render(template, record, row),
            |function, text| {
                functions::filter(function, text, record).map_err(|e| renderer.refused(row, e))
            },
        )
    }
}

fn most_frequent(texts: &[String]) -> Option<String> {
    let count = |text: &String| texts.iter().filter(|other| *other == text).count();
    let most = texts.iter().map(count).max()?;
    texts.iter().find(|text| count(text) == most).cloned()
}

fn matched(text: &str, regex: &Regex, select: i64) -> Option<String> {
    // A text on which the pattern takes too long holds no answer.
    let found: Vec<fancy_regex::Captures<'_>> =
        regex.captures_iter(text).map_while(Result::ok).collect();
    let index = if select < 0 {
        found.len() as i64 + select
    } else {
        select
    };
    let captures = found.get(usize::try_from(index).ok()?)?;
    if captures.len() <= 2 {
        // One group may have matched nothing, which is an answer; of several it is not.
        let group = captures.get(captures.len() - 1);
        return Some(group.map_or(String::new(), |m| m.as_str().trim().to_owned()));
    }
    captures
        .iter()
        .skip(1)
        .flatten()
        .map(|m| m.as_str())
        .find(|m| !m.is_empty())
        .map(|m| m.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::super::task::Task;
    use super::*;

    fn apply(filter: &Filter, texts: &[&str]) -> Vec<String> {
        let same = |text: &str| Ok::<_, ()>(text.to_owned());
        filter.apply(texts, same, |_, text| same(text)).unwrap()
    }

    #[test]
    fn the_two_filters_of_gsm8k_find_what_they_should() {
        let task = Task::builtin("gsm8k").unwrap().unwrap();
        let of = |text: &str| -> Vec<String> {
            task.filters
                .iter()
                .flat_map(|f| apply(f, &[text]))
                .collect()
        };
        assert_eq!(of("She has 3 + 4 = 7 apples.\n#### 7"), ["7", "7"]);
        assert_eq!(
            of("#### 1,234 and then $5.50 left"),
            ["1,234", "5.50"].map(|s| if s == "5.50" { "$5.50" } else { s })
        );
        assert_eq!(of("no number"), [INVALID, INVALID]);
        assert_eq!(of("It is 12."), [INVALID, "12."]);
    }

    #[test]
    fn steps_are_applied_in_order() {
        let filter: Filter =
            toml::from_str("name='f'\nsteps=[{until=\"\\n\"},{prepend='def f():'}]").unwrap();
        assert_eq!(
            apply(&filter, &[" return 1\nprint()"]),
            ["def f(): return 1"]
        );
    }

    /// Of lm-evaluation-harness's filters of the same names.
    #[test]
    fn several_answers_become_one() {
        let filter: Filter = toml::from_str(
            "name='f'\nsteps=[{regex='is (\\w*)', fallback='none'}, {take=4}, {vote='most_frequent'}, {form='upper'}]",
        )
        .unwrap();
        let texts = ["it is b", "it is a", "is a", "?", "is b", "is b"];
        assert_eq!(apply(&filter, &texts), ["A"]);
        let filter: Filter =
            toml::from_str("name='f'\nsteps=[{form='stripped'}, {map={yes='1'}, default='0'}]")
                .unwrap();
        assert_eq!(apply(&filter, &[" yes\n", "no"]), ["1", "0"]);
        // An empty group is an answer, an empty text stays one.
        let filter: Filter = toml::from_str("name='f'\nsteps=[{regex='a(b?)'}]").unwrap();
        assert_eq!(apply(&filter, &["a", "c"]), ["", INVALID]);
    }
}
