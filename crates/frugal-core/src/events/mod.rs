//! The log of a run: JSON lines, TensorBoard event files, and the memory of this process.

mod available;
mod jsonl;
mod memory;
mod scalars;
mod tensorboard;

use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

pub use available::{available_memory_bytes, unhindered_memory_bytes};
pub use jsonl::{JsonlLog, LogError, read_jsonl};
pub use memory::{current_rss_bytes, peak_rss_bytes};
pub use scalars::{Scalars, names};
pub use scalars::{number, numbers};
pub use tensorboard::TensorBoard;

use crate::fs::FileError;

/// Name of the JSON-lines file in a run folder.
pub const LOG_FILE: &str = "log.jsonl";

/// The log of a run folder: every record goes to `log.jsonl` and to a TensorBoard event file beside
/// it.
#[derive(Debug)]
pub struct RunLog {
    jsonl: JsonlLog,
    tensorboard: TensorBoard,
}

impl RunLog {
    /// Starts the log of a new run in `dir`, replacing an older `log.jsonl`.
    ///
    /// # Errors
    /// If a file cannot be written.
    pub fn create(dir: &Path) -> Result<Self, LogError> {
        Ok(Self {
            jsonl: JsonlLog::create(&dir.join(LOG_FILE))?,
            tensorboard: TensorBoard::create(dir, unix_time(), None)?,
        })
    }

    /// Continues the log of a run that goes on after `step`; what was logged for later steps is
    /// dropped.
    ///
    /// # Errors
    /// If a file cannot be read or written, or `log.jsonl` is damaged before its last line.
    pub fn resume(dir: &Path, step: u64) -> Result<Self, LogError> {
        let jsonl = JsonlLog::resume(&dir.join(LOG_FILE), Some(step))?;
        Ok(Self {
            jsonl,
            tensorboard: TensorBoard::create(dir, unix_time(), Some(step + 1))?,
        })
    }

    /// Appends one record to both files.
    ///
    /// # Errors
    /// If a file cannot be written.
    pub fn log(&mut self, record: &Scalars) -> Result<(), LogError> {
        self.jsonl.append(record)?;
        Ok(self.tensorboard.log(record, unix_time())?)
    }

    /// Waits until everything logged is on the disk; call it before a checkpoint that counts on it.
    ///
    /// # Errors
    /// If the system cannot write.
    pub fn sync(&mut self) -> Result<(), FileError> {
        self.jsonl.sync()?;
        self.tensorboard.sync()
    }
}

/// Seconds since 1970.
fn unix_time() -> f64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0.0, |elapsed| elapsed.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(dir: &Path, steps: std::ops::RangeInclusive<u64>, log: &mut RunLog) {
        for step in steps {
            log.log(&Scalars::new(step).with(names::LOSS, 1.0 / step as f64))
                .unwrap();
        }
        assert!(dir.join(LOG_FILE).exists());
    }

    #[test]
    fn a_resumed_log_equals_an_uninterrupted_one() {
        let (whole, broken) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        run(
            whole.path(),
            1..=9,
            &mut RunLog::create(whole.path()).unwrap(),
        );
        // Killed after step 7 with the last checkpoint at step 4.
        run(
            broken.path(),
            1..=7,
            &mut RunLog::create(broken.path()).unwrap(),
        );
        run(
            broken.path(),
            5..=9,
            &mut RunLog::resume(broken.path(), 4).unwrap(),
        );
        let read = |dir: &Path| std::fs::read_to_string(dir.join(LOG_FILE)).unwrap();
        assert_eq!(read(broken.path()), read(whole.path()));
        let events = |dir: &Path| {
            std::fs::read_dir(dir)
                .unwrap()
                .filter(|f| f.as_ref().is_ok_and(|f| f.file_name() != LOG_FILE))
                .count()
        };
        assert_eq!((events(whole.path()), events(broken.path())), (1, 2));
    }
}
