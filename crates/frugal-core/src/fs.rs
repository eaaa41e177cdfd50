//! Writing files so that a crash leaves either the old file or the new one, never half of one.

use std::io::Write;
use std::path::{Path, PathBuf};

use thiserror::Error;

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

/// Reads a whole file.
///
/// # Errors
/// [`FileError`] naming the path.
pub fn read(path: &Path) -> Result<Vec<u8>, FileError> {
    std::fs::read(path).map_err(FileError::at(path, "cannot read"))
}

/// Creates a folder and its parents.
///
/// # Errors
/// [`FileError`] naming the path.
pub fn create_dir(path: &Path) -> Result<(), FileError> {
    std::fs::create_dir_all(path).map_err(FileError::at(path, "cannot create the folder"))
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
    let folder = path
        .parent()
        .filter(|p| !p.as_os_str().is_empty())
        .unwrap_or(Path::new("."));
    create_dir(folder)?;
    let write = || -> std::io::Result<()> {
        let mut builder = tempfile::Builder::new();
        // What any new file has, within the umask: a temporary one is its owner's alone.
        #[cfg(unix)]
        builder.permissions(
            <std::fs::Permissions as std::os::unix::fs::PermissionsExt>::from_mode(0o666),
        );
        let mut file = builder.tempfile_in(folder)?;
        {
            let mut buffer = std::io::BufWriter::new(file.as_file_mut());
            fill(&mut buffer)?;
            buffer.flush()?;
        }
        #[cfg(unix)]
        if let Ok(old) = std::fs::metadata(path) {
            file.as_file().set_permissions(old.permissions())?;
        }
        file.as_file().sync_all()?;
        file.persist(path).map_err(|e| e.error)?;
        // The rename is durable only once the folder is; where that cannot be had, the new file is
        // in place all the same.
        #[cfg(unix)]
        let _ = std::fs::File::open(folder).and_then(|folder| folder.sync_all());
        Ok(())
    };
    write().map_err(FileError::at(path, "cannot write"))
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
