//! Files to records: what is common to all formats.

use std::path::Path;

use serde_json::{Map, Value};

use super::table::{Quotes, table};
use super::{DataError, Documents, LoadOptions};

/// A record before its format is known.
pub(super) struct Record {
    /// Line on which it starts, from 1.
    pub(super) line: usize,
    pub(super) fields: Map<String, Value>,
}

/// Reads the records of a file, whose kind its name tells.
pub(super) fn records(
    path: &Path,
    bytes: &[u8],
    options: &LoadOptions,
) -> Result<Vec<Record>, DataError> {
    let text = utf8(path, bytes)?;
    let extension = path
        .extension()
        .and_then(|e| e.to_str())
        .unwrap_or_default()
        .to_ascii_lowercase();
    let records = match extension.as_str() {
        "jsonl" | "ndjson" => json_lines(path, text)?,
        "json" => json_array(path, text)?,
        "csv" => table(path, text, b',', Quotes::Allowed, options)?,
        "tsv" => table(path, text, b'\t', Quotes::Literal, options)?,
        "txt" => documents(text, options.documents),
        _ => {
            return Err(DataError::Extension {
                path: path.to_owned(),
            });
        }
    };
    if records.is_empty() {
        Err(DataError::Empty {
            path: path.to_owned(),
        })
    } else {
        Ok(records)
    }
}

fn utf8<'a>(path: &Path, bytes: &'a [u8]) -> Result<&'a str, DataError> {
    let text = std::str::from_utf8(bytes).map_err(|e| {
        let at = e.valid_up_to();
        let line = 1 + bytes[..at].iter().filter(|b| **b == b'\n').count();
        DataError::line(
            path,
            line,
            format!(
                "byte 0x{:02x} is not UTF-8; convert the file to UTF-8",
                bytes[at]
            ),
        )
    })?;
    Ok(text.strip_prefix('\u{feff}').unwrap_or(text))
}

fn object(path: &Path, line: usize, value: Value) -> Result<Record, DataError> {
    match value {
        Value::Object(fields) => Ok(Record { line, fields }),
        other => Err(DataError::line(
            path,
            line,
            format!("expected a JSON object, found {}", kind(&other)),
        )),
    }
}

fn json_lines(path: &Path, text: &str) -> Result<Vec<Record>, DataError> {
    let lines = text
        .lines()
        .enumerate()
        .map(|(i, line)| (i + 1, line))
        .filter(|(_, line)| !line.trim().is_empty());
    lines
        .map(|(number, line)| {
            let value = serde_json::from_str(line).map_err(|e| {
                let problem = e.to_string();
                let problem = problem.split(" at line ").next().unwrap_or_default();
                DataError::line(
                    path,
                    number,
                    format!(
                        "expected one JSON object per line: {problem} at column {}",
                        e.column()
                    ),
                )
            })?;
            object(path, number, value)
        })
        .collect()
}

/// Reads the elements one by one, so that each has its line number.
fn json_array(path: &Path, text: &str) -> Result<Vec<Record>, DataError> {
    let line_at = |at: usize| {
        1 + text.as_bytes()[..at]
            .iter()
            .filter(|b| **b == b'\n')
            .count()
    };
    let skip = |at: usize| text.len() - text[at..].trim_start().len();
    let problem = |at: usize, what: &str| DataError::line(path, line_at(at), what);
    let mut at = skip(0);
    if at == text.len() {
        return Ok(Vec::new());
    }
    if !text[at..].starts_with('[') {
        return Err(problem(
            at,
            "expected a JSON array of objects (`[{...}, {...}]`); one object per line belongs in a .jsonl file",
        ));
    }
    at = skip(at + 1);
    let mut records = Vec::new();
    // Counting from the last record keeps the line numbers linear in the size of the file.
    let (mut counted, mut line) = (0, 1);
    while !text[at..].starts_with(']') {
        line += text.as_bytes()[counted..at]
            .iter()
            .filter(|b| **b == b'\n')
            .count();
        counted = at;
        let mut values = serde_json::Deserializer::from_str(&text[at..]).into_iter::<Value>();
        let value = match values.next() {
            Some(Ok(value)) => value,
            Some(Err(e)) => {
                let what = e.to_string();
                let what = what
                    .split(" at line ")
                    .next()
                    .unwrap_or_default()
                    .to_owned();
                return Err(DataError::line(
                    path,
                    line + e.line().saturating_sub(1),
                    format!("malformed JSON: {what}"),
                ));
            }
            None => return Err(problem(text.len(), "the JSON array does not end")),
        };
        records.push(object(path, line, value)?);
        at = skip(at + values.byte_offset());
        if text[at..].starts_with(',') {
            at = skip(at + 1);
            if text[at..].starts_with(']') {
                return Err(problem(
                    at,
                    "malformed JSON: a comma before the end of the array",
                ));
            }
        } else if !text[at..].starts_with(']') {
            return Err(problem(
                at,
                "malformed JSON: expected `,` or `]` after a record",
            ));
        }
    }
    match skip(at + 1) {
        end if end == text.len() => Ok(records),
        end => Err(problem(
            end,
            "malformed JSON: text after the end of the array",
        )),
    }
}

fn documents(text: &str, documents: Option<Documents>) -> Vec<Record> {
    let blank = |line: &str| line.trim().is_empty();
    let blocks = documents.map_or_else(
        || text.trim().lines().any(blank),
        |d| d == Documents::Blocks,
    );
    let mut found: Vec<(usize, String)> = Vec::new();
    let mut open = false;
    for (i, line) in text.lines().enumerate() {
        if blank(line) {
            open = false;
        } else if let Some((_, last)) = found.last_mut().filter(|_| open && blocks) {
            last.push('\n');
            last.push_str(line);
        } else {
            found.push((i + 1, line.to_owned()));
            open = true;
        }
    }
    let record = |(line, text)| Record {
        line,
        fields: Map::from_iter([("text".to_owned(), Value::String(text))]),
    };
    found.into_iter().map(record).collect()
}

/// Names a JSON type for a message.
pub(super) fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}
