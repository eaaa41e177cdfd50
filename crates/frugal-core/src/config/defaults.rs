//! What keys that were not given mean, and keys that were given under two names.
//!
//! serde fills a table that is given in part with the defaults of the table's own type. A
//! configuration may want others (`Run::default().train` need not be `Train::default()`), and one
//! key of a table must not change its neighbours.

use serde::Serialize;
use serde::de::DeserializeOwned;
use toml::{Table, Value};

use super::attempt::{Failure, attempt, each_table, remove};
use super::layer::{Layer, get};

/// `value`, read from `given`, with every key that was not given as it is in `T::default()`.
pub(super) fn fill<T: DeserializeOwned + Serialize + Default>(value: T, given: &Table) -> T {
    let (Ok(defaults), Ok(mut filled)) = (Table::try_from(T::default()), Table::try_from(&value))
    else {
        return value;
    };
    each_table(given, &mut |path, given_here| {
        let (Some(Value::Table(wanted)), Some(Value::Table(found))) =
            (get(&defaults, path), get(&filled, path))
        else {
            return;
        };
        // Another variant of an enum has other keys; its defaults are its own.
        if !wanted.keys().all(|key| found.contains_key(key)) {
            return;
        }
        let renamed = given_here.keys().any(|key| !found.contains_key(key));
        let differing = wanted.iter().filter(|(key, default)| {
            !given_here.contains_key(*key) && found.get(*key) != Some(default)
        });
        let changes: Vec<(String, Value)> = differing
            .filter(|(key, _)| !(renamed && given_by_alias::<T>(given, path, key, &found[*key])))
            .map(|(key, default)| (key.clone(), default.clone()))
            .collect();
        for (key, default) in changes {
            set_in(&mut filled, path, &key, default);
        }
    });
    attempt::<T>(&filled).unwrap_or(value)
}

/// Whether the table holds `key` under another name: giving it once more is then one time too many.
fn given_by_alias<T: DeserializeOwned>(
    given: &Table,
    path: &[String],
    key: &str,
    value: &Value,
) -> bool {
    let mut twice = given.clone();
    set_in(&mut twice, path, key, value.clone());
    attempt::<T>(&twice)
        .err()
        .is_some_and(|failure| failure.message == format!("duplicate field `{key}`"))
}

/// For a key that two sources gave under two names: takes the earlier one out of `table`, so that
/// the later one wins.
///
/// `failure` is serde's answer to the table. False if it is another failure, or one source gave
/// both.
pub(super) fn drop_earlier_name<T: DeserializeOwned>(
    layers: &[Layer],
    table: &mut Table,
    failure: &Failure,
) -> bool {
    if !failure.message.starts_with("duplicate field") {
        return false;
    }
    let Some(Value::Table(inner)) = get(table, &failure.path) else {
        return false;
    };
    let full =
        |key: &String| -> Vec<String> { failure.path.iter().chain([key]).cloned().collect() };
    let matters = |name: &Vec<String>| {
        let mut without = table.clone();
        remove(&mut without, name);
        attempt::<T>(&without).err().as_ref() != Some(failure)
    };
    let setter = |name: Vec<String>| {
        (
            layers
                .iter()
                .rposition(|layer| get(&layer.table, &name).is_some()),
            name,
        )
    };
    let mut names: Vec<_> = inner.keys().map(full).filter(matters).map(setter).collect();
    names.sort_by_key(|(layer, _)| *layer);
    match names.as_slice() {
        [(first, name), (second, _)] if first < second => remove(table, name),
        _ => false,
    }
}

fn set_in(table: &mut Table, path: &[String], key: &str, value: Value) {
    match path {
        [] => {
            table.insert(key.to_owned(), value);
        }
        [first, rest @ ..] => {
            if let Some(Value::Table(inner)) = table.get_mut(first) {
                set_in(inner, rest, key, value);
            }
        }
    }
}
