//! Checkpoints during a run, and the best weights at its end.

use super::Trainer;
use crate::checkpoint::{self, Checkpoint};
use crate::error::TrainError;
use crate::event::Event;
use crate::optim::SavedState;
use crate::parallel::joined;
use crate::source;

impl Trainer<'_, '_> {
    pub(super) fn save_is_due(&self, ending: bool) -> bool {
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
    pub(super) fn save(&mut self) -> Result<(), TrainError> {
        let step = self.state.step;
        let is_kept = self.run.folder.is_some() || self.group.is_some();
        if !is_kept || step == 0 || self.saved_step == Some(step) {
            return Ok(());
        }
        let received = self.gather_state()?;
        self.saved_step = Some(step);
        self.with_whole_at_first(|trainer| trainer.write(&received))
    }

    /// Writes a checkpoint with what other ranks keep of the optimizer's state.
    pub(super) fn write(&mut self, received: &SavedState) -> Result<(), TrainError> {
        let Some(folder) = self.run.folder else {
            return Ok(());
        };
        let step = self.state.step;
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
            joined(self.optimizer.optimizer().state(), received),
            &source::joined(
                self.run.adapter.state(),
                self.source.as_ref().map(|source| source.state()),
            ),
        )?;
        let best = self.state.best.as_ref().map(|best| best.step);
        checkpoint::prune(folder, self.run.config.save_total_limit, step, best)?;
        self.saved = Some((step, path.clone()));
        self.emit(Event::Saved { step, path });
        Ok(())
    }

    /// Puts the weights of the best evaluation back; `false` if they are the last ones anyway or
    /// are gone.
    pub(super) fn restore_best(&mut self) -> bool {
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
}
