//! A folder of documents that can be searched, with the encoder of their vectors.

use std::fmt;
use std::path::{Path, PathBuf};

use burn::prelude::*;
use frugal_eval::rag::cosine;
use frugal_index::{
    Analyzer, Bm25, CorpusOptions, Document, Effort, Encoding, Filter, Found, Fusion, HnswOptions,
    Index, Metric, Mode, Query,
};
use frugal_models::Quantize;
use frugal_models::load::Lookup;
use serde::{Deserialize, Serialize};

use crate::chunk::ChunkOptions;
use crate::{EmbedOptions, Encoder, EncoderRequest, Prompt, RetrieveError};

/// Beside the index: the encoder as it was asked for.
pub(crate) const ENCODER_FILE: &str = "encoder.json";
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

/// How near vectors are found.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Ann {
    /// All are looked at.
    Exact,
    /// Along graphs.
    Hnsw(HnswOptions),
}

impl Ann {
    pub(crate) fn of(hnsw: Option<HnswOptions>) -> Self {
        hnsw.map_or(Self::Exact, Self::Hnsw)
    }

    pub(crate) fn hnsw(self) -> Option<HnswOptions> {
        match self {
            Self::Exact => None,
            Self::Hnsw(options) => Some(options),
        }
    }
}

impl fmt::Display for Ann {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact => f.write_str("exact"),
            Self::Hnsw(options) => write!(
                f,
                "hnsw (m {}, ef_construction {})",
                options.m, options.ef_construction
            ),
        }
    }
}

/// How documents are indexed.
#[derive(Clone, Debug, Default)]
pub struct BuildOptions {
    /// How words become terms. This and the next two are the default in a new index where they are
    /// absent; an index that is there must have been made with what is given.
    pub analyzer: Option<Analyzer>,
    /// How vectors are stored.
    pub encoding: Option<Encoding>,
    /// How near vectors are found.
    pub ann: Option<Ann>,
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

impl BuildOptions {
    /// These, with what they do not say as an encoder has it that was kept.
    pub(crate) fn over(&self, kept: Option<&StoredEncoder>) -> Self {
        let Some(kept) = kept else {
            return self.clone();
        };
        let or = |own: &Option<String>, kept: &String| own.clone().or_else(|| Some(kept.clone()));
        Self {
            document_prompt: or(&self.document_prompt, &kept.document_prompt),
            query_prompt: or(&self.query_prompt, &kept.query_prompt),
            truncate_dim: self.truncate_dim.or(kept.truncate_dim),
            ..self.clone()
        }
    }
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

    pub(crate) fn read(folder: &Path) -> Result<Option<Self>, RetrieveError> {
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
) -> Result<frugal_index::Encoder, RetrieveError> {
    let parts = [
        encoder.fingerprint().to_owned(),
        stored.max_length.to_string(),
        stored.document_prompt.clone(),
        stored.query_prompt.clone(),
        format!("{:?}", stored.truncate_dim),
    ];
    Ok(frugal_index::Encoder {
        model: encoder.name().to_owned(),
        fingerprint: parts.join("\u{1f}"),
        dimension: stored.truncate_dim.unwrap_or(encoder.dimension()),
        metric: encoder.metric()?,
        encoding,
    })
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
        if index.generation() == 0 {
            return Err(RetrieveError::NothingCommitted {
                folder: folder.into(),
            });
        }
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
                index.check_encoder(&identity(&encoder, &stored, made.encoding)?)?;
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

    /// Similarities of a query and texts, as the index would compare them without rounding; `None` where it
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
        let dot = |row: &[f32]| {
            let pairs = query.values.iter().zip(row);
            pairs.map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
        };
        let metric = encoder.metric()?;
        let of = |row: &[f32]| match metric {
            Metric::Ip => dot(row),
            _ => cosine(&query.values, row),
        };
        Ok(Some(rows.map(of).collect()))
    }

    /// The document of an identifier that was found.
    ///
    /// # Errors
    /// A damaged index.
    pub fn document(&self, id: &str) -> Result<Option<Document>, RetrieveError> {
        Ok(self.index.document(id)?)
    }
}
