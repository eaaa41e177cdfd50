//! Folders that results go into: whose they are.

use std::path::{Path, PathBuf};

use frugal_core::events::LOG_FILE;
use frugal_core::fs::is_temporary;
use frugal_core::lock::{FolderLock, LOCK_FILE, LockError};
use frugal_eval::report::RECORD_FILE;
use serde_json::Value;
use thiserror::Error;

/// What evaluations by tasks and comparisons of runs write.
pub const RESULTS_FILE: &str = "results.json";

/// A folder that results cannot go into.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ResultsError {
    /// Something else has written to it.
    #[error("{} holds {found}: choose another `--out`", folder.display())]
    Foreign {
        /// The folder.
        folder: PathBuf,
        /// What it holds.
        found: &'static str,
    },
    /// Another process writes to it.
    #[error(transparent)]
    Lock(#[from] LockError),
}

/// Takes a folder for this process alone. Refuses one that something else has written, whose files
/// would be replaced. One's own has results with this key, or entries from before there were
/// results, which `begun` knows by name.
///
/// # Errors
/// A folder that something else has written, or that another process has.
pub fn claim_results(
    folder: &Path,
    key: &str,
    begun: impl Fn(&str) -> bool,
) -> Result<FolderLock, ResultsError> {
    check(folder, key, begun)?;
    Ok(FolderLock::acquire(folder)?)
}

fn check(folder: &Path, key: &str, begun: impl Fn(&str) -> bool) -> Result<(), ResultsError> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let names: Vec<String> = entries
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .filter(|name| name != LOCK_FILE && !is_temporary(name))
        .collect();
    let results = std::fs::read(folder.join(RESULTS_FILE))
        .ok()
        .map(|bytes| serde_json::from_slice::<Value>(&bytes).unwrap_or_default());
    let found = match results {
        _ if names
            .iter()
            .any(|name| name == RECORD_FILE || name == LOG_FILE) =>
        {
            "a training run"
        }
        Some(results) if results.get(key).is_some() => return Ok(()),
        Some(_) => "results of another kind",
        None if names.is_empty() || names.iter().any(|name| begun(name)) => return Ok(()),
        None => "other files",
    };
    Err(ResultsError::Foreign {
        folder: folder.to_owned(),
        found,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_ones_own_folder_is_written_to_again() {
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
        let claimed = || {
            claim_results(folder.path(), "runs", |name| name == "lora-seed0.toml")
                .map(drop)
                .map_err(|error| error.to_string())
        };
        let refused = |what: &str| {
            let error = claimed().unwrap_err();
            assert!(
                error.ends_with(&format!(" holds {what}: choose another `--out`")),
                "{error}"
            );
        };
        assert!(claim_results(&folder.path().join("new"), "runs", |_| false).is_ok());
        assert_eq!(claimed(), Ok(()));
        file("letter.txt", "dear");
        refused("other files");
        file("lora-seed0.toml", "");
        assert_eq!(claimed(), Ok(()));
        file(RESULTS_FILE, "{\"groups\": []}");
        refused("results of another kind");
        file(RESULTS_FILE, "{\"runs\": []}");
        assert_eq!(claimed(), Ok(()));
        file(RECORD_FILE, "{}");
        refused("a training run");
    }
}
