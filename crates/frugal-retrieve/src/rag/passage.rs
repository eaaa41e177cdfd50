//! A passage that was found.

use frugal_index::Document;
use serde::Serialize;

use crate::chunk::document_of;

/// A passage that was found for a question.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Passage {
    /// Its identifier in the index.
    pub id: String,
    /// The document that it is of.
    pub document: String,
    /// Title of the document; may be empty.
    pub title: String,
    /// Its text.
    pub text: String,
    /// How well it was found to answer; higher is better.
    pub score: f64,
}

impl Passage {
    /// A document, or a piece of one, that was found with a score.
    pub fn of(document: Document, score: f64) -> Self {
        Self {
            document: document_of(&document).to_owned(),
            id: document.id,
            title: document.title,
            text: document.text,
            score,
        }
    }
}
