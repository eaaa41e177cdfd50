//! The start of a run, at its beginning or where a checkpoint left it.

use super::Trainer;
use super::check::{MAY_CHANGE, config_differences};
use crate::checkpoint::{self, Checkpoint, CheckpointError, TrainerState};
use crate::error::TrainError;
use crate::event::Event;
use crate::schedule::Schedule;
use crate::source;

impl Trainer<'_, '_> {
    pub(super) fn start(&mut self) -> Result<(), TrainError> {
        let (found, skipped) = match self.run.folder {
            Some(folder) if self.run.resume => checkpoint::latest(folder),
            Some(folder) if !checkpoint::list(folder).is_empty() => {
                return Err(TrainError::FolderInUse {
                    folder: folder.to_owned(),
                });
            }
            _ => (None, Vec::new()),
        };
        if let Some(folder) = self.run.folder {
            // Once only: a run whose folder is removed meanwhile does not make it again.
            frugal_core::fs::create_dir(folder).map_err(CheckpointError::from)?;
        }
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
        let changed = self.state.changes.clone();
        for change in changed {
            self.emit(Event::LengthChanged { change });
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

    /// A checkpoint within the decay of its run is no stable one: a run of another length would go back
    /// to the full rate from it.
    fn check_decay(&self, checkpoint: &Checkpoint) -> Result<(), TrainError> {
        let state = &checkpoint.state;
        let total = self.batches.total_steps(&state.config);
        let begun = Schedule::new(&state.config, total).decay_start();
        match begun.filter(|start| state.step > *start && total != self.total_steps) {
            Some(start) => Err(TrainError::Decayed {
                path: checkpoint.path.clone(),
                done: state.step,
                start,
            }),
            None => Ok(()),
        }
    }

    /// Puts the run where a checkpoint left it.
    fn restore(&mut self, checkpoint: &Checkpoint) -> Result<(), TrainError> {
        let mut differences =
            config_differences(&checkpoint.state.config, self.run.config, &MAY_CHANGE);
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
        self.check_decay(checkpoint)?;
        checkpoint.load_optimizer(self.optimizer.optimizer_mut())?;
        self.load_weights(checkpoint)?;
        if let Some(source) = &mut self.source {
            let [_, own] = source::parted(checkpoint.adapter_state()?);
            source
                .restore(&own)
                .map_err(|reason| checkpoint.invalid(reason))?;
        }
        let mut changes = checkpoint.state.changes.clone();
        let before = &checkpoint.state.config;
        let planned_before = self.batches.total_steps(before);
        let rates = [(before, planned_before), (self.run.config, planned)]
            .map(|(config, steps)| Schedule::new(config, steps));
        let differs = |step| rates[0].lr(step).to_bits() != rates[1].lr(step).to_bits();
        if planned_before != planned && (0..done).any(differs) {
            changes.push(format!(
                "the run was resumed at step {done} as one of {planned} steps in place of {planned_before}: its learning rates before are those of a run of {planned_before} steps, so it is not what a run of {planned} steps without a break comes to"
            ));
        }
        self.state = TrainerState {
            changes,
            config: self.run.config.clone(),
            validation_hash,
            ..checkpoint.state.clone()
        };
        self.epoch = self.batches.epoch(self.state.epoch);
        self.enter_decay();
        self.spent = checkpoint.cost;
        self.saved = Some((self.state.step, checkpoint.path.clone()));
        self.saved_step = Some(self.state.step);
        Ok(())
    }

    /// Puts the weights of a checkpoint, and what the method keeps beside them, in place.
    pub(super) fn load_weights(&mut self, checkpoint: &Checkpoint) -> Result<(), CheckpointError> {
        let [own, _] = source::parted(checkpoint.adapter_state()?);
        self.run
            .adapter
            .restore(&own)
            .map_err(|reason| checkpoint.invalid(reason))?;
        checkpoint.load_parameters(self.parameters_mut())
    }
}
