//! What a record says of its text: one label, several, or numbers.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde_json::Value;
use tokenizers::NormalizedString;

use super::error::DataError;
use super::example::Example;
use super::options::{Labels, LoadOptions};
use super::record::kind;
use super::row::Row;

/// More different fractions than this are no classes.
const MAX_FRACTIONS: usize = 20;
/// Below this all whole numbers differ in double precision.
const EXACT: f64 = (1_u64 << 53) as f64;
/// Words for a value that is missing, as tables write them.
const MISSING: [&str; 8] = ["nan", "na", "n/a", "<na>", "null", "none", "nil", "-nan"];

/// What stands between the labels of a text unless the options say otherwise.
const SEPARATOR: &str = "|";
/// What else is often written between labels.
const USUAL_SEPARATORS: [char; 3] = ['|', ';', ','];

/// The columns that `label` is mapped to, where it is several: `label = "toxic,obscene"`.
pub(super) fn columns(options: &LoadOptions) -> Option<Vec<&str>> {
    let column = options.columns.get("label")?;
    let one = matches!(options.labels, Labels::One | Labels::Tags);
    let several = !one && column.contains(',');
    several.then(|| column.split(',').map(str::trim).collect())
}

/// A text with what is said of it.
pub(super) fn example(row: &Row<'_>) -> Result<Example, DataError> {
    let (text, text_pair) = (row.text("text")?, row.optional_text("text_pair")?);
    Ok(match row.options.labels {
        // Tags belong to words, of which these records have none: the task refuses them.
        Labels::One | Labels::Tags => Example::Classification {
            text,
            text_pair,
            label: one(row)?,
        },
        Labels::Several => Example::Labeled {
            text,
            text_pair,
            labels: several(row)?,
        },
        Labels::Numbers => Example::Valued {
            text,
            text_pair,
            values: numbers(row)?,
        },
    })
}

/// What a record says of its text, as it is shown beside what is predicted: a name, names, or
/// numbers.
pub(super) fn shown(row: &Row<'_>) -> Result<Value, DataError> {
    Ok(match row.options.labels {
        Labels::One | Labels::Tags => match row.required("label")? {
            // A list, which is no label to compare with, is shown as it is.
            Value::Array(items) => Value::from(items.clone()),
            _ => Value::from(one(row)?),
        },
        Labels::Several => Value::from(several(row)?),
        Labels::Numbers => {
            let values: Vec<Value> = numbers(row)?.into_iter().map(short).collect();
            match values.as_slice() {
                [value] => value.clone(),
                _ => Value::from(values),
            }
        }
    })
}

/// A number with the digits that single precision has.
fn short(value: f32) -> Value {
    Value::from(value.to_string().parse().unwrap_or(f64::from(value)))
}

fn one(row: &Row<'_>) -> Result<String, DataError> {
    match row.required("label")? {
        Value::String(label) if !label.is_empty() => Ok(label.clone()),
        Value::String(_) => Err(row.problem("the label is empty")),
        Value::Number(number) => Ok(number.to_string()),
        Value::Bool(value) => Ok(value.to_string()),
        Value::Array(_) => Err(row.problem(
            "\"label\" is a list: for several labels of one text give `--problem-type multi_label_classification`, \
             for several numbers `--problem-type regression`",
        )),
        other => Err(row.problem(format!(
            "\"label\" must be a string, a number or a boolean, not {}",
            kind(other)
        ))),
    }
}

/// The names of the labels that hold.
fn several(row: &Row<'_>) -> Result<Vec<String>, DataError> {
    if let Some(columns) = columns(row.options) {
        let mut labels = Vec::new();
        for column in columns {
            if is_set(row, column)? {
                labels.push(column.to_owned());
            }
        }
        return Ok(labels);
    }
    let items = match row.required("label")? {
        Value::Null => return Ok(Vec::new()),
        Value::Array(items) => items.clone(),
        Value::String(text) => return in_text(row, text),
        Value::Number(number) => return Ok(vec![number.to_string()]),
        Value::Bool(value) => return Ok(vec![value.to_string()]),
        other @ Value::Object(_) => {
            return Err(row.problem(format!(
                "\"label\" must be a list of labels, not {}",
                kind(other)
            )));
        }
    };
    names(row, &items)
}

/// Whether a column of 0 and 1 says yes.
fn is_set(row: &Row<'_>, column: &str) -> Result<bool, DataError> {
    let value = row.record.fields.get(column);
    let word = match value {
        Some(Value::Bool(value)) => return Ok(*value),
        Some(Value::Number(number)) => number.to_string(),
        Some(Value::String(text)) => text.trim().to_lowercase(),
        _ => String::new(),
    };
    match word.as_str() {
        "1" | "1.0" | "true" => Ok(true),
        "0" | "0.0" | "false" => Ok(false),
        _ => Err(row.problem(format!(
            "{column:?} must be 0 or 1 to say whether the label holds, not {}",
            value.map_or("absent".to_owned(), Value::to_string)
        ))),
    }
}

fn names(row: &Row<'_>, items: &[Value]) -> Result<Vec<String>, DataError> {
    let name = |item: &Value| match item {
        Value::String(label) if !label.trim().is_empty() => Ok(label.clone()),
        Value::Number(number) => Ok(number.to_string()),
        Value::Bool(value) => Ok(value.to_string()),
        other => Err(row.problem(format!("{other} in the list of labels is no label"))),
    };
    items.iter().map(name).collect()
}

/// Labels in one text: a list as JSON or as Python writes it, or names with a separator.
fn in_text(row: &Row<'_>, text: &str) -> Result<Vec<String>, DataError> {
    let text = text.trim();
    if text.is_empty() {
        return Ok(Vec::new());
    }
    if text.starts_with('[') && text.ends_with(']') {
        return match list(text) {
            Some(items) => names(row, &items),
            None => Err(row.problem(format!(
                "{text:?} begins and ends like a list, but is none: write it as JSON, as in [\"a\", \"b\"]"
            ))),
        };
    }
    let separator = row.options.label_separator.as_deref().unwrap_or(SEPARATOR);
    let parts = text.split(separator).map(str::trim);
    Ok(parts.filter(|p| !p.is_empty()).map(str::to_owned).collect())
}

/// A list in a cell of a table; Python writes its strings in single quotes.
pub(super) fn list(text: &str) -> Option<Vec<Value>> {
    let read = |text: &str| serde_json::from_str::<Vec<Value>>(text).ok();
    read(text).or_else(|| {
        let plain = !text.contains('"') && !text.contains('\\');
        plain.then(|| read(&text.replace('\'', "\"")))?
    })
}

fn numbers(row: &Row<'_>) -> Result<Vec<f32>, DataError> {
    let fields = &row.record.fields;
    if let Some(columns) = columns(row.options) {
        let value = |column: &&str| number(row, column, fields.get(*column));
        return columns.iter().map(value).collect();
    }
    let value = row.required("label")?;
    let in_cell = value.as_str().map(str::trim);
    let items = match value {
        Value::Array(items) => Some(items.clone()),
        Value::String(text) if text.trim().starts_with('[') => list(text.trim()),
        _ => None,
    };
    match items {
        Some(items) if items.is_empty() => Err(row.problem("\"label\" is an empty list")),
        Some(items) => items
            .iter()
            .map(|item| number(row, "label", Some(item)))
            .collect(),
        None if in_cell.is_some_and(|text| text.starts_with('[')) => Err(row.problem(format!(
            "{value} is no list of numbers: write it as JSON, as in [0.5, 2]"
        ))),
        None => Ok(vec![number(row, "label", Some(value))?]),
    }
}

fn number(row: &Row<'_>, column: &str, value: Option<&Value>) -> Result<f32, DataError> {
    let found = match value {
        Some(Value::Number(number)) => number.as_f64(),
        Some(Value::String(text)) => text.trim().parse().ok(),
        _ => None,
    };
    let finite = found.map(|x| x as f32).filter(|x| x.is_finite());
    finite.ok_or_else(|| {
        row.problem(format!(
            "{column:?} must be a number for regression, not {}",
            value.map_or("absent".to_owned(), Value::to_string)
        ))
    })
}

/// Checks what can only be seen in all records together, and gives the names of the outputs where
/// the file decides them.
pub(super) fn finish(
    path: &Path,
    options: &LoadOptions,
    examples: &mut [Example],
    lines: &[usize],
) -> Result<Vec<String>, DataError> {
    match options.labels {
        Labels::One | Labels::Tags => check_names(path, examples, lines).map(|()| Vec::new()),
        Labels::Several => several_labels(path, options, examples, lines),
        Labels::Numbers => outputs(path, options, examples, lines),
    }
}

/// Labels that differ only in the space around them, or are one number, are one class that was
/// written in two ways; what is no number among numbers is a value that is missing; many
/// different fractions are a score.
pub(super) fn check_names(
    path: &Path,
    examples: &[Example],
    lines: &[usize],
) -> Result<(), DataError> {
    let mut seen: BTreeMap<&str, &str> = BTreeMap::new();
    let named = examples.iter().zip(lines);
    for (label, line) in named.flat_map(|(e, line)| named_in(e).map(move |label| (label, *line))) {
        let first = seen.entry(label.trim()).or_insert(label);
        if *first != label {
            let problem = format!(
                "the label {label:?} differs from {first:?} only in the space around it; write both the same way"
            );
            return Err(DataError::line(path, line, problem));
        }
    }
    // Two spellings of one text in Unicode look the same to people.
    let mut composed: BTreeMap<String, &str> = BTreeMap::new();
    for label in seen.keys().filter(|label| !label.is_ascii()) {
        if let Some(first) = composed.insert(nfc(label), label) {
            let problem = format!(
                "the labels \"{}\" and \"{}\" are one text, composed and decomposed; write both the same way",
                first.escape_default(),
                label.escape_default()
            );
            return Err(DataError::options(path, problem));
        }
    }
    check_numbers(path, seen.keys().copied())?;
    let fraction = |label: &&&str| label.parse::<f64>().is_ok_and(|v| v.fract() != 0.0);
    let numbers = seen.keys().all(|label| label.parse::<f64>().is_ok());
    match seen.keys().find(fraction) {
        Some(label) if numbers && seen.len() > MAX_FRACTIONS => Err(DataError::options(
            path,
            format!(
                "the labels are {} different numbers such as {label}: a score rather than classes; to learn it give \
                 `--problem-type regression`, otherwise group the scores into classes, or name another column with \
                 `--column label=NAME`",
                seen.len()
            ),
        )),
        _ => Ok(()),
    }
}

/// The names of classes in an example: its label, or the tags of its words.
fn named_in(example: &Example) -> impl Iterator<Item = &String> {
    let (one, several) = match example {
        Example::Classification { label, .. } => (Some(label), &[][..]),
        Example::Tagged { tags, .. } => (None, tags.as_slice()),
        _ => (None, &[][..]),
    };
    one.into_iter().chain(several.iter().flatten())
}

/// The text with its letters composed.
fn nfc(text: &str) -> String {
    let mut text = NormalizedString::from(text);
    text.nfc();
    text.get().to_owned()
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

fn labels_of(example: &Example) -> &[String] {
    match example {
        Example::Labeled { labels, .. } => labels,
        _ => &[],
    }
}

fn several_labels(
    path: &Path,
    options: &LoadOptions,
    examples: &mut [Example],
    lines: &[usize],
) -> Result<Vec<String>, DataError> {
    if let Some(columns) = columns(options) {
        return Ok(columns.into_iter().map(str::to_owned).collect());
    }
    if let Some(count) = indicators(examples) {
        let names: Vec<String> = (0..count).map(|i| i.to_string()).collect();
        for example in examples.iter_mut() {
            if let Example::Labeled { labels, .. } = example {
                let set = |(i, value): (usize, &String)| value.starts_with('1').then_some(i);
                let found: Vec<usize> = labels.iter().enumerate().filter_map(set).collect();
                *labels = found.into_iter().map(|i| names[i].clone()).collect();
            }
        }
        return Ok(names);
    }
    for (example, line) in examples.iter().zip(lines) {
        let mut seen = BTreeSet::new();
        if let Some(twice) = labels_of(example).iter().find(|l| !seen.insert(*l)) {
            return Err(DataError::line(
                path,
                *line,
                format!("the label {twice:?} comes twice"),
            ));
        }
    }
    check_separator(path, options, examples).map(|()| Vec::new())
}

/// How many labels there are, if each record has a 0 or 1 for every one of them: lists of one
/// length, of nothing else, at least two long.
fn indicators(examples: &[Example]) -> Option<usize> {
    let count = examples.first().map(|e| labels_of(e).len())?;
    let flag = |label: &String| ["0", "1", "0.0", "1.0"].contains(&label.as_str());
    let all = |e: &Example| labels_of(e).len() == count && labels_of(e).iter().all(flag);
    (count > 1 && examples.iter().all(all)).then_some(count)
}

/// Where each text has one label and these hold what is often a separator, the separator is
/// another.
fn check_separator(
    path: &Path,
    options: &LoadOptions,
    examples: &[Example],
) -> Result<(), DataError> {
    if options.label_separator.is_some() || examples.iter().any(|e| labels_of(e).len() > 1) {
        return Ok(());
    }
    let labels = || examples.iter().flat_map(labels_of);
    for separator in USUAL_SEPARATORS {
        if let Some(label) = labels().find(|label| label.contains(separator)) {
            return Err(DataError::options(
                path,
                format!(
                    "no text has more than one label, and there is {label:?}: if `{separator}` stands between labels, give \
                     `--set data.label_separator={separator}`"
                ),
            ));
        }
    }
    Ok(())
}

fn outputs(
    path: &Path,
    options: &LoadOptions,
    examples: &[Example],
    lines: &[usize],
) -> Result<Vec<String>, DataError> {
    let count = |example: &Example| match example {
        Example::Valued { values, .. } => values.len(),
        _ => 0,
    };
    let first = examples.first().map_or(0, count);
    let mut all = examples.iter().zip(lines);
    if let Some((other, line)) = all.find(|(example, _)| count(example) != first) {
        let problem = format!(
            "{} numbers, where the records before have {first}",
            count(other)
        );
        return Err(DataError::line(path, *line, problem));
    }
    Ok(match columns(options) {
        Some(columns) => columns.into_iter().map(str::to_owned).collect(),
        None if first == 1 => vec!["score".to_owned()],
        None => (0..first).map(|i| format!("score_{i}")).collect(),
    })
}
