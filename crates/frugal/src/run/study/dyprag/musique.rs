//! MuSiQue: questions over several paragraphs, with the question about each paragraph that they are
//! made of.

use std::collections::HashMap;
use std::path::Path;

use frugal_core::data::objects;
use frugal_nn::named_rng;
use frugal_retrieve::parametric::{AugmentedDocument, Item};
use rand::seq::SliceRandom;
use serde::Deserialize;
use serde_json::Value;

use super::super::StudyError;
use super::data::{Case, Data};

#[derive(Clone, Deserialize)]
struct Record {
    id: String,
    paragraphs: Vec<Paragraph>,
    question: String,
    question_decomposition: Vec<Hop>,
    answer: String,
    answer_aliases: Vec<String>,
}

#[derive(Clone, Deserialize)]
struct Paragraph {
    title: String,
    paragraph_text: String,
}

#[derive(Clone, Deserialize)]
struct Hop {
    question: String,
    answer: String,
    paragraph_support_idx: usize,
}

/// The question of a hop as a sentence: earlier answers put in for `#1`, `#2`, and a relation
/// (`NAME >> relation`) asked for in words.
fn sentence(hops: &[Hop], number: usize) -> String {
    let mut text = hops[number].question.clone();
    // From the last, so that `#1` is not taken out of `#12`.
    for (earlier, hop) in hops[..number].iter().enumerate().rev() {
        text = text.replace(&format!("#{}", earlier + 1), &hop.answer);
    }
    match text.split_once(">>") {
        Some((name, relation)) => {
            format!("What is the {} of {}?", relation.trim(), name.trim())
        }
        None => text.replace(" ?", "?"),
    }
}

/// So many questions drawn by a seed, with their paragraphs as documents; the first `asked` questions
/// are asked, and what answers them is held out from the translator.
pub(super) fn musique(
    path: &Path,
    questions: usize,
    asked: usize,
    seed: u64,
) -> Result<Data, StudyError> {
    let bad = |reason: String| StudyError::Data {
        path: path.to_owned(),
        reason,
    };
    let bytes = std::fs::read(path).map_err(|e| bad(e.to_string()))?;
    let found = objects(path, &bytes).map_err(|e| bad(e.to_string()))?;
    let records = found
        .into_iter()
        .map(|record| serde_json::from_value(Value::Object(record)));
    let mut records = records
        .collect::<Result<Vec<Record>, _>>()
        .map_err(|e| bad(e.to_string()))?;
    records.shuffle(&mut named_rng(seed, "questions of musique"));
    records.truncate(questions);
    let mut data = Data {
        name: "musique",
        documents: Vec::new(),
        held_out: 0,
        cases: Vec::new(),
    };
    let mut places: HashMap<(String, String), usize> = HashMap::new();
    for (number, record) in records.into_iter().enumerate() {
        let hops = &record.question_decomposition;
        let mut documents = Vec::new();
        for (hop, step) in hops.iter().enumerate() {
            let paragraph = record.paragraphs.get(step.paragraph_support_idx);
            let paragraph = paragraph.ok_or_else(|| {
                let place = step.paragraph_support_idx;
                bad(format!("question `{}` has no paragraph {place}", record.id))
            })?;
            let key = (paragraph.title.clone(), paragraph.paragraph_text.clone());
            let place = *places.entry(key).or_insert(data.documents.len());
            if place == data.documents.len() {
                data.documents.push(AugmentedDocument {
                    id: format!("{} {hop}", record.id),
                    title: paragraph.title.clone(),
                    passage: paragraph.paragraph_text.clone(),
                    rewrite: None,
                    items: Vec::new(),
                });
            }
            let item = Item {
                question: sentence(hops, hop),
                answer: step.answer.clone(),
            };
            let items = &mut data.documents[place].items;
            if !items.contains(&item) {
                items.push(item);
            }
            if !documents.contains(&place) {
                documents.push(place);
            }
        }
        if number < asked {
            let aliases = record.answer_aliases.into_iter();
            data.cases.push(Case {
                question: record.question,
                answers: std::iter::once(record.answer).chain(aliases).collect(),
                documents,
                is_trained: false,
            });
            data.held_out = data.documents.len();
        }
    }
    Ok(data)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hops_become_sentences_with_the_answers_of_earlier_ones() {
        let hop = |question: &str, answer: &str| Hop {
            question: question.into(),
            answer: answer.into(),
            paragraph_support_idx: 0,
        };
        let hops = [
            hop("Hello Love >> performer", "Hank Snow"),
            hop("What city did #1 live in when he died ?", "Madison"),
            hop("Which lake is between #1 and #2?", "none"),
        ];
        let found: Vec<String> = (0..3).map(|i| sentence(&hops, i)).collect();
        assert_eq!(
            found,
            [
                "What is the performer of Hello Love?",
                "What city did Hank Snow live in when he died?",
                "Which lake is between Hank Snow and Madison?"
            ]
        );
    }
}
