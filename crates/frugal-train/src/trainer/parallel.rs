//! What a trainer does together with other processes; nothing of it in a run of one.

use super::check::hash;
use super::{Trainer, parameters_mut};
use crate::checkpoint::TrainerState;
use crate::error::TrainError;
use crate::objective::Evaluation;
use crate::optim::SavedState;
use crate::parallel::{Group, ParallelError, ParallelReport, StartOf, owned, state_bytes};

impl Trainer<'_, '_> {
    /// Names and sizes of what is trained.
    fn sizes(&self) -> Vec<(String, usize)> {
        let parameters = self.parameters();
        let of = parameters.iter().map(|p| (p.name().to_owned(), p.len()));
        of.collect()
    }

    /// What the group's report says before the first step.
    pub(super) fn report(&self) -> Option<ParallelReport> {
        let group = self.group.as_ref()?;
        Some(group.report(&self.parameters(), self.optimizer.optimizer()))
    }

    /// Puts all ranks where rank 0 stands, after they agree on data, settings and parameters.
    pub(super) fn synchronize(&mut self) -> Result<(), TrainError> {
        let Some(group) = self.group.take() else {
            return Ok(());
        };
        let done = self.synchronize_with(group);
        self.group = Some(group);
        done
    }

    fn synchronize_with(&mut self, group: &mut Group) -> Result<(), TrainError> {
        let optimizer = self.optimizer.optimizer().name();
        if group.shards_optimizer() && optimizer == "loro" {
            let reason = "`zero=1` shards the optimizer by parameters, and `loro` updates two at once: leave `zero` out";
            return Err(TrainError::Setup(reason.into()));
        }
        let sizes = self.sizes();
        let config = serde_json::to_vec(&self.run.config.canonical()).unwrap_or_default();
        group.agree(&config[..config.len().min(1 << 16)], "training settings")?;
        let hashes = [&self.state.data_hash, &self.state.validation_hash];
        group.agree(hashes.map(String::as_str).join("/").as_bytes(), "data")?;
        let shapes = format!("{sizes:?}");
        group.agree(&hash(shapes.as_bytes()), "parameters")?;
        group.assign(&self.parameters());
        let given = group.start(
            || {
                Ok(StartOf {
                    state: serde_json::to_vec(&self.state).map_err(|e| e.to_string())?,
                    saved: self.saved_step,
                    parameters: self.parameters().iter().map(|p| p.to_vec()).collect(),
                    optimizer: state_bytes(&self.optimizer.optimizer().state()),
                    adapter: self.run.adapter.state(),
                })
            },
            &sizes,
        )?;
        let damaged = |reason: String| {
            TrainError::from(ParallelError::Join {
                reason: format!("rank 0 sent a start that cannot be used: {reason}"),
            })
        };
        let whole = match given {
            None if !group.shards_optimizer() => return Ok(()),
            // Rank 0 lets go of what others keep from now on.
            None => owned(&self.optimizer.optimizer().state()).map_err(damaged)?,
            Some(start) => {
                let state = serde_json::from_slice::<TrainerState>(&start.state);
                let state = state.map_err(|e| damaged(e.to_string()))?;
                self.state = TrainerState {
                    config: self.run.config.clone(),
                    ..state
                };
                self.epoch = self.batches.epoch(self.state.epoch);
                self.enter_decay();
                self.saved_step = start.saved;
                self.run.adapter.restore(&start.adapter).map_err(damaged)?;
                for (parameter, values) in self.parameters_mut().into_iter().zip(start.parameters) {
                    parameter.set(values);
                }
                start.optimizer
            }
        };
        let own = group.own_state(whole);
        self.optimizer.optimizer_mut().restore(own).map_err(damaged)
    }

    /// Whether this process, or any of its group, is asked to stop.
    pub(super) fn is_to_stop(&mut self) -> Result<bool, TrainError> {
        let own = self.is_stopped();
        match &mut self.group {
            Some(group) => Ok(group.any(own, "taking the next step")?),
            None => Ok(own),
        }
    }

    /// The rows of a micro-batch that this process computes.
    pub(super) fn own_rows<'r>(&self, rows: &'r [u32]) -> &'r [u32] {
        let train = self.run.train;
        let tokens = |row: u32| train[row as usize].input_ids.len();
        match &self.group {
            Some(group) => group.share(rows, tokens),
            None => rows,
        }
    }

    /// Forward passes of a step on all processes.
    pub(super) fn parts(&self, micro_batches: usize) -> usize {
        micro_batches * self.group.as_ref().map_or(1, |group| group.world())
    }

    /// The name of the random stream of a micro-batch. Processes see other rows, and have other masks.
    pub(super) fn place(&self, micro_batch: usize) -> String {
        let place = format!("micro-batch {micro_batch} of step {}", self.state.step);
        match self.group.as_ref().map_or(0, |group| group.rank()) {
            0 => place,
            rank => format!("{place} on rank {rank}"),
        }
    }

    /// Sums losses and gradients of all processes; returns the loss.
    pub(super) fn sum_gradients(&mut self, loss: f64) -> Result<f64, TrainError> {
        if self.group.is_none() {
            return Ok(loss);
        }
        let sizes = self.sizes();
        match &mut self.group {
            Some(group) => Ok(group.sum_gradients(loss, &sizes, &mut self.gradients)?),
            None => Ok(loss),
        }
    }

    /// Hands updated parameters to those that have not updated them.
    pub(super) fn gather_parameters(&mut self) -> Result<(), TrainError> {
        let parameters = parameters_mut(&mut *self.run.adapter, &mut self.run.head);
        match &mut self.group {
            Some(group) => Ok(group.gather_parameters(parameters)?),
            None => Ok(()),
        }
    }

    /// What was measured, of rank 0 for all.
    pub(super) fn shared(
        &mut self,
        own: Option<Evaluation>,
    ) -> Result<Option<Evaluation>, TrainError> {
        let Some(group) = &mut self.group else {
            return Ok(own);
        };
        let metrics = group.metrics(own.as_ref().map(|own| &own.metrics))?;
        Ok(own.or(metrics.map(|metrics| Evaluation {
            metrics,
            ..Evaluation::default()
        })))
    }

    /// That all ranks have the same parameters, and on rank 0 what others keep of the optimizer's
    /// state.
    pub(super) fn gather_state(&mut self) -> Result<SavedState, TrainError> {
        if self.group.is_none() {
            return Ok(SavedState::new());
        }
        let mut bytes = Vec::new();
        for parameter in self.parameters() {
            bytes.extend(hash(
                &parameter
                    .to_vec()
                    .iter()
                    .flat_map(|v| v.to_le_bytes())
                    .collect::<Vec<_>>(),
            ));
        }
        for values in self.run.adapter.state().values() {
            bytes.extend(values.iter().flat_map(|v| v.to_le_bytes()));
        }
        let sizes = self.sizes();
        let own = self.optimizer.optimizer().state();
        match &mut self.group {
            Some(group) => {
                group.agree(&hash(&bytes), "parameters after a step")?;
                Ok(group.gather_state(&own, &sizes)?)
            }
            None => Ok(SavedState::new()),
        }
    }

    /// After an error: where a process was lost, a checkpoint of the last whole step, if this process
    /// has all of it.
    pub(super) fn give_up(&mut self, error: TrainError) -> TrainError {
        let TrainError::Parallel { source, .. } = error else {
            return error;
        };
        let is_whole = self.group.as_ref().is_some_and(|g| !g.shards_optimizer());
        if is_whole && self.state.step > 0 && self.saved_step != Some(self.state.step) {
            // That it cannot be written is the lesser trouble: the error names an older one then.
            let _ = self.write(&SavedState::new());
        }
        TrainError::Parallel {
            source,
            checkpoint: self.newest(),
        }
    }
}
