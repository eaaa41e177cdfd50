//! Access to the values of one record, with errors that name its line.

use std::path::Path;

use serde_json::Value;

use super::error::DataError;
use super::format::{Format, present};
use super::options::LoadOptions;
use super::record::{Record, kind};

/// One record with what is needed to read it.
pub(super) struct Row<'a> {
    pub(super) path: &'a Path,
    pub(super) record: &'a Record,
    pub(super) options: &'a LoadOptions,
    pub(super) format: Format,
}

impl Row<'_> {
    pub(super) fn problem(&self, problem: impl Into<String>) -> DataError {
        DataError::line(self.path, self.record.line, problem)
    }

    pub(super) fn get(&self, key: &str) -> Option<&Value> {
        let fields = &self.record.fields;
        match self.options.columns.get(key) {
            Some(column) => fields.get(column),
            None => {
                present(key, &|name| fields.contains_key(name)).and_then(|name| fields.get(name))
            }
        }
    }

    pub(super) fn required(&self, key: &str) -> Result<&Value, DataError> {
        self.get(key).ok_or_else(|| {
            let column = self.options.columns.get(key).map_or(key, String::as_str);
            let found: Vec<&str> = self.record.fields.keys().map(String::as_str).collect();
            let needed = self.format.required().join(", ");
            self.problem(format!(
                "no {column:?}; a {} record needs {needed}, this one has {}",
                self.format,
                found.join(", ")
            ))
        })
    }

    pub(super) fn text(&self, key: &str) -> Result<String, DataError> {
        match self.required(key)? {
            Value::String(text) => Ok(text.clone()),
            other => Err(self.problem(format!("{key:?} must be a string, not {}", kind(other)))),
        }
    }

    /// A text that may be absent, null or empty.
    pub(super) fn optional_text(&self, key: &str) -> Result<Option<String>, DataError> {
        match self.get(key) {
            None | Some(Value::Null) => Ok(None),
            Some(_) => Ok(Some(self.text(key)?).filter(|t| !t.is_empty())),
        }
    }

    pub(super) fn list(&self, key: &str) -> Result<Vec<Value>, DataError> {
        // A table holds the list as JSON in one cell.
        let list = match self.required(key)? {
            Value::String(text) => serde_json::from_str(text).unwrap_or(Value::Null),
            value => value.clone(),
        };
        match list {
            Value::Array(items) if !items.is_empty() => Ok(items),
            Value::Array(_) => Err(self.problem(format!("{key:?} is an empty list"))),
            _ => Err(self.problem(format!("{key:?} must be a list of objects"))),
        }
    }

    /// The value under a key that a record may lack; null, empty texts and empty lists count as
    /// lacking, which is how tables fill a column.
    pub(super) fn given(&self, key: &str) -> Option<&Value> {
        self.get(key).filter(|value| !is_empty(value))
    }

    /// Refuses keys that would change what is learned and are not used.
    pub(super) fn check_unused(&self) -> Result<(), DataError> {
        let given = |key: &&str| self.record.fields.get(*key).is_some_and(|v| !is_empty(v));
        let mapped = |key: &str| self.options.columns.values().any(|column| column == key);
        let mut refused = self.format.refused().filter(given);
        match refused.find(|key| !mapped(key)) {
            None => Ok(()),
            Some(key) => Err(self.problem(format!(
                "`{key}` is not used in {} data and leaving it out would change what is learned; \
                 take it out of the file, or rename it if it has no part in this",
                self.format
            ))),
        }
    }
}

/// Whether a value says nothing.
pub(super) fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(fields) => fields.is_empty(),
        _ => false,
    }
}
