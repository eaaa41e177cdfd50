//! Whether model, data, settings and an earlier run go together.

use frugal_nn::Parameter;
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::run::TrainRun;
use crate::checkpoint::hex;
use crate::config::{ConfigProblem, TrainConfig};
use crate::error::{Set, TrainError};
use crate::objective::{self, Objective};
use crate::unreached::Unreached;
use crate::{Target, Tokenized};

/// Settings that a resumed run may change. More `epochs` or `max_steps` stretch the schedule from
/// there on; fewer than are done are refused.
pub(crate) const MAY_CHANGE: [&str; 9] = [
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

/// Whether the settings go together, and with data that have a validation part or none: what is known
/// before there is a model.
///
/// # Errors
/// [`TrainError::Config`] naming the settings.
pub fn check_settings(config: &TrainConfig, validation: bool) -> Result<(), TrainError> {
    config.validate().map_err(TrainError::Config)?;
    match config.early_stopping_patience > 0 && !validation {
        true => Err(TrainError::Config(vec![ConfigProblem {
            field: "early_stopping_patience",
            reason: "early stopping needs validation data".into(),
        }])),
        false => Ok(()),
    }
}

/// Everything that can be known to fail before any work is done.
pub(super) fn check(run: &TrainRun<'_>, objective: &dyn Objective) -> Result<(), TrainError> {
    check_settings(run.config, run.validation.is_some())?;
    objective::check(objective, Set::Train, run.model(), run.train)?;
    check_company(run, objective)?;
    check_mixture(run.config, run.train)?;
    if let Some(validation) = run.validation {
        objective::check(objective, Set::Evaluation, run.model(), validation)?;
        let known: Vec<&str> = objective.metrics().iter().map(|m| m.name).collect();
        if !known.contains(&run.config.best_metric()) {
            return Err(TrainError::Metric {
                name: run.config.metric_for_best_model.clone(),
                known: known.join(", "),
            });
        }
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
    match Unreached::among(&*run.adapter, run.train) {
        Some(unreached) if unreached.is_all() => Err(TrainError::Setup(unreached.to_string())),
        _ => Ok(()),
    }
}

/// The parts of a mixture are the training examples, each once.
pub(crate) fn check_mixture(config: &TrainConfig, train: &[Tokenized]) -> Result<(), TrainError> {
    let parts = &config.decay_mixture;
    if parts.is_empty() {
        return Ok(());
    }
    let refused = |reason| {
        let field = "decay_mixture";
        Err(TrainError::Config(vec![ConfigProblem { field, reason }]))
    };
    let listed = parts
        .iter()
        .fold(0_usize, |sum, part| sum.saturating_add(part.examples));
    if listed != train.len() {
        return refused(format!(
            "{listed} examples are listed, and there are {}",
            train.len()
        ));
    }
    let mut first = 0;
    for (number, part) in parts.iter().enumerate() {
        let rows = &train[first..first + part.examples];
        first += part.examples;
        // The first part is what the stable stage learns from, whatever its weight.
        let needed = number == 0 || part.weight > 0.0;
        if needed && !rows.iter().any(|example| example.trained() > 0) {
            let reason = format!(
                "part {} has no example with anything to predict",
                number + 1
            );
            return refused(reason);
        }
    }
    Ok(())
}

/// An example that teaches nothing by itself must have others beside it.
fn check_company(run: &TrainRun<'_>, objective: &dyn Objective) -> Result<(), TrainError> {
    let alone = |example: &&Tokenized| objective.needs_others(example);
    let name = objective.name();
    if !run.train.iter().any(|example| alone(&example)) {
        return Ok(());
    }
    if run.adapter.wants_examples() {
        return Err(TrainError::Setup(format!(
            "method `{}` looks at the gradient of each example by itself, and `{name}` has none of an example without others: give examples with negatives of their own, or take another objective",
            run.adapter.method()
        )));
    }
    if run.train.len() > 1 && (run.config.batch_size > 1 || run.config.packing) {
        return Ok(());
    }
    Err(TrainError::Config(vec![ConfigProblem {
        field: "batch_size",
        reason: format!(
            "`{name}` compares the examples of a batch, so a batch needs at least 2 of them"
        ),
    }]))
}

/// Whether a run can be shared among processes.
pub(super) fn check_shared(
    run: &TrainRun<'_>,
    objective: &dyn Objective,
) -> Result<(), TrainError> {
    let refuse = |reason: String| Err(TrainError::Setup(reason));
    if run.adapter.wants_examples() {
        return refuse(format!(
            "method `{}` looks at the gradient of each example by itself, which several processes do not share",
            run.adapter.method()
        ));
    }
    let name = objective.name();
    let needs = |example: &Tokenized| objective.needs_others(example);
    if run.train.iter().any(needs) {
        return refuse(format!(
            "`{name}` compares the examples of a micro-batch, and each of several processes would see only its share"
        ));
    }
    if !run.adapter.probes().is_empty() {
        return refuse(format!(
            "method `{}` asks for gradients beside those of its parameters, which several processes do not share",
            run.adapter.method()
        ));
    }
    Ok(())
}

/// What a run was set to and is not any more, but for what may change.
pub(crate) fn config_differences(
    stored: &TrainConfig,
    given: &TrainConfig,
    may_change: &[&str],
) -> Vec<String> {
    let fields = |config: &TrainConfig| match serde_json::to_value(config) {
        Ok(Value::Object(fields)) => fields,
        _ => unreachable!("settings are plain numbers, flags and names"),
    };
    let (stored, given) = (stored.canonical(), given.canonical());
    // The stored settings were read from JSON, which may have rounded a last digit: the given ones
    // go the same way.
    let given = serde_json::to_string(&given)
        .ok()
        .and_then(|text| serde_json::from_str(&text).ok())
        .unwrap_or(given);
    let (stored, given) = (fields(&stored), fields(&given));
    // A setting that is not stored had its default.
    let mut names: Vec<&String> = stored.keys().chain(given.keys()).collect();
    names.sort_unstable();
    names.dedup();
    names.retain(|name| !may_change.contains(&name.as_str()));
    let shown = |value: Option<&Value>| value.map_or("not set".to_owned(), Value::to_string);
    names
        .into_iter()
        .map(|name| (name, stored.get(name), given.get(name)))
        .filter(|(_, stored, given)| stored != given)
        .map(|(name, stored, given)| {
            format!("`{name}` was {}, now {}", shown(stored), shown(given))
        })
        .collect()
}

/// SHA-256 of bytes.
pub(super) fn hash(bytes: &[u8]) -> [u8; 32] {
    Sha256::digest(bytes).into()
}

/// SHA-256 of examples.
pub(crate) fn data_hash(examples: &[Tokenized]) -> String {
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
            Target::Tags { classes, .. } => extend(&mut bytes, classes, |t| t.to_le_bytes()),
            Target::Class(class) => bytes.extend((*class as u64).to_le_bytes()),
            Target::Classes(classes) => extend(&mut bytes, classes, |c| (*c as u64).to_le_bytes()),
            Target::Values(values) => extend(&mut bytes, values, |v| v.to_le_bytes()),
            Target::Preference { targets, chosen } => {
                extend(&mut bytes, targets, |t| t.to_le_bytes());
                bytes.extend((*chosen as u64).to_le_bytes());
            }
            Target::Texts { lengths, scores } => {
                extend(&mut bytes, lengths, |n| (*n as u64).to_le_bytes());
                extend(&mut bytes, scores, |v| v.to_le_bytes());
            }
        }
        hash.update(&bytes);
    }
    hex(&hash.finalize())
}

/// Adds how many there are, and their bytes.
fn extend<T, const N: usize>(bytes: &mut Vec<u8>, values: &[T], of: impl Fn(&T) -> [u8; N]) {
    bytes.extend((values.len() as u64).to_le_bytes());
    bytes.extend(values.iter().flat_map(of));
}
