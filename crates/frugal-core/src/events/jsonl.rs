//! An append-only file of JSON objects, one a line, that survives a crash in the middle of a line.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;
use thiserror::Error;

use crate::fs::{self, FileError};

/// A log that cannot be read or written.
#[derive(Debug, Error)]
pub enum LogError {
    /// The file.
    #[error(transparent)]
    File(#[from] FileError),
    /// A line, other than a half-written last one, that is not what was expected.
    #[error("{}:{line}: {message}", path.display())]
    Line {
        /// The file.
        path: PathBuf,
        /// Line, from 1.
        line: usize,
        /// What is wrong with it.
        message: String,
    },
    /// A record without a JSON form.
    #[error("{}: the record cannot be written as JSON: {source}", path.display())]
    Record {
        /// The file.
        path: PathBuf,
        /// serde's reason.
        source: serde_json::Error,
    },
}

/// A JSON-lines file open for appending.
#[derive(Debug)]
pub struct JsonlLog {
    file: File,
    path: PathBuf,
}

impl JsonlLog {
    /// An empty log; an older file of that name is replaced.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn create(path: &Path) -> Result<Self, LogError> {
        fs::write_atomic(path, b"")?;
        Self::open(path)
    }

    /// Opens a log to go on with it; a file that does not exist is an empty log.
    ///
    /// A half-written last line is cut off. With `after`, so is everything from the first record
    /// whose `step` is greater, so that a run that goes on from a checkpoint at that step leaves
    /// the same log as one that never stopped.
    ///
    /// # Errors
    /// If the file cannot be read or written, or a line before the last is not a JSON object.
    pub fn resume(path: &Path, after: Option<u64>) -> Result<Self, LogError> {
        if !path.exists() {
            return Self::create(path);
        }
        let bytes = fs::read_data(path)?;
        let mut keep = 0;
        for (line, end) in whole_lines(path, &bytes)? {
            let step = line.get("step").and_then(serde_json::Value::as_u64);
            if step.zip(after).is_some_and(|(step, after)| step > after) {
                break;
            }
            keep = end;
        }
        let log = Self::open(path)?;
        log.file
            .set_len(keep as u64)
            .map_err(FileError::at(path, "cannot shorten"))?;
        // A last record that is complete but for its line end.
        if keep > 0 && bytes[keep - 1] != b'\n' {
            (&log.file)
                .write_all(b"\n")
                .map_err(FileError::at(path, "cannot write"))?;
        }
        Ok(log)
    }

    /// Adds one record and hands it to the system at once.
    ///
    /// # Errors
    /// If the record is not a JSON object or the file cannot be written.
    pub fn append<T: Serialize>(&mut self, record: &T) -> Result<(), LogError> {
        let mut line = serde_json::to_vec(record).map_err(|source| LogError::Record {
            path: self.path.clone(),
            source,
        })?;
        line.push(b'\n');
        Ok(self
            .file
            .write_all(&line)
            .map_err(FileError::at(&self.path, "cannot write"))?)
    }

    /// Waits until everything written is on the disk.
    ///
    /// # Errors
    /// If the system cannot write.
    pub fn sync(&self) -> Result<(), FileError> {
        self.file
            .sync_data()
            .map_err(FileError::at(&self.path, "cannot write"))
    }

    fn open(path: &Path) -> Result<Self, LogError> {
        let file = OpenOptions::new()
            .append(true)
            .open(path)
            .map_err(FileError::at(path, "cannot open"))?;
        Ok(Self {
            file,
            path: path.to_owned(),
        })
    }
}

/// All records of a JSON-lines file; a half-written last line is ignored.
///
/// # Errors
/// If the file cannot be read, or a line is not a `T`.
pub fn read_jsonl<T: DeserializeOwned>(path: &Path) -> Result<Vec<T>, LogError> {
    let lines = whole_lines(path, &fs::read_data(path)?)?;
    let parse = |(i, (line, _)): (usize, (serde_json::Value, usize))| {
        serde_json::from_value(line).map_err(|e| LogError::Line {
            path: path.to_owned(),
            line: i + 1,
            message: e.to_string(),
        })
    };
    lines.into_iter().enumerate().map(parse).collect()
}

/// The objects of the file, each with the byte position after it. The last line may be damaged; it
/// is then left out.
fn whole_lines(path: &Path, bytes: &[u8]) -> Result<Vec<(serde_json::Value, usize)>, LogError> {
    let mut lines = Vec::new();
    let mut start = 0;
    for (i, line) in bytes.split_inclusive(|b| *b == b'\n').enumerate() {
        let end = start + line.len();
        match serde_json::from_slice::<serde_json::Value>(line) {
            Ok(value) if value.is_object() => lines.push((value, end)),
            _ if end == bytes.len() => break,
            Ok(_) => {
                return Err(LogError::Line {
                    path: path.to_owned(),
                    line: i + 1,
                    message: "not a JSON object".into(),
                });
            }
            Err(e) => {
                return Err(LogError::Line {
                    path: path.to_owned(),
                    line: i + 1,
                    message: format!("not valid JSON: {e}"),
                });
            }
        }
        start = end;
    }
    Ok(lines)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn log_with(bytes: &[u8]) -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log.jsonl");
        std::fs::write(&path, bytes).unwrap();
        (dir, path)
    }

    #[test]
    fn every_cut_of_the_last_line_resumes_to_whole_records() {
        let whole = b"{\"step\":1,\"loss\":2.5}\n{\"step\":2,\"loss\":2.25}\n";
        let first = whole.iter().position(|b| *b == b'\n').unwrap() + 1;
        for cut in first..=whole.len() {
            let (_dir, path) = log_with(&whole[..cut]);
            let complete = cut + 1 >= whole.len();
            assert_eq!(
                read_jsonl::<Value>(&path).unwrap().len(),
                if complete { 2 } else { 1 },
                "cut at {cut}"
            );
            JsonlLog::resume(&path, None)
                .unwrap()
                .append(&json!({"step": 3}))
                .unwrap();
            let kept = if complete {
                &whole[..]
            } else {
                &whole[..first]
            };
            assert_eq!(
                std::fs::read(&path).unwrap(),
                [kept, b"{\"step\":3}\n"].concat(),
                "cut at {cut}"
            );
        }
        let (_dir, path) = log_with(b"{\"step\":1}\n\0\0\0\0\n");
        assert_eq!(
            read_jsonl::<Value>(&path).unwrap().len(),
            1,
            "a block of zeros after a power cut"
        );
    }

    #[test]
    fn later_steps_are_dropped_and_earlier_bytes_untouched() {
        let text = b"{\"run\":\"a\"}\n{\"step\":1}\n{ \"step\" : 2 }\n{\"step\":2,\"eval_loss\":1}\n{\"step\":3}\n{\"note\":\"late\"}\n{\"step\":4";
        let (_dir, path) = log_with(text);
        JsonlLog::resume(&path, Some(2)).unwrap();
        let kept =
            b"{\"run\":\"a\"}\n{\"step\":1}\n{ \"step\" : 2 }\n{\"step\":2,\"eval_loss\":1}\n";
        assert_eq!(std::fs::read(&path).unwrap(), kept);
    }

    #[test]
    fn damage_in_the_middle_is_an_error_with_its_line() {
        let (_dir, path) = log_with(b"{\"step\":1}\n{\"step\":\n{\"step\":3}\n");
        let error = JsonlLog::resume(&path, None).unwrap_err().to_string();
        assert!(error.contains("log.jsonl:2: not valid JSON"), "{error}");
        let (_dir, path) = log_with(b"7\n{\"step\":3}\n");
        let error = read_jsonl::<Value>(&path).unwrap_err().to_string();
        assert!(error.ends_with("log.jsonl:1: not a JSON object"), "{error}");
    }

    #[test]
    fn a_new_log_replaces_an_old_one() {
        let (_dir, path) = log_with(b"{\"step\":9}\n");
        JsonlLog::create(&path)
            .unwrap()
            .append(&json!({"step": 1}))
            .unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"{\"step\":1}\n");
        let (_dir, absent) = log_with(b"");
        std::fs::remove_file(&absent).unwrap();
        JsonlLog::resume(&absent, Some(3)).unwrap();
        assert_eq!(std::fs::read(&absent).unwrap(), b"");
    }
}
