//! Documents whose vectors are kept in a database.

use std::collections::HashSet;
use std::path::Path;

use burn::prelude::*;
use frugal_index::store::{
    StoreEntry, StoreHit, StoreOptions, StoreSettings, StoreTarget, VectorStore, open_store,
};
use frugal_index::{Document, Encoding, Filter, read_corpus};
use frugal_models::Quantize;
use frugal_models::load::Lookup;

use crate::chunk::{chunks, document_of};
use crate::collection::identity;
use crate::{BuildOptions, BuildReport, Encoder, EncoderRequest, RetrieveError, StoredEncoder};

/// Texts that are embedded and sent together.
const BATCH: usize = 256;

fn note_of(store: &dyn VectorStore) -> Result<StoredEncoder, RetrieveError> {
    serde_json::from_value(store.settings().note.clone()).map_err(|e| RetrieveError::Module {
        path: store.place().into(),
        reason: format!("what it says of its encoder cannot be read: {e}"),
    })
}

/// The encoder that a store was made with.
///
/// # Errors
/// A store that cannot be opened, or that is not there.
pub fn encoder_of_store(
    target: &StoreTarget,
    options: StoreOptions,
) -> Result<EncoderRequest, RetrieveError> {
    let store = open_store(target, None, options)?;
    Ok(note_of(store.as_ref())?.request(Quantize::None))
}

/// Brings a store up to date with a corpus, as [`crate::build`] does with an index: what is new is
/// added, what has changed replaced, what is there left alone. Each batch is kept once it is sent, so
/// an interrupted run is continued by running it again. Returns the number of documents too.
///
/// # Errors
/// Anything wrong with the corpus, the store or the encoder; another encoder than the store was made
/// with.
pub fn build_store(
    target: &StoreTarget,
    corpus: &Path,
    (encoder, request): (&Encoder, &EncoderRequest),
    options: &BuildOptions,
    store_options: StoreOptions,
    progress: &mut dyn FnMut(usize) -> bool,
) -> Result<(BuildReport, usize), RetrieveError> {
    let stored = StoredEncoder::of(encoder, request, options);
    let settings = StoreSettings {
        encoder: identity(encoder, &stored, Encoding::F32)?,
        note: serde_json::to_value(&stored).unwrap_or_default(),
    };
    let mut work = Work {
        store: open_store(target, Some(&settings), store_options)?,
        encoder,
        stored,
        waiting: Vec::new(),
        seen: HashSet::new(),
        report: BuildReport::default(),
        progress,
    };
    let read = read_corpus(corpus, &options.corpus, |document| {
        let pieces = match options.chunk {
            Some(chunk) => chunks(&document, chunk),
            None => vec![document],
        };
        pieces.into_iter().try_for_each(|piece| work.take(piece))
    });
    let read = read.and_then(|read| {
        work.flush()?;
        Ok(read)
    });
    match read {
        Ok(read) => {
            work.report.empty = read.empty.into_iter().map(|skipped| skipped.id).collect();
            work.remove(options.prune)?;
        }
        Err(RetrieveError::Interrupted) => work.report.interrupted = true,
        Err(error) => return Err(error),
    }
    let count = work.store.count()?;
    Ok((work.report, count))
}

struct Work<'a> {
    store: Box<dyn VectorStore>,
    encoder: &'a Encoder,
    stored: StoredEncoder,
    waiting: Vec<Document>,
    seen: HashSet<String>,
    report: BuildReport,
    progress: &'a mut dyn FnMut(usize) -> bool,
}

impl Work<'_> {
    fn take(&mut self, document: Document) -> Result<(), RetrieveError> {
        self.seen.insert(document.id.clone());
        self.waiting.push(document);
        match self.waiting.len() < BATCH {
            true => Ok(()),
            false => self.flush(),
        }
    }

    fn flush(&mut self) -> Result<(), RetrieveError> {
        let documents = std::mem::take(&mut self.waiting);
        let count = documents.len();
        if count == 0 {
            return Ok(());
        }
        let ids: Vec<String> = documents.iter().map(|d| d.id.clone()).collect();
        let there = self.store.documents(&ids)?;
        let mut changed = Vec::new();
        for (document, there) in documents.into_iter().zip(there) {
            match there {
                Some(there) if there == document => self.report.unchanged += 1,
                Some(_) => {
                    self.report.updated += 1;
                    changed.push(document);
                }
                None => {
                    self.report.added += 1;
                    changed.push(document);
                }
            }
        }
        if !changed.is_empty() {
            self.send(changed)?;
        }
        match (self.progress)(count) {
            true => Ok(()),
            false => Err(RetrieveError::Interrupted),
        }
    }

    fn send(&mut self, documents: Vec<Document>) -> Result<(), RetrieveError> {
        let texts: Vec<String> = documents.iter().map(Document::title_and_text).collect();
        let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
        let options = self
            .stored
            .options(self.encoder, &self.stored.document_prompt);
        let found = self.encoder.embed(&texts, &options, &mut |_| true)?;
        self.report.truncated += found.truncated;
        let entries = documents.into_iter().zip(found.rows());
        let entries = entries.map(|(document, vector)| StoreEntry {
            document,
            vector: vector.to_vec(),
        });
        let entries: Vec<StoreEntry> = entries.collect();
        Ok(self.store.upsert(&entries)?)
    }

    /// Removes what the data no longer have, if that is wanted, and pieces of documents that now are
    /// in other pieces.
    fn remove(&mut self, prune: bool) -> Result<(), RetrieveError> {
        let mut gone: Vec<String> = self.store.ids()?;
        gone.retain(|id| !self.seen.contains(id));
        if !prune {
            let documents = self.store.documents(&gone)?;
            let cut_otherwise = |document: Option<Document>| {
                let document = document?;
                let whole = document_of(&document);
                let first = format!("{whole}#0");
                let other = whole != document.id && self.seen.contains(whole);
                (other || self.seen.contains(&first)).then(|| document.id.clone())
            };
            gone = documents.into_iter().filter_map(cut_otherwise).collect();
        }
        if !gone.is_empty() {
            self.store.delete(&gone)?;
        }
        self.report.deleted += gone.len();
        Ok(())
    }
}

/// A store with the encoder of its vectors.
pub struct StoreCollection {
    store: Box<dyn VectorStore>,
    encoder: Encoder,
    stored: StoredEncoder,
}

impl StoreCollection {
    /// Opens a store and its encoder.
    ///
    /// # Errors
    /// Anything wrong with them; an encoder that is no longer the one that made the vectors.
    pub fn open(
        target: &StoreTarget,
        options: StoreOptions,
        lookup: &Lookup,
        device: &Device,
    ) -> Result<Self, RetrieveError> {
        let store = open_store(target, None, options)?;
        let stored = note_of(store.as_ref())?;
        let encoder = Encoder::open(&stored.request(Quantize::None), lookup, device)?;
        store.check_encoder(&identity(&encoder, &stored, Encoding::F32)?)?;
        Ok(Self {
            store,
            encoder,
            stored,
        })
    }

    /// The nearest documents, the nearest first.
    ///
    /// # Errors
    /// A query that cannot be embedded, a store that does not answer, a field that no document has.
    pub fn search(
        &mut self,
        query: &str,
        top_k: usize,
        filter: &Filter,
    ) -> Result<Vec<StoreHit>, RetrieveError> {
        let options = self
            .stored
            .options(&self.encoder, &self.stored.query_prompt);
        let found = self.encoder.embed(&[query], &options, &mut |_| true)?;
        let vector = found.rows().next().unwrap_or_default();
        Ok(self.store.search(vector, top_k, filter)?)
    }
}
