//! The flags of `frugal index`, and what they ask for.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::ValueEnum;
use frugal::index::store::StoreTarget;
use frugal::index::{Analyzer, CorpusOptions, Encoding, HnswOptions};
use frugal::model::Quantize;
use frugal::retrieve::rag::Splitter;
use frugal::retrieve::{BuildOptions, ChunkMethod, ChunkOptions, EncoderRequest};

use crate::args::{Machine, Output};

const EXAMPLES: &str = "\
Examples:
  frugal index --data notes/ --out idx --model minilm-l6 --chunk 150
  frugal index --data scifact/ --out idx --model minilm-l6
  frugal index --data corpus.jsonl --out idx                 words only (BM25)
  frugal index --out idx --delete doc-17 --delete doc-18
  frugal index --data notes/ --model minilm-l6 --store postgres://me@localhost/db#notes

The data are a BEIR folder, JSONL, JSON, CSV, TSV or Parquet, perhaps .gz or .zst, or a folder of \
text and Markdown files. Run again, the command adds what is new, replaces what has changed and \
leaves the rest alone; an interrupted run goes on where its last commit was.";

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Vectors {
    F32,
    F16,
    Int8,
    Binary,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Ann {
    Exact,
    Hnsw,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Words {
    Whitespace,
    Standard,
    English,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Pieces {
    Boundary,
    Fixed,
    Sentence,
    Recursive,
    Markdown,
}

impl From<Pieces> for ChunkMethod {
    fn from(pieces: Pieces) -> Self {
        match pieces {
            Pieces::Boundary => Self::Boundary,
            Pieces::Fixed => Self::Split(Splitter::Fixed),
            Pieces::Sentence => Self::Split(Splitter::Sentence),
            Pieces::Recursive => Self::Split(Splitter::Recursive),
            Pieces::Markdown => Self::Split(Splitter::Markdown),
        }
    }
}

/// Index documents for search by words (BM25) and by vectors
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// File or folder of documents
    #[arg(
        long,
        short,
        value_name = "PATH",
        help_heading = "Data",
        required_unless_present = "delete"
    )]
    pub(super) data: Option<PathBuf>,
    /// Folder of the index
    #[arg(
        long,
        short,
        value_name = "DIR",
        help_heading = "Output",
        required_unless_present = "store"
    )]
    pub(super) out: Option<PathBuf>,
    /// Keep documents and vectors in a database instead: postgres://USER@HOST/DB#TABLE,
    /// chroma+http://HOST:PORT#NAME or qdrant+http://HOST:PORT#NAME
    #[arg(long, value_name = "URL", help_heading = "Output", conflicts_with_all = ["out", "compact", "analyzer", "vectors", "ann", "hnsw_m", "ef_construction"])]
    pub(super) store: Option<StoreTarget>,
    /// Longest wait for an answer of the store, in seconds
    #[arg(long, value_name = "N", default_value_t = 30, value_parser = clap::value_parser!(u32).range(1..=3600), requires = "store", help_heading = "Output")]
    pub(super) store_timeout: u32,
    /// Encoder of the vectors: name, folder or org/name [default: that of the index, else none]
    #[arg(
        long,
        short,
        value_name = "MODEL",
        requires = "data",
        help_heading = "Vectors"
    )]
    pub(super) model: Option<String>,
    /// Adapter of the encoder
    #[arg(
        long,
        short,
        value_name = "DIR",
        help_heading = "Vectors",
        requires = "model"
    )]
    pub(super) adapter: Option<PathBuf>,
    /// Which field is which, for example text=abstract; repeatable (id, title, text)
    #[arg(long = "column", value_name = "ROLE=NAME", value_parser = crate::args::pair, requires = "data", help_heading = "Data")]
    pub(super) columns: Vec<(String, String)>,
    /// Cut documents into pieces of at most N words
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..), requires = "data", help_heading = "Data")]
    pub(super) chunk: Option<u32>,
    /// Words that a piece repeats of the one before it [default: a fifth of --chunk]
    #[arg(long, value_name = "N", requires = "chunk", help_heading = "Data")]
    pub(super) chunk_overlap: Option<u32>,
    /// Where pieces end: boundary (paragraphs and sentences where they leave a piece half full), fixed
    /// (after N words), sentence, recursive (paragraphs, lines, sentences, words), markdown (headings,
    /// then recursive)
    #[arg(
        long,
        value_name = "NAME",
        default_value = "boundary",
        hide_possible_values = true,
        requires = "chunk",
        help_heading = "Data"
    )]
    chunker: Pieces,
    /// Delete the document of this identifier; repeatable
    #[arg(long, value_name = "ID", help_heading = "Data")]
    pub(super) delete: Vec<String>,
    /// Delete documents that the data no longer have
    #[arg(long, requires = "data", help_heading = "Data")]
    pub(super) prune: bool,
    /// Write everything anew without what was deleted, in one segment
    #[arg(long, help_heading = "Output")]
    pub(super) compact: bool,
    /// How words become terms [default: as in the index, english in a new one]
    #[arg(long, value_name = "NAME", requires = "data", help_heading = "Words")]
    analyzer: Option<Words>,
    /// How vectors are stored [default: as in the index, f32 in a new one]
    #[arg(
        long = "quantize",
        value_name = "NAME",
        requires = "data",
        help_heading = "Vectors"
    )]
    vectors: Option<Vectors>,
    /// How near vectors are found: exact (all are looked at) or hnsw (along a graph, faster and nearly
    /// as well) [default: as in the index, exact in a new one]
    #[arg(
        long,
        value_name = "NAME",
        hide_possible_values = true,
        requires = "data",
        help_heading = "Vectors"
    )]
    ann: Option<Ann>,
    /// Links of a vector in the graph [default: 16]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(2..=256), requires = "ann", help_heading = "Vectors")]
    pub(super) hnsw_m: Option<u32>,
    /// Candidates that are looked at to link a vector [default: 200]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100_000), requires = "ann", help_heading = "Vectors")]
    pub(super) ef_construction: Option<u32>,
    /// Text that goes before each document [default: the model's prompt `document` or `passage`]
    #[arg(long, value_name = "TEXT", requires = "data", help_heading = "Vectors")]
    pub(super) document_prompt: Option<String>,
    /// Text that goes before each query [default: the model's prompt `query`]
    #[arg(long, value_name = "TEXT", requires = "data", help_heading = "Vectors")]
    pub(super) query_prompt: Option<String>,
    /// Keep the first N dimensions (Matryoshka models)
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..), requires = "data", help_heading = "Vectors")]
    pub(super) truncate_dim: Option<u32>,
    /// Longest text of a vector in tokens [default: what the model says]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..), requires = "data", help_heading = "Vectors")]
    pub(super) max_length: Option<u32>,
    #[command(flatten)]
    pub(super) machine: Machine,
    #[command(flatten)]
    pub(super) output: Output,
}

impl Args {
    pub(super) fn options(&self) -> Result<BuildOptions> {
        let chunk = match self.chunk {
            None => None,
            Some(words) => {
                let overlap = self.chunk_overlap.unwrap_or(words / 5);
                if overlap >= words {
                    bail!("--chunk-overlap {overlap}: must be less than `--chunk {words}`");
                }
                Some(ChunkOptions {
                    words: words as usize,
                    overlap: overlap as usize,
                    method: self.chunker.into(),
                })
            }
        };
        Ok(BuildOptions {
            analyzer: self.analyzer.map(|analyzer| match analyzer {
                Words::Whitespace => Analyzer::Whitespace,
                Words::Standard => Analyzer::Standard,
                Words::English => Analyzer::English,
            }),
            encoding: self.vectors.map(|vectors| match vectors {
                Vectors::F32 => Encoding::F32,
                Vectors::F16 => Encoding::F16,
                Vectors::Int8 => Encoding::Int8,
                Vectors::Binary => Encoding::Binary,
            }),
            ann: self.ann()?,
            corpus: CorpusOptions {
                columns: crate::args::columns(&self.columns)?,
            },
            chunk,
            prune: self.prune,
            document_prompt: self.document_prompt.clone(),
            query_prompt: self.query_prompt.clone(),
            truncate_dim: self.truncate_dim.map(|n| n as usize),
        })
    }

    fn ann(&self) -> Result<Option<frugal::retrieve::Ann>> {
        let usual = HnswOptions::default();
        let of = |given: Option<u32>, usual: usize| given.map_or(usual, |n| n as usize);
        Ok(match self.ann {
            Some(Ann::Hnsw) => Some(frugal::retrieve::Ann::Hnsw(HnswOptions {
                m: of(self.hnsw_m, usual.m),
                ef_construction: of(self.ef_construction, usual.ef_construction),
                ..usual
            })),
            other => {
                let given = [
                    ("--hnsw-m", self.hnsw_m),
                    ("--ef-construction", self.ef_construction),
                ];
                if let Some((flag, _)) = given.iter().find(|(_, given)| given.is_some()) {
                    bail!("`{flag}` goes with `--ann hnsw`");
                }
                other.map(|_| frugal::retrieve::Ann::Exact)
            }
        })
    }

    /// The encoder that is named, or the one that the index was made with, whose longest text is kept.
    pub(super) fn request(&self) -> Result<Option<EncoderRequest>> {
        let stored = match &self.out {
            Some(out) => frugal::retrieve::stored_encoder(out),
            None => Ok(None),
        };
        let max_length = self.max_length.map(|n| n as usize);
        if let Some(model) = &self.model {
            // What cannot be read is written again.
            let kept = stored.unwrap_or_default();
            return Ok(Some(EncoderRequest {
                model: model.clone(),
                adapter: self.adapter.clone(),
                max_length: max_length.or(kept.and_then(|kept| kept.max_length)),
                quantize: Quantize::None,
            }));
        }
        let stored = stored?;
        if stored.is_none()
            && self.store.is_none()
            && let Some(flag) = self.of_vectors()
        {
            bail!("`{flag}` goes with `--model`: an index without an encoder holds words only");
        }
        Ok(stored.map(|stored| EncoderRequest {
            max_length: max_length.or(stored.max_length),
            ..stored
        }))
    }

    /// A flag that was given and is about vectors.
    fn of_vectors(&self) -> Option<&'static str> {
        let given = [
            ("--quantize", self.vectors.is_some()),
            ("--ann", self.ann == Some(Ann::Hnsw)),
            ("--document-prompt", self.document_prompt.is_some()),
            ("--query-prompt", self.query_prompt.is_some()),
            ("--truncate-dim", self.truncate_dim.is_some()),
            ("--max-length", self.max_length.is_some()),
        ];
        let found = given.into_iter().find(|(_, given)| *given);
        found.map(|(flag, _)| flag)
    }

    pub(super) fn folder(&self) -> Result<&Path> {
        self.out.as_deref().context("--out: name a folder")
    }
}
