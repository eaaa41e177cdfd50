//! Folders of results that appear whole: written in a folder within, and moved out at the end.
//!
//! What a killed process leaves behind stands in nobody's way, and is removed by the next one that
//! writes to the same folder. Results are complete from the moment the list of what is being moved
//! is gone, which is one removal of one file.

use std::path::{Path, PathBuf};

use thiserror::Error;

use crate::fs::{FileError, create_dir, is_temporary, write_atomic};
use crate::lock::{FolderLock, LOCK_FILE, LockError};

/// Folder that is written to.
const STAGE: &str = ".partial";
/// Names of the files that are being moved out of it and were not there before, one in a line.
const MOVING: &str = ".moving";

/// A folder that results cannot go into.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum StageError {
    /// There is something in it.
    #[error("{}: exists already and is not an empty folder; choose another `--out`", folder.display())]
    Used {
        /// The folder.
        folder: PathBuf,
    },
    /// Another process writes to it.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// A file cannot be written or moved.
    #[error(transparent)]
    File(#[from] FileError),
}

/// A folder in the making.
#[derive(Debug)]
pub struct Stage {
    out: PathBuf,
    path: PathBuf,
    /// Whether the folder was there before.
    existed: bool,
    finished: bool,
    lock: Option<FolderLock>,
}

/// Whether there is nothing in a folder, or only what a killed process left that was writing there.
pub fn is_free(folder: &Path) -> bool {
    let Ok(entries) = std::fs::read_dir(folder) else {
        return !folder.exists();
    };
    let moving = moving(folder);
    entries.flatten().all(|entry| {
        let name = entry.file_name().to_string_lossy().into_owned();
        [STAGE, MOVING, LOCK_FILE].contains(&name.as_str())
            || is_temporary(&name)
            || moving.contains(&name)
    })
}

/// What a killed process was moving into a folder.
fn moving(folder: &Path) -> Vec<String> {
    let text = std::fs::read_to_string(folder.join(MOVING)).unwrap_or_default();
    // A list that leads out of the folder is not ours.
    let is_name = |line: &&str| Path::new(line).file_name() == Some(line.as_ref());
    text.lines().filter(is_name).map(str::to_owned).collect()
}

impl Stage {
    /// Takes a folder that is new or free for this process alone.
    ///
    /// # Errors
    /// A folder in use, or one that cannot be written to.
    pub fn begin(out: &Path) -> Result<Self, StageError> {
        let used = || StageError::Used { folder: out.into() };
        if !is_free(out) {
            return Err(used());
        }
        let stage = Self::taken(out)?;
        if !is_free(out) {
            return Err(used());
        }
        stage.empty()
    }

    /// Takes a folder whose files of the same names are to be replaced.
    ///
    /// # Errors
    /// A folder that another process writes to, or that cannot be written to.
    pub fn replace(out: &Path) -> Result<Self, StageError> {
        Self::taken(out)?.empty()
    }

    fn taken(out: &Path) -> Result<Self, StageError> {
        let existed = out.exists();
        let lock = FolderLock::acquire(out)?;
        Ok(Self {
            out: out.into(),
            path: out.join(STAGE),
            existed,
            finished: false,
            lock: Some(lock),
        })
    }

    fn empty(self) -> Result<Self, StageError> {
        self.clear()?;
        create_dir(&self.path)?;
        Ok(self)
    }

    /// Where files go for now.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Moves all files to their place, `last` after the others: a folder that has it is complete.
    ///
    /// # Errors
    /// Files that cannot be moved.
    pub fn finish(mut self, last: &str) -> Result<(), StageError> {
        let entries = std::fs::read_dir(&self.path)
            .map_err(FileError::at(&self.path, "cannot read the folder"))?;
        let mut names: Vec<String> = entries
            .flatten()
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .collect();
        names.sort_by_key(|name| name == last);
        let new: Vec<&str> = names
            .iter()
            .filter(|name| std::fs::symlink_metadata(self.out.join(name)).is_err())
            .map(String::as_str)
            .collect();
        let list = self.out.join(MOVING);
        write_atomic(&list, new.join("\n").as_bytes())?;
        for name in names {
            let to = self.out.join(&name);
            std::fs::rename(self.path.join(&name), &to)
                .map_err(FileError::at(&to, "cannot write"))?;
        }
        // Everything is in its place; a file system that keeps what is still open has an empty folder more.
        self.finished = true;
        let _ = remove(&self.path);
        remove(&list)?;
        Ok(())
    }

    /// Removes what is half done, of this process or of one that was killed.
    fn clear(&self) -> Result<(), FileError> {
        remove(&self.path)?;
        for name in moving(&self.out) {
            remove(&self.out.join(name))?;
        }
        remove(&self.out.join(MOVING))
    }
}

/// Removes a file or a whole folder, which need not be there.
fn remove(path: &Path) -> Result<(), FileError> {
    let is_folder = std::fs::symlink_metadata(path).is_ok_and(|m| m.is_dir());
    let removed = if is_folder {
        std::fs::remove_dir_all(path)
    } else {
        std::fs::remove_file(path)
    };
    match removed {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(FileError::at(path, "cannot remove")(error))
        }
        _ => Ok(()),
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        if self.finished {
            return;
        }
        // After a failure, which is what has to be told; what stays is in nobody's way.
        let _ = self.clear();
        self.lock = None;
        if !self.existed {
            let _ = std::fs::remove_dir(&self.out);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(folder: &Path) -> Vec<String> {
        let entries = std::fs::read_dir(folder).unwrap().flatten();
        let mut names: Vec<String> = entries
            .map(|e| e.file_name().to_string_lossy().into_owned())
            .collect();
        names.sort();
        names
    }

    fn fill(stage: &Stage, text: &str) {
        for name in ["config.json", "model.safetensors"] {
            std::fs::write(stage.path().join(name), text).unwrap();
        }
    }

    #[test]
    fn a_folder_appears_whole_or_not_at_all() {
        let parent = tempfile::tempdir().unwrap();
        let out = parent.path().join("merged");
        let stage = Stage::begin(&out).unwrap();
        fill(&stage, "a");
        assert!(matches!(Stage::begin(&out), Err(StageError::Lock(_))));
        drop(stage);
        assert!(!out.exists());
        let stage = Stage::begin(&out).unwrap();
        fill(&stage, "b");
        stage.finish("config.json").unwrap();
        assert_eq!(files(&out), ["config.json", "model.safetensors"]);
        assert!(matches!(Stage::begin(&out), Err(StageError::Used { .. })));
    }

    #[test]
    fn what_a_killed_process_left_does_not_block() {
        let out = tempfile::tempdir().unwrap();
        // While it wrote.
        let partial = out.path().join(STAGE);
        std::fs::create_dir(&partial).unwrap();
        std::fs::write(partial.join("model.safetensors"), "half").unwrap();
        std::fs::write(out.path().join(LOCK_FILE), "process 1").unwrap();
        assert!(is_free(out.path()));
        // While it moved, and after that while it cleared up.
        for half in [
            &["model-1.safetensors"][..],
            &["model-1.safetensors", "config.json"],
        ] {
            std::fs::write(out.path().join(MOVING), "model-1.safetensors\nconfig.json").unwrap();
            for name in half {
                std::fs::write(out.path().join(name), "half").unwrap();
            }
            assert!(is_free(out.path()), "{half:?}");
            let stage = Stage::begin(out.path()).unwrap();
            fill(&stage, "whole");
            stage.finish("config.json").unwrap();
            // Nothing of the other run is left, which had other files.
            assert_eq!(files(out.path()), ["config.json", "model.safetensors"]);
            for name in files(out.path()) {
                assert_eq!(std::fs::read(out.path().join(&name)).unwrap(), b"whole");
                std::fs::remove_file(out.path().join(name)).unwrap();
            }
        }
        // Somebody else's file is not to be written over.
        let other = tempfile::tempdir().unwrap();
        std::fs::create_dir(other.path().join(STAGE)).unwrap();
        std::fs::write(other.path().join("letter.txt"), "dear").unwrap();
        assert!(!is_free(other.path()));
    }

    #[test]
    fn files_that_were_there_before_are_not_removed_as_half_results() {
        let parent = tempfile::tempdir().unwrap();
        let out = parent.path().join("merged");
        std::fs::create_dir(&out).unwrap();
        std::fs::write(out.join("config.json"), "old").unwrap();
        // Moving fails at a name that a folder has, when another file has been moved.
        std::fs::create_dir(out.join("model.safetensors")).unwrap();
        let stage = Stage::replace(&out).unwrap();
        fill(&stage, "new");
        std::fs::write(stage.path().join("a.txt"), "new").unwrap();
        stage.finish("config.json").unwrap_err();
        assert_eq!(std::fs::read(out.join("config.json")).unwrap(), b"old");
        assert!(!is_free(&out));
        assert_eq!(files(&out), ["config.json", "model.safetensors"]);

        // A list that names what is elsewhere.
        let letter = parent.path().join("letter.txt");
        std::fs::write(&letter, "dear").unwrap();
        let other = parent.path().join("other");
        std::fs::create_dir(&other).unwrap();
        let lines = format!("../letter.txt\n..\n.\n\n/\n{}", letter.display());
        std::fs::write(other.join(MOVING), lines).unwrap();
        drop(Stage::begin(&other).unwrap());
        assert!(letter.exists());
    }
}
