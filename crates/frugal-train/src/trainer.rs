//! The training loop.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use frugal_core::events::peak_rss_bytes;
use frugal_nn::{
    Adapter, Backbone, GradientSum, Head, Mode, Parameter, StepContext, named_rng, to_vec,
};
use rand::Rng;
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::batch::{Batches, Epoch, num_targets};
use crate::checkpoint::{self, Best, Checkpoint, CheckpointError, Cost, TrainerState, hex};
use crate::config::{ConfigProblem, TrainConfig};
use crate::error::{Set, TrainError};
use crate::evaluate::{Evaluation, evaluate_observed, metric_names};
use crate::event::{Event, Observer};
use crate::neftune::NoisyPass;
use crate::objective::{MicroBatch, Objective};
use crate::optimizer::{AdamW, OptimizerError};
use crate::schedule::Schedule;
use crate::{Target, Tokenized};

/// Settings that a resumed run may change. More `epochs` or `max_steps` stretch the schedule from
/// there on; fewer than are done are refused.
const MAY_CHANGE: [&str; 9] = [
    "epochs",
    "max_steps",
    "memory",
    "logging_steps",
    "eval_steps",
    "save_steps",
    "save_total_limit",
    "load_best_model_at_end",
    "early_stopping_patience",
];

/// Everything that a run needs.
pub struct TrainRun<'a> {
    /// The frozen model.
    pub backbone: &'a dyn Backbone,
    /// What is trained.
    pub adapter: &'a mut dyn Adapter,
    /// Head that is trained with it; turns the run into classification.
    pub head: Option<&'a mut Head>,
    /// Examples to learn from.
    pub train: &'a [Tokenized],
    /// Examples to measure on.
    pub validation: Option<&'a [Tokenized]>,
    /// Settings.
    pub config: &'a TrainConfig,
    /// Where checkpoints go; without it nothing is written.
    pub folder: Option<&'a Path>,
    /// Continue from the folder's newest valid checkpoint, if there is one.
    pub resume: bool,
    /// When set, the run stops after the current micro-batch, with a checkpoint.
    pub stop: &'a AtomicBool,
    /// Receives the events.
    pub observer: &'a mut dyn Observer,
}

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopReason {
    /// All steps were taken.
    Finished,
    /// Evaluations stopped improving.
    EarlyStopped,
    /// It was asked to stop.
    Interrupted,
}

/// What a run came to.
#[derive(Clone, Debug, PartialEq)]
pub struct TrainSummary {
    /// How it ended.
    pub ending: StopReason,
    /// Optimiser steps done.
    pub step: u64,
    /// Optimiser steps planned.
    pub total_steps: u64,
    /// Epochs done.
    pub epoch: f64,
    /// Tokens read.
    pub tokens: u64,
    /// The best evaluation.
    pub best: Option<Best>,
    /// Whether the weights are those of the best evaluation rather than the last ones.
    pub restored_best: bool,
    /// The last evaluation of this call.
    pub evaluation: Option<Evaluation>,
    /// The newest checkpoint.
    pub checkpoint: Option<PathBuf>,
    /// What it cost, with the processes that it resumes.
    pub cost: Cost,
}

/// Trains an adapter.
///
/// Afterwards the adapter and head hold the last weights, or those of the best evaluation with
/// `load_best_model_at_end`.
///
/// # Errors
/// Settings, data or checkpoints that do not go together, all before any work; a loss or gradient
/// that is not finite; a checkpoint that cannot be written.
pub fn train(run: TrainRun<'_>) -> Result<TrainSummary, TrainError> {
    Trainer::new(run)?.run()
}

struct Trainer<'a> {
    run: TrainRun<'a>,
    batches: Batches,
    schedule: Schedule,
    total_steps: u64,
    optimizer: AdamW,
    gradients: GradientSum,
    state: TrainerState,
    /// Batches of the current epoch.
    epoch: Epoch,
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
}

impl<'a> Trainer<'a> {
    fn new(run: TrainRun<'a>) -> Result<Self, TrainError> {
        check(&run)?;
        let config = run.config;
        let batches = Batches::new(run.train, config);
        let total_steps = batches.total_steps(config);
        let hashes = match run.folder {
            Some(_) => [
                data_hash(run.train),
                run.validation.map_or_else(String::new, data_hash),
            ],
            None => Default::default(),
        };
        let state = TrainerState::start(config.clone(), hashes);
        let mut trainer = Self {
            schedule: Schedule::new(config, total_steps),
            total_steps,
            optimizer: AdamW::new(config),
            gradients: GradientSum::default(),
            epoch: batches.epoch(0),
            batches,
            state,
            saved: None,
            best_values: None,
            evaluation: None,
            window: (0, 0.0),
            started: Instant::now(),
            spent: Cost::default(),
            run,
        };
        trainer.start()?;
        Ok(trainer)
    }

    fn start(&mut self) -> Result<(), TrainError> {
        let (found, skipped) = match self.run.folder {
            Some(folder) if self.run.resume => checkpoint::latest(folder),
            Some(folder) if !checkpoint::list(folder).is_empty() => {
                return Err(TrainError::FolderInUse {
                    folder: folder.to_owned(),
                });
            }
            _ => (None, Vec::new()),
        };
        match (&found, self.run.folder) {
            (Some(checkpoint), _) => self.restore(checkpoint)?,
            (None, Some(folder)) if !skipped.is_empty() => {
                return Err(TrainError::NoCheckpoint {
                    folder: folder.to_owned(),
                    found: skipped.iter().map(ToString::to_string).collect(),
                });
            }
            _ => {}
        }
        let examples = self.batches.examples();
        let trainable = self
            .parameters()
            .iter()
            .filter(|p| p.is_trainable())
            .map(|p| p.len())
            .sum();
        let left_out = self.run.train.len() - examples;
        self.emit(Event::Started {
            total_steps: self.total_steps,
            examples,
            skipped: left_out,
            trainable_parameters: trainable,
        });
        for error in skipped {
            self.emit(Event::CheckpointSkipped {
                reason: error.to_string(),
            });
        }
        if let Some(Checkpoint { path, .. }) = found {
            self.emit(Event::Resumed {
                step: self.state.step,
                epoch: self.epochs_done(),
                path,
                seconds: self.spent.seconds,
            });
        }
        Ok(())
    }

    /// Puts the run where a checkpoint left it.
    fn restore(&mut self, checkpoint: &Checkpoint) -> Result<(), TrainError> {
        let mut differences = config_differences(&checkpoint.state.config, self.run.config);
        if checkpoint.state.data_hash != self.state.data_hash {
            differences.push("the training data are not the same".into());
        }
        let (before, now) = (
            &checkpoint.state.validation_hash,
            &self.state.validation_hash,
        );
        let validation_hash = now.clone();
        if !before.is_empty() && before != now {
            differences.push(
                "the validation data are not the same, so that the best evaluation would be chosen among scores on two sets"
                    .into(),
            );
        }
        if !differences.is_empty() {
            return Err(TrainError::Resume {
                path: checkpoint.path.clone(),
                differences,
            });
        }
        let (done, planned) = (checkpoint.state.step, self.total_steps);
        if done > planned {
            let setting = if self.run.config.max_steps > 0 {
                "max_steps"
            } else {
                "epochs"
            };
            return Err(TrainError::Shortened {
                path: checkpoint.path.clone(),
                setting,
                done,
                planned,
            });
        }
        checkpoint.load_optimizer(&mut self.optimizer)?;
        self.load_weights(checkpoint)?;
        self.state = TrainerState {
            config: self.run.config.clone(),
            validation_hash,
            ..checkpoint.state.clone()
        };
        self.epoch = self.batches.epoch(self.state.epoch);
        self.spent = checkpoint.cost;
        self.saved = Some((self.state.step, checkpoint.path.clone()));
        Ok(())
    }

    /// Puts the weights of a checkpoint, and what the method keeps beside them, in place.
    fn load_weights(&mut self, checkpoint: &Checkpoint) -> Result<(), CheckpointError> {
        self.run
            .adapter
            .restore(&checkpoint.adapter_state()?)
            .map_err(|reason| checkpoint.invalid(reason))?;
        checkpoint.load_parameters(self.parameters_mut())
    }

    fn run(mut self) -> Result<TrainSummary, TrainError> {
        let ending = loop {
            let finished = self.state.step >= self.total_steps;
            if self.evaluation_is_due(finished) && !self.evaluate()? {
                break StopReason::Interrupted;
            }
            let patience = self.run.config.early_stopping_patience;
            let stalled = patience > 0 && self.state.evaluations_without_improvement >= patience;
            if self.save_is_due(finished || stalled) {
                self.save()?;
            }
            if finished {
                break StopReason::Finished;
            }
            if stalled {
                let evaluations = self.state.evaluations_without_improvement;
                self.emit(Event::EarlyStop {
                    step: self.state.step,
                    evaluations,
                });
                break StopReason::EarlyStopped;
            }
            if self.is_stopped() || !self.step()? {
                break StopReason::Interrupted;
            }
        };
        let mut restored_best = false;
        if ending == StopReason::Interrupted {
            self.save()?;
            self.emit(Event::Interrupted {
                step: self.state.step,
                path: self.newest(),
            });
        } else if self.run.config.load_best_model_at_end {
            restored_best = self.restore_best();
        }
        let cost = self.cost();
        Ok(TrainSummary {
            ending,
            step: self.state.step,
            total_steps: self.total_steps,
            epoch: self.epochs_done(),
            tokens: self.state.tokens,
            best: self.state.best,
            restored_best,
            cost,
            evaluation: self.evaluation,
            checkpoint: self.saved.map(|(_, path)| path),
        })
    }

    /// One optimiser step; `false` if it was given up because the run is to stop.
    fn step(&mut self) -> Result<bool, TrainError> {
        let _span = tracing::debug_span!("step", number = self.state.step + 1).entered();
        let started = Instant::now();
        let micro_batches: Vec<Vec<u32>> = self
            .epoch
            .step(self.state.step_in_epoch)
            .map(<[u32]>::to_vec)
            .collect();
        let rows = micro_batches.concat();
        let examples = rows.iter().map(|&row| &self.run.train[row as usize]);
        let targets: usize = examples.clone().map(num_targets).sum();
        let tokens: usize = examples.map(|example| example.input_ids.len()).sum();

        self.gradients.clear();
        let mut loss = 0.0;
        for (index, rows) in micro_batches.iter().enumerate() {
            // A step that is given up is taken again from its start after a resume.
            if index > 0 && self.is_stopped() {
                return Ok(false);
            }
            let seed = self.seed(&format!("micro-batch {index} of step {}", self.state.step));
            loss += self.micro_batch(rows, Mode::Train { seed }, targets, micro_batches.len())?;
            self.emit(Event::MicroBatch {
                step: self.state.step,
                total_steps: self.total_steps,
                done: index + 1,
                of: micro_batches.len(),
            });
        }

        let (lr, seed) = (
            self.schedule.lr(self.state.step),
            self.seed(&format!("step {}", self.state.step)),
        );
        let context = StepContext {
            step: self.state.step,
            total_steps: self.total_steps,
            seed,
        };
        self.run.adapter.before_step(&context, &mut self.gradients);
        let parameters = parameters_mut(&mut *self.run.adapter, &mut self.run.head);
        let norm = self.optimizer.step(parameters, &self.gradients, lr);
        let grad_norm = norm.map_err(|OptimizerError::NonFinite { name }| {
            self.non_finite(format!("the gradient of `{name}`"), &rows)
        })?;
        self.gradients.clear();
        self.state.step += 1;
        self.state.step_in_epoch += 1;
        self.state.tokens += tokens as u64;
        self.state.logged_loss += loss;
        self.state.logged_steps += 1;
        self.run.adapter.after_step(&StepContext {
            step: self.state.step,
            total_steps: self.total_steps,
            seed,
        });
        if self.state.step_in_epoch == self.epoch.steps() {
            self.state.epoch += 1;
            self.state.step_in_epoch = 0;
            self.epoch = self.batches.epoch(self.state.epoch);
        }
        self.window = (
            self.window.0 + tokens as u64,
            self.window.1 + started.elapsed().as_secs_f64(),
        );
        self.log(lr, grad_norm);
        Ok(true)
    }

    /// Adds the gradient of one micro-batch; returns its part of the step's loss.
    fn micro_batch(
        &mut self,
        rows: &[u32],
        mode: Mode,
        targets: usize,
        micro_batches: usize,
    ) -> Result<f64, TrainError> {
        let batch = MicroBatch::new(rows.iter().map(|&row| &self.run.train[row as usize]));
        let adapter: &dyn Adapter = &*self.run.adapter;
        let mut pass = adapter.pass(mode);
        let alpha = self.run.config.neftune_noise_alpha;
        if let (true, Mode::Train { seed }) = (alpha > 0.0, mode) {
            pass = Box::new(NoisyPass {
                inner: pass,
                alpha,
                seed,
            });
        }
        let smoothing = self.run.config.label_smoothing;
        let memory = frugal_kernels::SavePolicy::from(self.run.config.memory);
        let sum = memory
            .scope(|| {
                self.objective().loss(
                    &batch,
                    self.run.backbone,
                    pass.as_mut(),
                    mode,
                    smoothing,
                    usize::MAX,
                )
            })
            .map_err(|source| TrainError::Forward {
                set: Set::Train,
                rows: rows.to_vec(),
                source,
            })?;
        // Each micro-batch counts by its share of the step's targets, so that the split does not
        // matter.
        let mut loss = sum / targets as f64;
        if let Some(auxiliary) = pass.auxiliary_loss() {
            loss = loss + auxiliary / micro_batches as f64;
        }
        drop(pass);
        let value = to_vec(loss.clone().inner())[0];
        if !value.is_finite() {
            return Err(self.non_finite("the loss".into(), rows));
        }
        let mut found = loss.backward();
        drop(loss);
        let parameters = self.run.adapter.parameters();
        let head = self.run.head.iter().flat_map(|head| head.parameters());
        let probes = self.run.adapter.probes();
        self.gradients
            .add(parameters.into_iter().chain(head).chain(probes), &mut found);
        Ok(f64::from(value))
    }

    fn log(&mut self, lr: f64, grad_norm: f64) {
        if !self
            .state
            .step
            .is_multiple_of(self.run.config.logging_steps)
            && self.state.step != self.total_steps
        {
            return;
        }
        let loss = self.state.logged_loss / self.state.logged_steps as f64;
        let (tokens, seconds) = std::mem::take(&mut self.window);
        (self.state.logged_loss, self.state.logged_steps) = (0.0, 0);
        self.emit(Event::Step {
            step: self.state.step,
            total_steps: self.total_steps,
            epoch: self.epochs_done(),
            loss,
            lr,
            grad_norm,
            tokens: self.state.tokens,
            tokens_per_second: tokens as f64 / seconds.max(1e-9),
            peak_memory_bytes: peak_rss_bytes(),
        });
    }

    fn evaluation_is_due(&self, finished: bool) -> bool {
        let interval = self.run.config.eval_steps;
        let at_interval = if interval > 0 {
            self.state.step.is_multiple_of(interval)
        } else {
            self.state.step_in_epoch == 0
        };
        let again = self.state.last_evaluation == Some(self.state.step);
        self.run.validation.is_some() && self.state.step > 0 && !again && (finished || at_interval)
    }

    /// Evaluates; `false` if it was given up because the run is to stop.
    fn evaluate(&mut self) -> Result<bool, TrainError> {
        let Some(validation) = self.run.validation else {
            return Ok(true);
        };
        let (config, started) = (self.run.config, Instant::now());
        let adapter: &dyn Adapter = &*self.run.adapter;
        let objective = self
            .run
            .head
            .as_deref()
            .map_or(Objective::CausalLm, Objective::Classification);
        let observer = &mut *self.run.observer;
        let found = evaluate_observed(
            self.run.backbone,
            Some(adapter),
            objective,
            validation,
            config.max_tokens,
            self.run.stop,
            &mut |done, of| observer.on_event(&Event::Evaluating { done, of }),
        )?;
        let Some(evaluation) = found else {
            return Ok(false);
        };
        let step = self.state.step;
        let metrics = evaluation.metrics.clone();
        self.emit(Event::Evaluated {
            step,
            epoch: self.epochs_done(),
            metrics,
            seconds: started.elapsed().as_secs_f64(),
        });
        self.state.last_evaluation = Some(step);
        let metric = config.best_metric();
        let value = evaluation.metrics[metric];
        self.evaluation = Some(evaluation);
        if !self.run.adapter.is_complete() {
            return Ok(true);
        }
        let better = self
            .state
            .best
            .as_ref()
            .map_or(!value.is_nan(), |best| config.is_better(value, best.value));
        if !better {
            self.state.evaluations_without_improvement += 1;
            return Ok(true);
        }
        self.state.evaluations_without_improvement = 0;
        self.state.best = Some(Best {
            step,
            metric: metric.into(),
            value,
        });
        if self.run.folder.is_none() && config.load_best_model_at_end {
            let values = self.parameters().iter().map(|p| p.to_vec()).collect();
            self.best_values = Some((values, self.run.adapter.state()));
        }
        self.emit(Event::NewBest {
            step,
            metric: metric.into(),
            value,
        });
        Ok(true)
    }

    fn save_is_due(&self, ending: bool) -> bool {
        let interval = self.run.config.save_steps;
        let at_interval = if interval > 0 {
            self.state.step.is_multiple_of(interval)
        } else {
            self.state.step_in_epoch == 0
        };
        let is_best = self
            .state
            .best
            .as_ref()
            .is_some_and(|best| best.step == self.state.step);
        ending || at_interval || is_best
    }

    /// Writes a checkpoint unless there is one of this step, or nothing was done yet.
    fn save(&mut self) -> Result<(), TrainError> {
        let Some(folder) = self.run.folder else {
            return Ok(());
        };
        let step = self.state.step;
        if step == 0 || self.saved.as_ref().is_some_and(|(saved, _)| *saved == step) {
            return Ok(());
        }
        let _span = tracing::debug_span!("checkpoint", step).entered();
        let parameters = self.parameters();
        if let Some(bad) = parameters
            .iter()
            .find(|p| p.to_vec().iter().any(|x| !x.is_finite()))
        {
            return Err(TrainError::Diverged {
                name: bad.name().to_owned(),
                step,
                checkpoint: self.newest(),
            });
        }
        let path = checkpoint::save(
            folder,
            &self.state,
            self.cost(),
            &parameters,
            &self.optimizer,
            &self.run.adapter.state(),
        )?;
        let best = self.state.best.as_ref().map(|best| best.step);
        checkpoint::prune(folder, self.run.config.save_total_limit, step, best)?;
        self.saved = Some((step, path.clone()));
        self.emit(Event::Saved { step, path });
        Ok(())
    }

    /// Puts the weights of the best evaluation back; `false` if they are the last ones anyway or
    /// are gone.
    fn restore_best(&mut self) -> bool {
        let Some(step) = self
            .state
            .best
            .as_ref()
            .map(|best| best.step)
            .filter(|&step| step != self.state.step)
        else {
            return false;
        };
        if let Some((values, state)) = self.best_values.take() {
            let restored = self.run.adapter.restore(&state);
            self.parameters_mut()
                .into_iter()
                .zip(values)
                .for_each(|(parameter, values)| parameter.set(values));
            return restored.is_ok();
        }
        let Some(folder) = self.run.folder else {
            return false;
        };
        let best = Checkpoint::open(&checkpoint::folder_of(folder, step));
        let restored = best.and_then(|best| self.load_weights(&best));
        // The run itself is done and saved: that the best weights are gone is told, but fails
        // nothing.
        restored
            .map_err(|error| {
                self.emit(Event::CheckpointSkipped {
                    reason: error.to_string(),
                })
            })
            .is_ok()
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

    fn objective(&self) -> Objective<'_> {
        self.run
            .head
            .as_deref()
            .map_or(Objective::CausalLm, Objective::Classification)
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

/// Everything that can be known to fail before any work is done.
fn check(run: &TrainRun<'_>) -> Result<(), TrainError> {
    run.config.validate().map_err(TrainError::Config)?;
    let objective = run
        .head
        .as_deref()
        .map_or(Objective::CausalLm, Objective::Classification);
    objective.check(Set::Train, run.backbone, run.train)?;
    match run.validation {
        Some(validation) => {
            objective.check(Set::Evaluation, run.backbone, validation)?;
            let known = metric_names(objective);
            if !known.iter().any(|name| name == run.config.best_metric()) {
                return Err(TrainError::Metric {
                    name: run.config.metric_for_best_model.clone(),
                    known: known.join(", "),
                });
            }
        }
        None if run.config.early_stopping_patience > 0 => {
            let reason = "early stopping needs validation data".into();
            return Err(TrainError::Config(vec![ConfigProblem {
                field: "early_stopping_patience",
                reason,
            }]));
        }
        None => {}
    }
    let head = run.head.iter().flat_map(|head| head.parameters());
    let mut names: Vec<&str> = run
        .adapter
        .parameters()
        .into_iter()
        .chain(head)
        .map(Parameter::name)
        .collect();
    names.sort_unstable();
    if let Some(pair) = names.windows(2).find(|pair| pair[0] == pair[1]) {
        return Err(TrainError::Setup(format!(
            "two parameters are named `{}`",
            pair[0]
        )));
    }
    if run.adapter.num_trainable() == 0 && run.head.is_none() {
        return Err(TrainError::Setup(format!(
            "method `{}` has nothing to train",
            run.adapter.method()
        )));
    }
    Ok(())
}

fn config_differences(stored: &TrainConfig, given: &TrainConfig) -> Vec<String> {
    let fields = |config: &TrainConfig| match serde_json::to_value(config) {
        Ok(Value::Object(fields)) => fields,
        _ => unreachable!("settings are plain numbers, flags and names"),
    };
    // The stored settings were read from JSON, which may have rounded a last digit: the given ones
    // go the same way.
    let given = serde_json::to_string(given)
        .ok()
        .and_then(|text| serde_json::from_str(&text).ok())
        .unwrap_or_else(|| given.clone());
    let (stored, given) = (fields(stored), fields(&given));
    let differs = |(name, value): &(&String, &Value)| {
        !MAY_CHANGE.contains(&name.as_str()) && given.get(*name) != Some(value)
    };
    stored
        .iter()
        .filter(differs)
        .map(|(name, value)| format!("`{name}` was {value}, now {}", given[name]))
        .collect()
}

fn data_hash(examples: &[Tokenized]) -> String {
    let mut hash = Sha256::new();
    let mut bytes = Vec::new();
    for example in examples {
        bytes.clear();
        for ids in [&example.input_ids, &example.token_type_ids] {
            bytes.extend((ids.len() as u64).to_le_bytes());
            bytes.extend(ids.iter().flat_map(|id| id.to_le_bytes()));
        }
        match &example.labels {
            Target::Tokens(targets) => bytes.extend(targets.iter().flat_map(|t| t.to_le_bytes())),
            Target::Class(class) => bytes.extend((*class as u64).to_le_bytes()),
        }
        hash.update(&bytes);
    }
    hex(&hash.finalize())
}
