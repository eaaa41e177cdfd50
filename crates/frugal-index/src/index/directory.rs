//! The text index's view of the folder: its own description is part of the manifest.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use frugal_core::fs::write_atomic;
use serde_json::{Map, Value};
use tantivy::directory::error::{DeleteError, LockError, OpenReadError, OpenWriteError};
use tantivy::directory::{
    Directory, DirectoryLock, FileHandle, Lock, MmapDirectory, WatchCallback, WatchHandle, WritePtr,
};

use super::manifest::{self, State};

/// The name under which the text index knows its description.
const META: &str = "meta.json";
/// In it: what a commit brings along.
const PAYLOAD: &str = "payload";

/// A folder whose `meta.json` is the manifest. A commit of the text index carries the state of the
/// whole index as its payload, so that both change at once.
#[derive(Clone, Debug)]
pub(super) struct TextDirectory {
    inner: MmapDirectory,
    folder: PathBuf,
    /// State before the first commit.
    initial: Option<Arc<State>>,
}

impl TextDirectory {
    pub(super) fn open(folder: &Path, initial: Option<State>) -> Result<Self, String> {
        Ok(Self {
            inner: MmapDirectory::open(folder).map_err(|e| e.to_string())?,
            folder: folder.into(),
            initial: initial.map(Arc::new),
        })
    }

    fn write_manifest(&self, data: &[u8]) -> io::Result<()> {
        let mut meta: Map<String, Value> = serde_json::from_slice(data)?;
        let state = match meta.shift_remove(PAYLOAD) {
            Some(Value::String(payload)) => serde_json::from_str(&payload)?,
            _ => match &self.initial {
                Some(initial) => State::clone(initial),
                None => return Err(io::Error::other("a commit without the state of the index")),
            },
        };
        manifest::write(&self.folder, state, meta).map_err(|e| io::Error::other(e.to_string()))
    }

    fn read_manifest(&self) -> io::Result<Vec<u8>> {
        let (state, mut meta) =
            manifest::read(&self.folder).map_err(|e| io::Error::other(e.to_string()))?;
        meta.insert(
            PAYLOAD.into(),
            Value::String(serde_json::to_string(&state)?),
        );
        Ok(serde_json::to_vec(&meta)?)
    }
}

impl Directory for TextDirectory {
    fn get_file_handle(&self, path: &Path) -> Result<Arc<dyn FileHandle>, OpenReadError> {
        self.inner.get_file_handle(path)
    }

    fn delete(&self, path: &Path) -> Result<(), DeleteError> {
        self.inner.delete(path)
    }

    fn exists(&self, path: &Path) -> Result<bool, OpenReadError> {
        match path == Path::new(META) {
            true => self.inner.exists(Path::new(manifest::MANIFEST)),
            false => self.inner.exists(path),
        }
    }

    fn open_write(&self, path: &Path) -> Result<WritePtr, OpenWriteError> {
        self.inner.open_write(path)
    }

    fn atomic_read(&self, path: &Path) -> Result<Vec<u8>, OpenReadError> {
        match path == Path::new(META) {
            true => self.read_manifest().map_err(|e| OpenReadError::IoError {
                io_error: Arc::new(e),
                filepath: path.into(),
            }),
            false => self.inner.atomic_read(path),
        }
    }

    fn atomic_write(&self, path: &Path, data: &[u8]) -> io::Result<()> {
        match path == Path::new(META) {
            true => self.write_manifest(data),
            false => write_atomic(&self.folder.join(path), data)
                .map_err(|e| io::Error::new(e.source.kind(), e.to_string())),
        }
    }

    fn sync_directory(&self) -> io::Result<()> {
        self.inner.sync_directory()
    }

    /// Writers hold the lock of the folder, and readers open again what was removed meanwhile; a
    /// reader so needs no right to write.
    fn acquire_lock(&self, _: &Lock) -> Result<DirectoryLock, LockError> {
        Ok(DirectoryLock::from(Box::new(())))
    }

    fn watch(&self, callback: WatchCallback) -> tantivy::Result<WatchHandle> {
        self.inner.watch(callback)
    }
}
