//! One step: the gradients of its micro-batches, an update of every parameter, a line of the log.

use std::time::Instant;

use frugal_core::events::peak_rss_bytes;
use frugal_kernels::SavePolicy;
use frugal_nn::StepContext;

use super::segments::Segments;
use super::{Trainer, parameters_mut};
use crate::Tokenized;
use crate::error::{Set, TrainError};
use crate::event::Event;
use crate::objective::{self, MicroStep, ModelParts, StepError};
use crate::optim::{OptimizerError, SavedState};
use crate::parallel::Layout;

impl Trainer<'_, '_> {
    /// One optimiser step; `false` if it was given up because the run is to stop.
    pub(super) fn step(&mut self) -> Result<bool, TrainError> {
        let _span = tracing::debug_span!("step", number = self.state.step + 1).entered();
        let started = Instant::now();
        let made = self.made_examples()?;
        let pool: &[Tokenized] = made.as_ref().map_or(self.run.train, |(pool, _)| pool);
        let micro_batches: Vec<Vec<u32>> = match &made {
            Some((_, batches)) => batches.clone(),
            None => self
                .epoch
                .step(self.state.step_in_epoch)
                .map(<[u32]>::to_vec)
                .collect(),
        };
        let rows = micro_batches.concat();
        let examples = rows.iter().map(|&row| &pool[row as usize]);
        let model = self.run.model();
        let targets: f64 = examples
            .clone()
            .map(|example| self.objective.num_targets(model, example))
            .sum();
        let tokens: usize = examples.map(|example| example.input_ids.len()).sum();

        let one_by_one = self.run.adapter.wants_examples();
        let micro_batches = match one_by_one {
            true => rows.iter().map(|&row| vec![row]).collect(),
            false => micro_batches,
        };

        self.gradients.clear();
        let layout = self.group.as_ref().map(|group| group.layout());
        let loss = match layout {
            Some(Layout { pipeline: 2.., .. }) => self.pipelined(&micro_batches, pool, targets)?,
            _ => match self.accumulated(&micro_batches, pool, targets)? {
                Some(loss) => loss,
                None => return Ok(false),
            },
        };

        let loss = self.sum_gradients(loss)?;
        let (lr, seed) = (
            self.schedule.lr(self.state.step),
            self.seed(&format!("step {}", self.state.step)),
        );
        let context = StepContext {
            step: self.state.step,
            total_steps: self.total_steps,
            seed,
            lr_factor: self.schedule.factor(self.state.step),
        };
        self.run.adapter.before_step(&context, &mut self.gradients);
        let squares = self.squares()?;
        let mut parameters = parameters_mut(&mut *self.run.adapter, &mut self.run.head);
        if let Some(group) = &self.group {
            parameters.retain(|p| group.owns(p.name()));
        }
        let norm = self
            .optimizer
            .step(parameters, &self.gradients, &squares, lr);
        let grad_norm = norm.map_err(|OptimizerError::NonFinite { name }| {
            self.non_finite(format!("the gradient of `{name}`"), &rows)
        })?;
        self.gradients.clear();
        self.gather_parameters()?;
        self.state.step += 1;
        self.state.step_in_epoch += 1;
        let reset = self.run.config.moment_reset_steps;
        if reset > 0 && self.state.step.is_multiple_of(reset) {
            let forgotten = self.optimizer.optimizer_mut().restore(SavedState::new());
            forgotten.map_err(TrainError::Setup)?;
        }
        self.state.tokens += tokens as u64;
        self.state.logged_loss += loss;
        self.state.logged_steps += 1;
        self.run.adapter.after_step(&StepContext {
            step: self.state.step,
            total_steps: self.total_steps,
            seed,
            lr_factor: self.schedule.factor(self.state.step),
        });
        match self.decay_steps_done() {
            Some(0) => self.enter_decay(),
            Some(_) => {}
            None if self.state.step_in_epoch == self.epoch.steps() => {
                self.state.epoch += 1;
                self.state.step_in_epoch = 0;
                self.epoch = self.batches.epoch(self.state.epoch);
            }
            None => {}
        }
        self.window = (
            self.window.0 + tokens as u64,
            self.window.1 + started.elapsed().as_secs_f64(),
        );
        self.log(lr, grad_norm);
        Ok(true)
    }

    /// Adds the gradients of micro-batches one after another; returns their loss, none if the step was
    /// given up because the run is to stop.
    fn accumulated(
        &mut self,
        micro_batches: &[Vec<u32>],
        pool: &[Tokenized],
        targets: f64,
    ) -> Result<Option<f64>, TrainError> {
        let one_by_one = self.run.adapter.wants_examples();
        let by_blocks = self.group.as_ref().is_some_and(|g| g.layout().zero == 3);
        let mut loss = 0.0;
        for (index, rows) in micro_batches.iter().enumerate() {
            // A step that is given up is taken again from its start after a resume. Processes of a
            // group stop together, between steps.
            if index > 0 && self.group.is_none() && self.is_stopped() {
                return Ok(None);
            }
            let (rows, of) = (self.own_rows(rows), self.parts(micro_batches.len()));
            let seed = self.seed(&self.place(index));
            let examples: Vec<&Tokenized> = rows.iter().map(|&row| &pool[row as usize]).collect();
            let own = if by_blocks {
                self.micro_batch_by_blocks(&Segments {
                    rows,
                    examples: &examples,
                    seed,
                    targets,
                })?
            } else if rows.is_empty() {
                0.0
            } else {
                self.micro_batch(rows, &examples, seed, targets, of)?
            };
            loss += self.reduce_micro_batch(own)?;
            if one_by_one {
                let gradients = &mut self.gradients;
                self.run.adapter.after_example(targets as usize, gradients);
            }
            self.emit(Event::MicroBatch {
                step: self.state.step,
                total_steps: self.total_steps,
                done: index + 1,
                of: micro_batches.len(),
            });
        }
        Ok(Some(loss))
    }

    /// The examples of a step from the source, if there is one, and which are in which micro-batch.
    fn made_examples(&mut self) -> Result<Option<(Vec<Tokenized>, Vec<Vec<u32>>)>, TrainError> {
        let Some(source) = &mut self.source else {
            return Ok(None);
        };
        let (mut pool, mut batches) = (Vec::new(), Vec::new());
        for batch in source.step() {
            let first = pool.len() as u32;
            batches.push((first..first + batch.len() as u32).collect());
            pool.extend(batch);
        }
        let model = self.run.model();
        for (row, example) in pool.iter().enumerate() {
            objective::check_tokens(model, example)
                .and_then(|()| self.objective.check_example(model, example))
                .map_err(|reason| TrainError::Example {
                    set: Set::Train,
                    row,
                    reason,
                })?;
        }
        Ok(Some((pool, batches)))
    }

    /// Adds the gradient of one micro-batch; returns its part of the step's loss.
    fn micro_batch(
        &mut self,
        rows: &[u32],
        examples: &[&Tokenized],
        seed: u64,
        targets: f64,
        micro_batches: usize,
    ) -> Result<f64, TrainError> {
        let mut step = MicroStep {
            model: ModelParts::new(self.run.backbone, self.run.head.as_deref()),
            examples,
            targets,
            adapter: &*self.run.adapter,
            micro_batches,
            seed,
            memory: SavePolicy::from(self.run.config.memory),
            neftune_noise_alpha: self.run.config.neftune_noise_alpha,
            gradients: &mut self.gradients,
        };
        self.objective
            .accumulate(&mut step)
            .map_err(|error| match error {
                StepError::NonFinite => self.non_finite("the loss".into(), rows),
                StepError::Forward(source) => TrainError::Forward {
                    set: Set::Train,
                    rows: rows.to_vec(),
                    source,
                },
            })
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
}
