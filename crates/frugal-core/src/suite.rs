//! Suites: many fine-tuning runs under one budget, described in a file.
//!
//! ```toml
//! description = "Two methods on one task"
//! metric = "accuracy"
//! seeds = [0, 1, 2]
//!
//! [tune]                     # what all runs share: a configuration of `frugal tune`
//! model = "minilm-l6"
//! data = { train = "sst2/train.tsv", validation = "sst2/dev.tsv", max_train_rows = 2000 }
//!
//! [[runs]]                   # what a run changes; without a name it has its method's
//! method = { name = "lora", r = 8 }
//!
//! [[runs]]
//! name = "lora-r32"
//! method = { name = "lora", r = 32 }
//! train = { lr = 2e-4 }
//! ```

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use thiserror::Error;
use toml::{Table, Value};

use crate::config::merge;
use crate::fs::{self, FileError};

/// A suite that cannot be used.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum SuiteError {
    /// The file.
    #[error(transparent)]
    File(#[from] FileError),
    /// Its content.
    #[error("{}: {reason}", path.display())]
    Invalid {
        /// The file.
        path: PathBuf,
        /// What is wrong, with line and column where it is known.
        reason: String,
    },
}

/// A suite.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Suite {
    /// What is compared, in a sentence.
    pub description: String,
    /// The metric that decides.
    #[serde(default = "accuracy")]
    pub metric: String,
    /// Every run is done once with each.
    #[serde(default = "one_seed")]
    pub seeds: Vec<u64>,
    /// Settings that all runs share.
    #[serde(default)]
    pub tune: Table,
    /// The runs: tables of settings, with an optional `name`.
    pub runs: Vec<Table>,
}

fn accuracy() -> String {
    "accuracy".into()
}

fn one_seed() -> Vec<u64> {
    vec![0]
}

/// One run of a suite.
#[derive(Clone, Debug, PartialEq)]
pub struct Job {
    /// Name of the run without its seed.
    pub name: String,
    /// Its seed.
    pub seed: u64,
    /// Its settings, for [`crate::config::load_with`].
    pub settings: Table,
}

impl Job {
    /// Name of the run's folder.
    pub fn folder(&self) -> String {
        format!("{}-seed{}", self.name, self.seed)
    }
}

impl Suite {
    /// Reads a suite.
    ///
    /// # Errors
    /// A file that cannot be read or is not a suite.
    pub fn read(path: &Path) -> Result<Self, SuiteError> {
        Self::parse(path, &String::from_utf8_lossy(&fs::read(path)?))
    }

    /// A suite from its text; `path` is what errors call it.
    ///
    /// # Errors
    /// Text that is not a suite.
    pub fn parse(path: &Path, text: &str) -> Result<Self, SuiteError> {
        let invalid = |reason: String| SuiteError::Invalid { path: path.to_owned(), reason };
        let suite: Self = toml::from_str(text).map_err(|e| invalid(e.to_string().trim_end().to_owned()))?;
        if suite.seeds.is_empty() {
            return Err(invalid("`seeds` is empty: list at least one".into()));
        }
        if suite.runs.is_empty() {
            return Err(invalid("there is no `[[runs]]`".into()));
        }
        let mut names = BTreeSet::new();
        for (i, run) in suite.runs.iter().enumerate() {
            let name = run_name(run).ok_or_else(|| invalid(format!("run {} has neither `name` nor `method.name`", i + 1)))?;
            if name.is_empty() || !name.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c)) || name.starts_with('.') {
                return Err(invalid(format!("`{name}` cannot name a run: use letters, digits, `-`, `_` and `.`")));
            }
            if !names.insert(name) {
                return Err(invalid(format!("two runs are called `{name}`: give one another `name`")));
            }
        }
        Ok(suite)
    }

    /// All runs: one seed after the other, so that an early look compares all methods.
    ///
    /// Relative data files are looked for in `data_dir`.
    pub fn jobs(&self, data_dir: &Path) -> Vec<Job> {
        let each = |seed: u64| {
            self.runs.iter().filter_map(move |run| {
                let name = run_name(run)?.to_owned();
                let mut settings = self.tune.clone();
                merge(&mut settings, run);
                settings.remove("name");
                settings.insert("seed".into(), Value::Integer(seed.try_into().unwrap_or(i64::MAX)));
                if let Some(Value::Table(data)) = settings.get_mut("data") {
                    for key in ["train", "validation", "test"] {
                        if let Some(Value::String(file)) = data.get_mut(key) {
                            let moved = data_dir.join(&*file);
                            // What is not there may be the name of a built-in data set.
                            if moved.exists() {
                                *file = moved.to_string_lossy().into_owned();
                            }
                        }
                    }
                }
                Some(Job { name, seed, settings })
            })
        };
        self.seeds.iter().flat_map(|&seed| each(seed)).collect()
    }
}

fn run_name(run: &Table) -> Option<&str> {
    let method = || run.get("method")?.get("name");
    run.get("name").or_else(method)?.as_str()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = r#"
        description = "Two methods"
        seeds = [0, 7]
        [tune]
        model = "minilm-l6"
        data = { train = "here.tsv", validation = "sms-spam" }
        train = { epochs = 2, lr = 1e-3 }
        [[runs]]
        method = { name = "lora", r = 4 }
        [[runs]]
        name = "fast"
        method = { name = "lora" }
        train = { lr = 1e-2 }
    "#;

    #[test]
    fn runs_inherit_and_override_what_all_share() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("here.tsv"), "").unwrap();
        let suite = Suite::parse(Path::new("s.toml"), TEXT).unwrap();
        let jobs = suite.jobs(dir.path());
        let folders: Vec<String> = jobs.iter().map(Job::folder).collect();
        assert_eq!(folders, ["lora-seed0", "fast-seed0", "lora-seed7", "fast-seed7"]);
        let fast: Table = toml::from_str(&format!(
            "model = \"minilm-l6\"\nseed = 7\nmethod = {{ name = \"lora\" }}\n\
             data = {{ train = {:?}, validation = \"sms-spam\" }}\ntrain = {{ epochs = 2, lr = 1e-2 }}",
            dir.path().join("here.tsv")
        ))
        .unwrap();
        assert_eq!(jobs[3].settings, fast);
    }

    #[test]
    fn mistakes_are_named() {
        let error = |text: &str| Suite::parse(Path::new("s.toml"), text).unwrap_err().to_string();
        let head = "description = \"\"\n";
        for (text, part) in [
            ("nonsense", "s.toml: TOML parse error"),
            (&format!("{head}runs = []"), "no `[[runs]]`"),
            (&format!("{head}seeds = []\nruns = [{{ name = \"a\" }}]"), "`seeds` is empty"),
            (&format!("{head}runs = [{{ train = {{}} }}]"), "run 1 has neither"),
            (&format!("{head}runs = [{{ name = \"a\" }}, {{ name = \"a\" }}]"), "two runs are called `a`"),
            (&format!("{head}runs = [{{ name = \"../a\" }}]"), "cannot name a run"),
            (&format!("{head}epochs = 3\nruns = [{{ name = \"a\" }}]"), "unknown field `epochs`"),
        ] {
            let message = error(text);
            assert!(message.contains(part), "{message}");
        }
    }
}
