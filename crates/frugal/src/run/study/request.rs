//! What a study is asked.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use super::StudyError;

/// Folder within that of the results where a study keeps work between calls.
pub(super) const WORK: &str = "work";

/// Which data, seeds and settings.
pub struct StudyRequest<'a> {
    /// Where data sets lie, each in a folder of its name.
    pub data_dir: PathBuf,
    /// Folder of the results.
    pub out: PathBuf,
    /// Seeds; what is random is drawn anew with each.
    pub seeds: Vec<u64>,
    /// The smallest size at which every arm runs, to see that it does: no claim is judged.
    pub smoke: bool,
    /// Says that the study should stop.
    pub stop: &'a AtomicBool,
}

/// What a study says while it runs.
#[derive(Clone, Debug)]
pub enum StudyEvent {
    /// How many steps there will be, each of about the same length.
    Planned {
        /// The number.
        steps: u64,
    },
    /// A step is done.
    Step {
        /// What was done, for people.
        what: String,
    },
}

impl StudyRequest<'_> {
    /// A file of the data folder, which must be there.
    ///
    /// # Errors
    /// A file that is not there.
    pub fn data(&self, name: impl AsRef<Path>) -> Result<PathBuf, StudyError> {
        let path = self.data_dir.join(name);
        if path.exists() {
            return Ok(path);
        }
        Err(StudyError::Data {
            path,
            reason: "is not there; `--data-dir` says where the data sets are".to_owned(),
        })
    }

    /// A folder for work that an interrupted study takes up again.
    #[must_use]
    pub fn work(&self) -> PathBuf {
        self.out.join(WORK)
    }

    /// Ends a study that was asked to stop: to be called between steps.
    ///
    /// # Errors
    /// When it was.
    pub fn check(&self) -> Result<(), StudyError> {
        if self.stop.load(Ordering::Relaxed) {
            return Err(StudyError::Stopped);
        }
        Ok(())
    }
}
