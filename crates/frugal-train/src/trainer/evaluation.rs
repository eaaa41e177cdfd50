//! Evaluations during a run, and which one is the best.

use std::time::Instant;

use frugal_nn::Adapter;

use super::Trainer;
use crate::checkpoint::Best;
use crate::error::TrainError;
use crate::evaluate::evaluate_observed;
use crate::event::Event;
use crate::objective::ModelParts;

impl Trainer<'_> {
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
        let Some(validation) = self.run.validation else {
            return Ok(true);
        };
        let (config, started) = (self.run.config, Instant::now());
        let adapter: &dyn Adapter = &*self.run.adapter;
        let model = ModelParts::new(self.run.backbone, self.run.head.as_deref());
        let observer = &mut *self.run.observer;
        let found = evaluate_observed(
            model,
            Some(adapter),
            self.objective.as_ref(),
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
        let is_better = |value, best| {
            let known = self.objective.metrics().iter();
            let mut named = known.filter(|m| m.name == metric);
            named.next().is_some_and(|m| m.is_better(value, best))
        };
        let value = evaluation.metrics[metric];
        self.evaluation = Some(evaluation);
        if !self.run.adapter.is_complete() {
            return Ok(true);
        }
        let better = self
            .state
            .best
            .as_ref()
            .map_or(!value.is_nan(), |best| is_better(value, best.value));
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
