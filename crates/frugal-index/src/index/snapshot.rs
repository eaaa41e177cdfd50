//! The index as it was at one commit.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, OnceLock};

use frugal_core::caught::caught;
use tantivy::columnar::ColumnValues;
use tantivy::index::SegmentComponent;
use tantivy::schema::{IndexRecordOption, Value as _};
use tantivy::{DocSet, ReloadPolicy, Searcher, SegmentReader, TERMINATED, TantivyDocument, Term};

use super::damage::{check_file, culprit, of_text};
use super::directory::TextDirectory;
use super::manifest::{self, State};
use super::schema::{Fields, KEY, LENGTH, schema, tokenizers};
use crate::bm25::Bm25;
use crate::document::Document;
use crate::error::IndexError;
use crate::vector::{VectorGraph, VectorIndex};

/// Where a document is in the text index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) key: u64,
    pub(super) segment: u32,
    pub(super) document: u32,
}

/// What searching looks up for each document of a segment.
pub(super) struct Columns {
    pub(super) keys: Vec<u64>,
    pub(super) lengths: Vec<u32>,
}

/// Everything of all segments that is read at the first search.
pub(super) struct Loaded {
    pub(super) segments: Vec<Columns>,
    /// Living documents by key.
    pub(super) places: Vec<Place>,
    /// Mean length of a living document.
    pub(super) mean_length: f64,
}

pub(super) struct Snapshot {
    pub(super) folder: PathBuf,
    pub(super) state: State,
    pub(super) fields: Fields,
    pub(super) index: tantivy::Index,
    pub(super) searcher: Searcher,
    pub(super) vectors: Vec<VectorIndex>,
    /// For each file of vectors its graph, if it has one.
    pub(super) graphs: Vec<Option<VectorGraph>>,
    loaded: OnceLock<Loaded>,
    /// Segments whose stored documents matched their checksum.
    stores: Vec<AtomicBool>,
    /// Norms of the constants that were used last.
    pub(super) norms: Mutex<Option<(Bm25, std::sync::Arc<Vec<Vec<f32>>>)>>,
}

/// Runs calls of the text index: its errors name the folder, and a panic on a damaged file is one.
pub(super) fn guarded<T>(
    folder: &Path,
    work: impl FnOnce() -> Result<T, tantivy::TantivyError>,
) -> Result<T, IndexError> {
    match caught(work) {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => Err(of_text(folder, &error)),
        Err(panic) => Err(IndexError::damaged(folder, panic)),
    }
}

/// Times that files may vanish because a writer went on while they were opened.
const ATTEMPTS: usize = 5;

impl Snapshot {
    pub(super) fn open(folder: &Path) -> Result<Self, IndexError> {
        let mut attempt = 0;
        loop {
            attempt += 1;
            let before = manifest::read(folder)?;
            match Self::of(folder, before.0.clone()) {
                Err(error) => {
                    let changed = manifest::read(folder).is_ok_and(|now| now != before);
                    if !changed || attempt >= ATTEMPTS {
                        return Err(error);
                    }
                }
                opened => return opened,
            }
        }
    }

    fn of(folder: &Path, state: State) -> Result<Self, IndexError> {
        let damaged = |problem: String| IndexError::damaged(folder, problem);
        let directory = TextDirectory::open(folder, None).map_err(damaged)?;
        let (wanted, fields) = schema();
        let index = guarded(folder, || {
            let mut index = tantivy::Index::open(directory)?;
            index.set_tokenizers(tokenizers(state.settings.analyzer));
            Ok(index)
        })?;
        if index.schema() != wanted {
            return Err(damaged("the text index has other fields".into()));
        }
        check_segments(folder, &index)?;
        let searcher = guarded(folder, || {
            let reader = index.reader_builder().reload_policy(ReloadPolicy::Manual);
            let reader: tantivy::IndexReader = reader.try_into()?;
            Ok(reader.searcher())
        });
        let searcher = searcher.map_err(|error| culprit(folder, &index).unwrap_or(error))?;
        let vectors = state.vectors.iter().map(|vectors| {
            let index = VectorIndex::open(&folder.join(&vectors.file))?;
            let fits = state.settings.encoder.as_ref().is_some_and(|encoder| {
                index.dimension() == encoder.dimension && index.metric() == encoder.metric
            });
            match fits && index.len() == vectors.rows {
                true => Ok(index),
                false => Err(damaged(format!("`{}` is of another index", vectors.file))),
            }
        });
        let vectors = vectors.collect::<Result<Vec<_>, IndexError>>()?;
        let graphs = state.vectors.iter().zip(&vectors).map(|(file, vectors)| {
            let graph = file.graph.as_ref();
            graph.map(|name| VectorGraph::open(&folder.join(name), vectors))
        });
        let graphs = graphs.map(Option::transpose);
        Ok(Self {
            graphs: graphs.collect::<Result<_, _>>()?,
            vectors,
            stores: (searcher.segment_readers().iter())
                .map(|_| AtomicBool::new(false))
                .collect(),
            folder: folder.into(),
            state,
            fields,
            index,
            searcher,
            loaded: OnceLock::new(),
            norms: Mutex::new(None),
        })
    }

    /// Number of documents.
    pub(super) fn len(&self) -> usize {
        self.searcher.num_docs() as usize
    }

    /// What searching needs of all segments, read once.
    pub(super) fn loaded(&self) -> Result<&Loaded, IndexError> {
        if let Some(loaded) = self.loaded.get() {
            return Ok(loaded);
        }
        let loaded = guarded(&self.folder, || {
            let mut segments = Vec::new();
            let mut places = Vec::new();
            let mut total = 0;
            for (segment, reader) in self.searcher.segment_readers().iter().enumerate() {
                let columns = columns(reader)?;
                for document in reader.doc_ids_alive() {
                    total += u64::from(columns.lengths[document as usize]);
                    places.push(Place {
                        key: columns.keys[document as usize],
                        segment: segment as u32,
                        document,
                    });
                }
                segments.push(columns);
            }
            places.sort_unstable_by_key(|place| place.key);
            Ok(Loaded {
                mean_length: total as f64 / (places.len() as f64).max(1.0),
                segments,
                places,
            })
        })?;
        Ok(self.loaded.get_or_init(|| loaded))
    }

    /// Where the living document of an identifier is.
    pub(super) fn find(&self, id: &str) -> Result<Option<Place>, IndexError> {
        let found = guarded(&self.folder, || {
            let term = Term::from_field_text(self.fields.id, id);
            for (segment, reader) in self.searcher.segment_readers().iter().enumerate() {
                let inverted = reader.inverted_index(self.fields.id)?;
                let Some(mut postings) = inverted.read_postings(&term, IndexRecordOption::Basic)?
                else {
                    continue;
                };
                while postings.doc() != TERMINATED {
                    let document = postings.doc();
                    if !reader.is_deleted(document) {
                        return Ok(Some((segment as u32, document)));
                    }
                    postings.advance();
                }
            }
            Ok(None)
        })?;
        let Some((segment, document)) = found else {
            return Ok(None);
        };
        let key = self.loaded()?.segments[segment as usize].keys[document as usize];
        Ok(Some(Place {
            key,
            segment,
            document,
        }))
    }

    /// The stored document.
    pub(super) fn document(&self, place: Place) -> Result<Document, IndexError> {
        self.check_store(place.segment as usize)?;
        let stored = guarded(&self.folder, || {
            let address = tantivy::DocAddress::new(place.segment, place.document);
            let document: TantivyDocument = self.searcher.doc(address)?;
            let value = document.get_first(self.fields.stored);
            let text = value.and_then(|value| value.as_str().map(str::to_owned));
            Ok(text.unwrap_or_default())
        })?;
        serde_json::from_str(&stored).map_err(|e| {
            IndexError::damaged(
                &self.folder,
                format!("a stored document cannot be read: {e}"),
            )
        })
    }

    fn check_store(&self, segment: usize) -> Result<(), IndexError> {
        if self.stores[segment].load(Ordering::Relaxed) {
            return Ok(());
        }
        let id = self.searcher.segment_reader(segment as u32).segment_id();
        let name = PathBuf::from(format!("{}.store", id.uuid_string()));
        check_file(&self.folder, &self.index, &name)?;
        self.stores[segment].store(true, Ordering::Relaxed);
        Ok(())
    }

    /// Checks everything that is checked at first use.
    pub(super) fn check(&self) -> Result<(), IndexError> {
        (0..self.stores.len()).try_for_each(|segment| self.check_store(segment))?;
        for vectors in &self.vectors {
            vectors.check()?;
        }
        for graph in self.graphs.iter().flatten() {
            graph.check()?;
        }
        self.loaded()?;
        Ok(())
    }

    /// Keys of the living documents, for a quick look.
    pub(super) fn living(&self) -> Result<HashSet<u64>, IndexError> {
        let places = self.loaded()?.places.iter();
        Ok(places.map(|place| place.key).collect())
    }
}

impl Loaded {
    /// Where the living document of a key is.
    pub(super) fn place(&self, key: u64) -> Option<Place> {
        let found = self.places.binary_search_by_key(&key, |place| place.key);
        found.ok().map(|at| self.places[at])
    }
}

fn columns(reader: &SegmentReader) -> tantivy::Result<Columns> {
    let count = reader.max_doc() as usize;
    let read = |name: &str| -> tantivy::Result<Vec<u64>> {
        let column = reader.fast_fields().column_first_or_default::<u64>(name)?;
        let mut values = vec![0; count];
        column.get_range(0, &mut values);
        Ok(values)
    };
    let lengths = read(LENGTH)?.into_iter();
    Ok(Columns {
        keys: read(KEY)?,
        lengths: lengths
            .map(|length| u32::try_from(length).unwrap_or(u32::MAX))
            .collect(),
    })
}

/// Compares all that a search reads, except stored documents and vectors, with its checksums.
fn check_segments(folder: &Path, index: &tantivy::Index) -> Result<(), IndexError> {
    let metas = guarded(folder, || index.searchable_segment_metas())?;
    for meta in metas {
        let mut parts = vec![
            SegmentComponent::Postings,
            SegmentComponent::Terms,
            SegmentComponent::FastFields,
        ];
        if meta.num_deleted_docs() > 0 {
            parts.push(SegmentComponent::Delete);
        }
        for part in parts {
            check_file(folder, index, &meta.relative_path(part))?;
        }
        for part in [SegmentComponent::Positions, SegmentComponent::FieldNorms] {
            let name = meta.relative_path(part);
            if folder.join(&name).exists() {
                check_file(folder, index, &name)?;
            }
        }
    }
    Ok(())
}
