//! Records to examples of one format.

use std::collections::BTreeMap;
use std::path::Path;

use super::error::DataError;
use super::example::{Conversation, Example, Message};
use super::format::{Format, accepted, detect, keys};
use super::options::LoadOptions;
use super::record::Record;
use super::row::Row;
use super::turns;
use crate::suggest::did_you_mean;

/// More different fractions than this are no classes.
const MAX_FRACTIONS: usize = 20;

/// Records as they come, turned into examples of one format.
pub(super) struct Sink<'a> {
    path: &'a Path,
    options: &'a LoadOptions,
    format: Option<Format>,
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
        self.examples.push(example(&row)?);
        self.lines.push(record.line);
        Ok(())
    }

    /// The format, once everything was taken.
    pub(super) fn finish(&self) -> Result<Format, DataError> {
        let empty = || DataError::Empty {
            path: self.path.to_owned(),
        };
        let format = self.format.ok_or_else(empty)?;
        if format == Format::Classification {
            check_labels(self.path, &self.examples, &self.lines)?;
        }
        Ok(format)
    }
}

/// Below this all whole numbers differ in double precision.
const EXACT: f64 = (1_u64 << 53) as f64;
/// Words for a value that is missing, as tables write them.
const MISSING: [&str; 8] = ["nan", "na", "n/a", "<na>", "null", "none", "nil", "-nan"];

/// Labels that differ only in the space around them, or are one number, are one class that was
/// written in two ways; what is no number among numbers is a value that is missing; many
/// different fractions are a score.
pub(super) fn check_labels(
    path: &Path,
    examples: &[Example],
    lines: &[usize],
) -> Result<(), DataError> {
    let mut seen: BTreeMap<&str, &str> = BTreeMap::new();
    for (example, line) in examples.iter().zip(lines) {
        let Example::Classification { label, .. } = example else {
            continue;
        };
        let first = seen.entry(label.trim()).or_insert(label);
        if *first != label {
            let problem = format!(
                "the label {label:?} differs from {first:?} only in the space around it; write both the same way"
            );
            return Err(DataError::line(path, *line, problem));
        }
    }
    check_numbers(path, seen.keys().copied())?;
    let fraction = |label: &&&str| label.parse::<f64>().is_ok_and(|v| v.fract() != 0.0);
    let numbers = seen.keys().all(|label| label.parse::<f64>().is_ok());
    match seen.keys().find(fraction) {
        Some(label) if numbers && seen.len() > MAX_FRACTIONS => Err(DataError::options(
            path,
            format!(
                "the labels are {} different numbers such as {label}: a score rather than classes, which \
                 is not learned here; group the scores into classes, or name another column with `--column label=NAME`",
                seen.len()
            ),
        )),
        _ => Ok(()),
    }
}

/// Labels that are one number, and among numbers those that say that there is none.
fn check_numbers<'l>(path: &Path, labels: impl Iterator<Item = &'l str>) -> Result<(), DataError> {
    let mut numbers: BTreeMap<u64, &str> = BTreeMap::new();
    let (mut missing, mut names) = (None, false);
    for label in labels {
        if MISSING.contains(&label.to_lowercase().as_str()) {
            missing = Some(label);
            continue;
        }
        let number = label.parse::<f64>().ok().filter(|n| n.is_finite());
        let Some(number) = number else {
            names = true;
            continue;
        };
        // Longer ones are the same to a computer only.
        if number.abs() >= EXACT {
            continue;
        }
        // -0 and 0 are one number.
        if let Some(first) = numbers.insert((number + 0.0).to_bits(), label) {
            let problem = format!(
                "the labels {first:?} and {label:?} are the same number; write both the same way"
            );
            return Err(DataError::options(path, problem));
        }
    }
    match missing {
        Some(label) if !numbers.is_empty() && !names => {
            let problem = format!(
                "{label:?} among labels that are numbers says that there is none: leave these rows out, or name the class"
            );
            Err(DataError::options(path, problem))
        }
        _ => Ok(()),
    }
}

fn format_of(path: &Path, first: &Record, options: &LoadOptions) -> Result<Format, DataError> {
    check_columns(path, first, options)?;
    let has = |name: &str| options.columns.contains_key(name) || first.fields.contains_key(name);
    if let Some(format) = options.format.or_else(|| detect(&has)) {
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
        Format::Classification => Example::Classification {
            text: row.text("text")?,
            text_pair: row.optional_text("text_pair")?,
            label: row.label()?,
        },
        Format::Text => Example::Text {
            text: row.text("text")?,
        },
    })
}

/// A text to classify, with its label where the file has one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TextRecord {
    /// Line of the file, from 1.
    pub line: usize,
    /// The text.
    pub text: String,
    /// The second text of a pair.
    pub text_pair: Option<String>,
    /// The label.
    pub label: Option<String>,
}

/// A record as a text to classify; a label need not be there, even if a column is mapped to it.
pub(super) fn text_record(
    path: &Path,
    record: &Record,
    options: &LoadOptions,
) -> Result<TextRecord, DataError> {
    let mut options = options.clone();
    let fields = &record.fields;
    // A label may be missing, and is then not taken from another column.
    let mapped = options.columns.get("label");
    let has_label = mapped.is_none_or(|column| fields.contains_key(column));
    options.columns.retain(|key, _| key != "label" || has_label);
    check_columns(path, record, &options)?;
    let row = Row {
        path,
        record,
        options: &options,
        format: Format::Text,
    };
    let label = (has_label && row.given("label").is_some())
        .then(|| row.label())
        .transpose()?;
    Ok(TextRecord {
        line: record.line,
        text: row.text("text")?,
        text_pair: row.optional_text("text_pair")?,
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
