//! TensorBoard event files: `Event` protocol buffers in TFRecord frames.
//!
//! A frame is the length as little-endian `u64`, its masked CRC-32C, the message, and the message's
//! masked CRC-32C. The messages are the few fields of TensorFlow's `event.proto` and
//! `summary.proto` that scalars need.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

use prost::Message;

use super::scalars::Scalars;
use crate::fs::{self, FileError};

#[derive(Clone, PartialEq, Message)]
struct Event {
    #[prost(double, tag = "1")]
    wall_time: f64,
    #[prost(int64, tag = "2")]
    step: i64,
    #[prost(oneof = "What", tags = "3, 5, 7")]
    what: Option<What>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
enum What {
    #[prost(string, tag = "3")]
    FileVersion(String),
    #[prost(message, tag = "5")]
    Summary(Summary),
    #[prost(message, tag = "7")]
    SessionLog(SessionLog),
}

#[derive(Clone, PartialEq, Message)]
struct Summary {
    #[prost(message, repeated, tag = "1")]
    value: Vec<SummaryValue>,
}

#[derive(Clone, PartialEq, Message)]
struct SummaryValue {
    #[prost(string, tag = "1")]
    tag: String,
    // Written even when it is zero: readers tell the kind of a value by its presence.
    #[prost(float, optional, tag = "2")]
    simple_value: Option<f32>,
}

#[derive(Clone, PartialEq, Message)]
struct SessionLog {
    #[prost(int32, tag = "1")]
    status: i32,
}

/// `SessionLog.SessionStatus.START`: readers drop what other files of the folder hold from this
/// step on.
const SESSION_START: i32 = 1;

/// An event file open for appending.
#[derive(Debug)]
pub struct TensorBoard {
    file: File,
    path: PathBuf,
}

impl TensorBoard {
    /// A new file `events.out.tfevents.<time>.<host>` in `dir`; `wall_time` is in seconds since
    /// 1970.
    ///
    /// `resume_at` is the first step that is logged again after an interruption: TensorBoard then
    /// ignores that step and later ones in the older files of the folder.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn create(dir: &Path, wall_time: f64, resume_at: Option<u64>) -> Result<Self, FileError> {
        fs::create_dir(dir)?;
        let (file, path) = new_file(dir, wall_time)?;
        let mut board = Self { file, path };
        board.write(Event {
            wall_time,
            step: 0,
            what: Some(What::FileVersion("brain.Event:2".into())),
        })?;
        if let Some(step) = resume_at {
            board.write(Event {
                wall_time,
                step: step as i64,
                what: Some(What::SessionLog(SessionLog {
                    status: SESSION_START,
                })),
            })?;
        }
        Ok(board)
    }

    /// Appends the numbers of one step; `eval_loss` becomes the tag `eval/loss`, `loss` becomes
    /// `train/loss`.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn log(&mut self, record: &Scalars, wall_time: f64) -> Result<(), FileError> {
        let value = |(name, value): &(String, f64)| SummaryValue {
            tag: tag(name),
            simple_value: Some(*value as f32),
        };
        let summary = Summary {
            value: record.values.iter().map(value).collect(),
        };
        self.write(Event {
            wall_time,
            step: record.step as i64,
            what: Some(What::Summary(summary)),
        })
    }

    /// The file's path.
    pub fn path(&self) -> &Path {
        &self.path
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

    fn write(&mut self, event: Event) -> Result<(), FileError> {
        self.file
            .write_all(&frame(&event.encode_to_vec()))
            .map_err(FileError::at(&self.path, "cannot write"))
    }
}

fn tag(name: &str) -> String {
    match name.strip_prefix("eval_") {
        Some(rest) => format!("eval/{rest}"),
        None => format!("train/{name}"),
    }
}

fn new_file(dir: &Path, wall_time: f64) -> Result<(File, PathBuf), FileError> {
    // TensorBoard reads the files of a folder in the order of their names. Two in one second get a
    // counter.
    let base = format!("events.out.tfevents.{:010}.{}", wall_time as u64, host());
    let mut path = dir.join(&base);
    let mut counter = 0;
    loop {
        match OpenOptions::new().append(true).create_new(true).open(&path) {
            Ok(file) => return Ok((file, path)),
            Err(e) if e.kind() == ErrorKind::AlreadyExists => {
                counter += 1;
                path = dir.join(format!("{base}.{counter}"));
            }
            Err(e) => return Err(FileError::at(&path, "cannot create")(e)),
        }
    }
}

fn host() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname")
        .or_else(|_| std::env::var("COMPUTERNAME"))
        .unwrap_or_default();
    let name: String = name
        .trim()
        .chars()
        .filter(|c| c.is_ascii_alphanumeric() || "-_.".contains(*c))
        .collect();
    if name.is_empty() {
        "localhost".into()
    } else {
        name
    }
}

fn frame(message: &[u8]) -> Vec<u8> {
    let length = (message.len() as u64).to_le_bytes();
    [
        &length[..],
        &masked_crc(&length),
        message,
        &masked_crc(message),
    ]
    .concat()
}

fn masked_crc(bytes: &[u8]) -> [u8; 4] {
    crc32c::crc32c(bytes)
        .rotate_right(15)
        .wrapping_add(0xa282_ead8)
        .to_le_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::events::names;

    /// What the golden file holds; `scripts/golden/tensorboard_events.py` writes the same with
    /// TensorBoard's own writer.
    fn write_golden(dir: &Path) -> PathBuf {
        let mut board = TensorBoard::create(dir, 1_700_000_000.5, Some(11)).unwrap();
        board
            .log(
                &Scalars::new(11)
                    .with(names::LOSS, 2.5)
                    .with(names::LEARNING_RATE, 2e-4),
                1_700_000_001.25,
            )
            .unwrap();
        board
            .log(
                &Scalars::new(300)
                    .with(names::EVAL_LOSS, 0.0)
                    .with("eval_accuracy", 0.875),
                1_700_000_002.0,
            )
            .unwrap();
        board.path().to_owned()
    }

    #[test]
    fn the_bytes_are_those_of_tensorboards_own_writer() {
        let dir = tempfile::tempdir().unwrap();
        let path = write_golden(dir.path());
        let golden = include_bytes!("../../../../fixtures/tensorboard/golden.tfevents");
        assert_eq!(std::fs::read(&path).unwrap(), golden);
        let name = path.file_name().unwrap().to_str().unwrap();
        assert!(
            name.starts_with("events.out.tfevents.1700000000."),
            "{name}"
        );
    }

    #[test]
    fn two_files_in_one_second_do_not_collide() {
        let dir = tempfile::tempdir().unwrap();
        assert_ne!(write_golden(dir.path()), write_golden(dir.path()));
    }
}
