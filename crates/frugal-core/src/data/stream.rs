//! Files that are read for something other than examples: their lines, or their records as objects.

use std::path::Path;

use serde_json::{Map, Value};

use super::error::DataError;
use super::options::LoadOptions;
use super::read;
use super::source::Source;

/// Hands the lines of a text file, which may be packed, to `take` with their numbers from 1. Line
/// ends and a byte order mark are taken off. Only one line is held at a time.
///
/// # Errors
/// A file that cannot be read or is not UTF-8; what `take` returns ends the reading.
pub fn lines<E: From<DataError>>(
    path: &Path,
    mut take: impl FnMut(usize, &str) -> Result<(), E>,
) -> Result<(), E> {
    let mut source = Source::open(path)?;
    let mut bytes = Vec::new();
    let mut number = 0;
    while source.line(&mut bytes, number + 1)? {
        number += 1;
        let line =
            std::str::from_utf8(&bytes).map_err(|e| read::not_utf8(path, number, &bytes, e))?;
        let line = match number {
            1 => line.strip_prefix('\u{feff}').unwrap_or(line),
            _ => line,
        };
        take(number, line.trim_end_matches(['\r', '\n']))?;
    }
    Ok(())
}

/// Hands the records of a file as JSON objects to `take`, each with the line on which it starts;
/// a table must have a row of column names. JSON lines are read line by line, other kinds whole.
///
/// # Errors
/// As [`super::load`]; what `take` returns ends the reading.
pub fn records<E: From<DataError>>(
    path: &Path,
    mut take: impl FnMut(usize, Map<String, Value>) -> Result<(), E>,
) -> Result<(), E> {
    let options = LoadOptions {
        header: Some(true),
        ..LoadOptions::default()
    };
    let mut source = Source::open(path)?;
    let mut failure = None;
    let read = read::records(path, &mut source, &options, &mut |record| {
        take(record.line, record.fields).map_err(|error| {
            failure = Some(error);
            // Ends the reading; the error beside it is the one that is returned.
            DataError::Empty { path: path.into() }
        })
    });
    match failure {
        Some(error) => Err(error),
        None => read.map_err(E::from),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn lines_and_records_of_packed_files_come_with_their_numbers() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.jsonl.gz");
        let file = std::fs::File::create(&path).unwrap();
        let mut packed = flate2::write::GzEncoder::new(file, flate2::Compression::fast());
        packed
            .write_all("\u{feff}{\"a\": 1}\r\n\n{\"a\": 2}".as_bytes())
            .unwrap();
        packed.finish().unwrap();
        let mut seen = Vec::new();
        lines::<DataError>(&path, |number, line| {
            seen.push((number, line.to_owned()));
            Ok(())
        })
        .unwrap();
        let expected = [(1, "{\"a\": 1}"), (2, ""), (3, "{\"a\": 2}")];
        assert_eq!(seen, expected.map(|(n, l)| (n, l.to_owned())));
        let mut values = Vec::new();
        records::<DataError>(&path, |line, fields| {
            values.push((line, fields["a"].as_i64()));
            Ok(())
        })
        .unwrap();
        assert_eq!(values, [(1, Some(1)), (3, Some(2))]);
        let ended = records(&path, |line, _| Err(DataError::line(&path, line, "enough")));
        assert!(ended.unwrap_err().to_string().ends_with(":1: enough"));
    }
}
