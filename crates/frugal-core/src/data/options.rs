//! How files are read.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::format::Format;

/// Where a document of a `.txt` file ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Documents {
    /// Each line that is not blank is a document.
    Lines,
    /// Lines up to a blank line are a document.
    Blocks,
}

/// What the labels of a text are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Labels {
    /// One name.
    #[default]
    One,
    /// Any number of names: a list, names with a separator between them, or a column of 0 and 1
    /// for each.
    Several,
    /// A number, or a list of numbers, or a column for each.
    Numbers,
    /// A name for each word: `tokens` with `ner_tags`.
    Tags,
}

/// How to read a file. The default finds out by itself.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LoadOptions {
    /// Format of the records; otherwise told from the keys of the first one.
    pub format: Option<Format>,
    /// Our name of a column to its name in the file, or to its number from 1 in a table without
    /// header: `{ text = "review", label = "stars" }`.
    pub columns: BTreeMap<String, String>,
    /// Whether the first row of a `.csv` or `.tsv` file holds column names; otherwise told from
    /// that row.
    pub header: Option<bool>,
    /// Where a document of a `.txt` file ends; otherwise at blank lines if there are any, else at
    /// each line.
    pub documents: Option<Documents>,
    /// What the labels of a text are.
    pub labels: Labels,
    /// What stands between several labels in one text; `|` if absent.
    pub label_separator: Option<String>,
    /// Names of the tags of words, in the order of their numbers, where the file holds numbers.
    pub label_names: Vec<String>,
}
