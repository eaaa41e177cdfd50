//! What the quality of a run was measured on: runs on different data are not ranked together.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::report::{Evaluation, RunRecord};
use frugal_core::human;

/// What quality is read from: the test part, or the last one there is.
pub(super) fn judged(record: &RunRecord) -> Option<&Evaluation> {
    record
        .evaluation
        .iter()
        .find(|e| e.split == "test")
        .or_else(|| record.evaluation.last())
}

/// What runs must share to be ranked.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Basis {
    /// Name of the data.
    source: String,
    /// Its content, or its name where the hash is not known.
    content: String,
    examples: usize,
    /// What of the data is read, and what of it counts.
    settings: String,
    /// The tokenizer, for metrics that count for each token.
    vocabulary: String,
}

/// Settings of a run's data that decide what is measured.
const SETTINGS: [&str; 5] = [
    "max_length",
    "truncate",
    "completion_only",
    "columns",
    "template",
];

impl Basis {
    /// Of a run that has been evaluated.
    pub(super) fn of(record: &RunRecord, metric: &str, vocabularies_known: bool) -> Option<Self> {
        let evaluation = judged(record)?;
        let meta = &record.meta_info;
        let data = meta
            .dataset_info
            .iter()
            .find(|d| d.split == evaluation.split);
        let (source, content) = data.map_or_else(Default::default, |d| {
            let content = if d.sha256.is_empty() {
                &d.source
            } else {
                &d.sha256
            };
            (d.source.clone(), content.clone())
        });
        let config = &record.run_info.train_config["data"];
        // Without cutting, a length only refuses what is longer.
        let cuts = config["truncate"] == Value::Bool(true);
        let settings: BTreeMap<&str, &Value> = SETTINGS
            .into_iter()
            .filter(|name| cuts || *name != "max_length")
            .filter_map(|name| Some((name, config.get(name)?)))
            .collect();
        // Classifiers have losses too, but not one for each token.
        let by_token = evaluation.adapted.contains_key("perplexity")
            && ["perplexity", "loss"].contains(&metric);
        let vocabulary = match (&meta.model_info.vocabulary, vocabularies_known) {
            _ if !by_token => String::new(),
            (Some(vocabulary), true) => vocabulary.clone(),
            _ => meta.model_info.name.clone(),
        };
        Some(Self {
            source,
            content,
            examples: evaluation.examples,
            settings: serde_json::to_string(&settings).unwrap_or_default(),
            vocabulary,
        })
    }
}

/// Names for people, each different from the others; `model` names a run's model by its basis.
pub(super) fn labels(all: &[Basis], model: impl Fn(&Basis) -> String) -> Vec<String> {
    let name = |basis: &Basis| {
        let source = if basis.source.is_empty() {
            "data without a name"
        } else {
            &basis.source
        };
        format!(
            "{source} ({} examples)",
            human::count(basis.examples as u64)
        )
    };
    let differ = |basis: &Basis, of: fn(&Basis) -> &String| {
        all.iter()
            .any(|other| name(other) == name(basis) && of(other) != of(basis))
    };
    let label = |basis: &Basis| {
        let mut label = name(basis);
        if differ(basis, |b| &b.content) {
            let start: String = basis.content.chars().take(8).collect();
            label = format!("{label}, content {start}");
        }
        if differ(basis, |b| &b.vocabulary) {
            label = format!("{label}, in tokens of {}", model(basis));
        }
        if differ(basis, |b| &b.settings) {
            label = format!("{label}, {}", basis.settings.replace(['{', '}', '"'], ""));
        }
        label
    };
    all.iter().map(label).collect()
}
