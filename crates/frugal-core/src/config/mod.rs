//! Typed configuration files: TOML, then flags, then dotted overrides, with every mistake reported
//! at once.
//!
//! A configuration is any struct with `#[serde(default, deny_unknown_fields)]`. Without
//! `deny_unknown_fields` serde drops unknown keys silently; [`tables_that_ignore_keys`] finds such
//! tables in a test.

mod attempt;
mod check;
mod defaults;
mod error;
mod layer;

use std::path::Path;

use serde::Serialize;
use serde::de::DeserializeOwned;

pub use error::{ConfigError, ConfigErrors, Origin};
use layer::Layer;
pub use layer::merge;

/// Reads `T` from a TOML file and overrides such as `train.lr=2e-4`; later ones win, absent keys
/// keep the value they have in `T::default()`.
///
/// An override's value is TOML; a bare word (`model=org/name`) is a string.
///
/// # Errors
/// All mistakes together: unreadable file, TOML syntax, bad overrides, unknown keys, wrong types.
pub fn load<T: DeserializeOwned + Serialize + Default>(
    file: Option<&Path>,
    overrides: &[String],
) -> Result<T, ConfigErrors> {
    load_with(file, &toml::Table::new(), overrides, |_| Vec::new())
}

/// As [`load`], with typed command-line flags between the file and the overrides, and a check of
/// the values.
///
/// `validate` sees the configuration without the keys that are wrong in themselves and returns
/// (dotted key, message) pairs; they are reported where the key was set.
///
/// # Errors
/// As [`load`], or what `validate` found.
pub fn load_with<T: DeserializeOwned + Serialize + Default>(
    file: Option<&Path>,
    flags: &toml::Table,
    overrides: &[String],
    validate: impl FnOnce(&T) -> Vec<(String, String)>,
) -> Result<T, ConfigErrors> {
    let mut errors = Vec::new();
    let mut layers = Vec::new();
    if let Some(path) = file {
        match Layer::from_file(path) {
            Ok(layer) => layers.push(layer),
            Err(found) => errors.extend(found),
        }
    }
    layers.push(Layer::from_flags(flags.clone()));
    for text in overrides {
        match Layer::from_override(text) {
            Ok(layer) => layers.push(layer),
            Err(error) => errors.push(error),
        }
    }
    // What an unreadable source would have said is not known, so its absence is no second mistake.
    let all_read = errors.is_empty();
    let value = check::deserialize::<T>(&layers, &mut errors);
    if let (Some(value), true) = (&value, all_read) {
        let wrong: Vec<String> = errors.iter().filter_map(|e| e.key.clone()).collect();
        for (key, message) in validate(value) {
            // A key of the wrong type was left out; what that leads to is no second mistake either.
            if !wrong
                .iter()
                .any(|w| *w == key || w.starts_with(&format!("{key}.")))
            {
                let path: Vec<String> = key.split('.').map(str::to_owned).collect();
                errors.push(ConfigError {
                    origin: layer::origin(&layers, &path),
                    key: Some(key),
                    message,
                });
            }
        }
    }
    match value {
        Some(value) if errors.is_empty() => Ok(value),
        _ => Err(ConfigErrors(errors)),
    }
}

/// The configuration as TOML that [`load`] reads back to an equal value.
///
/// # Errors
/// If a value has no TOML form, for example an integer above `i64::MAX`.
pub fn to_toml<T: Serialize>(config: &T) -> Result<String, ConfigErrors> {
    let fail = |e: &dyn std::fmt::Display| {
        let message = format!("the configuration cannot be written as TOML: {e}");
        ConfigErrors(vec![ConfigError {
            origin: Origin::None,
            key: None,
            message,
        }])
    };
    let text = toml::to_string_pretty(config).map_err(|e| fail(&e))?;
    // The writer accepts integers that the reader does not.
    toml::from_str::<toml::Table>(&text).map_err(|e| fail(&e))?;
    Ok(text)
}

/// Dotted names of the tables of `T` that accept a key they do not know (`""` is the root); for use
/// in tests.
///
/// # Errors
/// If the default of `T` has no TOML form.
pub fn tables_that_ignore_keys<T: DeserializeOwned + Serialize + Default>()
-> Result<Vec<String>, ConfigErrors> {
    let defaults: toml::Table = toml::from_str(&to_toml(&T::default())?).unwrap_or_default();
    let mut tables = vec![String::new()];
    attempt::each_table(&defaults, &mut |path, _| tables.push(path.join(".")));
    let probe = |table: &str| {
        if table.is_empty() {
            "no-such-key=0".to_owned()
        } else {
            format!("{table}.no-such-key=0")
        }
    };
    Ok(tables
        .into_iter()
        .filter(|table| load::<T>(None, &[probe(table)]).is_ok())
        .collect())
}

#[cfg(test)]
mod tests;
