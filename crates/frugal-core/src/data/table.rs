//! Tables: `.csv` and `.tsv` files, with or without a row of column names.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Map, Value};

use super::error::DataError;
use super::format;
use super::options::LoadOptions;
use super::record::Record;

/// Whether a quote at the start of a field encloses it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Quotes {
    /// As RFC 4180 says.
    Allowed,
    /// A quote is a character like any other: tab-separated data sets hold unbalanced ones.
    Literal,
}

/// Labels have fewer distinct values than this.
const MAX_LABELS: usize = 1000;

struct Row {
    line: usize,
    cells: Vec<String>,
}

pub(super) fn table(
    path: &Path,
    text: &str,
    delimiter: u8,
    quotes: Quotes,
    options: &LoadOptions,
) -> Result<Vec<Record>, DataError> {
    if quotes == Quotes::Allowed {
        check_quotes(path, text, delimiter)?;
    }
    let rows = rows(path, text, delimiter, quotes)?;
    let Some((first, rest)) = rows.split_first() else {
        return Ok(Vec::new());
    };
    let header = options
        .header
        .unwrap_or_else(|| is_header(&first.cells, options));
    let (names, body) = match header {
        true => (
            first.cells.iter().map(|c| c.trim().to_owned()).collect(),
            rest,
        ),
        false => (name_columns(path, &rows, options)?, &rows[..]),
    };
    if let Some(twice) = names
        .iter()
        .enumerate()
        .find_map(|(i, n)| names[..i].contains(n).then_some(n))
    {
        return Err(DataError::line(
            path,
            first.line,
            format!("two columns are named {twice:?}"),
        ));
    }
    let record = |row: &Row| Record {
        line: row.line,
        fields: names
            .iter()
            .cloned()
            .zip(row.cells.iter().cloned().map(Value::String))
            .collect::<Map<_, _>>(),
    };
    Ok(body.iter().map(record).collect())
}

fn rows(path: &Path, text: &str, delimiter: u8, quotes: Quotes) -> Result<Vec<Row>, DataError> {
    let mut reader = csv::ReaderBuilder::new()
        .has_headers(false)
        .delimiter(delimiter)
        .quoting(quotes == Quotes::Allowed)
        .from_reader(text.as_bytes());
    // The reader's own line numbers are those before the blank lines in front of a record.
    let (mut counted, mut line) = (0, 1);
    let mut line_at = |position: Option<&csv::Position>| {
        let from = position.map_or(counted, |p| p.byte() as usize);
        let start = text.len() - text[from..].trim_start_matches(['\r', '\n']).len();
        line += text.as_bytes()[counted..start]
            .iter()
            .filter(|b| **b == b'\n')
            .count();
        counted = start;
        line
    };
    let mut rows = Vec::new();
    for record in reader.records() {
        let record = record.map_err(|e| {
            let problem = match e.kind() {
                csv::ErrorKind::UnequalLengths {
                    expected_len, len, ..
                } => {
                    format!("expected {expected_len} columns as in the first row, found {len}")
                }
                _ => e.to_string(),
            };
            DataError::line(path, line_at(e.position()), problem)
        })?;
        rows.push(Row {
            line: line_at(record.position()),
            cells: record.iter().map(str::to_owned).collect(),
        });
    }
    Ok(rows)
}

/// The reader takes a quote that is never closed for the rest of the file, and text after a closing
/// quote for part of the field; both are damage.
fn check_quotes(path: &Path, text: &str, delimiter: u8) -> Result<(), DataError> {
    let bytes = text.as_bytes();
    let (mut line, mut opened, mut at_start) = (1, None, true);
    let mut i = 0;
    while i < bytes.len() {
        let byte = bytes[i];
        if byte == b'\n' {
            line += 1;
        }
        match opened {
            None if byte == b'"' && at_start => opened = Some(line),
            None => at_start = byte == delimiter || byte == b'\n' || byte == b'\r',
            Some(_) if byte == b'"' => match bytes.get(i + 1) {
                Some(b'"') => i += 1,
                None => opened = None,
                Some(&next) if next == delimiter || next == b'\n' || next == b'\r' => opened = None,
                Some(_) => {
                    let problem = "text after a closing quote; inside a quoted field a quote is written twice (\"\")";
                    return Err(DataError::line(path, line, problem));
                }
            },
            Some(_) => {}
        }
        i += 1;
    }
    match opened {
        Some(line) => Err(DataError::line(
            path,
            line,
            "a quote is opened here and never closed",
        )),
        None => Ok(()),
    }
}

/// A row is a header if it holds column names that were asked for, or that make up a known format.
fn is_header(cells: &[String], options: &LoadOptions) -> bool {
    let names: Vec<&str> = cells.iter().map(|c| c.trim()).collect();
    let by_number = options.columns.values().all(|c| c.parse::<usize>().is_ok());
    if !options.columns.is_empty() && by_number {
        return false;
    }
    // Columns that were asked for by name stand in a row of names, even if one is misspelled.
    let small: Vec<String> = names.iter().map(|name| name.to_lowercase()).collect();
    !options.columns.is_empty() || format::detect(&|name| small.iter().any(|n| n == name)).is_some()
}

/// Names the columns of a table without header by their number, and if nothing else says what they
/// are, tells the label of a two-column table by its repetitions.
fn name_columns(
    path: &Path,
    rows: &[Row],
    options: &LoadOptions,
) -> Result<Vec<String>, DataError> {
    let first = &rows[0];
    let numbers = (1..=first.cells.len()).map(|n| n.to_string()).collect();
    if !options.columns.is_empty() {
        return Ok(numbers);
    }
    let distinct = |column: usize| {
        let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
        rows.iter()
            .for_each(|row| *counts.entry(&row.cells[column]).or_default() += 1);
        counts
    };
    if let [_] = first.cells[..] {
        return if options.header == Some(false) {
            Ok(vec!["text".into()])
        } else {
            Err(unclear(path, first))
        };
    }
    if let [_, _] = first.cells[..] {
        let counts = [distinct(0), distinct(1)];
        let label = usize::from(counts[1].len() < counts[0].len());
        let values = &counts[label];
        // A value of the first row that never returns is a column name rather than a label.
        let returns = options.header == Some(false)
            || values
                .get(first.cells[label].as_str())
                .is_some_and(|n| *n > 1);
        if values.len() < counts[1 - label].len() && values.len() <= MAX_LABELS && returns {
            return Ok(if label == 0 {
                vec!["label".into(), "text".into()]
            } else {
                vec!["text".into(), "label".into()]
            });
        }
    }
    Err(unclear(path, first))
}

fn unclear(path: &Path, first: &Row) -> DataError {
    let separated = |c: char| first.cells.len() == 1 && first.cells[0].contains(c);
    if let Some(other) = [';', '\t', '|', ','].into_iter().find(|c| separated(*c)) {
        let problem = format!(
            "the first row is one column with {other:?} in it: the file seems to be separated by {other:?}; \
             save it with commas as .csv or with tabs as .tsv"
        );
        return DataError::line(path, first.line, problem);
    }
    let cells: Vec<String> = first
        .cells
        .iter()
        .take(8)
        .map(|c| format!("{:?}", c.chars().take(30).collect::<String>()))
        .collect();
    let problem = format!(
        "the first row ({}) has no column names of a known format. {}. Or map columns, as in columns = {{ text = \"review\", label = \"stars\" }}; \
         for a table without column names give header = false and numbers, as in columns = {{ label = \"1\", text = \"2\" }}",
        cells.join(", "),
        format::accepted(),
    );
    DataError::line(path, first.line, problem)
}
