//! Questions about documents, from a file.

use std::collections::BTreeMap;
use std::path::Path;

use frugal_core::data::{DataError, records};
use frugal_retrieve::parametric::Item;
use serde_json::{Map, Value};

use crate::run::RunError;

/// What was written about a document.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DocumentItems {
    /// The same said otherwise.
    pub rewrite: Option<String>,
    /// Questions with their answers.
    pub items: Vec<Item>,
}

/// Where questions about documents come from.
#[derive(Clone, Debug)]
pub enum ItemSource {
    /// They were written before, by document.
    Given(BTreeMap<String, DocumentItems>),
    /// The model writes them.
    Model {
        /// Decides the choices.
        seed: u64,
    },
}

struct ReadError(RunError);

impl From<DataError> for ReadError {
    fn from(error: DataError) -> Self {
        Self(error.into())
    }
}

fn field(record: &mut Map<String, Value>, name: &str) -> Result<Option<String>, String> {
    match record.remove(name) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) if text.trim().is_empty() => Err(format!("`{name}` is empty")),
        Some(Value::String(text)) => Ok(Some(text)),
        // An answer may be a year.
        Some(Value::Number(number)) => Ok(Some(number.to_string())),
        Some(other) => Err(format!("`{name}` is {other}, but must be a text")),
    }
}

fn add(
    found: &mut BTreeMap<String, DocumentItems>,
    mut record: Map<String, Value>,
) -> Result<(), String> {
    let document = field(&mut record, "document")?.ok_or("`document` is missing")?;
    let rewrite = field(&mut record, "rewrite")?;
    let (question, answer) = (
        field(&mut record, "question")?,
        field(&mut record, "answer")?,
    );
    if let Some(name) = record.keys().next() {
        return Err(format!(
            "`{name}` is none of `document`, `question`, `answer`, `rewrite`"
        ));
    }
    let of = found.entry(document).or_default();
    if let Some(rewrite) = &rewrite {
        if of.rewrite.as_ref().is_some_and(|known| known != rewrite) {
            return Err("the document has another `rewrite` already".into());
        }
        of.rewrite = Some(rewrite.clone());
    }
    match (question, answer) {
        (Some(question), Some(answer)) => of.items.push(Item { question, answer }),
        (None, None) if rewrite.is_some() => {}
        (None, _) => return Err("`question` is missing".into()),
        (_, None) => return Err("`answer` is missing".into()),
    }
    Ok(())
}

/// Questions of a file of records (JSON lines or a table) with `document` (an identifier of the index),
/// `question` and `answer`; `rewrite`, beside them or in a record of its own, says the document
/// otherwise.
///
/// # Errors
/// Files that cannot be read, records that lack something or hold something else, by line.
pub fn read_items(path: &Path) -> Result<BTreeMap<String, DocumentItems>, RunError> {
    let mut found = BTreeMap::new();
    let read = records(path, |line, record| -> Result<(), ReadError> {
        add(&mut found, record).map_err(|reason| {
            ReadError(RunError::Invalid(format!(
                "{}:{line}: {reason}",
                path.display()
            )))
        })
    });
    read.map_err(|ReadError(error)| error)?;
    if found.is_empty() {
        return Err(RunError::Invalid(format!(
            "{}: there is no question",
            path.display()
        )));
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<BTreeMap<String, DocumentItems>, String> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("items.jsonl");
        std::fs::write(&path, text).unwrap();
        let place = format!("{}:", path.display());
        read_items(&path).map_err(|e| e.to_string().replace(&place, ""))
    }

    #[test]
    fn records_of_a_document_belong_together_and_wrong_ones_are_named_by_line() {
        let found = read(
            "{\"document\": \"a\", \"question\": \"Who?\", \"answer\": \"Orla\"}\n\
             {\"document\": \"b\", \"question\": \"When?\", \"answer\": 1902}\n\
             {\"document\": \"a\", \"rewrite\": \"Said otherwise.\"}\n\
             {\"document\": \"a\", \"question\": \"Where?\", \"answer\": \"Trask\"}\n",
        )
        .unwrap();
        assert_eq!(found["a"].rewrite.as_deref(), Some("Said otherwise."));
        assert_eq!(found["a"].items.len(), 2);
        assert_eq!(found["b"].items[0].answer, "1902");
        for (line, reason) in [
            (
                "{\"question\": \"q\", \"answer\": \"a\"}",
                "1: `document` is missing",
            ),
            (
                "{\"document\": \"a\", \"question\": \"q\"}",
                "1: `answer` is missing",
            ),
            (
                "{\"document\": \"a\", \"answer\": \"q\"}",
                "1: `question` is missing",
            ),
            (
                "{\"document\": \"a\", \"question\": \" \", \"answer\": \"a\"}",
                "1: `question` is empty",
            ),
            (
                "{\"document\": \"a\", \"question\": [1], \"answer\": \"a\"}",
                "1: `question` is [1], but must be a text",
            ),
            (
                "{\"document\": \"a\", \"question\": \"q\", \"answer\": \"a\", \"score\": 1}",
                "1: `score` is none of `document`, `question`, `answer`, `rewrite`",
            ),
        ] {
            assert_eq!(read(&format!("{line}\n")).unwrap_err(), reason);
        }
    }
}
