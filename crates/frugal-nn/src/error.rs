//! What can go wrong with a model and its files.

use std::io;
use std::path::{Path, PathBuf};

use thiserror::Error;

/// What can go wrong with a model.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ModelError {
    /// The configuration has a bad value.
    #[error("{source_name}: `{key}`: {reason}")]
    Config {
        /// File.
        source_name: String,
        /// Key at fault.
        key: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A method that this kind of model has no place for.
    #[error("a model of type `{model_type}` cannot be used with this method: {reason}")]
    Method {
        /// Type.
        model_type: &'static str,
        /// Why, and what would work.
        reason: String,
    },
    /// A control of attention that does not fit the batch, or that this kind of model has no place for.
    #[error("attention cannot be controlled this way: {reason}")]
    Attention {
        /// Why, and what would work.
        reason: String,
    },
    /// No backbone for this architecture.
    #[error("{source_name}: model_type `{model_type}` is not supported; supported: {supported}")]
    Architecture {
        /// File.
        source_name: String,
        /// What it says.
        model_type: String,
        /// What there is.
        supported: String,
    },
    /// The file's tensors do not fit the configuration.
    #[error("{source_name}: the weights do not fit config.json\n{report}")]
    Load {
        /// File.
        source_name: String,
        /// Lists of tensors.
        report: Box<frugal_formats::safetensors::LoadReport>,
    },
    /// A tensor is not there.
    #[error("{source_name}: tensor `{name}` is missing")]
    MissingTensor {
        /// File.
        source_name: String,
        /// Tensor.
        name: String,
    },
    /// A token id outside the table.
    #[error(
        "token id {id} at position {position} is outside the vocabulary of {vocab_size}: the tokenizer does not belong to this model"
    )]
    TokenId {
        /// The id.
        id: u32,
        /// Index in the batch.
        position: usize,
        /// Rows of the table.
        vocab_size: usize,
    },
    /// Ids and layout disagree, or a sequence is empty.
    #[error(
        "the input has {tokens} tokens but its layout describes {described}, in sequences of at least one token"
    )]
    Layout {
        /// Number of ids.
        tokens: usize,
        /// Number of positions.
        described: usize,
    },
    /// A sequence longer than the positions of the model.
    #[error(
        "a sequence of {length} tokens is longer than the model's {limit} positions: shorten it, or allow truncation"
    )]
    TooLong {
        /// Tokens.
        length: usize,
        /// Positions.
        limit: usize,
    },
    /// Blocks that the model does not have.
    #[error("blocks {first} to {end} were asked for, but `{model_type}` has {count} here: ranges end at {count}", end = .end.saturating_sub(1))]
    Blocks {
        /// Architecture.
        model_type: &'static str,
        /// First block.
        first: usize,
        /// The block after the last.
        end: usize,
        /// How many there are.
        count: usize,
    },
    /// Embeddings or rows that do not fit the model.
    #[error("`{model_type}` cannot read this input: {reason}")]
    Content {
        /// Architecture.
        model_type: &'static str,
        /// What it reads, and what was given.
        reason: String,
    },
    /// Outputs that are infinite or not a number.
    #[error(
        "{source_name}: this `{model_type}` model's {what} are not finite numbers (NaN or infinite): its weights are damaged, or the adapter's are"
    )]
    NotFinite {
        /// Model.
        source_name: String,
        /// Architecture.
        model_type: &'static str,
        /// What was computed.
        what: &'static str,
    },
    /// Generation asked of an encoder.
    #[error("`{model_type}` models read in both directions and cannot generate: use a decoder")]
    NotCausal {
        /// Architecture.
        model_type: &'static str,
    },
    /// What is remembered of sequences does not go with what is asked.
    #[error(transparent)]
    State(#[from] crate::state::StateError),
    /// Reading or finding files.
    #[error(transparent)]
    Files(#[from] LoadError),
}

/// What can go wrong while finding and reading files of a model or adapter.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum LoadError {
    /// A file cannot be read.
    #[error("{}: cannot read: {source}", path.display())]
    Read {
        /// File.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// A JSON file is malformed or lacks a key.
    #[error("{}: {reason}", path.display())]
    Json {
        /// File.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// A safetensors file is damaged or holds a type that cannot be read.
    #[error("{}: {reason}", path.display())]
    Safetensors {
        /// File.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// No model of this name, no file or folder of this path.
    #[error("no model `{model}`{}: neither a folder, a GGUF file, a known name ({known}) nor `org/name`", suggestion.as_ref().map_or(String::new(), |s| format!(" (did you mean `{s}`?)")))]
    NotFound {
        /// What was asked for.
        model: String,
        /// Nearest name.
        suggestion: Option<String>,
        /// Names.
        known: String,
    },
    /// A registered model that is not in the cache.
    #[error("model `{name}` is not in the cache yet: run `frugal models fetch {name}`")]
    NotFetched {
        /// Name.
        name: String,
    },
    /// An adapter given as a model.
    #[error("{}: this is an adapter, not a model: give its base with `--model` and this folder with `--adapter`", folder.display())]
    AdapterFolder {
        /// Folder.
        folder: PathBuf,
    },
    /// The folder of a run that trained the whole model, given as a model or as an adapter.
    #[error("{}: the run in this folder trained the whole model instead of an adapter: give `--model {}`", folder.display(), model.display())]
    FullRun {
        /// Folder of the run.
        folder: PathBuf,
        /// Folder of the model in it.
        model: PathBuf,
    },
    /// A model without a tokenizer.
    #[error("{}: no `tokenizer.json` there: save the model's fast tokenizer beside it", folder.display())]
    NoTokenizer {
        /// Folder.
        folder: PathBuf,
    },
    /// A repository that cannot be had.
    #[error("`{repository}` from the hub: {reason}")]
    Hub {
        /// Repository.
        repository: String,
        /// What went wrong.
        reason: String,
    },
    /// A damaged or unsupported GGUF file.
    #[error(transparent)]
    Gguf(#[from] frugal_formats::gguf::GgufError),
    /// A tokenizer that cannot be used.
    #[error(transparent)]
    Tokenizer(#[from] frugal_core::tokenizer::TokenizerError),
    /// Parts of the weights without the file that says which tensor is in which.
    #[error("{}: there is `{shard}`, but no `model.safetensors.index.json`, which lists the parts: fetch the whole folder again", folder.display())]
    NoIndex {
        /// Folder.
        folder: PathBuf,
        /// One of the parts.
        shard: String,
    },
    /// A folder without weights.
    #[error("{}: no `model.safetensors` and no `model.safetensors.index.json` there; PyTorch `.bin` files are not read, convert them first", folder.display())]
    NoWeights {
        /// Folder.
        folder: PathBuf,
    },
}

/// Folder of the model in the folder of a run that trained the whole of it.
pub const MODEL_FOLDER: &str = "model";

impl LoadError {
    /// [`LoadError::FullRun`], if `folder` is that of such a run.
    pub fn full_run(folder: &Path) -> Option<Self> {
        let model = folder.join(MODEL_FOLDER);
        model.join("config.json").is_file().then(|| Self::FullRun {
            folder: folder.into(),
            model,
        })
    }
}
