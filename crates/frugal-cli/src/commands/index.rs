//! `frugal index`: documents that can be searched.

mod stored;

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use clap::ValueEnum;
use frugal::index::store::StoreTarget;
use frugal::index::{Analyzer, CorpusOptions, Encoding, HnswOptions, Index};
use frugal::model::Quantize;
use frugal::retrieve::rag::Splitter;
use frugal::retrieve::{
    BuildOptions, BuildReport, ChunkMethod, ChunkOptions, Encoder, EncoderRequest, build,
};
use serde_json::json;

use crate::args::{Machine, Output};
use crate::outcome::Outcome;
use crate::ui::progress::{Counter, Phase};
use crate::ui::{self, interrupt};

const EXAMPLES: &str = "\
Examples:
  frugal index --data notes/ --out idx --model minilm-l6 --chunk 150
  frugal index --data scifact/ --out idx --model minilm-l6
  frugal index --data corpus.jsonl --out idx                 words only (BM25)
  frugal index --out idx --delete doc-17 --delete doc-18
  frugal index --data notes/ --model minilm-l6 --store postgres://me@localhost/db#notes

The data are a BEIR folder, JSONL, JSON, CSV, TSV or Parquet, perhaps .gz or .zst, or a folder of
text and Markdown files. Run again, the command adds what is new, replaces what has changed and
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
    data: Option<PathBuf>,
    /// Folder of the index
    #[arg(
        long,
        short,
        value_name = "DIR",
        help_heading = "Output",
        required_unless_present = "store"
    )]
    out: Option<PathBuf>,
    /// Keep documents and vectors in a database instead: postgres://USER@HOST/DB#TABLE,
    /// chroma+http://HOST:PORT#NAME or qdrant+http://HOST:PORT#NAME
    #[arg(long, value_name = "URL", help_heading = "Output", conflicts_with_all = ["out", "compact", "analyzer", "vectors", "ann", "hnsw_m", "ef_construction"])]
    store: Option<StoreTarget>,
    /// Longest wait for an answer of the store, in seconds
    #[arg(long, value_name = "N", default_value_t = 30, value_parser = clap::value_parser!(u32).range(1..=3600), requires = "store", help_heading = "Output")]
    store_timeout: u32,
    /// Encoder of the vectors: name, folder or org/name [default: that of the index, else none]
    #[arg(long, short, value_name = "MODEL", help_heading = "Vectors")]
    model: Option<String>,
    /// Adapter of the encoder
    #[arg(
        long,
        short,
        value_name = "DIR",
        help_heading = "Vectors",
        requires = "model"
    )]
    adapter: Option<PathBuf>,
    /// Which field is which, for example text=abstract; repeatable (id, title, text)
    #[arg(long = "column", value_name = "ROLE=NAME", value_parser = crate::args::pair, help_heading = "Data")]
    columns: Vec<(String, String)>,
    /// Cut documents into pieces of at most N words
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..), help_heading = "Data")]
    chunk: Option<u32>,
    /// Words that a piece repeats of the one before it [default: a fifth of --chunk]
    #[arg(long, value_name = "N", requires = "chunk", help_heading = "Data")]
    chunk_overlap: Option<u32>,
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
    delete: Vec<String>,
    /// Delete documents that the data no longer have
    #[arg(long, requires = "data", help_heading = "Data")]
    prune: bool,
    /// Write everything anew without what was deleted, in one segment
    #[arg(long, help_heading = "Output")]
    compact: bool,
    /// How words become terms, in a new index
    #[arg(
        long,
        value_name = "NAME",
        default_value = "english",
        help_heading = "Words"
    )]
    analyzer: Words,
    /// How vectors are stored, in a new index
    #[arg(
        long = "quantize",
        value_name = "NAME",
        default_value = "f32",
        help_heading = "Vectors"
    )]
    vectors: Vectors,
    /// How a new index finds near vectors: exact (all are looked at) or hnsw (along a graph, faster
    /// and nearly as well)
    #[arg(
        long,
        value_name = "NAME",
        default_value = "exact",
        hide_possible_values = true,
        help_heading = "Vectors"
    )]
    ann: Ann,
    /// Links of a vector in the graph
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = clap::value_parser!(u32).range(2..=256), help_heading = "Vectors")]
    hnsw_m: u32,
    /// Candidates that are looked at to link a vector
    #[arg(long, value_name = "N", default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..=100_000), help_heading = "Vectors")]
    ef_construction: u32,
    /// Text that goes before each document [default: the model's prompt `document` or `passage`]
    #[arg(long, value_name = "TEXT", help_heading = "Vectors")]
    document_prompt: Option<String>,
    /// Text that goes before each query [default: the model's prompt `query`]
    #[arg(long, value_name = "TEXT", help_heading = "Vectors")]
    query_prompt: Option<String>,
    /// Keep the first N dimensions (Matryoshka models)
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..), help_heading = "Vectors")]
    truncate_dim: Option<u32>,
    /// Longest text of a vector in tokens [default: what the model says]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..), help_heading = "Vectors")]
    max_length: Option<u32>,
    #[command(flatten)]
    machine: Machine,
    #[command(flatten)]
    output: Output,
}

impl Args {
    fn options(&self) -> Result<BuildOptions> {
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
            analyzer: match self.analyzer {
                Words::Whitespace => Analyzer::Whitespace,
                Words::Standard => Analyzer::Standard,
                Words::English => Analyzer::English,
            },
            encoding: match self.vectors {
                Vectors::F32 => Encoding::F32,
                Vectors::F16 => Encoding::F16,
                Vectors::Int8 => Encoding::Int8,
                Vectors::Binary => Encoding::Binary,
            },
            hnsw: (self.ann == Ann::Hnsw).then(|| HnswOptions {
                m: self.hnsw_m as usize,
                ef_construction: self.ef_construction as usize,
                ..HnswOptions::default()
            }),
            corpus: CorpusOptions {
                columns: self.columns.iter().cloned().collect(),
            },
            chunk,
            prune: self.prune,
            document_prompt: self.document_prompt.clone(),
            query_prompt: self.query_prompt.clone(),
            truncate_dim: self.truncate_dim.map(|n| n as usize),
        })
    }

    /// The encoder that is named, or the one that the index was made with.
    fn request(&self) -> Result<Option<EncoderRequest>> {
        if let Some(model) = &self.model {
            return Ok(Some(EncoderRequest {
                model: model.clone(),
                adapter: self.adapter.clone(),
                max_length: self.max_length.map(|n| n as usize),
                quantize: Quantize::None,
            }));
        }
        Ok(match &self.out {
            Some(out) => frugal::retrieve::stored_encoder(out)?,
            None => None,
        })
    }

    fn folder(&self) -> Result<&Path> {
        self.out.as_deref().context("--out: name a folder")
    }
}

/// Reads, embeds, writes.
pub fn run(args: &Args) -> Result<Outcome> {
    if let Some(target) = &args.store {
        return stored::run(args, target);
    }
    let out = args.folder()?;
    let mut deleted = 0;
    if !args.delete.is_empty() {
        let index = Index::open(out)?;
        let mut writer = index.writer()?;
        for id in &args.delete {
            if !writer.delete(id)? {
                bail!("--delete {id}: {} has no such document", out.display());
            }
            deleted += 1;
        }
        writer.commit()?;
    }
    let begin = Instant::now();
    let mut report = match &args.data {
        None => BuildReport::default(),
        Some(data) => {
            let options = args.options()?;
            let encoder = match args.request()? {
                None => None,
                Some(request) => {
                    let phase = Phase::new(args.output, format!("reading {}", request.model));
                    let encoder =
                        Encoder::open(&request, &args.machine.lookup(), &args.machine.device()?)?;
                    drop(phase);
                    Some((encoder, request))
                }
            };
            let stop = interrupt::flag(
                "the next commit keeps what is done; run the command again to go on",
            );
            let mut counter = Counter::new(args.output, "documents", 0, 0);
            build(
                out,
                data,
                encoder
                    .as_ref()
                    .map(|(encoder, request)| (encoder, request)),
                &options,
                &mut |done| {
                    counter.advance(done);
                    !interrupt::asked(&stop)
                },
            )?
        }
    };
    report.deleted += deleted;
    if args.compact {
        let index = Index::open(out)?;
        index.writer()?.compact()?;
    }
    let index = Index::open(out)?;
    let seconds = begin.elapsed().as_secs_f64();
    if args.output.json {
        let value = json!({
            "index": out,
            "documents": index.len(),
            "report": report,
            "encoder": index.settings().encoder.as_ref().map(|e| &e.model),
            "seconds": seconds,
        });
        ui::print(&value.to_string());
    } else {
        let vectors = match &index.settings().encoder {
            Some(encoder) => format!(
                "words and vectors of {} ({} dimensions)",
                encoder.model, encoder.dimension
            ),
            None => "words only: vectors come with `--model`, for example minilm-l6".into(),
        };
        ui::print(&format!(
            "{}: {} documents, {vectors}\n{} added, {} updated, {} unchanged, {} deleted in {seconds:.1} s",
            out.display(),
            index.len(),
            report.added,
            report.updated,
            report.unchanged,
            report.deleted
        ));
    }
    warn_of(&report, args.output);
    Ok(match report.interrupted {
        true => Outcome::Interrupted,
        false => Outcome::Done,
    })
}

/// Says what was left out, and what is in the index only in part.
fn warn_of(report: &BuildReport, output: Output) {
    if let Some(first) = report.empty.first() {
        ui::warn(
            output,
            &format!(
                "{} documents without text were left out: `{first}`{}",
                report.empty.len(),
                if report.empty.len() > 1 { ", ..." } else { "" }
            ),
        );
    }
    if report.truncated > 0 {
        ui::warn(
            output,
            &format!(
                "{} texts are longer than the encoder reads: their vectors stand for their beginning; `--chunk N` cuts them",
                report.truncated
            ),
        );
    }
}
