//! What fine-tuning and pre-training have in common: a folder of their own, training with
//! configuration file, log and checkpoints, and the record.

use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use frugal_core::encode::Tokenized;
use frugal_core::events::{LOG_FILE, Scalars, names, peak_rss_bytes, read_jsonl};
use frugal_eval::report::{RunInfo, Status, TrainInfo};
use frugal_nn::{Adapter, Backbone, Head};
use frugal_train::parallel::{Group, ParallelReport};
use frugal_train::{
    Event, ExampleSource, Objective, Schedule, StopReason, TrainConfig, TrainRun, TrainSummary,
    train, train_from, train_parallel, train_with,
};
use serde::Serialize;

use super::folder::{Claim, ConfigFile};
use super::log::Logger;
use super::{Observe, Progress, RunError};

/// Does `work` in a folder that is this process's alone; after a failure the folder is as it was.
pub(super) fn in_folder<T>(
    claim: Claim,
    work: impl FnOnce() -> Result<T, RunError>,
) -> Result<T, RunError> {
    let waiting = claim.register();
    let done = work();
    drop(waiting);
    match done {
        Err(_) => claim.give_back(),
        Ok(_) => drop(claim),
    }
    done
}

/// A run in its folder.
pub(super) struct Job<'a> {
    out: PathBuf,
    config_file: &'static str,
    resume: bool,
    /// Whether the folder of a new run has a checkpoint to begin with.
    from_checkpoint: bool,
    stop: &'a AtomicBool,
    command: &'a [String],
    begin: Instant,
    created_at: String,
}

/// What is trained on what.
pub(super) struct Learn<'a> {
    pub(super) backbone: &'a dyn Backbone,
    pub(super) adapter: &'a mut dyn Adapter,
    pub(super) head: Option<&'a mut Head>,
    pub(super) train: &'a [Tokenized],
    pub(super) validation: Option<&'a [Tokenized]>,
    pub(super) config: &'a TrainConfig,
    /// What is minimised, where it is not what the settings say.
    pub(super) objective: Option<Box<dyn Objective>>,
    /// What makes the examples, with an objective that they are for.
    pub(super) source: Option<&'a mut dyn ExampleSource>,
}

/// What training came to.
pub(super) struct Trained {
    pub(super) outcome: TrainSummary,
    /// Seconds of training, with the processes that this one resumes.
    pub(super) seconds: f64,
    /// Those of the processes that this one resumes.
    earlier: f64,
}

impl Trained {
    /// Whether it was stopped before its end.
    pub(super) fn cut_short(&self) -> bool {
        self.outcome.ending == StopReason::Interrupted
    }

    /// The step whose weights were kept.
    pub(super) fn kept_step(&self) -> u64 {
        match &self.outcome.best {
            Some(best) if self.outcome.restored_best => best.step,
            _ => self.outcome.step,
        }
    }

    /// The most memory that a process of the run has held until now.
    pub(super) fn peak_memory(&self) -> Option<u64> {
        peak_rss_bytes().map(|peak| peak.max(self.outcome.cost.peak_memory_bytes))
    }
}

impl<'a> Job<'a> {
    pub(super) fn new(
        out: &Path,
        config_file: &'static str,
        resume: bool,
        stop: &'a AtomicBool,
        command: &'a [String],
    ) -> Self {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        Self {
            out: out.into(),
            config_file,
            resume,
            from_checkpoint: false,
            stop,
            command,
            begin: Instant::now(),
            created_at: frugal_core::human::utc(now.map_or(0, |d| d.as_secs())),
        }
    }

    /// The same for a new run that was given a checkpoint to begin with.
    pub(super) fn with_checkpoint(self) -> Self {
        Self {
            from_checkpoint: true,
            ..self
        }
    }

    /// The configuration file, written at once in a new run.
    pub(super) fn config_file(&self, config: &impl Serialize) -> Result<ConfigFile, RunError> {
        ConfigFile::new(self.out.join(self.config_file), config, self.resume)
    }

    /// Trains, and keeps the configuration, the log and the checkpoints.
    pub(super) fn train(
        &self,
        file: ConfigFile,
        learn: Learn<'_>,
        observe: Observe<'_>,
    ) -> Result<Trained, RunError> {
        self.train_with_others(file, learn, None, observe)
            .map(|(trained, _)| trained)
    }

    /// Trains, with other processes where there are any.
    pub(super) fn train_with_others(
        &self,
        mut file: ConfigFile,
        learn: Learn<'_>,
        group: Option<&mut Group>,
        observe: Observe<'_>,
    ) -> Result<(Trained, Option<ParallelReport>), RunError> {
        let start = Instant::now();
        let mut logger = Logger::new(&self.out, self.resume);
        let config = learn.config;
        let mut observer = |event: &Event| {
            file.on(event);
            logger.on(event);
            if let Event::Started { total_steps, .. } = event
                && let Some(text) = short_of_its_rate(config, *total_steps)
            {
                observe(&Progress::Warning { text });
            }
            observe(&Progress::Train(event.clone()));
        };
        let run = TrainRun {
            backbone: learn.backbone,
            adapter: learn.adapter,
            head: learn.head,
            train: learn.train,
            validation: learn.validation,
            config: learn.config,
            folder: Some(&self.out),
            resume: self.resume || self.from_checkpoint,
            stop: self.stop,
            observer: &mut observer,
        };
        let (outcome, report) = match (learn.objective, learn.source, group) {
            (Some(objective), Some(source), _) => (train_from(run, objective, source)?, None),
            (Some(objective), None, _) => (train_with(run, objective)?, None),
            (None, _, None) => (train(run)?, None),
            (None, _, Some(group)) => {
                let (outcome, report) = train_parallel(run, group)?;
                (outcome, Some(report))
            }
        };
        file.finish()?;
        logger.finish()?;
        let seconds = outcome.cost.seconds;
        let trained = Trained {
            outcome,
            seconds,
            earlier: (seconds - start.elapsed().as_secs_f64()).max(0.0),
        };
        Ok((trained, report))
    }

    /// The log of the whole run.
    pub(super) fn log(&self) -> Result<Vec<Scalars>, RunError> {
        Ok(read_jsonl(&self.out.join(LOG_FILE))?)
    }

    /// The name of the run.
    pub(super) fn name(&self) -> String {
        self.out
            .file_name()
            .map_or_else(String::new, |n| n.to_string_lossy().into_owned())
    }

    /// What the record says of the run as a whole.
    pub(super) fn run_info(&self, trained: &Trained, config: &impl Serialize) -> RunInfo {
        RunInfo {
            created_at: self.created_at.clone(),
            total_time: trained.earlier + self.begin.elapsed().as_secs_f64(),
            experiment_name: self.name(),
            command: self.command.to_vec(),
            train_config: serde_json::to_value(config).unwrap_or_default(),
            notes: trained.outcome.changes.clone(),
            ..RunInfo::default()
        }
    }

    /// What the record says of the training; the caller knows parameters, memory and files.
    pub(super) fn train_info(
        &self,
        trained: &Trained,
        interrupted: bool,
        log: &[Scalars],
    ) -> TrainInfo {
        let is_evaluation = |s: &&Scalars| s.get(names::EVAL_LOSS).is_some();
        TrainInfo {
            train_time: trained.seconds,
            train_tokens: trained.outcome.tokens,
            status: if interrupted {
                Status::Cancelled
            } else {
                Status::Success
            },
            metrics: log.iter().filter(is_evaluation).cloned().collect(),
            ..TrainInfo::default()
        }
    }
}

/// What is said of a run that ends within its warm-up.
fn short_of_its_rate(config: &TrainConfig, total_steps: u64) -> Option<String> {
    let schedule = Schedule::new(config, total_steps);
    let warmup = schedule.warmup_steps();
    if warmup == 0 || warmup < total_steps {
        return None;
    }
    // Of a single step every share is all: that is meant by nobody who asks for one step.
    if config.warmup_steps == 0 && total_steps < 2 {
        return None;
    }
    let key = match config.warmup_steps {
        0 => "warmup_ratio",
        _ => "warmup_steps",
    };
    let reached = 100.0 * schedule.factor(total_steps.saturating_sub(1));
    Some(format!(
        "`train.{key}`: the warm-up takes {warmup} steps and the run has {total_steps}: it ends at {reached:.0} % of its learning rate, {}",
        config.lr
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The rate rises from 0 at the first step: of 4 steps of a warm-up of 8 the last is at 3 / 8.
    #[test]
    fn a_run_that_ended_within_its_warm_up_said_nothing() {
        let config = |warmup_steps, warmup_ratio| TrainConfig {
            lr: 0.01,
            warmup_steps,
            warmup_ratio,
            ..TrainConfig::default()
        };
        let said = short_of_its_rate(&config(8, 0.0), 4).unwrap();
        for word in ["`train.warmup_steps`", "8 steps", "has 4", "38 %", "0.01"] {
            assert!(said.contains(word), "{said}");
        }
        let said = short_of_its_rate(&config(0, 1.0), 4).unwrap();
        assert!(
            said.contains("`train.warmup_ratio`") && said.contains("75 %"),
            "{said}"
        );
        // Three steps of warm-up, and the fourth at the full rate.
        assert_eq!(short_of_its_rate(&config(3, 0.0), 4), None);
        assert!(short_of_its_rate(&config(4, 0.0), 4).is_some());
        assert_eq!(short_of_its_rate(&config(0, 0.0), 1), None);
        assert_eq!(short_of_its_rate(&config(0, 0.03), 1), None);
        assert!(short_of_its_rate(&config(1, 0.0), 1).is_some());
    }
}
