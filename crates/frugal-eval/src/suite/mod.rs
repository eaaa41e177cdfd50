//! Suites: many runs under one budget, described in a file.
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
//!
//! A run's `command` is `tune`, `pretrain` or `eval`, each with a table of its own for what its
//! runs share; the default is the one whose table is there. A [`Grid`] adds pre-training runs over
//! shapes, tokens, rates and batches.

mod grid;
mod sweep;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use thiserror::Error;
use toml::{Table, Value};

use frugal_core::config::merge;
use frugal_core::fs::{self, FileError};
use grid::GridRun;
pub use grid::{Beside, Grid, Point};
pub use sweep::{SweptSetting, SweptValues, value_label};

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
    /// Settings that all runs of `frugal tune` share.
    #[serde(default)]
    pub tune: Table,
    /// Settings that all runs of `frugal pretrain` share.
    #[serde(default)]
    pub pretrain: Table,
    /// Settings that all evaluations share.
    #[serde(default)]
    pub eval: Table,
    /// The runs: tables of settings, with an optional `name` and `command`.
    #[serde(default)]
    pub runs: Vec<Table>,
    /// Which runs are compared with which; all with all without any.
    #[serde(default)]
    pub groups: Vec<Group>,
    /// A grid of pre-training runs.
    pub grid: Option<Grid>,
    /// The runs of the grid.
    #[serde(skip)]
    points: Vec<GridRun>,
}

/// Runs that are compared with each other.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Group {
    /// Heading.
    pub name: String,
    /// Names of the runs, in the order of the tables.
    pub runs: Vec<String>,
    /// The run that sizes and scores are compared with; the first without it.
    pub baseline: Option<String>,
}

/// What a run does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Work {
    /// `frugal tune`.
    #[default]
    Tune,
    /// `frugal pretrain`.
    Pretrain,
    /// `frugal eval`.
    Eval,
}

impl Work {
    /// All kinds.
    pub const ALL: [Self; 3] = [Self::Tune, Self::Pretrain, Self::Eval];

    /// Name of the command.
    pub fn name(self) -> &'static str {
        match self {
            Self::Tune => "tune",
            Self::Pretrain => "pretrain",
            Self::Eval => "eval",
        }
    }
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
    /// What it does.
    pub work: Work,
    /// Its settings, for [`frugal_core::config::load_with`].
    pub settings: Table,
    /// Where it lies in a grid.
    pub point: Option<Point>,
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
        Self::parse(path, &String::from_utf8_lossy(&fs::read_data(path)?))
    }

    /// A suite from its text; `path` is what errors call it.
    ///
    /// # Errors
    /// Text that is not a suite.
    pub fn parse(path: &Path, text: &str) -> Result<Self, SuiteError> {
        let invalid = |reason: String| SuiteError::Invalid {
            path: path.to_owned(),
            reason,
        };
        let mut suite: Self =
            toml::from_str(text).map_err(|e| invalid(e.to_string().trim_end().to_owned()))?;
        if suite.seeds.is_empty() {
            return Err(invalid("`seeds` is empty: list at least one".into()));
        }
        let mut seeds = BTreeSet::new();
        if let Some(seed) = suite.seeds.iter().find(|seed| !seeds.insert(**seed)) {
            return Err(invalid(format!(
                "`seeds` has {seed} more than once: list each seed once"
            )));
        }
        if suite.runs.is_empty() && suite.grid.is_none() {
            return Err(invalid("there is no `[[runs]]`".into()));
        }
        if let Some(grid) = &suite.grid {
            suite.points = grid.runs(&suite.pretrain).map_err(invalid)?;
        }
        let mut names = BTreeSet::new();
        for (i, run) in suite.runs.iter().enumerate() {
            let name = run_name(run).ok_or_else(|| {
                invalid(format!(
                    "run {} has neither `name` nor `method.name`",
                    i + 1
                ))
            })?;
            suite
                .work(run)
                .map_err(|reason| invalid(format!("run `{name}`: {reason}")))?;
            names
                .insert(name.to_owned())
                .then_some(())
                .ok_or_else(|| twice(name))
                .map_err(invalid)?;
        }
        for point in &suite.points {
            names
                .insert(point.name.clone())
                .then_some(())
                .ok_or_else(|| twice(&point.name))
                .map_err(invalid)?;
        }
        for group in &suite.groups {
            if group.runs.is_empty() {
                return Err(invalid(format!("group `{}` has no runs", group.name)));
            }
            if let Some(unknown) = group.runs.iter().find(|name| !names.contains(*name)) {
                return Err(invalid(format!(
                    "group `{}`: there is no run `{unknown}`",
                    group.name
                )));
            }
            if let Some(unknown) = group
                .baseline
                .as_ref()
                .filter(|name| !group.runs.contains(name))
            {
                return Err(invalid(format!(
                    "group `{}`: its baseline `{unknown}` is none of its runs",
                    group.name
                )));
            }
        }
        for name in &names {
            if name.is_empty()
                || !name
                    .chars()
                    .all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
                || name.starts_with('.')
            {
                return Err(invalid(format!(
                    "`{name}` cannot name a run: use letters, digits, `-`, `_` and `.`"
                )));
            }
        }
        Ok(suite)
    }

    /// What a run does: its `command`, or the only one that has shared settings, or `tune`.
    fn work(&self, run: &Table) -> Result<Work, String> {
        if let Some(given) = run.get("command") {
            return Work::deserialize(given.clone()).map_err(|_| {
                format!("`command` is {given}, but it must be tune, pretrain or eval")
            });
        }
        let shared: Vec<Work> = Work::ALL
            .into_iter()
            .filter(|work| !self.shared(*work).is_empty())
            .collect();
        Ok(if let [work] = shared[..] {
            work
        } else {
            Work::Tune
        })
    }

    fn shared(&self, work: Work) -> &Table {
        match work {
            Work::Tune => &self.tune,
            Work::Pretrain => &self.pretrain,
            Work::Eval => &self.eval,
        }
    }

    /// All runs: one seed after the other, so that an early look compares all methods.
    ///
    /// Relative data files are looked for in `data_dir`.
    pub fn jobs(&self, data_dir: &Path) -> Vec<Job> {
        let each = |seed: u64| {
            let listed = self.runs.iter().filter_map(move |run| {
                let (name, work) = (
                    run_name(run)?.to_owned(),
                    self.work(run).unwrap_or_default(),
                );
                let mut settings = self.shared(work).clone();
                merge(&mut settings, run);
                for key in ["name", "command"] {
                    settings.remove(key);
                }
                Some(Job {
                    name,
                    seed,
                    work,
                    settings,
                    point: None,
                })
            });
            let points = self.points.iter().map(move |run| {
                let (name, settings) = (run.name.clone(), run.settings.clone());
                Job {
                    name,
                    seed,
                    work: Work::Pretrain,
                    settings,
                    point: Some(run.point.clone()),
                }
            });
            // An evaluation has nothing random.
            let random =
                move |job: &Job| job.work != Work::Eval || self.seeds.first() == Some(&seed);
            listed.chain(points).filter(random).map(move |mut job| {
                if job.work != Work::Eval {
                    job.settings.insert(
                        "seed".into(),
                        Value::Integer(seed.try_into().unwrap_or(i64::MAX)),
                    );
                }
                job.settings
                    .get_mut("model")
                    .into_iter()
                    .for_each(|folder| locate(folder, data_dir));
                match job.settings.get_mut("data") {
                    Some(Value::Table(data)) => {
                        for key in ["train", "validation", "test"] {
                            data.get_mut(key)
                                .into_iter()
                                .for_each(|file| locate(file, data_dir));
                        }
                    }
                    Some(file) => locate(file, data_dir),
                    None => {}
                }
                job
            })
        };
        self.seeds.iter().flat_map(|&seed| each(seed)).collect()
    }
}

/// Puts a relative path into the folder of the data, if it is there: what is not may be the name of
/// what is built in.
fn locate(file: &mut Value, data_dir: &Path) {
    if let Value::String(file) = file {
        let moved = data_dir.join(&*file);
        if moved.exists() {
            *file = moved.to_string_lossy().into_owned();
        }
    }
}

fn twice(name: &str) -> String {
    format!("two runs are called `{name}`: give one another `name`")
}

/// Whether a run's name fits a pattern, in which `*` stands for anything.
pub fn matches(pattern: &str, name: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == name,
        Some((head, rest)) => name.strip_prefix(head).is_some_and(|tail| {
            (0..=tail.len()).any(|i| tail.is_char_boundary(i) && matches(rest, &tail[i..]))
        }),
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
        assert_eq!(
            folders,
            ["lora-seed0", "fast-seed0", "lora-seed7", "fast-seed7"]
        );
        let fast: Table = toml::from_str(&format!(
            "model = \"minilm-l6\"\nseed = 7\nmethod = {{ name = \"lora\" }}\n\
             data = {{ train = {:?}, validation = \"sms-spam\" }}\ntrain = {{ epochs = 2, lr = 1e-2 }}",
            dir.path().join("here.tsv")
        ))
        .unwrap();
        assert_eq!(jobs[3].settings, fast);
    }

    #[test]
    fn runs_say_which_command_they_are_for() {
        let text = r#"
            description = "Three kinds"
            seeds = [3, 4]
            [tune]
            model = "builtin"
            [pretrain]
            data = "text.txt"
            max_length = 32
            [eval]
            quantize = "none"
            [[runs]]
            method = { name = "lora" }
            [[runs]]
            name = "mqa"
            command = "pretrain"
            shape = { num_key_value_heads = 1 }
            [[runs]]
            name = "int4"
            command = "eval"
            quantize = "q4_0"
        "#;
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("text.txt"), "").unwrap();
        let jobs = Suite::parse(Path::new("s.toml"), text)
            .unwrap()
            .jobs(dir.path());
        assert_eq!(
            jobs.iter().map(|j| j.work).collect::<Vec<_>>(),
            [
                Work::Tune,
                Work::Pretrain,
                Work::Eval,
                Work::Tune,
                Work::Pretrain
            ]
        );
        let settings = format!(
            "data = {:?}\nmax_length = 32\nseed = 3\nshape = {{ num_key_value_heads = 1 }}",
            dir.path().join("text.txt")
        );
        assert_eq!(jobs[1].settings, toml::from_str(&settings).unwrap());
        assert_eq!(
            jobs[2].settings,
            toml::from_str("quantize = \"q4_0\"").unwrap()
        );
        // With one table of shared settings there is nothing to say.
        let one = "description = \"\"\n[pretrain]\nmax_length = 32\n[[runs]]\nname = \"a\"";
        assert_eq!(
            Suite::parse(Path::new("s.toml"), one)
                .unwrap()
                .jobs(dir.path())[0]
                .work,
            Work::Pretrain
        );
    }

    #[test]
    fn a_grid_adds_its_runs() {
        let text = r#"
            description = "A grid"
            [pretrain]
            max_length = 32
            shape = { num_hidden_layers = 2, num_attention_heads = 4, num_key_value_heads = 2 }
            [grid]
            shapes = [{ hidden_size = 32, intermediate_size = 64 }, { name = "wide", hidden_size = 32, intermediate_size = 96 }]
            tokens = [4000, 8000]
            lr = [0.01]
            batch_tokens = [64, 128]
        "#;
        let jobs = Suite::parse(Path::new("s.toml"), text)
            .unwrap()
            .jobs(Path::new("."));
        assert_eq!(
            (jobs.len(), jobs[0].name.as_str(), jobs[7].name.as_str()),
            (8, "h32-d4000-lr0.01-b64", "wide-d8000-lr0.01-b128")
        );
        // Two key-value heads of four: 2 (2 · 32² + 2 · 32 · 16 + 3 · 32 · 64).
        assert_eq!(jobs[0].point.as_ref().unwrap().parameters, 18432.0);
        assert!(
            ["h32*", "*-b64", "h32-d4000-lr0.01-b64", "*lr0.01*", "*"]
                .iter()
                .all(|p| matches(p, &jobs[0].name))
        );
        assert!(
            ["h32", "*-b6", "wide*", "", "h32*b128*"]
                .iter()
                .all(|p| !matches(p, &jobs[0].name))
        );
    }

    #[test]
    fn mistakes_are_named() {
        let error = |text: &str| {
            Suite::parse(Path::new("s.toml"), text)
                .unwrap_err()
                .to_string()
        };
        let head = "description = \"\"\n";
        for (text, part) in [
            ("nonsense", "s.toml: TOML parse error"),
            (&format!("{head}runs = []"), "no `[[runs]]`"),
            (
                &format!("{head}seeds = []\nruns = [{{ name = \"a\" }}]"),
                "`seeds` is empty",
            ),
            (
                &format!("{head}seeds = [3, 1, 3]\nruns = [{{ name = \"a\" }}]"),
                "`seeds` has 3 more than once",
            ),
            (
                &format!("{head}runs = [{{ train = {{}} }}]"),
                "run 1 has neither",
            ),
            (
                &format!("{head}runs = [{{ name = \"a\" }}, {{ name = \"a\" }}]"),
                "two runs are called `a`",
            ),
            (
                &format!("{head}runs = [{{ name = \"../a\" }}]"),
                "cannot name a run",
            ),
            (
                &format!("{head}runs = [{{ name = \"a\", command = \"dance\" }}]"),
                "must be tune, pretrain or eval",
            ),
            (
                &format!(
                    "{head}runs = [{{ name = \"a\" }}]\ngroups = [{{ name = \"g\", runs = [\"b\"] }}]"
                ),
                "group `g`: there is no run `b`",
            ),
            (
                &format!(
                    "{head}runs = [{{ name = \"a\" }}]\ngroups = [{{ name = \"g\", runs = [] }}]"
                ),
                "group `g` has no runs",
            ),
            (
                &format!(
                    "{head}runs = [{{ name = \"a\" }}]\ngroups = [{{ name = \"g\", runs = [\"a\"], baseline = \"c\" }}]"
                ),
                "its baseline `c` is none of its runs",
            ),
            (
                &format!(
                    "{head}[grid]\nshapes = [{{}}]\ntokens = [1]\nlr = [1.0]\nbatch_tokens = [1]"
                ),
                "`pretrain.max_length` is needed",
            ),
            (
                &format!("{head}epochs = 3\nruns = [{{ name = \"a\" }}]"),
                "unknown field `epochs`",
            ),
        ] {
            let message = error(text);
            assert!(message.contains(part), "{message}");
        }
    }
}
