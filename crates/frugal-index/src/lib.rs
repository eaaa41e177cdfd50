//! Finding documents without tensors: corpora, exact BM25, exact search over vectors, their fusion,
//! and a folder on disk that survives whatever happens to its writer.
//!
//! Vectors come from outside: an encoder turns texts into rows of numbers, and this crate keeps and
//! searches them. Scores are higher for better everywhere.
//!
//! ```
//! use frugal_index::{Document, Index, Query, Settings};
//!
//! let folder = tempfile::tempdir()?;
//! let mut index = Index::create(&folder.path().join("idx"), Settings::default())?;
//! let mut writer = index.writer()?;
//! writer.add(&Document::new("a", "Wing flutter at supersonic speed"), None)?;
//! writer.add(&Document::new("b", "Boundary layers of flat plates"), None)?;
//! writer.commit()?;
//! drop(writer);
//! index.reload()?;
//! let found = index.search(&Query::text("fluttering wings").top_k(10))?;
//! assert_eq!(found[0].id, "a");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
#![forbid(unsafe_code)]

mod analyzer;
pub mod anncur;
mod bm25;
mod corpus;
mod document;
mod error;
mod filter;
mod fusion;
mod index;
mod mapped;
pub mod store;
mod top_k;
mod vector;

pub use analyzer::Analyzer;
pub use bm25::{Bm25, Bm25Index, Bm25Weights};
pub use corpus::{CorpusOptions, CorpusReport, Skipped, read_corpus, read_queries};
pub use document::Document;
pub use error::IndexError;
pub use filter::{Condition, Filter, Operator};
pub use fusion::{Fusion, fuse};
pub use index::{Effort, Encoder, Found, Index, Mode, Query, Settings, Writer};
pub use vector::{
    Encoding, HnswOptions, Metric, Neighbor, VectorBuilder, VectorError, VectorGraph, VectorIndex,
};
