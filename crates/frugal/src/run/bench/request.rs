//! Which suite is run, and which part of it.

use std::path::{Path, PathBuf};

use frugal_core::lock::FolderLock;
use frugal_eval::suite::{Job, Suite, matches};

use super::BenchError;
use super::groups::groups;
use super::kind::BenchKind;
use super::planned::{PlannedRun, planned_run};
use crate::run::claim_results;

/// More names than this help nobody to find the right one.
const SHOWN_NAMES: usize = 60;

/// A suite, the part of it that is wanted, and where its runs go.
#[derive(Clone, Debug)]
pub struct BenchRequest {
    /// What is compared.
    pub kind: BenchKind,
    /// The suite.
    pub suite: Suite,
    /// What it is called.
    pub title: String,
    /// Folder of all runs and of the comparison.
    pub out: PathBuf,
    /// Where the suite's data files are.
    pub data_dir: PathBuf,
    /// Only the runs of these names, in which `*` stands for anything; all if empty.
    pub only: Vec<String>,
    /// Only these of the suite's seeds; all if empty.
    pub seeds: Vec<u64>,
    /// Changes of every run's settings, as `train.max_steps=10`.
    pub overrides: Vec<String>,
}

impl BenchRequest {
    /// All jobs of the suite, whichever are wanted.
    pub(super) fn all_jobs(&self) -> Vec<Job> {
        self.suite.jobs(&self.data_dir)
    }

    /// Every wanted run's configuration, checked before the first of them starts.
    ///
    /// # Errors
    /// Runs that this comparison does not take, names that fit none, settings that cannot be used,
    /// data files that are not there.
    pub fn plan(&self) -> Result<Vec<PlannedRun>, BenchError> {
        self.check_kind()?;
        let jobs = self.named_jobs()?;
        let wanted = |job: &Job| self.seeds.is_empty() || self.seeds.contains(&job.seed);
        let jobs: Vec<Job> = jobs.into_iter().filter(wanted).collect();
        if jobs.is_empty() {
            return Err(BenchError::NoRuns {
                seeds: self.suite.seeds.clone(),
            });
        }
        jobs.into_iter()
            .map(|job| planned_run(job, &self.overrides, &self.data_dir, &self.out))
            .collect()
    }

    /// Whether the suite has what this comparison is of.
    fn check_kind(&self) -> Result<(), BenchError> {
        match self.kind {
            BenchKind::Pretrain if self.suite.grid.is_none() => Err(BenchError::NoGrid {
                title: self.title.clone(),
            }),
            BenchKind::Efficiency => groups(&self.suite, &self.all_jobs()).map(drop),
            _ => Ok(()),
        }
    }

    /// The jobs with wanted names, of all seeds.
    pub(super) fn named_jobs(&self) -> Result<Vec<Job>, BenchError> {
        let jobs = self.all_jobs();
        let allowed = self.kind.allowed();
        if let Some(other) = jobs.iter().find(|job| !allowed.contains(&job.work)) {
            return Err(BenchError::OtherCommand {
                run: other.name.clone(),
                command: other.work.name(),
            });
        }
        let unknown = |pattern: &&String| jobs.iter().all(|job| !matches(pattern, &job.name));
        if let Some(unknown) = self.only.iter().find(unknown) {
            return Err(BenchError::UnknownRun {
                name: unknown.clone(),
                known: shown_names(&jobs),
            });
        }
        let named = |job: &Job| {
            self.only.is_empty() || self.only.iter().any(|pattern| matches(pattern, &job.name))
        };
        Ok(jobs.into_iter().filter(named).collect())
    }

    /// Takes the output folder for this process alone.
    pub(super) fn claim(&self, runs: &[PlannedRun]) -> Result<FolderLock, BenchError> {
        let own = self.all_jobs();
        let mut names: Vec<String> = own.iter().map(Job::folder).collect();
        names.extend(runs.iter().map(|run| run.job.folder()));
        let begun = |name: &str| {
            let name = name.strip_suffix(".toml").unwrap_or(name);
            names.iter().any(|own| own == name)
        };
        Ok(claim_results(&self.out, self.kind.results_key(), begun)?)
    }

    /// The folder of a job.
    pub(super) fn folder(&self, job: &Job) -> PathBuf {
        self.out.join(job.folder())
    }

    /// A file beside the runs.
    pub(super) fn file(&self, name: impl AsRef<Path>) -> PathBuf {
        self.out.join(name)
    }
}

fn shown_names(jobs: &[Job]) -> String {
    let mut names: Vec<&str> = jobs.iter().map(|job| job.name.as_str()).collect();
    names.dedup();
    let more = if names.len() > SHOWN_NAMES {
        ", ..."
    } else {
        ""
    };
    names.truncate(SHOWN_NAMES);
    format!("{}{more}", names.join(", "))
}
