//! Records to examples of one format.

use std::path::Path;

use serde_json::Value;

use super::error::DataError;
use super::example::{Conversation, Example, Message};
use super::format::{Format, accepted, detect, keys};
use super::labels;
use super::options::{Labels, LoadOptions};
use super::record::{Record, kind};
use super::row::Row;
use super::tags;
use super::turns;
use crate::suggest::did_you_mean;

/// Records as they come, turned into examples of one format.
pub(super) struct Sink<'a> {
    path: &'a Path,
    options: &'a LoadOptions,
    format: Option<Format>,
    /// The JSON type of the labels, and the line of the first.
    label_kind: Option<(&'static str, usize)>,
    /// The examples so far.
    pub(super) examples: Vec<Example>,
    /// The line of each.
    pub(super) lines: Vec<usize>,
}

impl<'a> Sink<'a> {
    /// For the records of a file; the first one tells the format if the options do not.
    pub(super) fn new(path: &'a Path, options: &'a LoadOptions) -> Self {
        Self {
            path,
            options,
            format: None,
            label_kind: None,
            examples: Vec::new(),
            lines: Vec::new(),
        }
    }

    /// Takes one more record.
    pub(super) fn push(&mut self, record: &Record) -> Result<(), DataError> {
        let format = match self.format {
            Some(format) => format,
            None => *self
                .format
                .insert(format_of(self.path, record, self.options)?),
        };
        let row = Row {
            path: self.path,
            record,
            options: self.options,
            format,
        };
        if format == Format::Classification && self.options.labels == Labels::One {
            self.check_kind(&row)?;
        }
        self.examples.push(example(&row)?);
        self.lines.push(record.line);
        Ok(())
    }

    /// Labels of two types are one class that is written in two ways, or no labels: `true` and
    /// `"true"`.
    fn check_kind(&mut self, row: &Row<'_>) -> Result<(), DataError> {
        let Some(label) = row.get("label") else {
            return Ok(());
        };
        let (own, line) = (kind(label), row.record.line);
        match *self.label_kind.get_or_insert((own, line)) {
            (first, _) if first == own => Ok(()),
            (first, at) => Err(row.problem(format!(
                "the label is {own}, that of line {at} {first}: write all labels the same way"
            ))),
        }
    }

    /// The format, once everything was taken, and the names of outputs where the file decides them.
    pub(super) fn finish(&mut self) -> Result<(Format, Vec<String>), DataError> {
        let empty = || DataError::Empty {
            path: self.path.to_owned(),
        };
        let format = self.format.ok_or_else(empty)?;
        let outputs = match format {
            Format::Classification => {
                labels::finish(self.path, self.options, &mut self.examples, &self.lines)?
            }
            Format::TokenClassification => {
                labels::check_names(self.path, &self.examples, &self.lines)?;
                self.options.label_names.clone()
            }
            _ => Vec::new(),
        };
        Ok((format, outputs))
    }
}

fn format_of(path: &Path, first: &Record, options: &LoadOptions) -> Result<Format, DataError> {
    check_columns(path, first, options)?;
    let has = |name: &str| options.columns.contains_key(name) || first.fields.contains_key(name);
    let tagged = || options.labels == Labels::Tags && Format::TokenClassification.is_there(&has);
    let wanted = tagged().then_some(Format::TokenClassification);
    if let Some(format) = options.format.or(wanted).or_else(|| detect(&has)) {
        return Ok(format);
    }
    let found: Vec<&str> = first.fields.keys().map(String::as_str).collect();
    let lower: Vec<String> = found.iter().map(|name| name.to_lowercase()).collect();
    let hint = match detect(&|name| lower.iter().any(|l| l == name)) {
        Some(format) => format!(
            "written in small letters they are those of {format} data: rename them, or map them, as in `--column {}={}`. ",
            format.required()[0],
            lower
                .iter()
                .position(|l| l == format.required()[0])
                .map_or("NAME", |i| found[i])
        ),
        None => String::new(),
    };
    let problem = format!(
        "the keys of the first record ({}) make up no known format. {hint}{}. Other names can be mapped, as in columns = {{ text = \"review\" }}",
        found.join(", "),
        accepted()
    );
    Err(DataError::line(path, first.line, problem))
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
        let has = |name: &str| first.fields.contains_key(name);
        let parts = (ours == "label")
            .then(|| labels::columns(options))
            .flatten()
            .unwrap_or_else(|| vec![theirs.as_str()]);
        if let Some(theirs) = parts.into_iter().find(|part| !has(part)) {
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

fn example(row: &Row<'_>) -> Result<Example, DataError> {
    let example = read(row)?;
    row.check_unused()?;
    Ok(example)
}

fn read(row: &Row<'_>) -> Result<Example, DataError> {
    Ok(match row.format {
        Format::Messages => Example::Messages(turns::messages(row)?),
        Format::Sharegpt => Example::Messages(turns::sharegpt(row)?),
        Format::Preference => Example::Preference {
            prompt: row.text("prompt")?,
            chosen: row.text("chosen")?,
            rejected: row.text("rejected")?,
        },
        Format::PromptCompletion => prompt_completion(row)?,
        Format::Alpaca => alpaca(row)?,
        Format::Triplet => Example::Triplet {
            anchor: row.text("anchor")?,
            positive: row.text("positive")?,
            negative: row.text("negative")?,
        },
        Format::Pair => Example::Pair {
            anchor: row.text("anchor")?,
            positive: row.text("positive")?,
        },
        Format::Classification => labels::example(row)?,
        Format::TokenClassification => tags::example(row)?,
        Format::Text => Example::Text {
            text: row.text("text")?,
        },
    })
}

/// A text to classify, with its label where the file has one.
#[derive(Clone, Debug, PartialEq)]
pub struct TextRecord {
    /// Line of the file, from 1.
    pub line: usize,
    /// The text.
    pub text: String,
    /// The second text of a pair.
    pub text_pair: Option<String>,
    /// Its words, where these are told apart: those of the file, or what stands between white space.
    pub tokens: Vec<String>,
    /// What the file says of it: a label, a list of labels, a number or several, a tag for each word.
    pub label: Option<Value>,
}

/// A record as a text to classify; a label need not be there, even if a column is mapped to it.
pub(super) fn text_record(
    path: &Path,
    record: &Record,
    options: &LoadOptions,
) -> Result<TextRecord, DataError> {
    if options.labels == Labels::Tags {
        return tagged_record(path, record, options);
    }
    let fields = &record.fields;
    // A label may be missing, and is then not taken from another column.
    let mapped = labels::columns(options);
    let own = options.columns.get("label").map(String::as_str);
    let mapped = mapped.unwrap_or_else(|| own.into_iter().collect());
    let has_label = mapped.iter().all(|column| fields.contains_key(*column));
    let mut options = options.clone();
    options.columns.retain(|key, _| key != "label" || has_label);
    check_columns(path, record, &options)?;
    let row = Row {
        path,
        record,
        options: &options,
        format: Format::Text,
    };
    let several = labels::columns(&options).is_some();
    let label = (has_label && (several || row.given("label").is_some()))
        .then(|| labels::shown(&row))
        .transpose()?;
    Ok(TextRecord {
        line: record.line,
        text: row.text("text")?,
        text_pair: row.optional_text("text_pair")?,
        tokens: Vec::new(),
        label,
    })
}

/// A record whose words are to be tagged: its `tokens`, or else its `text`, divided at white space.
/// Tags need not be there.
fn tagged_record(
    path: &Path,
    record: &Record,
    options: &LoadOptions,
) -> Result<TextRecord, DataError> {
    let mut options = options.clone();
    let has = |column: &String| record.fields.contains_key(column);
    // A column of tags may be missing, and is then not taken from another one.
    let mapped = options.columns.get("ner_tags").cloned();
    options.columns.retain(|key, column| {
        has(column) || !["ner_tags", "tokens", "text"].contains(&key.as_str())
    });
    check_columns(path, record, &options)?;
    let row = Row {
        path,
        record,
        options: &options,
        format: Format::TokenClassification,
    };
    let (text, tokens) = match row.get("tokens") {
        Some(_) => {
            let tokens = tags::tokens(&row)?;
            (tokens.join(" "), tokens)
        }
        None if row.get("text").is_some() => {
            let text = row.text("text")?;
            let tokens = text.split_whitespace().map(str::to_owned).collect();
            (text, tokens)
        }
        None => return Err(row.problem("neither \"tokens\" nor \"text\" is there")),
    };
    // An empty list is what a table has for nothing, but of no words it is what is said of all.
    let all_of_none =
        tokens.is_empty() && row.get("ner_tags").is_some_and(serde_json::Value::is_array);
    let given = row.given("ner_tags").is_some() || all_of_none;
    let told = mapped.as_ref().is_none_or(has) && given;
    let label = match told {
        true => {
            let told = tags::tags(&row)?;
            tags::check_lengths(&row, &tokens, &told)?;
            Some(Value::from(told))
        }
        false => None,
    };
    Ok(TextRecord {
        line: record.line,
        text,
        text_pair: None,
        tokens,
        label,
    })
}

fn prompt_completion(row: &Row<'_>) -> Result<Example, DataError> {
    if let Some(conversation) = turns::prompt_and_completion(row)? {
        return Ok(Example::Messages(conversation));
    }
    let (prompt, completion) = (row.text("prompt")?, row.text("completion")?);
    let asked = [
        Message::new("user", &prompt),
        Message::new("assistant", &completion),
    ];
    Ok(match with_context(row, asked)? {
        Some(conversation) => Example::Messages(conversation),
        None => Example::PromptCompletion { prompt, completion },
    })
}

fn alpaca(row: &Row<'_>) -> Result<Example, DataError> {
    let (instruction, output) = (row.text("instruction")?, row.text("output")?);
    let input = row.optional_text("input")?;
    let example = Example::Instruction {
        instruction,
        input,
        output,
    };
    let asked = example.turns().unwrap_or_default();
    Ok(match with_context(row, asked)? {
        Some(conversation) => Example::Messages(conversation),
        None => example,
    })
}

/// A prompt and its answer with what the record says besides: earlier turns, a system message,
/// tools. `None` if it says nothing.
fn with_context(
    row: &Row<'_>,
    asked: impl IntoIterator<Item = Message>,
) -> Result<Option<Conversation>, DataError> {
    let mut messages = turns::history(row)?;
    let variables = turns::variables(row)?;
    let system = row.optional_text("system")?;
    if messages.is_empty() && variables.is_empty() && system.is_none() {
        return Ok(None);
    }
    messages.extend(asked);
    messages.splice(0..0, system.map(|text| Message::new("system", text)));
    Ok(Some(Conversation {
        messages,
        variables,
    }))
}
