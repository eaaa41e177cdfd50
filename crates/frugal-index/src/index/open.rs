//! Creating, opening and asking an index.

use std::path::Path;

use frugal_core::fs::{FileError, create_dir, is_temporary};
use frugal_core::lock::{FolderLock, LOCK_FILE};
use tantivy::IndexSettings;

use super::directory::TextDirectory;
use super::manifest::{self, MANIFEST, State};
use super::schema::schema;
use super::settings::{Encoder, Settings};
use super::snapshot::{Snapshot, guarded};
use super::writer::Writer;
use crate::document::Document;
use crate::error::IndexError;
use crate::vector::check_kind;

/// An index as it was when it was opened, or last reloaded. It can be searched from many threads
/// while a [`Writer`], here or in another process, goes on.
pub struct Index {
    pub(super) snapshot: Snapshot,
}

/// What the text index keeps before the first commit.
const MANAGED: &str = ".managed.json";

impl Index {
    /// Makes an empty index in a folder that is new or empty.
    ///
    /// # Errors
    /// A folder with something in it, or that cannot be written to; vectors of a kind that cannot be
    /// stored.
    pub fn create(folder: &Path, settings: Settings) -> Result<Self, IndexError> {
        if let Some(encoder) = &settings.encoder {
            check_kind(encoder.dimension, encoder.metric, encoder.encoding)?;
        }
        if let Some(hnsw) = &settings.hnsw {
            hnsw.check()?;
            if settings.encoder.is_none() {
                return Err(IndexError::NeedsVector(
                    "graphs link vectors, but the index is to be made without an encoder".into(),
                ));
            }
        }
        Self::check_free(folder)?;
        create_dir(folder)?;
        let _lock = FolderLock::acquire(folder)?;
        Self::check_free(folder)?;
        let directory = TextDirectory::open(folder, Some(State::new(settings)));
        let directory = directory.map_err(|e| IndexError::damaged(folder, e))?;
        guarded(folder, || {
            tantivy::Index::create(directory, schema().0, IndexSettings::default())
        })?;
        Self::open(folder)
    }

    /// Refuses a folder in which no index can be made.
    ///
    /// # Errors
    /// A folder with something in it.
    pub fn check_free(folder: &Path) -> Result<(), IndexError> {
        match is_free(folder) {
            true => Ok(()),
            false => Err(IndexError::Exists {
                folder: folder.into(),
            }),
        }
    }

    /// Removes an index in which nothing was ever committed from its folder, which stays; leaves any
    /// other as it is, and answers false.
    ///
    /// # Errors
    /// Another writer, files that cannot be removed.
    pub fn discard_empty(folder: &Path) -> Result<bool, IndexError> {
        let _lock = FolderLock::acquire(folder)?;
        let (state, _) = manifest::read(folder)?;
        if state.generation > 0 {
            return Ok(false);
        }
        // The manifest goes first: what is left without it is in nobody's way.
        remove(&folder.join(MANIFEST))?;
        for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            let name = entry.file_name();
            if is_uncommitted(&name.to_string_lossy()) {
                remove(&entry.path())?;
            }
        }
        Ok(true)
    }

    /// Opens an index. Its words and columns are compared with their checksums; stored texts and
    /// vectors are when they are first read.
    ///
    /// # Errors
    /// A folder that is not an index, a damaged one, one of a later program.
    pub fn open(folder: &Path) -> Result<Self, IndexError> {
        Ok(Self {
            snapshot: Snapshot::open(folder)?,
        })
    }

    /// Goes on to the last commit; false if there is nothing new.
    ///
    /// # Errors
    /// As [`Index::open`].
    pub fn reload(&mut self) -> Result<bool, IndexError> {
        let folder = self.snapshot.folder.clone();
        let (state, _) = manifest::read(&folder)?;
        if state == self.snapshot.state {
            return Ok(false);
        }
        self.snapshot = Snapshot::open(&folder)?;
        Ok(true)
    }

    /// Takes the sole right to write. What is committed is seen after [`Index::reload`].
    ///
    /// # Errors
    /// Another writer, a folder that cannot be written to, a damaged index.
    pub fn writer(&self) -> Result<Writer, IndexError> {
        Writer::open(&self.snapshot.folder)
    }

    /// The folder.
    pub fn folder(&self) -> &Path {
        &self.snapshot.folder
    }

    /// How it was made.
    pub fn settings(&self) -> &Settings {
        &self.snapshot.state.settings
    }

    /// Number of the commit: 0 when the index was created.
    pub fn generation(&self) -> u64 {
        self.snapshot.state.generation
    }

    /// Number of documents.
    pub fn len(&self) -> usize {
        self.snapshot.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Names of metadata fields that filters can ask for.
    pub fn fields(&self) -> impl Iterator<Item = &str> {
        self.snapshot.state.fields.iter().map(String::as_str)
    }

    /// Identifiers of all documents, in the order in which they came.
    ///
    /// # Errors
    /// A damaged index.
    pub fn document_ids(&self) -> Result<Vec<String>, IndexError> {
        let places = &self.snapshot.loaded()?.places;
        let id = |place| Ok(self.snapshot.document(place)?.id);
        places.iter().copied().map(id).collect()
    }

    /// Whether there is a document of this identifier.
    ///
    /// # Errors
    /// A damaged index.
    pub fn contains(&self, id: &str) -> Result<bool, IndexError> {
        Ok(self.snapshot.find(id)?.is_some())
    }

    /// The document of an identifier.
    ///
    /// # Errors
    /// A damaged index.
    pub fn document(&self, id: &str) -> Result<Option<Document>, IndexError> {
        let place = self.snapshot.find(id)?;
        place.map(|place| self.snapshot.document(place)).transpose()
    }

    /// Refuses to search with vectors of a model other than the one of the index.
    ///
    /// # Errors
    /// Another model, dimension or metric; an index without vectors.
    pub fn check_encoder(&self, asked: &Encoder) -> Result<(), IndexError> {
        let made = self.settings().encoder.as_ref();
        match made {
            Some(made) if made.agrees(asked) => Ok(()),
            _ => Err(IndexError::OtherEncoder {
                folder: self.folder().into(),
                made: made.map_or("no encoder".to_owned(), ToString::to_string),
                asked: asked.to_string(),
            }),
        }
    }

    /// Compares every file with its checksums.
    ///
    /// # Errors
    /// The first file that is not as it was written.
    pub fn check(&self) -> Result<(), IndexError> {
        self.snapshot.check()
    }
}

impl std::fmt::Debug for Index {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Index")
            .field("folder", &self.snapshot.folder)
            .field("state", &self.snapshot.state)
            .finish_non_exhaustive()
    }
}

fn remove(path: &Path) -> Result<(), IndexError> {
    std::fs::remove_file(path).map_err(|e| FileError::at(path, "cannot remove")(e).into())
}

/// Whether the text index makes files of this name.
fn is_uncommitted(name: &str) -> bool {
    let parts = ["fast", "fieldnorm", "idx", "pos", "store", "temp", "term"];
    let segment = name.rsplit_once('.').is_some_and(|(stem, end)| {
        let stem = stem.split('.').next().unwrap_or_default();
        let is_id = stem.len() == 32 && stem.bytes().all(|b| b.is_ascii_hexdigit());
        is_id && parts.contains(&end)
    });
    segment || name == MANAGED || name.starts_with(".tantivy-") || is_temporary(name)
}

/// Whether there is nothing in a folder, or only what a creation left that was killed.
fn is_free(folder: &Path) -> bool {
    let Ok(entries) = std::fs::read_dir(folder) else {
        return !folder.exists();
    };
    let names: Vec<String> = entries
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    let ours = |name: &String| [MANAGED, LOCK_FILE].contains(&name.as_str()) || is_temporary(name);
    !names.iter().any(|name| name == MANIFEST) && names.iter().all(ours)
}
