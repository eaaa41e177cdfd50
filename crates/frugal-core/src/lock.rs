//! Folders that one process at a time writes to.
//!
//! The lock is the operating system's on a file in the folder, so it ends with the process that
//! holds it, however that ends. The file says who that is. It is removed with the lock; one that a
//! killed process leaves behind is stale and stands in nobody's way.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{ErrorKind, Read, Seek, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use thiserror::Error;

use crate::fs::FileError;
use crate::same_file::is_at;

/// Name of the lock file in a folder.
pub const LOCK_FILE: &str = ".frugal.lock";

/// Times that a folder or its lock file may vanish while it is taken. File systems that number
/// their files anew each time look so, too.
const ATTEMPTS: u32 = 100;

/// A folder that cannot be had.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum LockError {
    /// Another process writes to it.
    #[error("{}: {holder} is writing to this folder: wait for it, stop it, or choose another folder", folder.display())]
    Held {
        /// The folder.
        folder: PathBuf,
        /// Who has it, as far as its lock file says.
        holder: String,
    },
    /// The folder or its lock file cannot be created.
    #[error(transparent)]
    File(#[from] FileError),
}

/// The sole right to write to a folder, until it is dropped.
#[derive(Debug)]
pub struct FolderLock {
    folder: PathBuf,
    /// Closing it releases the lock.
    file: File,
    /// Whether the folder was made for it; one that stays empty goes with it.
    made: bool,
}

impl FolderLock {
    /// Takes the folder, which is created if it is not there.
    ///
    /// # Errors
    /// [`LockError::Held`] while another process has it; a folder that cannot be written to.
    pub fn acquire(folder: &Path) -> Result<Self, LockError> {
        let path = folder.join(LOCK_FILE);
        let made = !folder.exists();
        let mut attempt = 0;
        loop {
            attempt += 1;
            let opened = crate::fs::create_dir(folder).and_then(|()| {
                OpenOptions::new()
                    .read(true)
                    .write(true)
                    .create(true)
                    .truncate(false)
                    .open(&path)
                    .map_err(FileError::at(&path, "cannot write"))
            });
            let file = match opened {
                // Its last holder may be removing the folder, or one above it.
                Err(error) if error.source.kind() == ErrorKind::NotFound && attempt < ATTEMPTS => {
                    continue;
                }
                other => other?,
            };
            // Where a file system has no locks, there is nobody to ask, and nothing to wait for.
            if let Err(TryLockError::WouldBlock) = file.try_lock() {
                return Err(LockError::Held {
                    folder: folder.into(),
                    holder: holder_text(file),
                });
            }
            // Its last holder may have removed the file between the two calls; the lock of a file
            // that has no name any more keeps nobody out.
            if is_at(&file, &path) || attempt >= ATTEMPTS {
                let lock = Self {
                    folder: folder.into(),
                    file,
                    made,
                };
                lock.sign().map_err(FileError::at(&path, "cannot write"))?;
                return Ok(lock);
            }
        }
    }

    /// As [`FolderLock::acquire`], but waits for a holder that is about to end.
    ///
    /// # Errors
    /// As [`FolderLock::acquire`], once `patience` is over.
    pub fn acquire_within(folder: &Path, patience: Duration) -> Result<Self, LockError> {
        let start = Instant::now();
        loop {
            match Self::acquire(folder) {
                Err(LockError::Held { .. }) if start.elapsed() < patience => {
                    std::thread::sleep(Duration::from_millis(50));
                }
                other => return other,
            }
        }
    }

    /// The folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Writes who holds the lock.
    fn sign(&self) -> std::io::Result<()> {
        let seconds = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |time| time.as_secs());
        let mut file = &self.file;
        file.rewind()?;
        file.set_len(0)?;
        writeln!(
            file,
            "process {} since {}",
            std::process::id(),
            crate::human::utc(seconds)
        )
    }
}

impl Drop for FolderLock {
    fn drop(&mut self) {
        // While it is still locked, so that nobody's file is removed. One that cannot be removed is
        // stale and disturbs nobody.
        let _ = std::fs::remove_file(self.folder.join(LOCK_FILE));
        if self.made {
            // Fails if there is something in it, as it should.
            let _ = std::fs::remove_dir(&self.folder);
        }
    }
}

fn holder_text(file: File) -> String {
    let mut text = String::new();
    // The file is short; a reader that comes before it is written gets nothing.
    let read = file.take(200).read_to_string(&mut text);
    match read {
        Ok(_) if !text.trim().is_empty() => text.trim().to_owned(),
        _ => "another process".into(),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[test]
    fn a_folder_has_one_owner_who_is_named() {
        let parent = tempfile::tempdir().unwrap();
        let folder = parent.path().join("a/run");
        let first = FolderLock::acquire(&folder).unwrap();
        let error = FolderLock::acquire(&folder).unwrap_err().to_string();
        let id = std::process::id();
        assert!(
            error.starts_with(&format!("{}: process {id} since 20", folder.display())),
            "{error}"
        );
        drop(first);
        assert!(!folder.exists());
        std::fs::create_dir_all(&folder).unwrap();
        drop(FolderLock::acquire(&folder));
        assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 0);
        assert!(FolderLock::acquire(&folder).is_ok());
    }

    #[test]
    fn a_stale_lock_file_stands_in_nobodys_way() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join(LOCK_FILE), "process 1 since 1970\n").unwrap();
        assert!(FolderLock::acquire(folder.path()).is_ok());
    }

    #[test]
    fn holders_that_come_and_go_are_never_two_at_once() {
        let folder = tempfile::tempdir().unwrap();
        let (inside, taken) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let barrier = Barrier::new(4);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    barrier.wait();
                    for _ in 0..500 {
                        if let Ok(lock) = FolderLock::acquire(folder.path()) {
                            assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0);
                            taken.fetch_add(1, Ordering::SeqCst);
                            inside.fetch_sub(1, Ordering::SeqCst);
                            drop(lock);
                        }
                    }
                });
            }
        });
        assert!(taken.load(Ordering::SeqCst) > 0);
    }

    #[test]
    fn waiting_ends_when_the_holder_does() {
        let folder = tempfile::tempdir().unwrap();
        let held = FolderLock::acquire(folder.path()).unwrap();
        let soon = Duration::from_millis(60);
        assert!(FolderLock::acquire_within(folder.path(), soon).is_err());
        std::thread::scope(|scope| {
            scope.spawn(move || {
                std::thread::sleep(soon);
                drop(held);
            });
            assert!(FolderLock::acquire_within(folder.path(), Duration::from_secs(60)).is_ok());
        });
    }
}
