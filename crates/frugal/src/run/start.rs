//! Training on from an adapter: its weights and settings are the start of a run on other data.
//!
//! The schedule, the optimiser and the steps are those of a new run. What the configuration says of
//! the method must be what the adapter is; what it does not say is taken from the adapter.

use std::path::{Path, PathBuf};

use frugal_adapt::Settings;
use frugal_adapt::Targets;
use frugal_adapt::peft::{self, Described};
use frugal_adapt::registry;
use frugal_nn::{AdaptError, BuildContext, LoadError, LoadedAdapter, SiteTable};
use serde::Deserialize;
use serde_json::Value;

use super::spelling::name;
use super::{RunError, Task, TuneConfig};

/// Settings that choose the adapted layers, which can be written in several ways.
const TARGETS: [&str; 4] = [
    "target_modules",
    "exclude_modules",
    "layers_to_transform",
    "layers_pattern",
];

/// The adapter that a run starts from.
pub(super) struct Start {
    folder: PathBuf,
    described: Described,
    /// What the configuration says of the method.
    given: Settings,
}

impl Start {
    /// Reads what the configuration's adapter is, if it has one, and fills its settings into the
    /// configuration.
    pub(super) fn resolve(config: &TuneConfig) -> Result<(TuneConfig, Option<Self>), RunError> {
        let Some(folder) = config.adapter.clone() else {
            return Ok((config.clone(), None));
        };
        let mut config = config.clone();
        let described = describe(&folder)?;
        let given = std::mem::replace(&mut config.method.settings, described.settings.clone());
        let start = Self {
            folder,
            described,
            given,
        };
        start.check_method(&config)?;
        start.check_task(&mut config)?;
        Ok((config, Some(start)))
    }

    /// The adapter's folder.
    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    fn refuse(&self, reason: String) -> RunError {
        RunError::StartAdapter {
            folder: self.folder.clone(),
            reason,
        }
    }

    fn check_method(&self, config: &TuneConfig) -> Result<(), RunError> {
        let (is, asked) = (
            self.described.method,
            registry::find(&config.method.name)?.name,
        );
        if is != asked {
            return Err(self.refuse(format!(
                "the adapter is of method `{is}`, the run of `{asked}`: leave out the method, or train a new adapter without `--adapter`"
            )));
        }
        if self.described.settings.get("only_topk_weights") == Some(&Value::Bool(true)) {
            return Err(self.refuse(
                "its file holds the chosen vectors and their weights alone (`save_only_topk_weights`), which cannot be trained on".into(),
            ));
        }
        let rule = &registry::find(self.described.method)?.file_rule;
        if let Some(reason) = (rule.not_trained_on)(&self.described.settings) {
            return Err(self.refuse(reason.into()));
        }
        let differs = |(key, value): &(&String, &Value)| {
            !TARGETS.contains(&key.as_str())
                && !same(
                    value,
                    self.described.settings.get(*key).unwrap_or(&Value::Null),
                )
        };
        let differences: Vec<String> = self
            .given
            .iter()
            .filter(differs)
            .map(|(key, value)| {
                let own = self.described.settings.get(key).unwrap_or(&Value::Null);
                format!("`{key}` is {own} in the adapter and {value} in the run")
            })
            .collect();
        if differences.is_empty() {
            return Ok(());
        }
        Err(self.refuse(format!(
            "{}: leave these settings out, or train a new adapter without `--adapter`",
            differences.join(", ")
        )))
    }

    fn check_task(&self, config: &mut TuneConfig) -> Result<(), RunError> {
        if self.described.is_classifier && self.described.head.is_none() {
            return Err(self.refuse(format!(
                "it is a classifier, and no `{}` names its classes in their order",
                peft::EXTRA_FILE
            )));
        }
        match (config.task, &self.described.head) {
            (Task::TokenClassification, None) => Err(self.refuse(
                "the adapter has no head that labels tokens: train on with `--task causal-lm`, or train a new adapter without `--adapter`".into(),
            )),
            (Task::TokenClassification, Some(head)) if !head.labels_tokens() => Err(self.refuse(
                "its head labels whole texts: train on with `--task classification`".into(),
            )),
            (Task::TokenClassification, Some(head)) => {
                config.pooling = Some(head.pooling);
                Ok(())
            }
            (Task::Classification | Task::ImageClassification | Task::Reranking, Some(head)) if head.labels_tokens() => Err(self.refuse(
                "its head labels every token: train on with `--task token-classification`".into(),
            )),
            (Task::Classification | Task::ImageClassification, None) => Err(self.refuse(
                "the adapter has no classification head: train on with `--task causal-lm`".into(),
            )),
            (Task::CausalLm, Some(head)) if head.labels_tokens() => Err(self.refuse(
                "the adapter labels tokens: train on with `--task token-classification`".into(),
            )),
            (Task::CausalLm, Some(_)) => Err(self.refuse(
                "the adapter is a classifier: train on with `--task classification`".into(),
            )),
            (Task::Classification | Task::ImageClassification, Some(head)) => match config.pooling {
                Some(pooling) if pooling != head.pooling => Err(self.refuse(format!(
                    "its head reads the positions `{}`, not `{}`: leave out `--pooling`",
                    name(&head.pooling),
                    name(&pooling)
                ))),
                _ => {
                    if let Some(asked) = config.problem_type
                        && asked != head.problem_type
                    {
                        return Err(self.refuse(format!(
                            "its head was trained for `{}`, not `{}`: leave out `--problem-type`",
                            head.problem_type.name(),
                            asked.name()
                        )));
                    }
                    config.pooling = Some(head.pooling);
                    config.problem_type = (!head.problem_type.is_single_label())
                        .then_some(head.problem_type)
                        .or(config.problem_type);
                    Ok(())
                }
            },
            (Task::Reranking, None) => Err(self.refuse(
                "the adapter has no head with a score: train on with `--task embedding` or `--task causal-lm`".into(),
            )),
            (Task::Embedding, Some(_)) => Err(self.refuse(
                "the adapter has a head, which an encoder has no use for: train on with `--task reranking` or `--task classification`".into(),
            )),
            (Task::Reranking, Some(head)) if head.labels.len() != 1 => Err(self.refuse(format!(
                "its head has {} outputs, a reranker has one: train on with `--task classification`",
                head.labels.len()
            ))),
            (Task::Reranking, Some(_)) | (Task::CausalLm | Task::Embedding, None) => Ok(()),
        }
    }

    /// Layers that the configuration names must be those that the adapter has.
    pub(super) fn check_targets(&self, sites: &SiteTable) -> Result<(), RunError> {
        if !TARGETS.iter().any(|key| self.given.contains_key(*key)) {
            return Ok(());
        }
        let of = |layers: &[&Settings]| {
            let mut chosen = Settings::new();
            for settings in layers {
                let named = TARGETS
                    .iter()
                    .filter_map(|key| settings.get_key_value(*key));
                chosen.extend(named.map(|(key, value)| (key.clone(), value.clone())));
            }
            Targets::deserialize(Value::Object(chosen))
                .map_err(|e| self.refuse(format!("the targets cannot be read: {e}")))?
                .select(sites)
                .map_err(|e| RunError::Adapt(AdaptError::from(e)))
        };
        let own = of(&[&self.described.settings])?;
        let asked = of(&[&self.described.settings, &self.given])?;
        if own == asked {
            return Ok(());
        }
        let paths = |ids: &[frugal_nn::SiteId], without: &[frugal_nn::SiteId]| {
            let mut names: Vec<&str> = ids
                .iter()
                .filter(|id| !without.contains(id))
                .map(|id| sites.info(*id).name())
                .collect();
            names.sort_unstable();
            names.dedup();
            names.join(", ")
        };
        let more = paths(&asked, &own);
        let fewer = paths(&own, &asked);
        let told = [("also ", more), ("not ", fewer)]
            .into_iter()
            .filter(|(_, names)| !names.is_empty())
            .map(|(word, names)| format!("{word}{names}"))
            .collect::<Vec<_>>()
            .join(", and ");
        Err(self.refuse(format!(
            "the run is to adapt other layers than the adapter does ({told}): leave out the target settings, or train a new adapter without `--adapter`"
        )))
    }

    /// Reads the adapter's weights.
    pub(super) fn load(
        &self,
        model: &str,
        context: &BuildContext<'_>,
    ) -> Result<LoadedAdapter, RunError> {
        let loaded = peft::load(&self.folder, context, false);
        Ok(peft::made_for(&self.folder, model, loaded)?.0)
    }
}

/// What the adapter in a folder is: its method and settings, its classes, its base.
///
/// # Errors
/// When the folder is none of an adapter, or its configuration cannot be read.
pub fn describe(folder: &Path) -> Result<Described, RunError> {
    if !folder.join(peft::CONFIG_FILE).exists()
        && let Some(error) = LoadError::full_run(folder)
    {
        return Err(error.into());
    }
    Ok(peft::describe(folder)?)
}

/// Numbers are the same whichever way they are written.
fn same(a: &Value, b: &Value) -> bool {
    a == b || a.as_f64().is_some_and(|a| Some(a) == b.as_f64())
}
