//! The list of objectives.

use frugal_nn::ProblemType;

use super::causal_lm::CausalLm;
use super::classification::Classification;
use super::multi_label::MultiLabel;
use super::regression::Regression;
use super::{ModelParts, Objective};
use crate::config::TrainConfig;
use crate::named::Named;

/// An objective as the list knows it.
pub struct ObjectiveEntry {
    /// Its name in configurations.
    pub name: &'static str,
    /// What transformers calls it.
    pub alias: Option<&'static str>,
    /// What it learns, in a few words.
    pub summary: &'static str,
    make: fn(&Named, &TrainConfig) -> Result<Box<dyn Objective>, String>,
}

/// All objectives.
pub const OBJECTIVES: &[ObjectiveEntry] = &[
    ObjectiveEntry {
        name: "causal_lm",
        alias: None,
        summary: "the next token",
        make: |named, train| {
            named.read::<NoSettings>()?;
            let label_smoothing = train.label_smoothing;
            Ok(Box::new(CausalLm { label_smoothing }))
        },
    },
    ObjectiveEntry {
        name: "classification",
        alias: Some("single_label_classification"),
        summary: "one class for each text",
        make: |named, train| {
            let config = named.read()?;
            Ok(Box::new(Classification::new(config, train.label_smoothing)))
        },
    },
    ObjectiveEntry {
        name: "multi_label",
        alias: Some("multi_label_classification"),
        summary: "any number of labels for each text",
        make: |named, train| {
            smoothing_is_for_classes(train)?;
            Ok(Box::new(MultiLabel::new(named.read()?)))
        },
    },
    ObjectiveEntry {
        name: "regression",
        alias: None,
        summary: "a number for each text, or several",
        make: |named, train| {
            smoothing_is_for_classes(train)?;
            named.read::<NoSettings>()?;
            Ok(Box::new(Regression))
        },
    },
];

/// For objectives that have nothing to set.
#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct NoSettings {}

fn smoothing_is_for_classes(train: &TrainConfig) -> Result<(), String> {
    if train.label_smoothing == 0.0 {
        return Ok(());
    }
    Err("`label_smoothing` has a meaning only where one class or token of several is right: leave it at 0".into())
}

fn find(name: &str) -> Result<&'static ObjectiveEntry, String> {
    let is_it = |entry: &&ObjectiveEntry| entry.name == name || entry.alias == Some(name);
    OBJECTIVES.iter().find(is_it).ok_or_else(|| {
        let known: Vec<&str> = OBJECTIVES.iter().map(|entry| entry.name).collect();
        format!("{name:?} is no objective; there are {}", known.join(", "))
    })
}

/// The objective that the settings name.
///
/// # Errors
/// A name that is none, settings that it does not have.
pub fn made(named: &Named, train: &TrainConfig) -> Result<Box<dyn Objective>, String> {
    (find(&named.name)?.make)(named, train)
}

/// The objective of a run: the one that its settings name, else the one that the model is made for,
/// with the settings that are given.
///
/// # Errors
/// As [`made`].
pub fn for_model(train: &TrainConfig, model: ModelParts<'_>) -> Result<Box<dyn Objective>, String> {
    let mut named = train.objective.clone();
    if named.name.is_empty() {
        named.name = usual(model).into();
    }
    made(&named, train)
}

/// The name of the objective that a model is made for.
fn usual(model: ModelParts<'_>) -> &'static str {
    match model.head.map(|head| head.config().problem_type) {
        None => "causal_lm",
        Some(ProblemType::SingleLabel) => "classification",
        Some(ProblemType::MultiLabel) => "multi_label",
        Some(ProblemType::Regression) => "regression",
    }
}

/// The registered name in place of what transformers calls it.
pub fn canonical(name: &str) -> String {
    find(name).map_or_else(|_| name.to_owned(), |entry| entry.name.to_owned())
}
