//! Writing files so that a crash leaves either the old file or the new one, never half of one.

use std::fs::{File, TryLockError};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use thiserror::Error;

use crate::same_file::is_at;

/// A file that cannot be read or written.
#[derive(Debug, Error)]
#[error("{}: {action}: {source}", path.display())]
pub struct FileError {
    /// The file.
    pub path: PathBuf,
    /// What was tried, for example "cannot read".
    pub action: &'static str,
    /// The system's answer.
    pub source: std::io::Error,
}

impl FileError {
    /// For `map_err`.
    pub fn at(path: &Path, action: &'static str) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self {
            path,
            action,
            source,
        }
    }
}

/// Most bytes of a file that is read as settings, a tokenizer or another text of a model; the largest
/// tokenizers have some 40 MiB.
const LIMIT: u64 = 256 << 20;

/// Reads a whole file of settings, or another that belongs to a model: a regular one of at most
/// 256 MiB.
///
/// # Errors
/// [`FileError`] naming the path; of a pipe or a device before anything is read of it.
pub fn read(path: &Path) -> Result<Vec<u8>, FileError> {
    let failed = || FileError::at(path, "cannot read");
    let mut bytes = Vec::new();
    let file = open(path)?;
    // One that grows while it is read, or does not tell its size, is no larger either.
    let read = file.take(LIMIT + 1).read_to_end(&mut bytes);
    match read.map_err(failed())? as u64 > LIMIT {
        true => Err(failed()(std::io::Error::new(
            std::io::ErrorKind::FileTooLarge,
            format!("it has more than {} MiB", LIMIT >> 20),
        ))),
        false => Ok(bytes),
    }
}

/// Reads all of a file of data, which may be a pipe and is as large as it is.
///
/// # Errors
/// [`FileError`] naming the path; of a device before anything is read of it.
pub fn read_data(path: &Path) -> Result<Vec<u8>, FileError> {
    let mut bytes = Vec::new();
    let read = open_data(path)?.read_to_end(&mut bytes);
    read.map_err(FileError::at(path, "cannot read"))?;
    Ok(bytes)
}

/// Opens a regular file.
///
/// # Errors
/// [`FileError`] naming the path. A pipe would be waited for, and a device has no end: neither is
/// opened.
pub fn open(path: &Path) -> Result<File, FileError> {
    let opened = regular(path).and_then(|()| File::open(path));
    opened.map_err(FileError::at(path, "cannot read"))
}

/// Opens a regular file or a pipe.
///
/// # Errors
/// [`FileError`] naming the path, of a device too.
pub fn open_data(path: &Path) -> Result<File, FileError> {
    let opened = match is_pipe(path) {
        true => File::open(path),
        false => regular(path).and_then(|()| File::open(path)),
    };
    opened.map_err(FileError::at(path, "cannot read"))
}

/// Whether what is read under this name, links followed, is a regular file, or a folder, of which
/// reading says so itself.
///
/// # Errors
/// When it is neither, or is not there.
pub fn regular(path: &Path) -> std::io::Result<()> {
    let kind = std::fs::metadata(path)?.file_type();
    match kind.is_file() || kind.is_dir() {
        true => Ok(()),
        false => Err(std::io::Error::new(
            std::io::ErrorKind::InvalidInput,
            "not a regular file",
        )),
    }
}

#[cfg(unix)]
fn is_pipe(path: &Path) -> bool {
    use std::os::unix::fs::FileTypeExt;
    std::fs::metadata(path).is_ok_and(|found| found.file_type().is_fifo())
}

#[cfg(not(unix))]
fn is_pipe(_: &Path) -> bool {
    false
}

/// Creates a folder and its parents.
///
/// # Errors
/// [`FileError`] naming the path.
pub fn create_dir(path: &Path) -> Result<(), FileError> {
    let action = "cannot create the folder";
    if !path.exists() && std::fs::symlink_metadata(path).is_ok_and(|found| found.is_symlink()) {
        let dangling = std::io::Error::other("it is a link to what is not there");
        return Err(FileError::at(path, action)(dangling));
    }
    std::fs::create_dir_all(path).map_err(FileError::at(path, action))
}

/// Writes `bytes` under a temporary name in the same folder, flushes them to disk and renames.
///
/// The new file has the permissions of the old one, or without one those that any new file has.
///
/// # Errors
/// [`FileError`] naming the path; the old file, if any, is then untouched.
pub fn write_atomic(path: &Path, bytes: &[u8]) -> Result<(), FileError> {
    write_atomic_with(path, |file| file.write_all(bytes))
}

/// As [`write_atomic`], for content that is produced while it is written.
///
/// # Errors
/// [`FileError`] naming the path; the old file, if any, is then untouched.
pub fn write_atomic_with(
    path: &Path,
    fill: impl FnOnce(&mut dyn Write) -> std::io::Result<()>,
) -> Result<(), FileError> {
    create_dir(parent(path))?;
    let write = || -> std::io::Result<()> {
        let mut file = Temporary::for_file(path)?;
        {
            let mut buffer = std::io::BufWriter::new(file.file.as_file_mut());
            fill(&mut buffer)?;
            buffer.flush()?;
        }
        file.persist()
    };
    write().map_err(FileError::at(path, "cannot write"))
}

/// The file that is going to be another one, under a name beside it.
///
/// It is locked while its process lives. What killed processes left of the same file is removed
/// when the next one is begun.
#[derive(Debug)]
pub struct Temporary {
    target: PathBuf,
    file: tempfile::NamedTempFile,
}

impl Temporary {
    /// Begins the file that will be `target`; its folder must be there.
    ///
    /// # Errors
    /// When the system cannot create it.
    pub fn for_file(target: &Path) -> std::io::Result<Self> {
        let name = target.file_name().unwrap_or_default().to_string_lossy();
        let prefix = format!(".{name}.");
        // Elsewhere a lock would keep out whoever opens the file by its name to write it.
        if cfg!(unix) {
            remove_stale(parent(target), &prefix);
        }
        let mut attempt = 0;
        loop {
            attempt += 1;
            let mut builder = tempfile::Builder::new();
            builder.prefix(&prefix).suffix(TEMPORARY);
            // What any new file has, within the umask: a temporary one is its owner's alone.
            #[cfg(unix)]
            builder.permissions(
                <std::fs::Permissions as std::os::unix::fs::PermissionsExt>::from_mode(0o666),
            );
            let file = builder.tempfile_in(parent(target))?;
            // Somebody who clears up may have come between creating and locking. A file system
            // without locks has nobody who clears up.
            let locked = if cfg!(unix) {
                file.as_file().try_lock()
            } else {
                Ok(())
            };
            match locked {
                Err(TryLockError::WouldBlock) if attempt < ATTEMPTS => continue,
                Ok(()) if attempt < ATTEMPTS && !is_at(file.as_file(), file.path()) => continue,
                _ => {}
            }
            return Ok(Self {
                target: target.into(),
                file,
            });
        }
    }

    /// Where the content goes.
    pub fn path(&self) -> &Path {
        self.file.path()
    }

    /// What is there to be written to.
    pub fn file(&mut self) -> &mut File {
        self.file.as_file_mut()
    }

    /// Flushes it to disk and gives it its name and the permissions of the file that it replaces.
    ///
    /// # Errors
    /// When the system cannot do so; the old file is then untouched.
    pub fn persist(self) -> std::io::Result<()> {
        let Self { target, file } = self;
        #[cfg(unix)]
        if let Ok(old) = std::fs::metadata(&target) {
            file.as_file().set_permissions(old.permissions())?;
        }
        file.as_file().sync_all()?;
        file.persist(&target).map_err(|e| e.error)?;
        // The rename is durable only once the folder is; where that cannot be had, the new file is
        // in place all the same.
        #[cfg(unix)]
        let _ = File::open(parent(&target)).and_then(|folder| folder.sync_all());
        Ok(())
    }
}

/// Times that a file may be cleared up by others before it is locked.
const ATTEMPTS: u32 = 100;
/// How the names of temporary files end.
const TEMPORARY: &str = ".tmp";

/// Whether a file of this name is one that was being written: it counts for nothing.
pub fn is_temporary(name: &str) -> bool {
    name.starts_with('.') && name.ends_with(TEMPORARY)
}

/// Removes temporary files of one target whose process has ended.
fn remove_stale(folder: &Path, prefix: &str) {
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if !(name.starts_with(prefix) && is_temporary(&name)) {
            continue;
        }
        // What cannot be opened, locked or removed stays, and is in nobody's way.
        if let Ok(file) = std::fs::File::open(entry.path())
            && file.try_lock().is_ok()
        {
            let _ = std::fs::remove_file(entry.path());
        }
    }
}

fn parent(path: &Path) -> &Path {
    path.parent()
        .filter(|p| !p.as_os_str().is_empty())
        .unwrap_or(Path::new("."))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_write_leaves_the_old_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a/file");
        write_atomic(&path, b"old").unwrap();
        let failed = write_atomic_with(&path, |file| {
            file.write_all(b"ne")?;
            Err(std::io::Error::other("disk full"))
        });
        assert!(failed.unwrap_err().to_string().contains("disk full"));
        assert_eq!(std::fs::read(&path).unwrap(), b"old");
        assert_eq!(
            std::fs::read_dir(path.parent().unwrap()).unwrap().count(),
            1
        );
    }

    #[test]
    fn what_a_killed_process_left_is_removed_and_what_a_living_one_writes_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("model.gguf");
        let stale = dir.path().join(".model.gguf.AbC123.tmp");
        let other = dir.path().join(".other.gguf.AbC123.tmp");
        std::fs::write(&stale, "half").unwrap();
        std::fs::write(&other, "half").unwrap();
        let living = Temporary::for_file(&path).unwrap();
        assert!(!stale.exists() && other.exists());
        write_atomic(&path, b"whole").unwrap();
        assert!(living.path().exists());
        living.persist().unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"");
    }

    #[cfg(unix)]
    #[test]
    fn pipes_and_devices_in_place_of_files_are_neither_waited_for_nor_read() {
        let dir = tempfile::tempdir().unwrap();
        let link = dir.path().join("config.json");
        std::os::unix::fs::symlink("/dev/zero", &link).unwrap();
        let fifo = dir.path().join("tokenizer.json");
        let made = std::process::Command::new("mkfifo").arg(&fifo).status();
        assert!(made.unwrap().success());
        for path in [&link, &fifo] {
            let told = read(path).unwrap_err().to_string();
            assert!(told.ends_with("cannot read: not a regular file"), "{told}");
        }
        assert!(read_data(&link).is_err());
        // A pipe is data like any other.
        let writer = std::thread::spawn({
            let fifo = fifo.clone();
            move || std::fs::write(fifo, "text").unwrap()
        });
        assert_eq!(read_data(&fifo).unwrap(), b"text");
        writer.join().unwrap();
    }

    #[cfg(unix)]
    #[test]
    fn a_file_of_settings_that_is_far_too_large_is_not_read_into_memory() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("tokenizer.json");
        let file = File::create(&path).unwrap();
        file.set_len(LIMIT + 1).unwrap();
        let told = read(&path).unwrap_err().to_string();
        assert!(told.ends_with("it has more than 256 MiB"), "{told}");
    }

    #[cfg(unix)]
    #[test]
    fn permissions_are_those_of_the_old_file_or_of_any_new_one() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
        let (path, usual) = (dir.path().join("file"), dir.path().join("usual"));
        std::fs::write(&usual, "").unwrap();
        write_atomic(&path, b"a").unwrap();
        assert_eq!(mode(&path), mode(&usual));
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).unwrap();
        write_atomic(&path, b"b").unwrap();
        assert_eq!(
            (mode(&path), std::fs::read(&path).unwrap().as_slice()),
            (0o640, &b"b"[..])
        );
    }
}
