//! Files to records: what is common to all formats.

use std::path::Path;

use serde_json::{Map, Value};

use super::error::DataError;
use super::format::detect;
use super::options::{Documents, LoadOptions};
use super::parquet;
use super::record::{Plain, Record, kind};
use super::source::Source;
use super::table::{Quotes, table};

/// What a file holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    JsonLines,
    Json,
    Csv,
    Tsv,
    Text,
    Parquet,
}

/// Hands the records of a file to `push`, one after another. Its name tells what it holds; without
/// an ending that is known the first bytes do.
pub(super) fn records(
    path: &Path,
    source: &mut Source,
    options: &LoadOptions,
    push: &mut dyn FnMut(Record) -> Result<(), DataError>,
) -> Result<(), DataError> {
    let first = source.peek()?;
    if first.starts_with(parquet::MAGIC) {
        return parquet::rows(path, source.rest()?, push);
    }
    let kind = match kind_by_name(path)? {
        // One object after another is what most programs write under this name.
        Some(Kind::Json) if starts_with(first, b'{') => Kind::JsonLines,
        Some(kind) => kind,
        None => kind_by_content(first),
    };
    if kind == Kind::JsonLines {
        return json_lines(path, source, push);
    }
    if kind == Kind::Text {
        return match options.documents {
            Some(Documents::Lines) => text_lines(path, source, push),
            Some(Documents::Blocks) | None => documents(path, source, options.documents, push),
        };
    }
    let bytes = source.rest()?;
    let text = utf8(path, &bytes)?;
    let records = match kind {
        Kind::Json | Kind::JsonLines | Kind::Text => json_array(path, text)?,
        Kind::Csv => table(path, text, b',', Quotes::Allowed, options)?,
        Kind::Tsv => table(path, text, b'\t', Quotes::Literal, options)?,
        Kind::Parquet => {
            return Err(DataError::options(
                path,
                "not a Parquet file: it does not begin with `PAR1`",
            ));
        }
    };
    records.into_iter().try_for_each(|record| {
        source.check(&record)?;
        push(record)
    })
}

/// The kind that a name says, an ending of its packing left out; `None` if there is no ending.
fn kind_by_name(path: &Path) -> Result<Option<Kind>, DataError> {
    let name = path
        .file_name()
        .and_then(|n| n.to_str())
        .unwrap_or_default();
    let mut name = name.to_ascii_lowercase();
    for packed in [".gz", ".gzip", ".zst", ".zstd"] {
        name = name.strip_suffix(packed).unwrap_or(&name).to_owned();
    }
    Ok(Some(match name.rsplit_once('.') {
        Some((_, "jsonl" | "ndjson" | "jsonlines")) => Kind::JsonLines,
        Some((_, "json")) => Kind::Json,
        Some((_, "csv")) => Kind::Csv,
        Some((_, "tsv" | "tab")) => Kind::Tsv,
        Some((_, "txt" | "text")) => Kind::Text,
        Some((_, "parquet")) => Kind::Parquet,
        None => return Ok(None),
        // A file of a cache is named by its hash; a dot with spaces or digits is no ending.
        Some((_, end)) if end.len() > 5 || end.chars().any(|c| !c.is_ascii_alphabetic()) => {
            return Ok(None);
        }
        Some(_) => {
            return Err(DataError::Extension {
                path: path.to_owned(),
            });
        }
    }))
}

fn kind_by_content(first: &[u8]) -> Kind {
    let line = first.split(|b| *b == b'\n').next().unwrap_or_default();
    if starts_with(first, b'{') {
        Kind::JsonLines
    } else if starts_with(first, b'[') {
        Kind::Json
    } else if line.contains(&b'\t') {
        Kind::Tsv
    } else if is_csv_header(line) {
        Kind::Csv
    } else {
        Kind::Text
    }
}

fn starts_with(bytes: &[u8], wanted: u8) -> bool {
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    bytes.iter().find(|b| !b.is_ascii_whitespace()) == Some(&wanted)
}

/// Whether a first line holds the column names of a known format.
fn is_csv_header(line: &[u8]) -> bool {
    let line = String::from_utf8_lossy(line);
    let names: Vec<&str> = line
        .split(',')
        .map(|c| c.trim().trim_matches('"'))
        .collect();
    names.len() > 1 && detect(&|name| names.contains(&name)).is_some()
}

fn utf8<'a>(path: &Path, bytes: &'a [u8]) -> Result<&'a str, DataError> {
    let text = std::str::from_utf8(bytes).map_err(|e| {
        let before = &bytes[..e.valid_up_to()];
        let line = 1 + before.iter().filter(|b| **b == b'\n').count();
        not_utf8(path, line, bytes, e)
    })?;
    if let Some(at) = bytes.iter().position(|b| *b == 0) {
        let line = 1 + bytes[..at].iter().filter(|b| **b == b'\n').count();
        return Err(DataError::line(path, line, NUL));
    }
    Ok(text.strip_prefix('\u{feff}').unwrap_or(text))
}

/// What is said of a byte that text does not have.
const NUL: &str = "there is a byte 0, which text does not have: the file is no text, or UTF-16 without its mark; \
                   convert it to UTF-8";

pub(super) fn not_utf8(
    path: &Path,
    line: usize,
    bytes: &[u8],
    error: std::str::Utf8Error,
) -> DataError {
    let byte = bytes[error.valid_up_to()];
    let problem = format!("byte 0x{byte:02x} is not UTF-8; convert the file to UTF-8");
    DataError::line(path, line, problem)
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

/// Each line that is not blank, as it comes.
fn text_lines(
    path: &Path,
    source: &mut Source,
    push: &mut dyn FnMut(Record) -> Result<(), DataError>,
) -> Result<(), DataError> {
    let mut bytes = Vec::new();
    let mut number = 0;
    while source.line(&mut bytes, number + 1)? {
        number += 1;
        let line = std::str::from_utf8(&bytes).map_err(|e| not_utf8(path, number, &bytes, e))?;
        if line.contains('\0') {
            return Err(DataError::line(path, number, NUL));
        }
        let line = line
            .trim_start_matches('\u{feff}')
            .trim_end_matches(['\r', '\n']);
        if !line.trim().is_empty() {
            push(text_record(number, line.to_owned()))?;
        }
    }
    Ok(())
}

fn text_record(line: usize, text: String) -> Record {
    Record {
        line,
        fields: Map::from_iter([("text".to_owned(), Value::String(text))]),
    }
}

/// Reads line by line: neither the file nor more than one of its lines is held.
fn json_lines(
    path: &Path,
    source: &mut Source,
    push: &mut dyn FnMut(Record) -> Result<(), DataError>,
) -> Result<(), DataError> {
    let mut bytes = Vec::new();
    let mut number = 0;
    while source.line(&mut bytes, number + 1)? {
        number += 1;
        let line = std::str::from_utf8(&bytes).map_err(|e| not_utf8(path, number, &bytes, e))?;
        let line = match number {
            1 => line.strip_prefix('\u{feff}').unwrap_or(line),
            _ => line,
        };
        if line.trim().is_empty() {
            continue;
        }
        let Plain(value) = serde_json::from_str(line).map_err(|e| {
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
        push(object(path, number, value)?)?;
        // A line that was far longer than others does not stay in memory.
        bytes.shrink_to(1 << 20);
    }
    Ok(())
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
        let mut values = serde_json::Deserializer::from_str(&text[at..]).into_iter::<Plain>();
        let value = match values.next() {
            Some(Ok(Plain(value))) => value,
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

/// Documents of one line, or of the lines up to a blank one; no more than their lines is held.
fn documents(
    path: &Path,
    source: &mut Source,
    documents: Option<Documents>,
    push: &mut dyn FnMut(Record) -> Result<(), DataError>,
) -> Result<(), DataError> {
    let mut bytes = Vec::new();
    let mut number = 0;
    // Each line with its number, and whether it goes on with the one before.
    let mut lines: Vec<(usize, String, bool)> = Vec::new();
    let mut open = false;
    while source.line(&mut bytes, number + 1)? {
        number += 1;
        let line = std::str::from_utf8(&bytes).map_err(|e| not_utf8(path, number, &bytes, e))?;
        if line.contains('\0') {
            return Err(DataError::line(path, number, NUL));
        }
        let line = match number {
            1 => line.strip_prefix('\u{feff}').unwrap_or(line),
            _ => line,
        };
        let line = line.lines().next().unwrap_or_default();
        let blank = line.trim().is_empty();
        if !blank {
            lines.push((number, line.to_owned(), open));
        }
        open = !blank;
        // A line that was far longer than others does not stay in memory.
        bytes.shrink_to(1 << 20);
    }
    let divided = || lines.iter().skip(1).any(|(_, _, goes_on)| !goes_on);
    let blocks = documents.map_or_else(divided, |d| d == Documents::Blocks);
    let mut lines = lines.into_iter().peekable();
    while let Some((number, mut text, _)) = lines.next() {
        while blocks && let Some((_, more, _)) = lines.next_if(|(_, _, goes_on)| *goes_on) {
            text.push('\n');
            text.push_str(&more);
        }
        let record = text_record(number, text);
        source.check(&record)?;
        push(record)?;
    }
    Ok(())
}
