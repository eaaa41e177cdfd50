//! What can go wrong with documents' parameters.

use std::path::PathBuf;

use frugal_core::fs::FileError;
use frugal_core::template::TemplateError;
use frugal_core::tokenizer::TokenizerError;
use frugal_formats::safetensors::LoadReport;
use frugal_nn::{AdaptError, LoadError, ModelError};
use thiserror::Error;

/// Parameters of documents that cannot be made, read or used.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ParametricError {
    /// A setting out of range.
    #[error("`{field}`: {reason}")]
    Settings {
        /// The field at fault.
        field: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// A model without the feed-forward layers that documents are written into.
    #[error("`{model_type}` has no place for documents' parameters: {reason}")]
    Model {
        /// Architecture.
        model_type: &'static str,
        /// What is missing.
        reason: String,
    },
    /// A document that cannot be trained on.
    #[error("document `{id}`: {reason}")]
    Document {
        /// Its identifier.
        id: String,
        /// Why, and what would work.
        reason: String,
    },
    /// Tokens that nothing can be learnt from.
    #[error("training sequences: {0}")]
    Sequence(String),
    /// Parameters that do not go together.
    #[error("parameters of documents cannot be merged: {0}")]
    Merge(String),
    /// A file whose tensors are not those that its configuration and the model ask for.
    #[error("{}: the tensors do not fit the model and the configuration: {report}", path.display())]
    Tensors {
        /// The file.
        path: PathBuf,
        /// Lists of tensors.
        report: Box<LoadReport>,
    },
    /// A folder that holds something else, or was made for something else.
    #[error("{}: {reason}", path.display())]
    Folder {
        /// File or folder.
        path: PathBuf,
        /// What is wrong and what would work.
        reason: String,
    },
    /// Numbers that are infinite or none.
    #[error("{what} became infinite or no number at step {step}: lower the learning rate")]
    NotFinite {
        /// What.
        what: &'static str,
        /// The step, from 1.
        step: usize,
    },
    /// It was asked to stop.
    #[error("interrupted")]
    Interrupted,
    /// A file that cannot be read or written.
    #[error(transparent)]
    File(#[from] FileError),
    /// A file of tensors.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// The model.
    #[error(transparent)]
    Backbone(#[from] ModelError),
    /// The adapter.
    #[error(transparent)]
    Adapt(#[from] AdaptError),
    /// The tokenizer.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    /// The chat template.
    #[error(transparent)]
    Template(#[from] TemplateError),
}

impl ParametricError {
    /// The same with the document that it is about, where it does not say so yet.
    #[must_use]
    pub fn of_document(self, id: &str) -> Self {
        match self {
            Self::Sequence(_) | Self::NotFinite { .. } | Self::Backbone(_) => Self::Document {
                id: id.to_owned(),
                reason: match self {
                    Self::Sequence(reason) => reason,
                    other => other.to_string(),
                },
            },
            other => other,
        }
    }
}
