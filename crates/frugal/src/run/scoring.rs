//! What a model is worth on the parts of the data, and what it forgot.

use std::sync::atomic::AtomicBool;

use frugal_eval::report;
use frugal_nn::{Backbone, LoadedAdapter};
use frugal_train::{ModelParts, evaluate_observed};

use super::compare::confusion;
use super::prepare::Prepared;
use super::scores::Scores;
use super::{Observe, Progress, RunError, TuneConfig, ranked};

/// A run whose weights are there.
pub(super) struct Run<'a> {
    pub(super) config: &'a TuneConfig,
    pub(super) prepared: &'a Prepared,
    pub(super) backbone: &'a dyn Backbone,
    pub(super) stop: &'a AtomicBool,
}

impl Run<'_> {
    /// Metrics of the validation and test part; `None` if the run was stopped before the end.
    pub(super) fn score(
        &self,
        who: &str,
        entry: &LoadedAdapter,
        base: bool,
        observe: Observe<'_>,
    ) -> Result<Option<Scores>, RunError> {
        let mut found = Vec::new();
        for part in [
            self.prepared.validation.as_ref(),
            self.prepared.test.as_ref(),
        ]
        .into_iter()
        .flatten()
        {
            observe(&Progress::Begin {
                what: format!("evaluating the {who} model on the {} part", part.name),
            });
            let adapter = if base {
                None
            } else {
                Some(entry.adapter.as_ref())
            };
            let model = ModelParts::new(self.backbone, entry.head.as_ref());
            let prepared = self.prepared;
            let objective = ranked::objective(
                self.config,
                prepared.train.examples(),
                &prepared.files,
                model,
            )?;
            let result = evaluate_observed(
                model,
                adapter,
                objective.as_ref(),
                part.examples(),
                self.config.train.max_tokens,
                self.stop,
                &mut |done, of| observe(&Progress::Counted { done, of }),
            )?;
            let Some(result) = result else {
                return Ok(None);
            };
            if let Some(&loss) = result
                .metrics
                .get("loss")
                .filter(|loss| base && !loss.is_finite())
            {
                let (model, data) = (self.config.model.clone(), part.source.clone());
                return Err(RunError::BaseLoss {
                    model,
                    part: part.name,
                    data,
                    loss,
                });
            }
            observe(&Progress::Scores {
                who: who.into(),
                part: part.name.into(),
                metrics: result.metrics.clone(),
            });
            let confusion = entry
                .head
                .as_ref()
                .filter(|head| {
                    head.config().problem_type.is_single_label() && !result.gold.is_empty()
                })
                .map(|head| confusion(&head.config().labels, &result.gold, &result.predicted));
            found.push((part.name, result.metrics, confusion));
        }
        Ok(Some(found))
    }

    /// What was lost on text that has nothing to do with the task; `None` if the run was stopped.
    pub(super) fn forgetting(
        &self,
        entry: &LoadedAdapter,
        observe: Observe<'_>,
    ) -> Result<Option<report::Forgetting>, RunError> {
        observe(&Progress::Begin {
            what: "measuring what was forgotten".into(),
        });
        super::forgetting(
            &self.prepared.files,
            self.backbone,
            entry.adapter.as_ref(),
            self.config.train.max_tokens,
            self.stop,
        )
    }
}
