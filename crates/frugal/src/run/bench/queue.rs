//! The runs of a suite: checked before the first one starts, done one after the other, taken up
//! again where they stopped.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use frugal_core::fs::{FileError, is_temporary, write_atomic};
use frugal_core::lock::{FolderLock, LOCK_FILE};
use frugal_eval::efficiency::{EFFICIENCY_FILE, GENERATION_FILE};
use frugal_eval::report::{RECORD_FILE, RunRecord, Status};
use frugal_eval::suite::Work;
use serde_json::Value;

use super::BenchError;
use super::planned::{BenchSettings, PlannedRun};
use super::runner::{Assignment, RunEnd, Runner};

/// What a queue of runs tells while it goes on.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub enum BenchEvent<'a> {
    /// Runs of `frugal tune` are checked.
    Checking {
        /// How many.
        runs: usize,
    },
    /// The first run is about to begin.
    Queue {
        /// Runs that are done already.
        done: usize,
        /// All of them.
        of: usize,
    },
    /// A run begins.
    Begin {
        /// The run.
        run: &'a PlannedRun,
    },
    /// A run has ended.
    End {
        /// The run.
        run: &'a PlannedRun,
        /// How.
        end: &'a RunEnd,
        /// Its record, if it is done.
        record: Option<&'a RunRecord>,
        /// Seconds that the others will take if they are like those so far.
        seconds_left: f64,
    },
    /// All runs have ended, or the queue was stopped.
    Finished,
}

/// How a queue of runs is done.
pub struct Queue<'a> {
    /// Does one run.
    pub runner: &'a mut dyn Runner,
    /// When set, no further run begins.
    pub stop: &'a AtomicBool,
    /// Is told how it goes.
    pub observe: &'a mut dyn FnMut(BenchEvent<'_>),
}

impl Queue<'_> {
    /// Does the runs that are not done, in folders below `out`; whether it was stopped before the
    /// last. With `sampled`, what each costs is sampled, and models are timed at generating.
    ///
    /// # Errors
    /// A finished run with other settings, a run that cannot start, files that cannot be written. A
    /// run that fails is kept as such, and the next one begins.
    pub fn run_all(
        &mut self,
        runs: &[PlannedRun],
        out: &Path,
        sampled: bool,
    ) -> Result<bool, BenchError> {
        let mut open = Vec::new();
        for run in runs {
            if !is_finished(&out.join(run.job.folder()), &run.settings, sampled)? {
                open.push(run);
            }
        }
        if !self.check(&open)? {
            return Ok(true);
        }
        let done = runs.len() - open.len();
        let of = runs.len();
        (self.observe)(BenchEvent::Queue { done, of });
        let started = Instant::now();
        let mut stopped = false;
        for (done, run) in (1u32..).zip(&open) {
            (self.observe)(BenchEvent::Begin { run });
            let (end, record) = self.one(run, &out.join(run.job.folder()), sampled)?;
            if self.stop.load(Ordering::SeqCst) {
                stopped = true;
                break;
            }
            let left = open.len() as f64 - f64::from(done);
            (self.observe)(BenchEvent::End {
                run,
                end: &end,
                record: record.as_ref(),
                seconds_left: started.elapsed().as_secs_f64() / f64::from(done) * left,
            });
        }
        (self.observe)(BenchEvent::Finished);
        Ok(stopped)
    }

    /// Checks the runs of `frugal tune`, so that a method that does not fit the model is found
    /// before the first of them starts; false if it was stopped. Runs that differ in seed and
    /// learning rate only are alike.
    fn check(&mut self, open: &[&PlannedRun]) -> Result<bool, BenchError> {
        let mut seen = BTreeSet::new();
        let mut tuned: Vec<&&PlannedRun> = Vec::new();
        for run in open.iter().filter(|run| run.job.work == Work::Tune) {
            if seen.insert(plan_settings(&run.settings)?) {
                tuned.push(run);
            }
        }
        if tuned.is_empty() {
            return Ok(true);
        }
        (self.observe)(BenchEvent::Checking { runs: tuned.len() });
        for run in tuned {
            let end = self.runner.check(run)?;
            if self.stop.load(Ordering::SeqCst) {
                return Ok(false);
            }
            let reason = match end {
                RunEnd::Done => continue,
                RunEnd::Interrupted => "the check was interrupted".to_owned(),
                RunEnd::Failed(reason) => reason,
            };
            let run = run.job.name.clone();
            return Err(BenchError::Refused { run, reason });
        }
        Ok(true)
    }

    /// Does one run; how it ended, and its record if it is done.
    fn one(
        &mut self,
        run: &PlannedRun,
        folder: &Path,
        sampled: bool,
    ) -> Result<(RunEnd, Option<RunRecord>), BenchError> {
        wait_for_orphan(folder)?;
        if sampled && folder.exists() {
            // What a part of a run costs says nothing about the whole.
            std::fs::remove_dir_all(folder).map_err(FileError::at(folder, "cannot be removed"))?;
        }
        let toml = |source| BenchError::Settings {
            run: run.job.name.clone(),
            source,
        };
        // Names may hold dots.
        let settings_file = PathBuf::from(format!("{}.toml", folder.display()));
        write_atomic(
            &settings_file,
            run.settings.to_toml().map_err(toml)?.as_bytes(),
        )?;
        let resume = run.job.work != Work::Eval && left_to_resume(folder)?;
        let end = self.runner.run(&Assignment {
            run,
            settings_file: &settings_file,
            folder,
            resume,
            sampled,
        })?;
        let path = folder.join(RECORD_FILE);
        match &end {
            RunEnd::Done => {
                let record = RunRecord::read(&path)?;
                return Ok((end, Some(record)));
            }
            RunEnd::Interrupted => {}
            RunEnd::Failed(reason) => {
                let mut record = RunRecord::default();
                record.run_info.experiment_name = run.job.folder();
                record.run_info.train_config = run.settings.to_json()?;
                record.run_info.error_msg.clone_from(reason);
                record.train_info.status = Status::Failed;
                record.write(&path)?;
            }
        }
        Ok((end, None))
    }
}

/// Settings as text, as far as a plan depends on them.
fn plan_settings(settings: &BenchSettings) -> Result<String, BenchError> {
    let mut value = settings.to_json()?;
    for (table, keys) in [("", ["out", "seed"]), ("/train", ["lr", "seed"])] {
        if let Some(Value::Object(table)) = value.pointer_mut(table) {
            keys.iter().for_each(|key| drop(table.remove(*key)));
        }
    }
    Ok(value.to_string())
}

/// Whether a run is done; one with other settings is not to be mixed in.
fn is_finished(folder: &Path, settings: &BenchSettings, sampled: bool) -> Result<bool, BenchError> {
    let Ok(record) = RunRecord::read(&folder.join(RECORD_FILE)) else {
        return Ok(false);
    };
    if record.train_info.status != Status::Success {
        return Ok(false);
    }
    let plain = |mut value: Value| {
        if let Some(map) = value.as_object_mut() {
            map.remove("out");
        }
        value
    };
    // Numbers of the record went through text, so the given ones do too.
    let given: Value = serde_json::from_str(&settings.to_json()?.to_string())?;
    if plain(record.run_info.train_config) != plain(given) {
        return Err(BenchError::OtherSettings {
            folder: folder.to_owned(),
        });
    }
    let timed = matches!(settings, BenchSettings::Tune(_)) || folder.join(GENERATION_FILE).exists();
    Ok(!sampled || timed && folder.join(EFFICIENCY_FILE).exists())
}

/// Whether a stopped run left something in its folder from which it goes on. A failed attempt has
/// nothing to go on from but its checkpoints, so its record goes.
fn left_to_resume(folder: &Path) -> Result<bool, BenchError> {
    if !folder.exists() {
        return Ok(false);
    }
    let record = folder.join(RECORD_FILE);
    if record.exists() {
        std::fs::remove_file(&record).map_err(FileError::at(&record, "cannot be removed"))?;
    }
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let mut names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
    Ok(names.any(|name| name != LOCK_FILE && !is_temporary(&name)))
}

/// Time that the run of a comparison that was killed gets to write its checkpoint.
const PATIENCE: Duration = Duration::from_secs(120);

/// Waits for a process that still writes to the folder of a run, begun by an earlier one of this
/// comparison.
fn wait_for_orphan(folder: &Path) -> Result<(), BenchError> {
    if folder.exists() {
        drop(FolderLock::acquire_within(folder, PATIENCE)?);
    }
    Ok(())
}
