//! A record as it stands in a file.

use serde_json::{Map, Value};

/// A record before its format is known.
pub(super) struct Record {
    /// Line on which it starts, from 1.
    pub(super) line: usize,
    pub(super) fields: Map<String, Value>,
}

/// Names a JSON type for a message.
pub(super) fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}
