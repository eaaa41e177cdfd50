//! Deserialising again and again, each time without the key that failed, until every mistake has
//! been seen.

use serde::Serialize;
use serde::de::DeserializeOwned;
use toml::{Table, Value};

use super::attempt::{Failure, attempt, each_table, remove};
use super::defaults;
use super::error::ConfigError;
use super::layer::{self, Layer, get};
use crate::suggest::did_you_mean;

/// The merged layers as `T`, if they have that form; the mistakes are appended to `errors`.
pub(super) fn deserialize<T: DeserializeOwned + Serialize + Default>(
    layers: &[Layer],
    errors: &mut Vec<ConfigError>,
) -> Option<T> {
    let mut table = Table::new();
    layers
        .iter()
        .for_each(|layer| layer::merge(&mut table, &layer.table));
    let mut removed: Vec<Vec<String>> = Vec::new();
    loop {
        let failure = match attempt::<T>(&table) {
            Ok(value) => return Some(defaults::fill(value, &table)),
            Err(failure) => failure,
        };
        if defaults::drop_earlier_name::<T>(layers, &mut table, &failure) {
            continue;
        }
        let failure = narrow::<T>(&table, failure);
        if let Some(field) = failure.message.strip_prefix("missing field ") {
            let mut path = failure.path.clone();
            path.push(field.trim_matches('`').to_owned());
            // A field that is missing because it was removed as wrong is not a second mistake.
            if !removed.contains(&path) {
                let origin = layer::origin(layers, &failure.path);
                errors.push(ConfigError {
                    origin,
                    key: Some(dotted(&path)),
                    message: "required but not given".into(),
                });
            }
        } else {
            if retry_as_string(layers, &table, &failure)
                .is_some_and(|text| replace(&mut table, &failure.path, text))
            {
                continue;
            }
            let message = explain::<T>(&failure);
            errors.push(ConfigError {
                origin: layer::origin(layers, &failure.path),
                key: Some(dotted(&failure.path)),
                message,
            });
        }
        if !remove(&mut table, &failure.path) {
            return None;
        }
        removed.push(failure.path);
    }
}

/// The key inside a table that is at fault.
///
/// serde reads tagged enums and unknown fields by way of a copy, so the reported path can end at
/// the table. The child at fault is the one that, taken away, changes the error.
fn narrow<T: DeserializeOwned>(table: &Table, mut failure: Failure) -> Failure {
    if failure.message.starts_with("missing field") {
        return failure;
    }
    while let Some(child) = child_at_fault::<T>(table, &failure) {
        failure.path.push(child);
    }
    failure
}

fn child_at_fault<T: DeserializeOwned>(table: &Table, failure: &Failure) -> Option<String> {
    let children = match get(table, &failure.path) {
        Some(Value::Table(inner)) => inner,
        None if failure.path.is_empty() => table,
        _ => return None,
    };
    let without = |names: &[&String]| {
        let mut table = table.clone();
        for name in names {
            let path: Vec<String> = failure.path.iter().chain([*name]).cloned().collect();
            remove(&mut table, &path);
        }
        attempt::<T>(&table).err()
    };
    let mut required = Vec::new();
    for child in children.keys() {
        match without(&[child]) {
            Some(after) if after == *failure => {}
            Some(after) if after.message == missing(child) => required.push(child),
            Some(after) if after.message.starts_with("missing field") => {}
            _ => return Some(child.clone()),
        }
    }
    match required[..] {
        [only] => Some(only.clone()),
        // Besides the culprit, the tag of an enum is missed when taken away, and before anything
        // else.
        [a, b] => {
            let tag = without(&[a, b])?.message;
            Some(if tag == missing(a) {
                b.clone()
            } else {
                a.clone()
            })
        }
        _ => None,
    }
}

fn missing(field: &str) -> String {
    format!("missing field `{field}`")
}

/// `revision=123` where a string is wanted means the string.
fn retry_as_string(layers: &[Layer], table: &Table, failure: &Failure) -> Option<String> {
    let scalar = matches!(
        get(table, &failure.path)?,
        Value::Integer(_) | Value::Float(_) | Value::Boolean(_) | Value::Datetime(_)
    );
    let wanted = failure.message.starts_with("invalid type")
        && failure.message.ends_with("expected a string");
    if scalar && wanted {
        layer::setter(layers, &failure.path)?
            .raw_override(&failure.path)
            .map(str::to_owned)
    } else {
        None
    }
}

/// Puts text under a key; false if the path does not lead through tables, and nothing has changed.
fn replace(table: &mut Table, path: &[String], text: String) -> bool {
    match path {
        [key] => {
            table.insert(key.clone(), Value::String(text));
            true
        }
        [key, rest @ ..] => match table.get_mut(key) {
            Some(Value::Table(inner)) => replace(inner, rest, text),
            _ => false,
        },
        [] => false,
    }
}

fn dotted(path: &[String]) -> String {
    path.join(".")
}

/// serde's message in the words of a person who edits a file.
fn explain<T: Serialize + Default>(failure: &Failure) -> String {
    let message = failure.message.as_str();
    if message.starts_with("unknown field") {
        let asked = failure.path.last().map_or("", String::as_str);
        let known = accepted(message);
        if let Some(near) = did_you_mean(asked, known.iter().copied()) {
            return format!("unknown key; did you mean `{near}`?");
        }
        if let Some(elsewhere) = key_elsewhere::<T>(asked) {
            return format!("unknown key; did you mean `{elsewhere}`?");
        }
        return format!("unknown key; accepted here: {}", list(&known));
    }
    if message.starts_with("unknown variant") {
        let asked = message.split('`').nth(1).unwrap_or_default();
        let known = accepted(message);
        let near = did_you_mean(asked, known.iter().copied())
            .map_or(String::new(), |near| format!("; did you mean `{near}`?"));
        return format!("`{asked}` is not accepted{near} (one of {})", list(&known));
    }
    let rest = message
        .strip_prefix("invalid type: ")
        .or_else(|| message.strip_prefix("invalid value: "));
    match rest.and_then(|rest| rest.rsplit_once(", expected ")) {
        Some((found, wanted)) => {
            format!("expected {}, found {}", in_words(wanted), in_words(found))
        }
        None => message.to_owned(),
    }
}

/// The names in backticks after "expected".
fn accepted(message: &str) -> Vec<&str> {
    message
        .split_once(", expected ")
        .map_or(Vec::new(), |(_, names)| {
            names.split('`').skip(1).step_by(2).collect()
        })
}

fn list(names: &[&str]) -> String {
    if names.is_empty() {
        return "nothing".into();
    }
    names
        .iter()
        .map(|name| format!("`{name}`"))
        .collect::<Vec<_>>()
        .join(", ")
}

/// A table of the defaults that knows the key which was put into the wrong one.
fn key_elsewhere<T: Serialize + Default>(key: &str) -> Option<String> {
    let defaults = Table::try_from(T::default()).ok()?;
    if defaults.contains_key(key) {
        return Some(key.to_owned());
    }
    let mut found = None;
    each_table(&defaults, &mut |path, table| {
        if table.contains_key(key) && found.is_none() {
            found = Some(format!("{}.{key}", dotted(path)));
        }
    });
    found
}

fn in_words(serde: &str) -> &str {
    match serde {
        "f32" | "f64" => "a number",
        "u8" | "u16" | "u32" | "u64" | "usize" => "a whole number that is not negative",
        "i8" | "i16" | "i32" | "i64" | "isize" => "a whole number",
        "a boolean" => "true or false",
        "map" => "a table",
        "a sequence" | "sequence" => "an array",
        other if other.starts_with("struct ") => "a table",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::accepted;

    #[test]
    fn names_are_read_from_both_forms_of_serde() {
        assert_eq!(
            accepted("unknown field `x`, expected `a` or `b`"),
            ["a", "b"]
        );
        assert_eq!(
            accepted("unknown variant `x`, expected one of `a`, `b`, `c`"),
            ["a", "b", "c"]
        );
        assert!(accepted("unknown field `x`, there are no fields").is_empty());
    }
}
