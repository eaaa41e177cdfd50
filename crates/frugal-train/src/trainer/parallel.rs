//! What a trainer does together with other processes; nothing of it in a run of one.

use std::collections::BTreeMap;

use frugal_nn::Parameter;

use super::check::hash;
use super::places::Reader;
use super::{Trainer, parameters_mut};
use crate::checkpoint::TrainerState;
use crate::error::TrainError;
use crate::objective::Evaluation;
use crate::optim::{SavedState, squares};
use crate::parallel::{Group, ParallelError, ParallelReport, StartOf, owned, state_bytes};

impl Trainer<'_, '_> {
    /// Names and sizes of what is trained.
    pub(super) fn sizes(&self) -> Vec<(String, usize)> {
        let parameters = self.parameters();
        let of = parameters.iter().map(|p| (p.name().to_owned(), p.len()));
        of.collect()
    }

    /// What the processes did; all of them ask at once.
    pub(super) fn report(&mut self) -> Result<Option<ParallelReport>, TrainError> {
        let Some(group) = self.group.take() else {
            return Ok(None);
        };
        let made = group.report(&self.parameters(), self.optimizer.optimizer());
        self.group = Some(group);
        Ok(Some(made?))
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
        let layout = group.layout();
        self.check_layout(layout)?;
        self.readers = self.readers();
        let sizes = self.sizes();
        let config = serde_json::to_vec(&self.run.config.canonical()).unwrap_or_default();
        group.agree(&config[..config.len().min(1 << 16)], "training settings")?;
        let hashes = [&self.state.data_hash, &self.state.validation_hash];
        group.agree(hashes.map(String::as_str).join("/").as_bytes(), "data")?;
        let shapes = format!("{sizes:?}");
        group.agree(&hash(shapes.as_bytes()), "parameters")?;
        let layers = self.run.backbone.info().num_hidden_layers;
        let reader = |name: &str| self.readers.get(name).copied().unwrap_or(Reader::All);
        group.assign(&self.parameters(), |name| {
            reader(name).stages(layers, layout.pipeline)
        });
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
            None if !layout.is_divided() => return Ok(()),
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
        let restored = self.optimizer.optimizer_mut().restore(own);
        restored.map_err(damaged)?;
        for parameter in self.parameters_mut() {
            if !group.keeps(parameter.name()) {
                parameter.release();
            }
        }
        Ok(())
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

    /// Whether each rank has its own gradients only, from micro-batch to micro-batch (ZeRO stages 2 and
    /// 3).
    pub(super) fn divides_gradients(&self) -> bool {
        let layout = self.group.as_ref().map(|group| group.layout());
        layout.is_some_and(|layout| layout.zero > 1)
    }

    /// After a micro-batch: hands its gradients to those that own the parameters, where each rank has
    /// its own only. Returns the loss of all ranks then, and this one's else.
    pub(super) fn reduce_micro_batch(&mut self, loss: f64) -> Result<f64, TrainError> {
        let sizes = self.sizes();
        let Some(group) = &mut self.group else {
            return Ok(loss);
        };
        group.note_memory();
        match group.layout().zero {
            2 => {
                let (gradients, kept) = (&mut self.gradients, &mut self.kept);
                Ok(group.reduce_gradients(loss, &sizes, gradients, kept)?)
            }
            3 => Ok(group.sum(loss, "summing losses")?),
            _ => Ok(loss),
        }
    }

    /// Sums losses and gradients of all processes; returns the loss.
    pub(super) fn sum_gradients(&mut self, loss: f64) -> Result<f64, TrainError> {
        if self.divides_gradients() {
            // They were summed with each micro-batch.
            std::mem::swap(&mut self.gradients, &mut self.kept);
            self.kept.clear();
            return Ok(loss);
        }
        let sizes = self.sizes();
        match &mut self.group {
            Some(group) => Ok(group.sum_gradients(loss, &sizes, &mut self.gradients)?),
            None => Ok(loss),
        }
    }

    /// The squares of the norms of all gradients of the step, those of other processes too.
    pub(super) fn squares(&mut self) -> Result<Vec<(String, f64)>, TrainError> {
        let own = squares(&self.gradients);
        let sizes = self.sizes();
        match &mut self.group {
            Some(group) => Ok(group.all_squares(own, &sizes)?),
            None => Ok(own),
        }
    }

    /// Hands updated parameters to those that have not updated them.
    pub(super) fn gather_parameters(&mut self) -> Result<(), TrainError> {
        let parameters = parameters_mut(&mut *self.run.adapter, &mut self.run.head);
        match &mut self.group {
            Some(group) => {
                group.note_memory();
                match group.layout().zero {
                    3 => Ok(()),
                    _ => Ok(group.gather_parameters(parameters)?),
                }
            }
            None => Ok(()),
        }
    }

    /// Whether no process has all parameters between steps.
    fn divides_parameters(&self) -> bool {
        let layout = self.group.as_ref().map(|group| group.layout());
        layout.is_some_and(|layout| layout.zero == 3 || layout.pipeline > 1)
    }

    /// Does what needs all parameters on rank 0: an evaluation, a checkpoint.
    pub(super) fn with_whole_at_first<T>(
        &mut self,
        work: impl FnOnce(&mut Self) -> Result<T, TrainError>,
    ) -> Result<T, TrainError> {
        if !self.divides_parameters() {
            return work(self);
        }
        let parameters = parameters_mut(&mut *self.run.adapter, &mut self.run.head);
        if let Some(group) = &mut self.group {
            group.gather_at_first(parameters)?;
        }
        let done = work(self);
        let parameters = parameters_mut(&mut *self.run.adapter, &mut self.run.head);
        for parameter in parameters {
            let name = parameter.name();
            if self.group.as_ref().is_some_and(|group| !group.keeps(name)) {
                parameter.release();
            }
        }
        done
    }

    /// At the end of a run: all parameters on all ranks.
    pub(super) fn make_whole(&mut self) -> Result<(), TrainError> {
        if !self.divides_parameters() {
            return Ok(());
        }
        let parameters = parameters_mut(&mut *self.run.adapter, &mut self.run.head);
        match &mut self.group {
            Some(group) => Ok(group.gather_everywhere(parameters)?),
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

    /// That all ranks have the same parameters, of those that they have, and on rank 0 what others keep
    /// of the optimizer's state.
    pub(super) fn gather_state(&mut self) -> Result<SavedState, TrainError> {
        let Some(group) = self.group.take() else {
            return Ok(SavedState::new());
        };
        let gathered = self.gather_state_of(group);
        self.group = Some(group);
        gathered
    }

    fn gather_state_of(&self, group: &mut Group) -> Result<SavedState, TrainError> {
        let mut more = Vec::new();
        for values in self.run.adapter.state().values() {
            more.extend(values.iter().flat_map(|v| v.to_le_bytes()));
        }
        let parameters = self.parameters();
        let by_name: BTreeMap<&str, &&Parameter> =
            parameters.iter().map(|p| (p.name(), p)).collect();
        let sizes = self.sizes();
        group.agree_on_parameters(&sizes, &hash(&more), |names| {
            let mut bytes = Vec::new();
            let named = names
                .iter()
                .filter_map(|(name, _)| by_name.get(name.as_str()));
            for parameter in named {
                let values = parameter.to_vec();
                let values: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
                bytes.extend(hash(&values));
            }
            hash(&bytes).to_vec()
        })?;
        Ok(group.gather_state(&self.optimizer.optimizer().state(), &sizes)?)
    }

    /// After an error: where a process was lost, a checkpoint of the last whole step, if this process
    /// has all of it.
    pub(super) fn give_up(&mut self, error: TrainError) -> TrainError {
        let TrainError::Parallel { source, .. } = error else {
            return error;
        };
        let is_whole = self
            .group
            .as_ref()
            .is_some_and(|g| !g.layout().is_divided());
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
