//! What is indexed.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// A document of a corpus.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Document {
    /// Its identifier: a text, so that `007` is not `7`.
    pub id: String,
    /// Its title; may be empty.
    pub title: String,
    /// Its text.
    pub text: String,
    /// Everything else that is known of it, for filters and to be shown.
    pub metadata: Map<String, Value>,
}

impl Document {
    /// A document without title and metadata.
    pub fn new(id: impl Into<String>, text: impl Into<String>) -> Self {
        Self {
            id: id.into(),
            text: text.into(),
            ..Self::default()
        }
    }

    /// Title and text as one, as BEIR's encoders read them and as they are indexed.
    pub fn title_and_text(&self) -> String {
        format!("{} {}", self.title, self.text).trim().to_owned()
    }

    /// Whether there is nothing to find it by.
    pub fn is_blank(&self) -> bool {
        self.title.trim().is_empty() && self.text.trim().is_empty()
    }
}
