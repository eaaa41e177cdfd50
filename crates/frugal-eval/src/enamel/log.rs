//! What was measured, kept on disk while a run lasts, so that one that was stopped can go on.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::{Measured, Problem, Settings};
use crate::sandbox::Sandbox;
use frugal_core::fs::FileError;

/// Changes when solutions are measured in another way.
const VERSION: u32 = 2;

#[derive(Serialize, Deserialize)]
struct Line {
    key: String,
    measured: Vec<Measured>,
}

/// A file with the solutions of a problem on each line.
#[derive(Debug)]
pub struct MeasuredLog {
    file: File,
    path: PathBuf,
    known: HashMap<String, Vec<Measured>>,
}

impl MeasuredLog {
    /// Opens or begins the file. A last line that was not written to its end is dropped.
    ///
    /// # Errors
    /// When the file cannot be read or written.
    pub fn open(path: &Path) -> Result<Self, FileError> {
        if let Some(folder) = path.parent() {
            frugal_core::fs::create_dir(folder)?;
        }
        let bytes = if path.exists() {
            frugal_core::fs::read(path)?
        } else {
            Vec::new()
        };
        let (mut known, mut whole) = (HashMap::new(), 0);
        for line in bytes.split_inclusive(|b| *b == b'\n') {
            if line.last() != Some(&b'\n') {
                break;
            }
            whole += line.len() as u64;
            // A damaged line costs only what is on it.
            if let Ok(line) = serde_json::from_slice::<Line>(line) {
                known.insert(line.key, line.measured);
            }
        }
        let cannot_write = || FileError::at(path, "cannot write");
        let file = OpenOptions::new()
            .create(true)
            .append(true)
            .open(path)
            .map_err(cannot_write())?;
        file.set_len(whole).map_err(cannot_write())?;
        Ok(Self {
            file,
            path: path.to_owned(),
            known,
        })
    }

    /// What is there under a key of [`key`].
    pub fn get(&self, key: &str) -> Option<&[Measured]> {
        self.known.get(key).map(Vec::as_slice)
    }

    /// Adds a line, which is on the disk when this returns.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn push(&mut self, key: &str, measured: &[Measured]) -> Result<(), FileError> {
        let line = Line {
            key: key.to_owned(),
            measured: measured.to_vec(),
        };
        let text = serde_json::to_string(&line).map_err(std::io::Error::from);
        text.and_then(|text| {
            self.file.write_all(format!("{text}\n").as_bytes())?;
            self.file.sync_data()
        })
        .map_err(FileError::at(&self.path, "cannot write"))
    }
}

/// Identifies everything that decides a measurement: problem, solutions, settings and interpreter.
pub fn key(
    sandbox: &Sandbox,
    index: usize,
    problem: &Problem,
    samples: &[String],
    settings: &Settings,
) -> String {
    let text = serde_json::json!({
        "version": VERSION, "index": index, "problem": problem, "samples": samples,
        "settings": settings, "python": sandbox.python(),
    })
    .to_string();
    Sha256::digest(text.as_bytes())
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_that_was_cut_off_is_measured_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("new/measured.jsonl");
        let one = Measured {
            passed: true,
            efficiency: 0.1 + 0.2,
            verdict: None,
            level: None,
            detail: None,
            seconds: vec![1e-5],
            reference_seconds: vec![2e-5],
        };
        let mut log = MeasuredLog::open(&path).unwrap();
        log.push("a", std::slice::from_ref(&one)).unwrap();
        log.push("b", &[]).unwrap();
        drop(log);
        let text = std::fs::read(&path).unwrap();
        std::fs::write(&path, &text[..text.len() - 1]).unwrap();
        let mut log = MeasuredLog::open(&path).unwrap();
        assert_eq!(log.get("a"), Some(&[one][..]));
        assert_eq!(log.get("b"), None);
        log.push("b", &[]).unwrap();
        assert!(MeasuredLog::open(&path).unwrap().get("b").is_some());
    }
}
