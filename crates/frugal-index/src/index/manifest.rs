//! The one file that says what is in an index.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use frugal_core::fs::write_atomic;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::settings::Settings;
use crate::error::IndexError;

/// Its name.
pub(super) const MANIFEST: &str = "manifest.jsonl";
const FORMAT: &str = "frugal-index";
/// The latest version that is read.
const VERSION: u64 = 2;
/// The version of an index without graphs, which programs that know of none can read.
const WITHOUT_GRAPHS: u64 = 1;

/// What is in the index beside the segments of the text index.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct State {
    /// Number of the commit.
    pub(super) generation: u64,
    /// The key of the next document; keys are never used again.
    pub(super) next_key: u64,
    pub(super) settings: Settings,
    pub(super) vectors: Vec<VectorFile>,
    /// Names of metadata fields that a document had.
    pub(super) fields: BTreeSet<String>,
}

/// A file of vectors in the folder.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct VectorFile {
    pub(super) file: String,
    pub(super) rows: usize,
    /// The file of the graph over them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) graph: Option<String>,
}

impl State {
    pub(super) fn new(settings: Settings) -> Self {
        Self {
            generation: 0,
            next_key: 0,
            settings,
            vectors: Vec::new(),
            fields: BTreeSet::new(),
        }
    }
}

/// State and the text index's own description.
#[derive(Serialize, Deserialize)]
struct Manifest {
    format: String,
    version: u64,
    state: State,
    text: Map<String, Value>,
}

pub(super) fn path(folder: &Path) -> PathBuf {
    folder.join(MANIFEST)
}

/// Replaces the manifest of a folder.
pub(super) fn write(
    folder: &Path,
    state: State,
    text: Map<String, Value>,
) -> Result<(), IndexError> {
    let path = path(folder);
    let manifest = Manifest {
        format: FORMAT.into(),
        version: match state.settings.hnsw {
            Some(_) => VERSION,
            None => WITHOUT_GRAPHS,
        },
        state,
        text,
    };
    let mut bytes = serde_json::to_vec(&manifest)
        .map_err(|e| IndexError::damaged(&path, format!("cannot be written as JSON: {e}")))?;
    let check = crc32c::crc32c(&bytes);
    bytes.extend_from_slice(format!("\n{{\"crc32c\":\"{check:08x}\"}}\n").as_bytes());
    Ok(write_atomic(&path, &bytes)?)
}

/// Reads the manifest of a folder.
pub(super) fn read(folder: &Path) -> Result<(State, Map<String, Value>), IndexError> {
    let path = path(folder);
    let bytes = match frugal_core::fs::regular(&path).and_then(|()| std::fs::read(&path)) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            return Err(IndexError::NotAnIndex {
                folder: folder.into(),
                manifest: MANIFEST,
            });
        }
        read => read.map_err(frugal_core::fs::FileError::at(&path, "cannot read"))?,
    };
    let damaged = |problem: &str| IndexError::damaged(&path, problem);
    let end = bytes
        .iter()
        .position(|byte| *byte == b'\n')
        .ok_or_else(|| damaged("cut off"))?;
    let (body, rest) = bytes.split_at(end);
    let expected = format!("\n{{\"crc32c\":\"{:08x}\"}}\n", crc32c::crc32c(body));
    if rest != expected.as_bytes() {
        return Err(damaged("it does not match its checksum"));
    }
    let value: Value =
        serde_json::from_slice(body).map_err(|e| damaged(&format!("malformed JSON: {e}")))?;
    let version = value.get("version").and_then(Value::as_u64).unwrap_or(0);
    if !(WITHOUT_GRAPHS..=VERSION).contains(&version) {
        return Err(IndexError::Version {
            path,
            found: version,
            known: VERSION,
        });
    }
    let manifest: Manifest = serde_json::from_value(value).map_err(|e| damaged(&e.to_string()))?;
    if manifest.format != FORMAT {
        return Err(damaged(&format!("not of the format `{FORMAT}`")));
    }
    Ok((manifest.state, manifest.text))
}
