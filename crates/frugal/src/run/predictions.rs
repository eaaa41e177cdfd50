//! What a head said of each example that was measured.

use frugal_core::data::{Dataset, Example};
use frugal_core::encode::{Target, Tokenized};
use frugal_core::metrics::{Entity, entities};
use frugal_nn::ProblemType;
use serde::Serialize;
use serde_json::{Map, Value, json};

/// What a head said of one example.
#[derive(Clone, Debug, Serialize)]
pub struct Prediction {
    /// Line of its record.
    pub line: usize,
    /// The text.
    pub text: String,
    /// The second text, where there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub text_pair: Option<String>,
    /// What the data gives: a label, a list of labels, a number or several.
    pub gold: Value,
    /// What the head gave.
    #[serde(flatten)]
    pub answer: Answer,
}

/// What a head gave for one example.
#[derive(Clone, Debug, Serialize)]
#[serde(untagged)]
#[non_exhaustive]
pub enum Answer {
    /// One label of several.
    Label {
        /// The likeliest label.
        label: String,
        /// Its probability.
        score: f32,
        /// The probability of each label.
        probabilities: Map<String, Value>,
    },
    /// Any number of labels.
    Labels {
        /// Those that are likelier than not.
        labels: Vec<String>,
        /// The probability of each label.
        probabilities: Map<String, Value>,
    },
    /// A label for each word.
    Tags {
        /// Its words.
        tokens: Vec<String>,
        /// What was said of each, and what that marks.
        #[serde(flatten)]
        tags: Tags,
    },
    /// A number for each output.
    Scores {
        /// By the name of the output.
        scores: Map<String, Value>,
    },
}

/// What a head that labels tokens said of the words of a text.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Tags {
    /// The likeliest label of each word; none for a word that was cut off or has no token.
    pub labels: Vec<Option<String>>,
    /// The probability of each.
    pub scores: Vec<Option<f32>>,
    /// The runs of words that these labels mark, as seqeval reads them.
    pub entities: Vec<Entity>,
}

impl Tags {
    /// From the logits of all tokens of a text with so many words; the first token of a word speaks
    /// for it.
    pub(super) fn new(labels: &[String], words: usize, text: &Tokenized, logits: &[f32]) -> Self {
        let mut found = Self {
            labels: vec![None; words],
            scores: vec![None; words],
            entities: Vec::new(),
        };
        let Target::Tags { words: starts, .. } = &text.labels else {
            return found;
        };
        for (word, logits) in starts.iter().zip(logits.chunks(labels.len().max(1))) {
            let Some(at) = word.map(|word| word as usize).filter(|at| *at < words) else {
                continue;
            };
            let mut values = logits.to_vec();
            ProblemType::SingleLabel.activate(&mut values);
            let best = largest(logits);
            found.labels[at] = Some(labels[best].clone());
            found.scores[at] = Some(values[best]);
        }
        let tags = found
            .labels
            .iter()
            .map(|label| label.as_deref().unwrap_or("O"));
        found.entities = entities(&tags.collect::<Vec<_>>());
        found
    }
}

/// What a head with these labels said of the rows of a data set, from its logits. Nothing for a
/// model without one.
pub(super) fn predictions(
    dataset: &Dataset,
    (rows, encoded): (&[usize], &[Tokenized]),
    labels: &[String],
    problem: ProblemType,
    logits: &[Vec<f32>],
) -> Vec<Prediction> {
    let one = |((&row, encoded), logits): ((&usize, &Tokenized), &Vec<f32>)| {
        if let Example::Tagged { tokens, tags } = &dataset.examples[row] {
            return Some(Prediction {
                line: dataset.lines[row],
                text: tokens.join(" "),
                text_pair: None,
                gold: json!(tags),
                answer: Answer::Tags {
                    tokens: tokens.clone(),
                    tags: Tags::new(labels, tokens.len(), encoded, logits),
                },
            });
        }
        let (text, text_pair, gold) = match &dataset.examples[row] {
            Example::Classification {
                text,
                text_pair,
                label,
            } => (text, text_pair, json!(label)),
            Example::Labeled {
                text,
                text_pair,
                labels,
            } => (text, text_pair, json!(labels)),
            Example::Valued {
                text,
                text_pair,
                values,
            } => {
                let values: Vec<Value> = values.iter().map(|value| short(*value)).collect();
                let gold = match values.as_slice() {
                    [value] => value.clone(),
                    _ => Value::from(values),
                };
                (text, text_pair, gold)
            }
            _ => return None,
        };
        Some(Prediction {
            line: dataset.lines[row],
            text: text.clone(),
            text_pair: text_pair.clone(),
            gold,
            answer: answer(labels, problem, logits),
        })
    };
    let rows = rows.iter().zip(encoded);
    rows.zip(logits).filter_map(one).collect()
}

/// A number with the digits that single precision has.
fn short(value: f32) -> Value {
    Value::from(value.to_string().parse().unwrap_or(f64::from(value)))
}

fn answer(labels: &[String], problem: ProblemType, logits: &[f32]) -> Answer {
    let mut values = logits.to_vec();
    problem.activate(&mut values);
    let named = labels.iter().zip(&values);
    let all = named.map(|(label, value)| (label.clone(), json!(value)));
    let all: Map<String, Value> = all.collect();
    match problem {
        ProblemType::SingleLabel => {
            let best = largest(logits);
            Answer::Label {
                label: labels[best].clone(),
                score: values[best],
                probabilities: all,
            }
        }
        ProblemType::MultiLabel => {
            let holds = labels.iter().zip(logits).filter(|(_, logit)| **logit > 0.0);
            Answer::Labels {
                labels: holds.map(|(label, _)| label.clone()).collect(),
                probabilities: all,
            }
        }
        ProblemType::Regression => Answer::Scores { scores: all },
    }
}

/// Position of the largest logit, the first one among equals, as the metrics take it.
fn largest(logits: &[f32]) -> usize {
    let better = |best: usize, (i, x): (usize, &f32)| if *x > logits[best] { i } else { best };
    logits.iter().enumerate().fold(0, better)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_problem_says_what_its_outputs_mean() {
        let labels = ["a", "b"].map(str::to_owned);
        let said = |problem| serde_json::to_value(answer(&labels, problem, &[2.0, 1.0])).unwrap();
        let close = |value: &Value, expected: f64| {
            assert!((value.as_f64().unwrap() - expected).abs() < 1e-6, "{value}");
        };
        let one = said(ProblemType::SingleLabel);
        assert_eq!(one["label"], "a");
        // Values of torch.softmax and torch.sigmoid.
        close(&one["score"], 0.731_058_6);
        close(&one["probabilities"]["b"], 0.268_941_4);
        let several = said(ProblemType::MultiLabel);
        assert_eq!(several["labels"], json!(["a", "b"]));
        close(&several["probabilities"]["a"], 0.880_797_1);
        let numbers = said(ProblemType::Regression);
        assert_eq!(numbers, json!({"scores": {"a": 2.0, "b": 1.0}}));
    }
}
