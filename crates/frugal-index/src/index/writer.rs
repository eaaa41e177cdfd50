//! Changing an index.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::path::{Path, PathBuf};

use frugal_core::lock::FolderLock;
use tantivy::indexer::{IndexWriterOptions, LogMergePolicy, MergePolicy, NoMergePolicy};
use tantivy::{IndexWriter, Term};

use super::manifest::{State, VectorFile};
use super::schema::{names, stored};
use super::snapshot::{Snapshot, guarded};
use crate::document::Document;
use crate::error::IndexError;
use crate::vector::{VectorBuilder, VectorError, VectorGraph, VectorIndex};

/// Memory for one thread of the text index before it writes a segment.
const MEMORY: usize = 64 << 20;
/// Longest identifier in bytes.
const LONGEST_ID: usize = 4096;
/// How the names of files with vectors end.
const VECTORS: &str = ".vec";
/// How the names of their graphs end.
const GRAPH: &str = ".hnsw";

/// The sole right to change an index. Nothing is seen or kept before [`Writer::commit`]; a writer
/// that is dropped, or whose process ends, leaves the state of the last commit.
pub struct Writer {
    /// The last commit.
    snapshot: Snapshot,
    text: IndexWriter,
    /// What was changed since the last commit: the key of a document, or that it is gone.
    pending: HashMap<String, Option<u64>>,
    /// Keys of the last commit that are deleted since.
    dead: HashSet<u64>,
    vectors: Option<VectorBuilder>,
    next_key: u64,
    fields: BTreeSet<String>,
    /// Whether a failure has left the text index and the vectors in different states.
    broken: bool,
    /// Released after everything else.
    _lock: FolderLock,
}

impl Writer {
    pub(super) fn open(folder: &Path) -> Result<Self, IndexError> {
        let lock = FolderLock::acquire(folder)?;
        let snapshot = Snapshot::open(folder)?;
        let text = writer(&snapshot)?;
        // What a killed writer left has names that this one would use again.
        guarded(folder, || text.garbage_collect_files().wait())?;
        let writer = Self {
            vectors: builder(&snapshot.state)?,
            next_key: snapshot.state.next_key,
            fields: snapshot.state.fields.clone(),
            pending: HashMap::new(),
            dead: HashSet::new(),
            broken: false,
            text,
            snapshot,
            _lock: lock,
        };
        writer.remove_unnamed();
        Ok(writer)
    }

    /// Whether there is a document of this identifier, counting what is not committed yet.
    ///
    /// # Errors
    /// A damaged index.
    pub fn contains(&self, id: &str) -> Result<bool, IndexError> {
        match self.pending.get(id) {
            Some(pending) => Ok(pending.is_some()),
            None => Ok(self.snapshot.find(id)?.is_some()),
        }
    }

    /// Adds a document, with its vector if the index has an encoder.
    ///
    /// # Errors
    /// A document that is there already, without identifier or text; a vector that is missing, not
    /// wanted, of another length or not finite; an index that cannot be written. The document is not
    /// added then.
    pub fn add(&mut self, document: &Document, vector: Option<&[f32]>) -> Result<(), IndexError> {
        if self.contains(&document.id)? {
            return Err(IndexError::DuplicateDocument {
                id: document.id.clone(),
            });
        }
        self.put(document, vector)
    }

    /// Adds a document, or puts it in the place of the one with its identifier.
    ///
    /// # Errors
    /// As [`Writer::add`], but for documents that are there; the old one stays then.
    pub fn update(
        &mut self,
        document: &Document,
        vector: Option<&[f32]>,
    ) -> Result<(), IndexError> {
        self.check(document, vector)?;
        self.delete(&document.id)?;
        self.put(document, vector)
    }

    /// Removes a document; false if there is none.
    ///
    /// # Errors
    /// A damaged index.
    pub fn delete(&mut self, id: &str) -> Result<bool, IndexError> {
        let key = match self.pending.get(id) {
            Some(pending) => *pending,
            None => self.snapshot.find(id)?.map(|place| place.key),
        };
        let Some(key) = key else {
            return Ok(false);
        };
        let term = Term::from_field_text(self.snapshot.fields.id, id);
        self.text.delete_term(term);
        self.dead.insert(key);
        self.pending.insert(id.to_owned(), None);
        Ok(true)
    }

    /// Makes all changes last, at once. Without changes it does nothing.
    ///
    /// # Errors
    /// A file that cannot be written, as on a full disk: the index then stays as it was, and the
    /// changes are lost with this writer.
    pub fn commit(&mut self) -> Result<(), IndexError> {
        match self.pending.is_empty() {
            true => Ok(()),
            false => self.publish(false),
        }
    }

    /// Commits, then writes everything anew without what was deleted: one segment of texts, one file
    /// of vectors.
    ///
    /// # Errors
    /// As [`Writer::commit`].
    pub fn compact(&mut self) -> Result<(), IndexError> {
        self.publish(true)?;
        let folder = self.snapshot.folder.clone();
        guarded(&folder, || {
            let segments = self.snapshot.index.searchable_segment_ids()?;
            let deleted = self.snapshot.searcher.segment_readers();
            let deleted = deleted.iter().any(|reader| reader.has_deletes());
            if segments.len() > 1 || deleted {
                self.text.merge(&segments).wait()?;
            }
            self.text.garbage_collect_files().wait()?;
            Ok(())
        })?;
        self.snapshot = Snapshot::open(&folder)?;
        Ok(())
    }

    fn check(&self, document: &Document, vector: Option<&[f32]>) -> Result<(), IndexError> {
        if document.id.is_empty() {
            return Err(IndexError::EmptyId);
        }
        let id = || document.id.chars().take(80).collect::<String>();
        if document.id.len() > LONGEST_ID {
            let problem = format!(
                "the identifier `{}...` has more than {LONGEST_ID} bytes",
                id()
            );
            return Err(IndexError::Query(problem));
        }
        if document.is_blank() {
            return Err(IndexError::EmptyText { id: id() });
        }
        let needs =
            |problem: &str| IndexError::NeedsVector(format!("the document `{}` {problem}", id()));
        match (&self.snapshot.state.settings.encoder, vector) {
            (None, None) => Ok(()),
            (None, Some(_)) => Err(needs(
                "has a vector, but the index was made without an encoder",
            )),
            (Some(_), None) => Err(needs(
                "has no vector, but the index was made with an encoder",
            )),
            (Some(encoder), Some(vector)) => {
                let named = |error: VectorError| error.of(&format!("the vector of `{}`", id()));
                let mut trial =
                    VectorBuilder::new(encoder.dimension, encoder.metric, encoder.encoding)?;
                Ok(trial.push(0, vector).map_err(named)?)
            }
        }
    }

    fn put(&mut self, document: &Document, vector: Option<&[f32]>) -> Result<(), IndexError> {
        self.check(document, vector)?;
        self.check_whole()?;
        let (fields, settings) = (self.snapshot.fields, &self.snapshot.state.settings);
        let key = self.next_key;
        let stored = stored(fields, settings.analyzer, key, document).map_err(|e| {
            IndexError::Query(format!(
                "the document `{}` cannot be stored: {e}",
                document.id
            ))
        })?;
        if let (Some(vectors), Some(vector)) = (&mut self.vectors, vector) {
            vectors.push(key, vector)?;
        }
        self.next_key += 1;
        guarded(&self.snapshot.folder, || self.text.add_document(stored))?;
        names(&document.metadata, &mut |name| {
            self.fields.insert(name);
        });
        self.pending.insert(document.id.clone(), Some(key));
        Ok(())
    }

    fn check_whole(&self) -> Result<(), IndexError> {
        match self.broken {
            false => Ok(()),
            true => Err(IndexError::Text {
                folder: self.snapshot.folder.clone(),
                problem:
                    "an earlier commit failed; open the index again to go on from its last commit"
                        .into(),
            }),
        }
    }

    fn publish(&mut self, all: bool) -> Result<(), IndexError> {
        self.check_whole()?;
        self.broken = true;
        let generation = self.snapshot.state.generation + 1;
        let state = State {
            generation,
            next_key: self.next_key,
            settings: self.snapshot.state.settings.clone(),
            vectors: self.write_vectors(generation, all)?,
            fields: self.fields.clone(),
        };
        let folder = self.snapshot.folder.clone();
        let payload = serde_json::to_string(&state)
            .map_err(|e| IndexError::damaged(&folder, e.to_string()))?;
        guarded(&folder, || {
            let mut prepared = self.text.prepare_commit()?;
            prepared.set_payload(&payload);
            prepared.commit()
        })?;
        self.merge();
        self.snapshot = Snapshot::open(&folder)?;
        self.vectors = builder(&self.snapshot.state)?;
        self.pending.clear();
        self.dead.clear();
        self.broken = false;
        self.remove_unnamed();
        Ok(())
    }

    /// Joins small segments of texts. The commit stands already: what fails now is tried again after
    /// the next one.
    fn merge(&mut self) {
        let folder = self.snapshot.folder.clone();
        let _ = guarded(&folder, || {
            let metas = self.snapshot.index.searchable_segment_metas()?;
            for candidate in LogMergePolicy::default().compute_merge_candidates(&metas) {
                self.text.merge(&candidate.0).wait()?;
            }
            self.text.garbage_collect_files().wait()
        });
    }

    /// Writes new vectors, together with those of earlier files that are not far larger: so there
    /// are few files, and each vector is written a few times at most.
    fn write_vectors(&self, generation: u64, all: bool) -> Result<Vec<VectorFile>, IndexError> {
        let mut files = self.snapshot.state.vectors.clone();
        let Some(new) = &self.vectors else {
            return Ok(files);
        };
        if new.is_empty() && !all {
            return Ok(files);
        }
        let mut rows = new.len();
        let mut joined = 0;
        for file in files.iter().rev() {
            if !all && file.rows > 2 * rows {
                break;
            }
            rows += file.rows;
            joined += 1;
        }
        let kept = files.len() - joined;
        let living = self.snapshot.living()?;
        let living = |key: u64| living.contains(&key) && !self.dead.contains(&key);
        let mut written = match builder(&self.snapshot.state)? {
            Some(empty) => empty,
            None => return Ok(files),
        };
        for vectors in &self.snapshot.vectors[kept..] {
            written.append(vectors, living)?;
        }
        written.extend(new, |key| !self.dead.contains(&key))?;
        files.truncate(kept);
        if !written.is_empty() {
            let file = format!("vectors-{generation}{VECTORS}");
            written.write(&self.snapshot.folder.join(&file))?;
            files.push(VectorFile {
                graph: self.write_graph(&file, generation)?,
                file,
                rows: written.len(),
            });
        }
        Ok(files)
    }

    /// Writes the graph over a file of vectors, if the index has graphs and it is large enough.
    fn write_graph(&self, vectors: &str, generation: u64) -> Result<Option<String>, IndexError> {
        let folder = &self.snapshot.folder;
        let Some(options) = self.snapshot.state.settings.hnsw else {
            return Ok(None);
        };
        let index = VectorIndex::open(&folder.join(vectors))?;
        if index.len() < options.min_rows {
            return Ok(None);
        }
        let name = format!("vectors-{generation}{GRAPH}");
        VectorGraph::write(&index, &folder.join(&name), options)?;
        Ok(Some(name))
    }

    /// Removes files of vectors and graphs that the manifest does not name: those that were replaced, and those
    /// of a writer that was killed. What cannot be removed is in nobody's way.
    fn remove_unnamed(&self) {
        let named: HashSet<PathBuf> = self
            .snapshot
            .state
            .vectors
            .iter()
            .flat_map(|vectors| [Some(&vectors.file), vectors.graph.as_ref()])
            .flatten()
            .map(|name| self.snapshot.folder.join(name))
            .collect();
        let entries = std::fs::read_dir(&self.snapshot.folder);
        for entry in entries.into_iter().flatten().flatten() {
            let name = entry.file_name();
            let name = name.to_string_lossy();
            let ends = [VECTORS, GRAPH].iter().any(|end| name.ends_with(end));
            let ours = name.starts_with("vectors-") && ends;
            if ours && !named.contains(&entry.path()) {
                let _ = std::fs::remove_file(entry.path());
            }
        }
    }
}

impl std::fmt::Debug for Writer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Writer")
            .field("folder", &self.snapshot.folder)
            .field("pending", &self.pending.len())
            .finish_non_exhaustive()
    }
}

fn writer(snapshot: &Snapshot) -> Result<IndexWriter, IndexError> {
    let threads = std::thread::available_parallelism().map_or(1, |n| n.get().min(4));
    guarded(&snapshot.folder, || {
        let options = IndexWriterOptions::builder()
            .num_worker_threads(threads)
            .num_merge_threads(1)
            .memory_budget_per_thread(MEMORY)
            .build();
        let writer = snapshot.index.writer_with_options(options)?;
        // Segments are joined after commits, not at any time in between.
        writer.set_merge_policy(Box::new(NoMergePolicy));
        Ok(writer)
    })
}

fn builder(state: &State) -> Result<Option<VectorBuilder>, IndexError> {
    let encoder = state.settings.encoder.as_ref();
    let builder = encoder.map(|e| VectorBuilder::new(e.dimension, e.metric, e.encoding));
    Ok(builder.transpose()?)
}
