//! A record of the data.

use serde_json::{Map, Value};

/// A record of the data.
pub type Record = Map<String, Value>;

/// A record with further fields, which replace those of the same names.
pub(super) fn with(mut record: Record, fields: Map<String, Value>) -> Record {
    record.extend(fields);
    record
}
