//! Files mapped into memory.

use std::path::Path;

use frugal_core::fs::FileError;
use tantivy::directory::error::OpenReadError;
use tantivy::directory::{Directory, MmapDirectory, OwnedBytes};

/// Maps a whole file, through the text index's own directory: it keeps the only `unsafe` that this
/// takes.
pub(crate) fn map_file(path: &Path) -> Result<OwnedBytes, FileError> {
    let failed = |error: std::io::Error| FileError::at(path, "cannot read")(error);
    let folder = path
        .parent()
        .filter(|folder| !folder.as_os_str().is_empty())
        .unwrap_or(Path::new("."));
    let name = path.file_name().unwrap_or_default();
    let directory =
        MmapDirectory::open(folder).map_err(|e| failed(std::io::Error::other(e.to_string())))?;
    let slice = directory.open_read(Path::new(name)).map_err(|e| match e {
        OpenReadError::FileDoesNotExist(_) => failed(std::io::ErrorKind::NotFound.into()),
        OpenReadError::IoError { io_error, .. } => {
            failed(std::io::Error::new(io_error.kind(), io_error.to_string()))
        }
        other => failed(std::io::Error::other(other.to_string())),
    })?;
    slice.read_bytes().map_err(failed)
}
