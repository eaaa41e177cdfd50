//! Documents of several paragraphs, and questions whose answers have a place in them.

use std::ops::Range;
use std::path::Path;

use frugal_nn::named_rng;
use rand::seq::SliceRandom;
use serde::Deserialize;

use super::super::StudyError;

#[derive(Deserialize)]
struct File {
    data: Vec<Article>,
}

#[derive(Deserialize)]
struct Article {
    paragraphs: Vec<Paragraph>,
}

#[derive(Deserialize)]
struct Paragraph {
    context: String,
    qas: Vec<Asked>,
}

#[derive(Deserialize)]
struct Asked {
    question: String,
    answers: Vec<Answered>,
}

#[derive(Deserialize)]
struct Answered {
    text: String,
    /// In characters.
    answer_start: usize,
}

/// A question.
pub(super) struct Question {
    pub(super) text: String,
    pub(super) answer: String,
    pub(super) document: usize,
    /// Bytes of the answer in the document.
    pub(super) place: Range<usize>,
}

/// Documents and questions.
pub(super) struct Questions {
    pub(super) documents: Vec<String>,
    pub(super) questions: Vec<Question>,
}

impl Questions {
    pub(super) fn read(path: &Path, smoke: bool) -> Result<Self, StudyError> {
        let data = |reason: String| StudyError::Data {
            path: path.into(),
            reason,
        };
        let text = std::fs::read_to_string(path).map_err(|e| data(e.to_string()))?;
        let mut file: File = serde_json::from_str(&text).map_err(|e| data(e.to_string()))?;
        if smoke {
            file.data.truncate(4);
        }
        let (mut documents, mut questions) = (Vec::new(), Vec::new());
        for (number, article) in file.data.into_iter().enumerate() {
            let mut document = String::new();
            for paragraph in article.paragraphs {
                if !document.is_empty() {
                    document.push_str("\n\n");
                }
                let begin = document.len();
                for asked in paragraph.qas {
                    let Some(answer) = asked.answers.into_iter().next() else {
                        continue;
                    };
                    let mut places = paragraph.context.char_indices().skip(answer.answer_start);
                    let start = places.next().map(|(at, _)| at).unwrap_or_default();
                    if !paragraph.context[start..].starts_with(&answer.text) {
                        let asked = asked.question;
                        return Err(data(format!("the answer to {asked:?} is not at its place")));
                    }
                    questions.push(Question {
                        text: asked.question,
                        place: begin + start..begin + start + answer.text.len(),
                        answer: answer.text,
                        document: number,
                    });
                }
                document.push_str(&paragraph.context);
            }
            documents.push(document);
        }
        if questions.is_empty() {
            return Err(data("no question in it".into()));
        }
        Ok(Self {
            documents,
            questions,
        })
    }

    /// Numbers of so many questions, drawn by a seed; the first ones of a larger draw are those of a
    /// smaller one.
    pub(super) fn drawn(&self, seed: u64, count: usize) -> Vec<usize> {
        let mut order: Vec<usize> = (0..self.questions.len()).collect();
        order.shuffle(&mut named_rng(seed, "questions of rag-hyperparameters"));
        order.truncate(count);
        order
    }
}
