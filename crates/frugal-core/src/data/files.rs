//! Names that stand for several files.

use std::path::{Path, PathBuf};

use super::error::DataError;
use super::source::STDIN;

/// The file of that name, else the files that the pattern matches.
pub(super) fn matching(name: &str) -> Result<Vec<PathBuf>, DataError> {
    let path = Path::new(name);
    let pattern = name.contains(['*', '?', '[']);
    if name == STDIN || !pattern || path.exists() {
        return Ok(vec![path.to_owned()]);
    }
    let wrong = |e: String| DataError::options(path, e);
    let found = glob::glob(name).map_err(|e| wrong(format!("not a pattern: {e}")))?;
    let files: Result<Vec<PathBuf>, _> = found
        .filter(|f| !matches!(f, Ok(p) if p.is_dir()))
        .collect();
    let files = files.map_err(|e| wrong(e.to_string()))?;
    if files.is_empty() {
        return Err(wrong("no file matches".into()));
    }
    Ok(files)
}
