//! Evaluations during a run, and which one is the best.

use std::time::Instant;

use frugal_nn::Adapter;

use super::Trainer;
use crate::checkpoint::Best;
use crate::error::TrainError;
use crate::evaluate::evaluate_observed;
use crate::event::Event;
use crate::objective::{Evaluation, ModelParts};

impl Trainer<'_, '_> {
    pub(super) fn evaluation_is_due(&self, finished: bool) -> bool {
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
    pub(super) fn evaluate(&mut self) -> Result<bool, TrainError> {
        let started = Instant::now();
        let found = self.with_whole_at_first(Self::measure)?;
        let Some(evaluation) = self.shared(found)? else {
            return Ok(false);
        };
        self.take(evaluation, started.elapsed().as_secs_f64());
        Ok(true)
    }

    /// What this process measures; nothing if it was asked to stop, or another one measures.
    fn measure(&mut self) -> Result<Option<Evaluation>, TrainError> {
        let Some(validation) = self.run.validation else {
            return Ok(None);
        };
        if self.group.as_ref().is_some_and(|group| group.rank() > 0) {
            return Ok(None);
        }
        let config = self.run.config;
        let adapter: &dyn Adapter = &*self.run.adapter;
        let model = ModelParts::new(self.run.backbone, self.run.head.as_deref());
        let observer = &mut *self.run.observer;
        evaluate_observed(
            model,
            Some(adapter),
            self.objective.as_ref(),
            validation,
            config.max_tokens,
            self.run.stop,
            &mut |done, of| observer.on_event(&Event::Evaluating { done, of }),
        )
    }

    /// Tells what was found, and whether it is the best so far.
    fn take(&mut self, evaluation: Evaluation, seconds: f64) {
        let config = self.run.config;
        let step = self.state.step;
        let metrics = evaluation.metrics.clone();
        self.emit(Event::Evaluated {
            step,
            epoch: self.epochs_done(),
            metrics,
            seconds,
        });
        self.state.last_evaluation = Some(step);
        let metric = config.best_metric();
        let is_better = |value, best| {
            let known = self.objective.metrics().iter();
            let mut named = known.filter(|m| m.name == metric);
            named.next().is_some_and(|m| m.is_better(value, best))
        };
        let value = evaluation.metrics.get(metric).copied();
        let value = value.unwrap_or(f64::NAN);
        self.evaluation = Some(evaluation);
        if !self.run.adapter.is_complete() {
            return;
        }
        let better = self
            .state
            .best
            .as_ref()
            .map_or(!value.is_nan(), |best| is_better(value, best.value));
        if !better {
            self.state.evaluations_without_improvement += 1;
            return;
        }
        self.state.evaluations_without_improvement = 0;
        self.state.best = Some(Best {
            step,
            metric: metric.into(),
            value,
        });
        let is_alone = self.run.folder.is_none() && self.group.is_none();
        if is_alone && config.load_best_model_at_end {
            let values = self.parameters().iter().map(|p| p.to_vec()).collect();
            self.best_values = Some((values, self.run.adapter.state()));
        }
        self.emit(Event::NewBest {
            step,
            metric: metric.into(),
            value,
        });
    }

    /// Measures the sets of the source if it is time; `false` if it was given up because the run is
    /// to stop.
    pub(super) fn measure_source(&mut self) -> Result<bool, TrainError> {
        let step = self.state.step;
        let Some(source) = &mut self.source else {
            return Ok(true);
        };
        if step >= self.total_steps || !source.is_due(step) {
            return Ok(true);
        }
        let adapter: &dyn Adapter = &*self.run.adapter;
        let (of, mut losses) = (source.sets().len(), Vec::new());
        for set in source.sets() {
            let model = ModelParts::new(self.run.backbone, self.run.head.as_deref());
            let found = evaluate_observed(
                model,
                Some(adapter),
                self.objective.as_ref(),
                set,
                self.run.config.max_tokens,
                self.run.stop,
                &mut |_, _| {},
            )?;
            let Some(evaluation) = found else {
                return Ok(false);
            };
            losses.push(evaluation.metrics["loss"]);
            let done = losses.len();
            self.run.observer.on_event(&Event::Evaluating { done, of });
        }
        let metrics = source.measured(step, &losses);
        let epoch = self.epochs_done();
        self.emit(Event::Measured {
            step,
            epoch,
            metrics,
        });
        Ok(true)
    }
}
