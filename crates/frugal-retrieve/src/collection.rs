//! A folder of documents that can be searched, with the encoder of their vectors.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use burn::prelude::*;
use frugal_core::fs::write_atomic;
use frugal_eval::rag::cosine;
use frugal_index::{
    Bm25, CorpusOptions, Document, Effort, Encoding, Filter, Found, Fusion, HnswOptions, Index,
    IndexError, Metric, Mode, Query, Settings, Writer, read_corpus,
};
use frugal_models::Quantize;
use frugal_models::load::Lookup;
use serde::{Deserialize, Serialize};

use crate::chunk::{ChunkOptions, chunks, document_of};
use crate::{EmbedOptions, Encoder, EncoderRequest, Prompt, RetrieveError};

/// Beside the index: the encoder as it was asked for.
const ENCODER_FILE: &str = "encoder.json";
/// Texts that are embedded together.
const BATCH: usize = 256;
/// Documents between two commits: what an interrupted run may have to do again.
const COMMIT: usize = 4096;

/// The encoder of an index, as it is opened again to search.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StoredEncoder {
    /// Model folder or name.
    pub model: String,
    /// Folder of an adapter.
    pub adapter: Option<PathBuf>,
    /// Most tokens of a text.
    pub max_length: usize,
    /// What goes before a document.
    pub document_prompt: String,
    /// What goes before a query.
    pub query_prompt: String,
    /// Dimensions that are kept.
    pub truncate_dim: Option<usize>,
}

/// How documents are indexed.
#[derive(Clone, Debug, Default)]
pub struct BuildOptions {
    /// How words become terms; matters for a new index only.
    pub analyzer: frugal_index::Analyzer,
    /// How vectors are stored; matters for a new index only.
    pub encoding: Encoding,
    /// Graphs over the vectors of a new index; an index that is there must have been made with the
    /// same.
    pub hnsw: Option<HnswOptions>,
    /// Names of fields.
    pub corpus: CorpusOptions,
    /// Cut long documents; otherwise they are indexed whole, and an encoder reads their beginning.
    pub chunk: Option<ChunkOptions>,
    /// Delete documents that the data no longer have.
    pub prune: bool,
    /// What goes before a document; the model's prompt `document` or `passage` where absent.
    pub document_prompt: Option<String>,
    /// What goes before a query; the model's prompt `query` where absent.
    pub query_prompt: Option<String>,
    /// Dimensions that are kept.
    pub truncate_dim: Option<usize>,
}

/// What indexing did.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct BuildReport {
    /// Documents, or pieces of them, that are new.
    pub added: usize,
    /// Those that replace an older one.
    pub updated: usize,
    /// Those that were there already.
    pub unchanged: usize,
    /// Those that were deleted.
    pub deleted: usize,
    /// Identifiers of documents without title and text, which were left out.
    pub empty: Vec<String>,
    /// Texts of which the encoder reads the beginning only.
    pub truncated: usize,
    /// Whether it ended early because it was asked to.
    pub interrupted: bool,
}

impl StoredEncoder {
    /// The encoder as it was asked for.
    pub(crate) fn of(encoder: &Encoder, request: &EncoderRequest, options: &BuildOptions) -> Self {
        Self {
            model: request.model.clone(),
            adapter: request.adapter.clone(),
            max_length: encoder.max_length(),
            document_prompt: prompt_of(encoder, &options.document_prompt, &["document", "passage"]),
            query_prompt: prompt_of(encoder, &options.query_prompt, &["query"]),
            truncate_dim: options.truncate_dim.or(encoder.truncate_dim()),
        }
    }

    fn read(folder: &Path) -> Result<Option<Self>, RetrieveError> {
        let path = folder.join(ENCODER_FILE);
        if !path.is_file() {
            return Ok(None);
        }
        let wrong = |reason: String| RetrieveError::Module {
            path: path.clone(),
            reason,
        };
        serde_json::from_slice(&frugal_core::fs::read(&path)?)
            .map(Some)
            .map_err(|e| wrong(e.to_string()))
    }

    pub(crate) fn request(&self, quantize: Quantize) -> EncoderRequest {
        EncoderRequest {
            model: self.model.clone(),
            adapter: self.adapter.clone(),
            max_length: Some(self.max_length),
            quantize,
        }
    }

    pub(crate) fn options(&self, encoder: &Encoder, prompt: &str) -> EmbedOptions {
        EmbedOptions {
            prompt: Prompt::Text(prompt.to_owned()),
            normalize: false,
            // An index without the number has all dimensions, whatever the model says by now.
            truncate_dim: self.truncate_dim.or(Some(encoder.dimension())),
        }
    }
}

/// The encoder that the index in a folder was made with; `None` where there is no index, or one
/// without vectors.
///
/// # Errors
/// A file that cannot be read.
pub fn stored_encoder(folder: &Path) -> Result<Option<EncoderRequest>, RetrieveError> {
    let stored = StoredEncoder::read(folder)?;
    Ok(stored.map(|stored| stored.request(Quantize::None)))
}

fn prompt_of(encoder: &Encoder, asked: &Option<String>, names: &[&str]) -> String {
    let prompts = &encoder.modules().prompts;
    let own = || names.iter().find_map(|name| prompts.get(*name)).cloned();
    asked.clone().or_else(own).unwrap_or_default()
}

/// What tells an encoder from every other, as an index keeps it.
pub(crate) fn identity(
    encoder: &Encoder,
    stored: &StoredEncoder,
    encoding: Encoding,
) -> frugal_index::Encoder {
    let parts = [
        encoder.fingerprint().to_owned(),
        stored.max_length.to_string(),
        stored.document_prompt.clone(),
        stored.query_prompt.clone(),
        format!("{:?}", stored.truncate_dim),
    ];
    frugal_index::Encoder {
        model: encoder.name().to_owned(),
        fingerprint: parts.join("\u{1f}"),
        dimension: stored.truncate_dim.unwrap_or(encoder.dimension()),
        metric: Metric::Cosine,
        encoding,
    }
}

/// Brings an index up to date with a corpus: what is new is added, what has changed replaced, what
/// is there left alone, so that an interrupted run is continued by running it again. The index is
/// made if there is none. `progress` is told how many more documents are done, and ends the work
/// after the next commit by answering false.
///
/// # Errors
/// Anything wrong with the corpus, the index or the encoder; another encoder than the index was made
/// with.
pub fn build(
    folder: &Path,
    corpus: &Path,
    encoder: Option<(&Encoder, &EncoderRequest)>,
    options: &BuildOptions,
    progress: &mut dyn FnMut(usize) -> bool,
) -> Result<BuildReport, RetrieveError> {
    let stored = encoder.map(|(encoder, request)| StoredEncoder::of(encoder, request, options));
    let known = encoder
        .zip(stored.as_ref())
        .map(|((encoder, _), stored)| identity(encoder, stored, options.encoding));
    let index = match Index::open(folder) {
        Ok(index) => {
            if index.settings().encoder.is_some() || known.is_some() {
                let asked = known.as_ref().ok_or_else(|| RetrieveError::NeedsEncoder {
                    folder: folder.into(),
                })?;
                index.check_encoder(asked)?;
            }
            if options.hnsw.is_some() && options.hnsw != index.settings().hnsw {
                return Err(RetrieveError::OtherGraphs {
                    folder: folder.into(),
                });
            }
            index
        }
        Err(IndexError::NotAnIndex { .. }) => {
            let settings = Settings {
                analyzer: options.analyzer,
                encoder: known,
                hnsw: options.hnsw,
            };
            Index::create(folder, settings)?
        }
        Err(error) => return Err(error.into()),
    };
    if let Some(stored) = &stored {
        let text = serde_json::to_string_pretty(stored).unwrap_or_default();
        write_atomic(&folder.join(ENCODER_FILE), format!("{text}\n").as_bytes())?;
    }
    let writer = index.writer()?;
    let mut work = Work {
        index,
        writer,
        encoder: encoder.map(|(encoder, _)| encoder).zip(stored),
        waiting: Vec::new(),
        seen: HashSet::new(),
        report: BuildReport::default(),
        since_commit: 0,
        progress,
    };
    let read = read_corpus(corpus, &options.corpus, |document| {
        let pieces = match options.chunk {
            Some(chunk) => chunks(&document, chunk),
            None => vec![document],
        };
        pieces.into_iter().try_for_each(|piece| work.take(piece))
    });
    match read {
        Ok(read) => work.report.empty = read.empty.into_iter().map(|skipped| skipped.id).collect(),
        Err(RetrieveError::Interrupted) => work.report.interrupted = true,
        Err(error) => return Err(error),
    }
    work.finish(options.prune)
}

/// Indexing in progress.
struct Work<'a> {
    index: Index,
    writer: Writer,
    encoder: Option<(&'a Encoder, StoredEncoder)>,
    waiting: Vec<Document>,
    seen: HashSet<String>,
    report: BuildReport,
    since_commit: usize,
    progress: &'a mut dyn FnMut(usize) -> bool,
}

impl Work<'_> {
    fn take(&mut self, document: Document) -> Result<(), RetrieveError> {
        self.seen.insert(document.id.clone());
        let there = self.index.document(&document.id)?;
        if there.as_ref() == Some(&document) {
            self.report.unchanged += 1;
            return self.done(1);
        }
        match there {
            Some(_) => self.report.updated += 1,
            None => self.report.added += 1,
        }
        self.waiting.push(document);
        if self.waiting.len() < BATCH {
            return Ok(());
        }
        self.flush()
    }

    fn done(&mut self, count: usize) -> Result<(), RetrieveError> {
        match (self.progress)(count) {
            true => Ok(()),
            false => Err(RetrieveError::Interrupted),
        }
    }

    fn flush(&mut self) -> Result<(), RetrieveError> {
        let documents = std::mem::take(&mut self.waiting);
        if documents.is_empty() {
            return Ok(());
        }
        let vectors = match &self.encoder {
            None => None,
            Some((encoder, stored)) => {
                let texts: Vec<String> = documents.iter().map(Document::title_and_text).collect();
                let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
                let options = stored.options(encoder, &stored.document_prompt);
                let found = encoder.embed(&texts, &options, &mut |_| true)?;
                self.report.truncated += found.truncated;
                Some(found)
            }
        };
        for (i, document) in documents.iter().enumerate() {
            let vector = vectors.as_ref().and_then(|found| found.rows().nth(i));
            self.writer.update(document, vector)?;
        }
        self.since_commit += documents.len();
        if self.since_commit >= COMMIT {
            self.since_commit = 0;
            self.writer.commit()?;
        }
        self.done(documents.len())
    }

    /// Whether what is there is a document, or a piece of one, that now is in other pieces.
    fn was_cut_otherwise(&self, id: &str) -> Result<bool, RetrieveError> {
        let Some(there) = self.index.document(id)? else {
            return Ok(false);
        };
        let whole = document_of(&there);
        let first = format!("{whole}#0");
        Ok(self.seen.contains(&first) || (whole != id && self.seen.contains(whole)))
    }

    fn finish(mut self, prune: bool) -> Result<BuildReport, RetrieveError> {
        if !self.report.interrupted {
            match self.flush() {
                Err(RetrieveError::Interrupted) => self.report.interrupted = true,
                other => other?,
            }
        }
        if !self.report.interrupted {
            for id in self.index.document_ids()? {
                if !self.seen.contains(&id) && (prune || self.was_cut_otherwise(&id)?) {
                    self.report.deleted += usize::from(self.writer.delete(&id)?);
                }
            }
        }
        self.writer.commit()?;
        Ok(self.report)
    }
}

/// What is searched.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SearchMode {
    /// The words.
    Bm25,
    /// The vectors.
    Dense,
    /// Both, by reciprocal rank fusion.
    #[default]
    Hybrid,
}

/// How an index is asked.
#[derive(Clone, Debug, Default)]
pub struct SearchOptions {
    /// What is compared; where absent, everything that the index has.
    pub mode: Option<SearchMode>,
    /// How many documents are wanted.
    pub top_k: usize,
    /// Conditions on metadata.
    pub filter: Filter,
    /// Constants of BM25.
    pub bm25: Bm25,
    /// How much of the vectors is looked at.
    pub effort: Effort,
}

/// An index with the encoder of its vectors.
pub struct Collection {
    index: Index,
    encoder: Option<(Encoder, StoredEncoder)>,
}

impl Collection {
    /// Opens an index, and its encoder unless only words are to be searched.
    ///
    /// # Errors
    /// Anything wrong with them; an encoder that is no longer the one that made the vectors.
    pub fn open(
        folder: &Path,
        mode: Option<SearchMode>,
        quantize: Quantize,
        lookup: &Lookup,
        device: &Device,
    ) -> Result<Self, RetrieveError> {
        let index = Index::open(folder)?;
        let has_vectors = index.settings().encoder.is_some();
        match mode {
            Some(SearchMode::Bm25) => {
                return Ok(Self {
                    index,
                    encoder: None,
                });
            }
            Some(SearchMode::Dense | SearchMode::Hybrid) if !has_vectors => {
                return Err(RetrieveError::NoVectors {
                    folder: folder.into(),
                });
            }
            _ => {}
        }
        let encoder = match (&index.settings().encoder, StoredEncoder::read(folder)?) {
            (Some(made), Some(stored)) => {
                let encoder = Encoder::open(&stored.request(quantize), lookup, device)?;
                index.check_encoder(&identity(&encoder, &stored, made.encoding))?;
                Some((encoder, stored))
            }
            (Some(_), None) => {
                return Err(RetrieveError::Module {
                    path: folder.join(ENCODER_FILE),
                    reason: "missing, so that queries cannot be embedded; run the command that made the index again".into(),
                });
            }
            (None, _) => None,
        };
        Ok(Self { index, encoder })
    }

    /// The index.
    pub fn index(&self) -> &Index {
        &self.index
    }

    /// Documents for each query, the best first.
    ///
    /// # Errors
    /// Queries that cannot be embedded, fields that no document has, a damaged index.
    pub fn search(
        &self,
        queries: &[&str],
        options: &SearchOptions,
    ) -> Result<Vec<Vec<Found>>, RetrieveError> {
        let vectors = match (&self.encoder, options.mode) {
            (_, Some(SearchMode::Bm25)) | (None, _) => None,
            (Some((encoder, stored)), _) => {
                let embed = stored.options(encoder, &stored.query_prompt);
                Some(encoder.embed(queries, &embed, &mut |_| true)?)
            }
        };
        let mode = |has_vector: bool| match (options.mode, has_vector) {
            (Some(SearchMode::Bm25), _) | (None, false) => Mode::Bm25,
            (Some(SearchMode::Dense), _) => Mode::Dense,
            (Some(SearchMode::Hybrid) | None, _) => Mode::Hybrid(Fusion::default()),
        };
        let queries: Vec<Query> = queries
            .iter()
            .enumerate()
            .map(|(i, text)| {
                let vector = vectors.as_ref().and_then(|v| v.rows().nth(i));
                let query = match vector {
                    Some(vector) => Query::hybrid(*text, vector.to_vec()),
                    None => Query::text(*text),
                };
                query
                    .mode(mode(vector.is_some()))
                    .top_k(options.top_k)
                    .filter(options.filter.clone())
                    .bm25(options.bm25)
                    .effort(options.effort)
            })
            .collect();
        Ok(self.index.search_batch(&queries)?)
    }

    /// Cosines of a query and texts, as the index would compare them without rounding; `None` where it
    /// is opened without its encoder.
    ///
    /// # Errors
    /// Texts that cannot be embedded.
    pub fn similarities(
        &self,
        query: &str,
        texts: &[&str],
    ) -> Result<Option<Vec<f64>>, RetrieveError> {
        let Some((encoder, stored)) = &self.encoder else {
            return Ok(None);
        };
        let of = |texts: &[&str], prompt: &str| {
            encoder.embed(texts, &stored.options(encoder, prompt), &mut |_| true)
        };
        let query = of(&[query], &stored.query_prompt)?;
        let texts = of(texts, &stored.document_prompt)?;
        let rows = texts.rows();
        Ok(Some(rows.map(|row| cosine(&query.values, row)).collect()))
    }

    /// The document of an identifier that was found.
    ///
    /// # Errors
    /// A damaged index.
    pub fn document(&self, id: &str) -> Result<Option<Document>, RetrieveError> {
        Ok(self.index.document(id)?)
    }
}
