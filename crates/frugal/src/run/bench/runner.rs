//! What does one run of a suite: the queue says which and where, a runner does it.

use std::path::Path;
use std::sync::atomic::AtomicBool;

use frugal_models::load::Lookup;

use super::BenchError;
use super::planned::{BenchSettings, PlannedRun};
use crate::run::{MemoryCheck, Progress, RunError, TuneRequest, plan, pretrain, tune};

/// One run to do.
#[derive(Clone, Copy, Debug)]
pub struct Assignment<'a> {
    /// The run.
    pub run: &'a PlannedRun,
    /// Its settings as a file.
    pub settings_file: &'a Path,
    /// Its folder.
    pub folder: &'a Path,
    /// Whether the folder holds a run that was stopped, which goes on.
    pub resume: bool,
    /// Whether memory, processor time and power are to be sampled while it runs, and the model timed
    /// at generating; they are kept in the folder.
    pub sampled: bool,
}

/// How a run ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RunEnd {
    /// With a record in its folder.
    Done,
    /// It was stopped; it can go on later.
    Interrupted,
    /// It failed, for this reason.
    Failed(String),
}

/// Does the runs of a suite, one after the other.
pub trait Runner {
    /// Whether a run of `frugal tune` can start, as far as that is known before any weight is read.
    ///
    /// # Errors
    /// When that cannot be found out; a run that cannot start is [`RunEnd::Failed`].
    fn check(&mut self, run: &PlannedRun) -> Result<RunEnd, BenchError>;

    /// Does a run to its end.
    ///
    /// # Errors
    /// When it cannot be started at all; a run that fails is [`RunEnd::Failed`].
    fn run(&mut self, assignment: &Assignment<'_>) -> Result<RunEnd, BenchError>;
}

/// Does runs of `frugal tune` and `frugal pretrain` in this process. What a run leaves of memory
/// counts for the peak of the next one, so peaks of different runs cannot be compared, and nothing
/// is sampled: comparisons of cost need a process for each run, as the program `frugal` starts them.
pub struct InProcess<'a> {
    /// How models are looked up.
    pub lookup: Lookup,
    /// When set, the run ends with a checkpoint.
    pub stop: &'a AtomicBool,
    /// Is told what a run tells.
    pub observe: Box<dyn FnMut(&PlannedRun, &Progress) + 'a>,
}

impl Runner for InProcess<'_> {
    fn check(&mut self, run: &PlannedRun) -> Result<RunEnd, BenchError> {
        Ok(match &run.settings {
            BenchSettings::Tune(config) => end_of(plan(config, &self.lookup).map(|_| false)),
            _ => RunEnd::Done,
        })
    }

    fn run(&mut self, assignment: &Assignment<'_>) -> Result<RunEnd, BenchError> {
        let run = assignment.run;
        let unsupported = |reason| BenchError::Unsupported {
            run: run.job.name.clone(),
            reason,
        };
        if assignment.sampled {
            return Err(unsupported(
                "runs in one process cannot be sampled apart: use a runner that starts a process for each, as `frugal bench efficiency` does",
            ));
        }
        let mut observe = |progress: &Progress| (self.observe)(run, progress);
        match &run.settings {
            BenchSettings::Tune(config) => {
                let request = TuneRequest {
                    config,
                    command: &[],
                    lookup: &self.lookup,
                    resume: assignment.resume,
                    memory: MemoryCheck::default(),
                    stop: self.stop,
                };
                let tuned = tune(&request, &mut observe);
                Ok(end_of(tuned.map(|tuned| tuned.interrupted)))
            }
            BenchSettings::Pretrain(config) => {
                let resume = assignment.resume;
                let made = pretrain(config, &[], resume, self.stop, &mut observe);
                Ok(end_of(made.map(|made| made.interrupted)))
            }
            BenchSettings::Score(_) => Err(unsupported(
                "a model as it is is timed in a process of its own: use `frugal bench efficiency`",
            )),
        }
    }
}

/// The end of a run that says whether it was interrupted.
fn end_of(interrupted: Result<bool, RunError>) -> RunEnd {
    match interrupted {
        Ok(false) => RunEnd::Done,
        Ok(true) => RunEnd::Interrupted,
        Err(error) => RunEnd::Failed(error.to_string()),
    }
}
