//! What it costs to write a value out.

use minijinja::value::{Value, ValueKind};
use minijinja::{Error, ErrorKind, State};

/// Deepest value that is written out.
const DEEPEST: usize = 500;

/// Charges a value for every place that it will be written to, before it is: one that is held twice
/// by one that is held twice, and so on, is small in memory and endless on paper.
pub(super) fn weigh(state: &State, value: &Value) -> Result<(), Error> {
    fn walk(state: &State, value: &Value, depth: usize) -> Result<(), Error> {
        if depth > DEEPEST {
            let why = format!("a value nests more than {DEEPEST} deep");
            return Err(Error::new(ErrorKind::InvalidOperation, why));
        }
        let size = value.as_str().map_or(0, str::len) as u64;
        state.consume_fuel(1 + size / 64)?;
        if matches!(
            value.kind(),
            ValueKind::Seq | ValueKind::Map | ValueKind::Iterable
        ) {
            for item in value.try_iter()? {
                if value.kind() == ValueKind::Map {
                    walk(state, &value.get_item(&item)?, depth + 1)?;
                }
                walk(state, &item, depth + 1)?;
            }
        }
        Ok(())
    }
    walk(state, value, 0)
}
