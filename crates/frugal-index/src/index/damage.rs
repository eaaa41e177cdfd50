//! Which file of the text index is damaged, and what its errors mean in plain words.

use std::io;
use std::path::{Path, PathBuf};

use frugal_core::caught::caught;
use tantivy::columnar::ColumnarReader;
use tantivy::directory::error::{OpenDirectoryError, OpenReadError, OpenWriteError};
use tantivy::directory::{CompositeFile, FileSlice};
use tantivy::index::{SegmentComponent, SegmentMeta};
use tantivy::store::StoreReader;
use tantivy::{Index, TantivyError};

use crate::error::IndexError;

/// An error of the text index about one of its files or about all of them.
pub(super) fn of_text(folder: &Path, error: &TantivyError) -> IndexError {
    let (file, problem) = match error {
        TantivyError::OpenReadError(error) => return of_read(folder, error),
        TantivyError::OpenWriteError(error) => match error {
            OpenWriteError::FileAlreadyExists(path) => (path.clone(), "there already".into()),
            OpenWriteError::IoError { io_error, filepath } => (filepath.clone(), plain(io_error)),
        },
        TantivyError::OpenDirectoryError(error) => match error {
            OpenDirectoryError::IoError { io_error, .. }
            | OpenDirectoryError::FailedToCreateTempDir(io_error) => {
                (PathBuf::new(), plain(io_error))
            }
            other => (PathBuf::new(), other.to_string()),
        },
        TantivyError::IoError(error) => (PathBuf::new(), plain(error)),
        TantivyError::LockFailure(..) => {
            let problem = "another program writes to its text index";
            (PathBuf::new(), problem.into())
        }
        TantivyError::DataCorruption(error) => {
            let text = format!("{error:?}");
            let problem = text.rsplit("): ").next().unwrap_or(&text);
            return IndexError::damaged(folder, problem.trim_end_matches('.'));
        }
        TantivyError::ErrorInThread(text)
        | TantivyError::SystemError(text)
        | TantivyError::InternalError(text)
        | TantivyError::SchemaError(text) => (PathBuf::new(), text.clone()),
        other => (PathBuf::new(), other.to_string()),
    };
    let place = match file.as_os_str().is_empty() {
        true => folder.to_owned(),
        false => folder.join(file),
    };
    IndexError::Text {
        folder: place,
        problem,
    }
}

fn of_read(folder: &Path, error: &OpenReadError) -> IndexError {
    match error {
        OpenReadError::FileDoesNotExist(path) => {
            IndexError::damaged(&folder.join(path), "it is missing")
        }
        OpenReadError::IoError { io_error, filepath } => {
            IndexError::damaged(&folder.join(filepath), plain(io_error))
        }
        OpenReadError::IncompatibleIndex(_) => IndexError::damaged(
            folder,
            "its text index is of a version that this program does not read",
        ),
    }
}

/// What an error of a file says; of a file that ends otherwise than one of the text index, that it does.
fn plain(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof => {
            "it does not end as it was written: it was cut or changed".into()
        }
        _ => error.to_string(),
    }
}

/// Compares a file with its checksum.
///
/// # Errors
/// A file that is not as it was written.
pub(super) fn check_file(folder: &Path, index: &Index, name: &Path) -> Result<(), IndexError> {
    let damaged = |problem: &str| IndexError::damaged(&folder.join(name), problem);
    // A file that a writer has removed since is still mapped.
    match caught(|| index.directory().validate_checksum(name)) {
        Ok(Ok(true)) => Ok(()),
        Ok(Ok(false)) => Err(damaged("it does not match its checksum")),
        Ok(Err(error)) => Err(of_read(folder, &error)),
        Err(_) => Err(damaged(
            "it does not end as it was written: it was cut or changed",
        )),
    }
}

/// The file because of which the segments cannot be opened, if it can be told.
pub(super) fn culprit(folder: &Path, index: &Index) -> Option<IndexError> {
    let metas = caught(|| index.searchable_segment_metas()).ok()?.ok()?;
    metas.iter().find_map(|meta| {
        PARTS.iter().find_map(|part| {
            let name = meta.relative_path(part.clone());
            if !folder.join(&name).exists() {
                return None;
            }
            let checked = check_file(folder, index, &name);
            checked
                .and_then(|()| probe(folder, index, meta, part))
                .err()
        })
    })
}

const PARTS: [SegmentComponent; 6] = [
    SegmentComponent::Store,
    SegmentComponent::Terms,
    SegmentComponent::Postings,
    SegmentComponent::Positions,
    SegmentComponent::FastFields,
    SegmentComponent::FieldNorms,
];

/// Whether a file with the right checksum is of its kind: another may have been put in its place.
fn probe(
    folder: &Path,
    index: &Index,
    meta: &SegmentMeta,
    part: &SegmentComponent,
) -> Result<(), IndexError> {
    let name = meta.relative_path(part.clone());
    let read = |file: FileSlice| match part {
        SegmentComponent::Store => StoreReader::open(file, 1).map(|_| ()),
        SegmentComponent::FastFields => ColumnarReader::open(file).map(|_| ()),
        _ => CompositeFile::open(&file).map(|_| ()),
    };
    let opened = caught(|| {
        index
            .segment(meta.clone())
            .open_read(part.clone())
            .map(read)
    });
    match opened {
        Ok(Ok(Ok(()))) => Ok(()),
        Ok(Err(error)) => Err(of_read(folder, &error)),
        Ok(Ok(Err(_))) | Err(_) => Err(IndexError::damaged(
            &folder.join(name),
            "it holds something else than its name says",
        )),
    }
}
