//! The training loop.

mod by_blocks;
pub(crate) mod check;
mod division;
mod evaluation;
mod parallel;
mod pipeline;
mod places;
mod run;
mod save;
mod segments;
mod start;
mod step;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::time::Instant;

use frugal_core::events::peak_rss_bytes;
use frugal_nn::{Adapter, GradientSum, Head, Parameter, named_rng};
use rand::Rng;

use crate::batch::{Batches, Epoch};
use crate::checkpoint::{Cost, TrainerState};
use crate::error::TrainError;
use crate::event::Event;
use crate::objective::{self, Evaluation, Objective};
use crate::optim::{self, OptimizerStep};
use crate::parallel::{Group, ParallelReport};
use crate::schedule::Schedule;
use crate::source::ExampleSource;

pub use check::check_settings;
use check::{check, check_shared, data_hash};

pub use run::{StopReason, TrainRun, TrainSummary};

/// Trains an adapter.
///
/// Afterwards the adapter and head hold the last weights, or those of the best evaluation with
/// `load_best_model_at_end`.
///
/// # Errors
/// Settings, data or checkpoints that do not go together, all before any work; a loss or gradient
/// that is not finite; a checkpoint that cannot be written.
pub fn train(run: TrainRun<'_>) -> Result<TrainSummary, TrainError> {
    run.config.validate().map_err(TrainError::Config)?;
    let objective = objective::for_model(run.config, run.model()).map_err(TrainError::Setup)?;
    train_with(run, objective)
}

/// Trains an adapter with an objective of the caller's; the one that the settings name does not
/// count.
///
/// # Errors
/// As [`train`].
pub fn train_with(
    run: TrainRun<'_>,
    objective: Box<dyn Objective>,
) -> Result<TrainSummary, TrainError> {
    let (summary, _) = Trainer::new(run, objective, None, None)?.run()?;
    Ok(summary)
}

/// Trains an adapter on examples that a source makes step by step. The examples of `run` are what it
/// makes them of: they are checked, a run can be resumed with the same ones only, and the number of steps
/// and epochs is counted as if they were trained on.
///
/// # Errors
/// As [`train`]; examples that do not fit the objective or the model.
pub fn train_from<'a>(
    run: TrainRun<'a>,
    objective: Box<dyn Objective>,
    source: &'a mut dyn ExampleSource,
) -> Result<TrainSummary, TrainError> {
    let (summary, _) = Trainer::new(run, objective, Some(source), None)?.run()?;
    Ok(summary)
}

/// Trains an adapter together with other processes, each of which calls this with the same model,
/// data and settings. Rank 0 has the folder, evaluates and is observed; the others need neither.
///
/// All ranks end with the same weights, but for `load_best_model_at_end`: those of the best evaluation
/// are rank 0's alone.
///
/// # Errors
/// As [`train`]; methods and objectives that look at examples together; a process that is lost. After
/// that rank 0 writes a checkpoint of the last whole step, unless the lost process had a share of the
/// optimizer's state or of the weights with it (ZeRO, a pipeline): the error names the newest checkpoint
/// then.
pub fn train_parallel(
    run: TrainRun<'_>,
    group: &mut Group,
) -> Result<(TrainSummary, ParallelReport), TrainError> {
    run.config.validate().map_err(TrainError::Config)?;
    let objective = objective::for_model(run.config, run.model()).map_err(TrainError::Setup)?;
    let trained = Trainer::new(run, objective, None, Some(&mut *group)).and_then(Trainer::run);
    if let Err(error) = &trained {
        group.abort(&error.to_string());
    }
    let (summary, report) = trained?;
    Ok((summary, report.unwrap_or_default()))
}

struct Trainer<'a, 'g> {
    run: TrainRun<'a>,
    objective: Box<dyn Objective>,
    /// Where examples come from, if not from the run's.
    source: Option<&'a mut dyn ExampleSource>,
    batches: Batches,
    schedule: Schedule,
    total_steps: u64,
    optimizer: OptimizerStep,
    gradients: GradientSum,
    state: TrainerState,
    /// Batches of the current epoch, or of the decay.
    epoch: Epoch,
    /// Where the decay begins to learn from a mixture.
    decay_from: Option<u64>,
    /// Newest checkpoint and its step.
    saved: Option<(u64, PathBuf)>,
    /// Values of the best evaluation, when there is no folder to keep them in.
    best_values: Option<(Vec<Vec<f32>>, BTreeMap<String, Vec<f32>>)>,
    evaluation: Option<Evaluation>,
    /// Tokens and seconds of training since the last log entry.
    window: (u64, f64),
    started: Instant,
    /// What earlier processes spent on the run.
    spent: Cost,
    /// With ZeRO stages 2 and 3: the sums over all ranks of this rank's gradients, of the micro-batches so
    /// far.
    kept: GradientSum,
    /// What reads each parameter, in a run of several processes.
    readers: BTreeMap<String, places::Reader>,
    /// The other processes of the run.
    group: Option<&'g mut Group>,
    /// Step of the newest checkpoint, which ranks without a folder know as well.
    saved_step: Option<u64>,
}

impl<'a, 'g> Trainer<'a, 'g> {
    fn new(
        run: TrainRun<'a>,
        mut objective: Box<dyn Objective>,
        source: Option<&'a mut dyn ExampleSource>,
        group: Option<&'g mut Group>,
    ) -> Result<Self, TrainError> {
        check(&run, objective.as_ref())?;
        if group.is_some() {
            check_shared(&run, objective.as_ref())?;
        }
        let fitted = objective.fit(run.model(), run.train);
        fitted.map_err(TrainError::Setup)?;
        let config = run.config;
        let optimizer = optim::made(config).map_err(TrainError::Setup)?;
        let optimizer = OptimizerStep::new(optimizer, config).map_err(TrainError::Setup)?;
        let batches = Batches::new(run.train, config);
        let total_steps = batches.total_steps(config);
        let is_kept = run.folder.is_some() || group.is_some();
        let hashes = match is_kept {
            true => [
                data_hash(run.train),
                run.validation.map_or_else(String::new, data_hash),
            ],
            false => Default::default(),
        };
        let state = TrainerState::start(config.clone(), hashes);
        let mut trainer = Self {
            schedule: Schedule::new(config, total_steps),
            total_steps,
            optimizer,
            objective,
            source,
            gradients: GradientSum::default(),
            kept: GradientSum::default(),
            readers: BTreeMap::new(),
            epoch: batches.epoch(0),
            decay_from: None,
            batches,
            state,
            saved: None,
            best_values: None,
            evaluation: None,
            window: (0, 0.0),
            started: Instant::now(),
            spent: Cost::default(),
            group,
            saved_step: None,
            run,
        };
        let mixed = trainer.batches.has_decay();
        trainer.decay_from = trainer.schedule.decay_start().filter(|_| mixed);
        trainer.enter_decay();
        let checked = trainer.optimizer.optimizer().check(&trainer.parameters());
        checked.map_err(TrainError::Setup)?;
        if let Some(pattern) = trainer.optimizer.unused_group(&trainer.parameters()) {
            return Err(TrainError::Setup(format!(
                "`param_groups`: no parameter is left for the pattern {pattern:?}"
            )));
        }
        trainer.start()?;
        trainer.synchronize()?;
        Ok(trainer)
    }

    fn run(mut self) -> Result<(TrainSummary, Option<ParallelReport>), TrainError> {
        let ending = match self.steps() {
            Ok(ending) => ending,
            Err(error) => return Err(self.give_up(error)),
        };
        let is_interrupted = ending == StopReason::Interrupted;
        if is_interrupted && let Err(error) = self.save() {
            return Err(self.give_up(error));
        }
        let report = match self.make_whole().and_then(|()| self.report()) {
            Ok(report) => report,
            Err(error) => return Err(self.give_up(error)),
        };
        let mut restored_best = false;
        if is_interrupted {
            self.emit(Event::Interrupted {
                step: self.state.step,
                path: self.newest(),
            });
        } else if self.run.config.load_best_model_at_end {
            restored_best = self.restore_best();
        }
        let cost = self.cost();
        let summary = TrainSummary {
            ending,
            step: self.state.step,
            total_steps: self.total_steps,
            epoch: self.epochs_done(),
            tokens: self.state.tokens,
            best: self.state.best,
            changes: self.state.changes,
            restored_best,
            cost,
            evaluation: self.evaluation,
            checkpoint: self.saved.map(|(_, path)| path),
        };
        Ok((summary, report))
    }

    /// Takes steps until the run ends.
    fn steps(&mut self) -> Result<StopReason, TrainError> {
        loop {
            let finished = self.state.step >= self.total_steps;
            if self.evaluation_is_due(finished) && !self.evaluate()? {
                return Ok(StopReason::Interrupted);
            }
            if !self.measure_source()? {
                return Ok(StopReason::Interrupted);
            }
            let patience = self.run.config.early_stopping_patience;
            let stalled = patience > 0 && self.state.evaluations_without_improvement >= patience;
            if self.save_is_due(finished || stalled) {
                self.save()?;
            }
            if finished {
                return Ok(StopReason::Finished);
            }
            if stalled {
                let evaluations = self.state.evaluations_without_improvement;
                self.emit(Event::EarlyStop {
                    step: self.state.step,
                    evaluations,
                });
                return Ok(StopReason::EarlyStopped);
            }
            if self.is_to_stop()? || !self.step()? {
                return Ok(StopReason::Interrupted);
            }
        }
    }

    fn cost(&self) -> Cost {
        Cost {
            seconds: self.spent.seconds + self.started.elapsed().as_secs_f64(),
            peak_memory_bytes: self
                .spent
                .peak_memory_bytes
                .max(peak_rss_bytes().unwrap_or(0)),
        }
    }

    fn parameters(&self) -> Vec<&Parameter> {
        let head = self.run.head.iter().flat_map(|head| head.parameters());
        self.run
            .adapter
            .parameters()
            .into_iter()
            .chain(head)
            .collect()
    }

    fn parameters_mut(&mut self) -> Vec<&mut Parameter> {
        parameters_mut(&mut *self.run.adapter, &mut self.run.head)
    }

    /// Steps of the decay that are done, where it learns from a mixture.
    fn decay_steps_done(&self) -> Option<u64> {
        self.state.step.checked_sub(self.decay_from?)
    }

    /// Takes the batches of the decay, once it has begun.
    fn enter_decay(&mut self) {
        if let (Some(done), Some(from)) = (self.decay_steps_done(), self.decay_from) {
            self.epoch = self.batches.decay(self.total_steps - from);
            self.state.step_in_epoch = done;
        }
    }

    fn epochs_done(&self) -> f64 {
        self.state.epoch as f64 + self.state.step_in_epoch as f64 / self.epoch.steps() as f64
    }

    fn is_stopped(&self) -> bool {
        self.run.stop.load(Ordering::Relaxed)
    }

    fn seed(&self, place: &str) -> u64 {
        named_rng(self.run.config.seed, place).random()
    }

    fn emit(&mut self, event: Event) {
        self.run.observer.on_event(&event);
    }

    fn non_finite(&self, what: String, rows: &[u32]) -> TrainError {
        TrainError::NonFinite {
            what,
            step: self.state.step + 1,
            epoch: self.epochs_done(),
            rows: rows.to_vec(),
            checkpoint: self.newest(),
        }
    }

    fn newest(&self) -> Option<PathBuf> {
        self.saved.as_ref().map(|(_, path)| path.clone())
    }
}

fn parameters_mut<'b>(
    adapter: &'b mut dyn Adapter,
    head: &'b mut Option<&mut Head>,
) -> Vec<&'b mut Parameter> {
    adapter
        .parameters_mut()
        .into_iter()
        .chain(head.iter_mut().flat_map(|head| head.parameters_mut()))
        .collect()
}
