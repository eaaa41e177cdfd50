//! What a pre-training run learns from while the rate falls, beside its text.

use std::path::Path;

use frugal_core::data::{self, Example, LoadOptions};
use frugal_train::{MixturePart, TrainConfig};
use serde::{Deserialize, Serialize};

use super::{Observe, Progress, RunError};

/// Data that are learnt from during the decay only.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DecayData {
    /// Documents, prompts with completions, instructions or conversations; all of a record is learnt.
    pub data: String,
    /// Their share of the tokens of the decay; the corpus has what the shares leave.
    pub share: f64,
}

/// What is wrong with it: (dotted key, reason).
pub(super) fn problems(parts: &[DecayData], train: &TrainConfig) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut add = |key: &str, reason: String| found.push((key.to_owned(), reason));
    let fits = |part: &&DecayData| part.share > 0.0 && part.share <= 1.0;
    if let Some(part) = parts.iter().find(|part| !fits(part)) {
        let share = part.share;
        let reason = format!("a share of {share} given, but it must be above 0 and at most 1");
        add("decay_data", reason);
    }
    let sum: f64 = parts.iter().map(|part| part.share).sum();
    if sum > 1.0 + 1e-9 {
        let reason = format!("the shares sum to {sum}, and 1 is all of the decay");
        add("decay_data", reason);
    }
    if parts.is_empty() && !train.decay_mixture.is_empty() {
        let reason = "is made of `decay_data`: give the files there";
        add("train.decay_mixture", reason.into());
    }
    found
}

/// The mixture of a corpus of so many examples and of `decay_data` of these.
pub(super) fn mixture(given: &[DecayData], corpus: usize, more: &[usize]) -> Vec<MixturePart> {
    if given.is_empty() {
        return Vec::new();
    }
    let sum: f64 = given.iter().map(|part| part.share).sum();
    let first = MixturePart {
        examples: corpus,
        weight: (1.0 - sum).max(0.0),
    };
    let parts = given.iter().zip(more);
    let parts = parts.map(|(part, &examples)| MixturePart {
        examples,
        weight: part.share,
    });
    std::iter::once(first).chain(parts).collect()
}

/// The documents of one of `decay_data`, and the fingerprint of their file.
pub(super) fn documents(
    part: &DecayData,
    observe: Observe<'_>,
) -> Result<(Vec<String>, String), RunError> {
    observe(&Progress::Begin {
        what: format!("reading {}", part.data),
    });
    let dataset = data::load(Path::new(&part.data), &LoadOptions::default())?;
    let document = |example: &Example| {
        document(example).ok_or_else(|| {
            RunError::Invalid(format!(
                "{}: {} data are no text to pre-train on: text, prompts with completions, instructions and conversations are",
                part.data, dataset.format
            ))
        })
    };
    let documents: Result<_, RunError> = dataset.examples.iter().map(document).collect();
    Ok((documents?, dataset.sha256.clone()))
}

/// A record as one text, its parts on lines of their own.
fn document(example: &Example) -> Option<String> {
    let turns = match example {
        Example::Text { text } => return Some(text.clone()),
        Example::Messages(conversation) => conversation.messages.clone(),
        other => other.turns()?,
    };
    let contents: Vec<&str> = turns.iter().map(|turn| turn.content.as_str()).collect();
    Some(contents.join("\n"))
}
