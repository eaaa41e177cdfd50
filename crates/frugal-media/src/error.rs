//! What can be wrong with images and sets of them.

use std::path::{Path, PathBuf};

use frugal_core::data::DataError;
use frugal_core::fs::FileError;

/// What is wrong with an image, a set of images or a `preprocessor_config.json`.
#[derive(Debug, thiserror::Error)]
pub enum MediaError {
    /// A file or folder cannot be read.
    #[error(transparent)]
    File(#[from] FileError),
    /// A table of images cannot be read.
    #[error(transparent)]
    Table(#[from] DataError),
    /// An image cannot be decoded, or is of a kind that is not read.
    #[error("{place}: {reason}")]
    Image {
        /// The file, or the archive and the entry in it.
        place: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A set of images is none.
    #[error("{path}: {reason}")]
    Set {
        /// The folder, archive or table.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A `preprocessor_config.json` asks for what is not done.
    #[error("{source_name}: `{key}`: {reason}")]
    Processor {
        /// The file.
        source_name: String,
        /// The key.
        key: String,
        /// What is wrong with its value.
        reason: String,
    },
}

impl MediaError {
    /// An image at this place.
    pub(crate) fn image(place: &str, reason: impl ToString) -> Self {
        Self::Image {
            place: place.into(),
            reason: reason.to_string(),
        }
    }

    /// A set of images.
    pub(crate) fn set(path: &Path, reason: impl Into<String>) -> Self {
        Self::Set {
            path: path.into(),
            reason: reason.into(),
        }
    }
}
