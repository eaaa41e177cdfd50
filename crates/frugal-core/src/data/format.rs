//! Formats: which keys each has, how they are told apart, and records to examples.

use std::fmt;
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::read::{Record, kind};
use super::{DataError, Example, LoadOptions, Message};
use crate::suggest::did_you_mean;

/// What a record holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Format {
    /// `messages`: a list of objects with `role` and `content`.
    Messages,
    /// `conversations`: a list of objects with `from` and `value`, turned into messages.
    Sharegpt,
    /// `prompt`, `chosen`, `rejected`.
    Preference,
    /// `prompt` and `completion`.
    PromptCompletion,
    /// `instruction`, `output` and perhaps `input`, turned into prompt and completion.
    Alpaca,
    /// `anchor`, `positive`, `negative`.
    Triplet,
    /// `anchor` and `positive`.
    Pair,
    /// `text`, `label` and perhaps `text_pair`.
    Classification,
    /// `text`.
    Text,
}

impl Format {
    /// All formats, the more specific first: the first one whose keys are there is chosen.
    pub const ALL: [Self; 9] = [
        Self::Messages,
        Self::Sharegpt,
        Self::Preference,
        Self::PromptCompletion,
        Self::Alpaca,
        Self::Triplet,
        Self::Pair,
        Self::Classification,
        Self::Text,
    ];

    /// Its name in configuration files.
    pub fn name(self) -> &'static str {
        match self {
            Self::Messages => "messages",
            Self::Sharegpt => "sharegpt",
            Self::Preference => "preference",
            Self::PromptCompletion => "prompt_completion",
            Self::Alpaca => "alpaca",
            Self::Triplet => "triplet",
            Self::Pair => "pair",
            Self::Classification => "classification",
            Self::Text => "text",
        }
    }

    /// Keys that every record must have.
    pub fn required(self) -> &'static [&'static str] {
        match self {
            Self::Messages => &["messages"],
            Self::Sharegpt => &["conversations"],
            Self::Preference => &["prompt", "chosen", "rejected"],
            Self::PromptCompletion => &["prompt", "completion"],
            Self::Alpaca => &["instruction", "output"],
            Self::Triplet => &["anchor", "positive", "negative"],
            Self::Pair => &["anchor", "positive"],
            Self::Classification => &["text", "label"],
            Self::Text => &["text"],
        }
    }

    /// Keys that a record may have besides.
    pub fn optional(self) -> &'static [&'static str] {
        match self {
            Self::Alpaca => &["input"],
            Self::Classification => &["text_pair"],
            _ => &[],
        }
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Other names under which well-known data sets hold a key.
fn synonyms(key: &str) -> &'static [&'static str] {
    match key {
        "text" => &["sentence", "content", "sentence1", "premise"],
        "text_pair" => &["sentence2", "hypothesis"],
        "label" => &["labels", "class"],
        "prompt" => &["question"],
        "completion" => &["response", "answer"],
        _ => &[],
    }
}

/// The name under which `key` is there, its own first.
fn present<'a>(key: &'a str, has: &dyn Fn(&str) -> bool) -> Option<&'a str> {
    std::iter::once(key)
        .chain(synonyms(key).iter().copied())
        .find(|name| has(name))
}

/// The first format whose required keys are all there.
pub(super) fn detect(has: &dyn Fn(&str) -> bool) -> Option<Format> {
    Format::ALL
        .into_iter()
        .find(|f| f.required().iter().all(|key| present(key, has).is_some()))
}

/// One sentence on what keys are known.
pub(super) fn accepted() -> String {
    let formats = Format::ALL.into_iter().map(|f| {
        let optional: Vec<String> = f.optional().iter().map(|k| format!(" (+ {k})")).collect();
        format!("{}{} for {f}", f.required().join(" + "), optional.concat())
    });
    format!("Accepted keys: {}", formats.collect::<Vec<_>>().join("; "))
}

/// Names of all keys that a column can be mapped to.
fn keys() -> Vec<&'static str> {
    let mut keys: Vec<&str> = Format::ALL
        .into_iter()
        .flat_map(|f| f.required().iter().chain(f.optional()).copied())
        .collect();
    keys.sort_unstable();
    keys.dedup();
    keys
}

/// Turns records into examples of one format.
pub(super) fn examples(
    path: &Path,
    records: &[Record],
    options: &LoadOptions,
) -> Result<(Format, Vec<Example>), DataError> {
    let Some(first) = records.first() else {
        return Err(DataError::Empty {
            path: path.to_owned(),
        });
    };
    check_columns(path, first, options)?;
    let has = |name: &str| options.columns.contains_key(name) || first.fields.contains_key(name);
    let format = match options.format {
        Some(format) => format,
        None => detect(&has).ok_or_else(|| {
            let found: Vec<&str> = first.fields.keys().map(String::as_str).collect();
            let problem = format!(
                "the keys of the first record ({}) make up no known format. {}. Other names can be mapped, as in columns = {{ text = \"review\" }}",
                found.join(", "),
                accepted()
            );
            DataError::line(path, first.line, problem)
        })?,
    };
    let row = |record| Row {
        path,
        record,
        options,
        format,
    };
    Ok((
        format,
        records
            .iter()
            .map(|r| row(r).example())
            .collect::<Result<_, _>>()?,
    ))
}

fn check_columns(path: &Path, first: &Record, options: &LoadOptions) -> Result<(), DataError> {
    let suggest = |name: &str, known: &[&str]| {
        did_you_mean(name, known.iter().copied())
            .map_or(String::new(), |near| format!(" (did you mean {near:?}?)"))
    };
    for (ours, theirs) in &options.columns {
        let known = keys();
        if !known.contains(&ours.as_str()) {
            let problem = format!(
                "columns: {ours:?} is no key{}; the keys are {}",
                suggest(ours, &known),
                known.join(", ")
            );
            return Err(DataError::options(path, problem));
        }
        if !first.fields.contains_key(theirs) {
            let found: Vec<&str> = first.fields.keys().map(String::as_str).collect();
            let problem = format!(
                "columns: no column {theirs:?}{}; the file has {}",
                suggest(theirs, &found),
                found.join(", ")
            );
            return Err(DataError::options(path, problem));
        }
    }
    Ok(())
}

/// One record with what is needed to read it.
struct Row<'a> {
    path: &'a Path,
    record: &'a Record,
    options: &'a LoadOptions,
    format: Format,
}

impl Row<'_> {
    fn problem(&self, problem: impl Into<String>) -> DataError {
        DataError::line(self.path, self.record.line, problem)
    }

    fn get(&self, key: &str) -> Option<&Value> {
        let fields = &self.record.fields;
        match self.options.columns.get(key) {
            Some(column) => fields.get(column),
            None => {
                present(key, &|name| fields.contains_key(name)).and_then(|name| fields.get(name))
            }
        }
    }

    fn required(&self, key: &str) -> Result<&Value, DataError> {
        self.get(key).ok_or_else(|| {
            let column = self.options.columns.get(key).map_or(key, String::as_str);
            let found: Vec<&str> = self.record.fields.keys().map(String::as_str).collect();
            let needed = self.format.required().join(", ");
            self.problem(format!(
                "no {column:?}; a {} record needs {needed}, this one has {}",
                self.format,
                found.join(", ")
            ))
        })
    }

    fn text(&self, key: &str) -> Result<String, DataError> {
        match self.required(key)? {
            Value::String(text) => Ok(text.clone()),
            other => Err(self.problem(format!("{key:?} must be a string, not {}", kind(other)))),
        }
    }

    /// A text that may be absent, null or empty.
    fn optional_text(&self, key: &str) -> Result<Option<String>, DataError> {
        match self.get(key) {
            None | Some(Value::Null) => Ok(None),
            Some(_) => Ok(Some(self.text(key)?).filter(|t| !t.is_empty())),
        }
    }

    fn label(&self) -> Result<String, DataError> {
        match self.required("label")? {
            Value::String(label) if !label.is_empty() => Ok(label.clone()),
            Value::String(_) => Err(self.problem("the label is empty")),
            Value::Number(number) => Ok(number.to_string()),
            Value::Bool(value) => Ok(value.to_string()),
            other => Err(self.problem(format!(
                "\"label\" must be a string, a number or a boolean, not {}",
                kind(other)
            ))),
        }
    }

    fn list(&self, key: &str) -> Result<Vec<Value>, DataError> {
        // A table holds the list as JSON in one cell.
        let list = match self.required(key)? {
            Value::String(text) => serde_json::from_str(text).unwrap_or(Value::Null),
            value => value.clone(),
        };
        match list {
            Value::Array(items) if !items.is_empty() => Ok(items),
            Value::Array(_) => Err(self.problem(format!("{key:?} is an empty list"))),
            _ => Err(self.problem(format!("{key:?} must be a list of objects"))),
        }
    }

    fn messages(&self) -> Result<Vec<Message>, DataError> {
        let turn = |(i, item): (usize, &Value)| {
            let place = format!("messages[{i}]");
            let Some(Value::String(role)) = item.get("role") else {
                return Err(self.problem(format!("{place} needs a string \"role\"")));
            };
            let content = match item.get("content") {
                Some(Value::String(text)) => text.clone(),
                Some(Value::Array(parts)) => self.text_parts(&place, parts)?,
                _ => return Err(self.problem(format!("{place} needs a string \"content\""))),
            };
            Ok(Message::new(role, content))
        };
        self.list("messages")?
            .iter()
            .enumerate()
            .map(turn)
            .collect()
    }

    /// Content given as a list of parts, of which only text can be used.
    fn text_parts(&self, place: &str, parts: &[Value]) -> Result<String, DataError> {
        let text = |part: &Value| {
            part.get("text")
                .and_then(Value::as_str)
                .filter(|_| part.get("type").is_some_and(|t| t == "text"))
                .map(str::to_owned)
        };
        let texts: Option<Vec<String>> = parts.iter().map(text).collect();
        let texts = texts.ok_or_else(|| {
            self.problem(format!(
                "{place}: only content parts of type \"text\" can be used"
            ))
        })?;
        Ok(texts.concat())
    }

    fn conversations(&self) -> Result<Vec<Message>, DataError> {
        let turn = |(i, item): (usize, &Value)| {
            let (Some(Value::String(from)), Some(Value::String(value))) =
                (item.get("from"), item.get("value"))
            else {
                return Err(self.problem(format!(
                    "conversations[{i}] needs the strings \"from\" and \"value\""
                )));
            };
            let role =
                match from.as_str() {
                    "system" => "system",
                    "human" | "user" => "user",
                    "gpt" | "assistant" | "chatgpt" | "bot" | "model" => "assistant",
                    other => return Err(self.problem(format!(
                        "conversations[{i}]: \"from\" must be system, human or gpt, not {other:?}"
                    ))),
                };
            Ok(Message::new(role, value))
        };
        self.list("conversations")?
            .iter()
            .enumerate()
            .map(turn)
            .collect()
    }

    fn example(&self) -> Result<Example, DataError> {
        Ok(match self.format {
            Format::Messages => Example::Messages(self.messages()?),
            Format::Sharegpt => Example::Messages(self.conversations()?),
            Format::Preference => Example::Preference {
                prompt: self.text("prompt")?,
                chosen: self.text("chosen")?,
                rejected: self.text("rejected")?,
            },
            Format::PromptCompletion => Example::PromptCompletion {
                prompt: self.text("prompt")?,
                completion: self.text("completion")?,
            },
            Format::Alpaca => {
                let instruction = self.text("instruction")?;
                let prompt = match self.optional_text("input")? {
                    Some(input) => format!("{instruction}\n\n{input}"),
                    None => instruction,
                };
                Example::PromptCompletion {
                    prompt,
                    completion: self.text("output")?,
                }
            }
            Format::Triplet => Example::Triplet {
                anchor: self.text("anchor")?,
                positive: self.text("positive")?,
                negative: self.text("negative")?,
            },
            Format::Pair => Example::Pair {
                anchor: self.text("anchor")?,
                positive: self.text("positive")?,
            },
            Format::Classification => Example::Classification {
                text: self.text("text")?,
                text_pair: self.optional_text("text_pair")?,
                label: self.label()?,
            },
            Format::Text => Example::Text {
                text: self.text("text")?,
            },
        })
    }
}
