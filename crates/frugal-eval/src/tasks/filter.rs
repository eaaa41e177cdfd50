//! Finding the answer in what a model wrote.

use regex::Regex;
use serde::{Deserialize, Serialize};

/// What an answer is when nothing in the text matches.
pub const INVALID: &str = "[invalid]";

/// Steps that turn a text into an answer.
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
    /// A match of a regular expression: its first group that took part, or all of it.
    Regex {
        /// The expression.
        regex: String,
        /// Which match: from 0, or from the end with -1.
        #[serde(default)]
        select: i64,
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
}

impl Filter {
    pub(super) fn check(&self) -> Result<(), String> {
        self.steps.iter().try_for_each(|step| match step {
            Step::Regex { regex, .. } => Regex::new(regex)
                .map(|_| ())
                .map_err(|e| format!("filter `{}`: {e}", self.name)),
            Step::Until { .. } | Step::Prepend { .. } => Ok(()),
        })
    }

    /// The answer in `text`; `render` fills in templates.
    ///
    /// # Errors
    /// What `render` says.
    pub fn apply<E>(
        &self,
        text: &str,
        render: impl Fn(&str) -> Result<String, E>,
    ) -> Result<String, E> {
        let mut text = text.to_owned();
        for step in &self.steps {
            text = match step {
                Step::Regex { regex, select } => matched(&text, regex, *select),
                Step::Until { until } => text
                    .split(until.as_str())
                    .next()
                    .unwrap_or_default()
                    .to_owned(),
                Step::Prepend { prepend } => render(prepend)? + &text,
            };
        }
        Ok(text)
    }
}

fn matched(text: &str, pattern: &str, select: i64) -> String {
    // Patterns were compiled once when the task was read.
    let Ok(regex) = Regex::new(pattern) else {
        return INVALID.into();
    };
    let found: Vec<regex::Captures<'_>> = regex.captures_iter(text).collect();
    let index = if select < 0 {
        found.len() as i64 + select
    } else {
        select
    };
    let Some(captures) = usize::try_from(index).ok().and_then(|i| found.get(i)) else {
        return INVALID.into();
    };
    if captures.len() == 1 {
        return captures[0].trim().to_owned();
    }
    let group = captures
        .iter()
        .skip(1)
        .flatten()
        .map(|m| m.as_str())
        .find(|m| !m.is_empty());
    group.map_or(INVALID.to_owned(), |m| m.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::super::task::Task;
    use super::*;

    #[test]
    fn the_two_filters_of_gsm8k_find_what_they_should() {
        let task = Task::builtin("gsm8k").unwrap().unwrap();
        let of = |text: &str| -> Vec<String> {
            task.filters
                .iter()
                .map(|f| f.apply(text, |t| Ok::<_, ()>(t.into())).unwrap())
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
            filter
                .apply(" return 1\nprint()", |t| Ok::<_, ()>(t.into()))
                .unwrap(),
            "def f(): return 1"
        );
    }
}
