//! What encoders refuse.

use std::path::PathBuf;

use frugal_core::fs::FileError;
use frugal_core::tokenizer::TokenizerError;
use frugal_index::IndexError;
use frugal_nn::{AdaptError, LoadError, ModelError};
use thiserror::Error;

/// An encoder that cannot be read or used.
#[derive(Debug, Error)]
pub enum RetrieveError {
    /// A file of the model's folder that says something that is not computed here.
    #[error("{}: {reason}", path.display())]
    Module {
        /// The file.
        path: PathBuf,
        /// What it says.
        reason: String,
    },
    /// A prompt that the model does not name.
    #[error(
        "the model has no prompt named {name:?} (it has: {known}); give the text itself with `--prompt`"
    )]
    UnknownPrompt {
        /// The name that was asked for.
        name: String,
        /// Those that it has.
        known: String,
    },
    /// More dimensions than the vectors have.
    #[error("`truncate_dim` is {asked}, but the vectors have {dimension} dimensions")]
    TruncateDim {
        /// What was asked for.
        asked: usize,
        /// What there is.
        dimension: usize,
    },
    /// A limit without room for a token of the text.
    #[error(
        "`max_length` {max_length} leaves no room for a text beside the {special} special tokens"
    )]
    NoRoom {
        /// The limit.
        max_length: usize,
        /// Special tokens of a text.
        special: usize,
    },
    /// A text that the tokenizer leaves nothing of.
    #[error("text {index} has no tokens")]
    NoTokens {
        /// Its position, from 0.
        index: usize,
    },
    /// A text of which nothing is left beside a prompt that does not count.
    #[error(
        "text {index}: the prompt has {tokens} tokens, which leave nothing of the text to pool; raise `max_length` or shorten the prompt"
    )]
    OnlyPrompt {
        /// Its position, from 0.
        index: usize,
        /// Tokens of the prompt.
        tokens: usize,
    },
    /// An index with vectors, and no encoder to make more.
    #[error("{}: the index has vectors: name the model that made them", folder.display())]
    NeedsEncoder {
        /// Its folder.
        folder: PathBuf,
    },
    /// A search by vectors in an index that has none.
    #[error("{}: the index has no vectors, only words: search with `--mode bm25`, or make an index with a model", folder.display())]
    NoVectors {
        /// Its folder.
        folder: PathBuf,
    },
    /// Pairwise ranking that cannot be asked for this way.
    #[error("pairwise ranking: {0}")]
    Prp(String),
    /// In-context ranking that cannot be done this way.
    #[error("in-context ranking: {0}")]
    BlockRank(String),
    /// A sparse encoder that is not computed here.
    #[error("sparse encoder: {0}")]
    Sparse(String),
    /// Generation.
    #[error(transparent)]
    Decode(#[from] frugal_decode::DecodeError),
    /// A setting of an index that is there, asked for otherwise.
    #[error("{}: the index was made with {setting} {made}, not {asked}; leave the setting out, or make another index", folder.display())]
    OtherSetting {
        /// Its folder.
        folder: PathBuf,
        /// The setting.
        setting: &'static str,
        /// What it is.
        made: String,
        /// What was asked for.
        asked: String,
    },
    /// An index that was created and never written to.
    #[error("{}: nothing was ever committed to this index: run `frugal index` with its documents again", folder.display())]
    NothingCommitted {
        /// Its folder.
        folder: PathBuf,
    },
    /// A store of vectors.
    #[error(transparent)]
    Store(#[from] frugal_index::store::StoreError),
    /// Index or corpus.
    #[error(transparent)]
    Index(#[from] IndexError),
    /// A file that cannot be read or written.
    #[error(transparent)]
    File(#[from] FileError),
    /// Model.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// Model files.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// Adapter.
    #[error(transparent)]
    Adapt(#[from] AdaptError),
    /// Tokenizer.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    /// It was asked to stop.
    #[error("interrupted")]
    Interrupted,
}
