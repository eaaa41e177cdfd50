//! What can go wrong in a run.

use std::path::PathBuf;

use thiserror::Error;

/// What can go wrong in a run.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum RunError {
    /// Finding or reading the model.
    #[error(transparent)]
    Model(#[from] frugal_nn::ModelError),
    /// An image, a set of images or how they are prepared.
    #[error(transparent)]
    Media(#[from] frugal_media::MediaError),
    /// Reading the data.
    #[error(transparent)]
    Data(#[from] frugal_core::data::DataError),
    /// Turning the data into tokens.
    #[error(transparent)]
    Encode(#[from] frugal_core::encode::EncodeError),
    /// The method or an adapter folder.
    #[error(transparent)]
    Adapt(#[from] frugal_nn::AdaptError),
    /// Generating.
    #[error(transparent)]
    Decode(frugal_decode::DecodeError),
    /// Encoders, indexes and rankers.
    #[error(transparent)]
    Retrieve(#[from] frugal_retrieve::RetrieveError),
    /// Parameters of documents.
    #[error(transparent)]
    Parametric(#[from] frugal_retrieve::parametric::ParametricError),
    /// Writing into an adapter, or learning to.
    #[error(transparent)]
    Perk(#[from] frugal_retrieve::perk::PerkError),
    /// Training.
    #[error(transparent)]
    Train(#[from] frugal_train::TrainError),
    /// Writing a file.
    #[error(transparent)]
    File(#[from] frugal_core::fs::FileError),
    /// The log.
    #[error(transparent)]
    Log(#[from] frugal_core::events::LogError),
    /// The record.
    #[error(transparent)]
    Record(#[from] frugal_eval::report::RecordError),
    /// A chat template.
    #[error(transparent)]
    Template(#[from] frugal_core::template::TemplateError),
    /// A data set of the hub that cannot be found or fetched.
    #[error("data set `{name}` of the Hugging Face hub: {reason}")]
    DataHub {
        /// `org/name`.
        name: String,
        /// What went wrong and what to do.
        reason: String,
    },
    /// The tokenizer.
    #[error(transparent)]
    Tokenizer(#[from] frugal_core::tokenizer::TokenizerError),
    /// A GGUF file that cannot be written.
    #[error(transparent)]
    Gguf(#[from] frugal_formats::gguf::WriteError),
    /// An ONNX file whose weights are not read.
    #[error(transparent)]
    Onnx(#[from] frugal_formats::onnx::OnnxError),
    /// The folder of results is in use.
    #[error(transparent)]
    Stage(#[from] frugal_core::stage::StageError),
    /// The folder of the run is another process's.
    #[error(transparent)]
    Lock(#[from] frugal_core::lock::LockError),
    /// The device.
    #[error(transparent)]
    Device(#[from] crate::device::DeviceError),
    /// The output folder is in use.
    #[error("{}: the folder exists and is not empty: choose another `--out`, or continue the run with `--resume`", path.display())]
    OutputExists {
        /// The folder.
        path: PathBuf,
    },
    /// The output folder is a file.
    #[error("{}: there is a file of this name, and a run needs a folder: choose another `--out`", path.display())]
    OutputIsFile {
        /// The file.
        path: PathBuf,
    },
    /// Resume in a folder that is not that of a run.
    #[error("{}: the folder has neither `{file}` nor checkpoints, so there is no run to continue: name the folder of a run, or choose another `--out`", path.display())]
    NoRun {
        /// The folder.
        path: PathBuf,
        /// The configuration file that a run has.
        file: &'static str,
    },
    /// Resume of a run that has nothing to continue from.
    #[error("{}: there is no checkpoint to continue from; found: {found}; start again in another folder (`--config` takes the settings of this one)", path.display())]
    NoCheckpoint {
        /// The folder.
        path: PathBuf,
        /// What there is instead.
        found: String,
    },
    /// Resume with other weights under the same name.
    #[error("{}: the weights of `{model}` are not those that the run began with: restore them, or start a new run", path.display())]
    OtherBase {
        /// The run folder.
        path: PathBuf,
        /// What the user called the model.
        model: String,
    },
    /// An adapter that this run cannot start from.
    #[error("{}: the run cannot start from this adapter: {reason}", folder.display())]
    StartAdapter {
        /// Its folder.
        folder: PathBuf,
        /// Why, and what to do instead.
        reason: String,
    },
    /// More memory than there is.
    #[error(
        "the run needs about {}, and {} are available: {way_out}; `--no-memory-check` begins it all the same",
        frugal_core::human::bytes(*needed),
        frugal_core::human::bytes(*available)
    )]
    Memory {
        /// Predicted peak, in bytes.
        needed: u64,
        /// What the process can have, in bytes.
        available: u64,
        /// Settings that fit.
        way_out: String,
    },
    /// Resume of a run that was another one.
    #[error("{}: `{key}` was {before} when the run began and is {now}: resume with the settings in that file, or start a new run", path.display())]
    OtherRun {
        /// The run's configuration file.
        path: PathBuf,
        /// Key that differs.
        key: String,
        /// Its value then.
        before: String,
        /// Its value now.
        now: String,
    },
    /// Data with too few rows to measure on some of them.
    #[error("{}: too few rows ({rows}) to hold out a share of {share} for {part}: give {help}", path.display())]
    TooFewRows {
        /// The data file.
        path: PathBuf,
        /// Its rows.
        rows: usize,
        /// The share.
        share: f64,
        /// What it was to be held out for.
        part: &'static str,
        /// What to give instead.
        help: &'static str,
    },
    /// Data with too few classes to tell apart.
    #[error("{}: classification needs at least two labels, found: {}", path.display(), labels_text(found))]
    Labels {
        /// The data file.
        path: PathBuf,
        /// Its labels.
        found: Vec<String>,
    },
    /// A model that is broken before anything was trained.
    #[error(
        "`{model}`: its own loss on the {part} data ({data}) is {loss} before any training, which is no number to go on from: \
         its weights or these examples are damaged"
    )]
    BaseLoss {
        /// What the user called the model.
        model: String,
        /// `validation` or `test`.
        part: &'static str,
        /// The data file.
        data: String,
        /// The loss.
        loss: f64,
    },
    /// It was asked to stop.
    #[error("interrupted")]
    Interrupted,
    /// Something that this combination cannot do.
    #[error("{0}")]
    Invalid(String),
}

impl From<frugal_nn::LoadError> for RunError {
    fn from(error: frugal_nn::LoadError) -> Self {
        Self::Model(error.into())
    }
}

fn labels_text(found: &[String]) -> String {
    if found.is_empty() {
        "none, as there is no column `label`: name it with `--column label=NAME`; conversations, prompts and plain text are learned with `--task causal-lm`".into()
    } else {
        found.join(", ")
    }
}
