//! One source of configuration values, and where in it a key stands.

use std::ops::Range;
use std::path::{Path, PathBuf};

use toml::de::{DeTable, DeValue};
use toml::{Table, Value};

use super::error::{ConfigError, Origin};
use crate::fs;

/// A table of values with its source.
pub(super) struct Layer {
    pub(super) table: Table,
    source: Source,
}

enum Source {
    File { path: PathBuf, text: String },
    Flags,
    Override { text: String, key: Vec<String> },
}

impl Layer {
    pub(super) fn from_flags(table: Table) -> Self {
        Self {
            table,
            source: Source::Flags,
        }
    }

    pub(super) fn from_file(path: &Path) -> Result<Self, Vec<ConfigError>> {
        let at = |line, column| Origin::File {
            path: path.to_owned(),
            line,
            column,
        };
        let whole = |message| {
            vec![ConfigError {
                origin: at(None, None),
                key: None,
                message,
            }]
        };
        let bytes =
            fs::read_data(path).map_err(|e| whole(format!("{}: {}", e.action, e.source)))?;
        let text = String::from_utf8(bytes).map_err(|e| {
            let valid = e.utf8_error().valid_up_to();
            let line = e.as_bytes()[..valid]
                .iter()
                .filter(|b| **b == b'\n')
                .count()
                + 1;
            vec![ConfigError {
                origin: at(Some(line), None),
                key: None,
                message: "not UTF-8 text".into(),
            }]
        })?;
        let (_, syntax) = DeTable::parse_recoverable(&text);
        if !syntax.is_empty() {
            let place =
                |span: Option<Range<usize>>| span.map(|s| line_and_column(&text, s.start)).unzip();
            let error = |e: &toml::de::Error| {
                let (line, column) = place(e.span());
                ConfigError {
                    origin: at(line, column),
                    key: None,
                    message: format!("not valid TOML: {}", e.message()),
                }
            };
            return Err(syntax.iter().map(error).collect());
        }
        let table = toml::from_str(&text).map_err(|e| whole(e.message().to_owned()))?;
        Ok(Self {
            table,
            source: Source::File {
                path: path.to_owned(),
                text,
            },
        })
    }

    pub(super) fn from_override(text: &str) -> Result<Self, ConfigError> {
        let error = |message: String| ConfigError {
            origin: Origin::Override(text.to_owned()),
            key: None,
            message,
        };
        let Some((key, raw)) = text.split_once('=') else {
            return Err(error(
                "no `=`; write `key=value`, for example `train.lr=2e-4`".into(),
            ));
        };
        let (key, raw) = (key.trim(), raw.trim());
        if raw.is_empty() {
            return Err(error(format!(
                "no value; for an empty string write `{key}=\"\"`"
            )));
        }
        // The TOML parser reads the key, so quoted parts and dots mean what they mean in a file.
        let mut table: Table = match toml::from_str(&format!("{key} = 0")) {
            Ok(table) => table,
            Err(_) => {
                return Err(error(format!(
                    "`{key}` is not a dotted key such as `train.lr`"
                )));
            }
        };
        let value = match raw.parse::<Value>() {
            Ok(value) => value,
            Err(e) if raw.starts_with(['"', '\'', '[', '{']) => {
                return Err(error(format!(
                    "the value is not valid TOML: {}",
                    e.message()
                )));
            }
            Err(_) => Value::String(raw.to_owned()),
        };
        let mut path = Vec::new();
        match only_leaf(&mut table, &mut path) {
            Some(leaf) => *leaf = value,
            None => {
                return Err(error(format!(
                    "`{key}` is not a dotted key such as `train.lr`"
                )));
            }
        }
        Ok(Self {
            table,
            source: Source::Override {
                text: text.to_owned(),
                key: path,
            },
        })
    }

    /// The value as typed of an override of this very key, not of a table or an array around it.
    pub(super) fn raw_override(&self, path: &[String]) -> Option<&str> {
        match &self.source {
            Source::Override { text, key } if key == path => {
                text.split_once('=').map(|(_, raw)| raw.trim())
            }
            _ => None,
        }
    }

    fn origin(&self, key: &[String]) -> Origin {
        match &self.source {
            Source::File { path, text } => Origin::File {
                path: path.clone(),
                line: line_of(text, key),
                column: None,
            },
            Source::Flags => Origin::Flag,
            Source::Override { text, .. } => Origin::Override(text.clone()),
        }
    }
}

/// The last layer that sets `key`.
pub(super) fn setter<'a>(layers: &'a [Layer], key: &[String]) -> Option<&'a Layer> {
    layers
        .iter()
        .rev()
        .find(|layer| get(&layer.table, key).is_some())
}

/// Where `key` was set last.
pub(super) fn origin(layers: &[Layer], key: &[String]) -> Origin {
    setter(layers, key).map_or(Origin::None, |layer| layer.origin(key))
}

/// The value under a path of keys and array positions.
pub(super) fn get<'a>(table: &'a Table, path: &[String]) -> Option<&'a Value> {
    let (first, rest) = path.split_first()?;
    rest.iter()
        .try_fold(table.get(first)?, |value, key| match value {
            Value::Table(table) => table.get(key),
            Value::Array(array) => array.get(key.parse::<usize>().ok()?),
            _ => None,
        })
}

/// Lays `over` on `base`: tables merge, everything else is replaced.
pub fn merge(base: &mut Table, over: &Table) {
    for (key, value) in over {
        match (base.get_mut(key), value) {
            (Some(Value::Table(below)), Value::Table(above)) => merge(below, above),
            _ => {
                base.insert(key.clone(), value.clone());
            }
        }
    }
}

/// The only value that is not a table; its path is appended to `path`.
fn only_leaf<'a>(table: &'a mut Table, path: &mut Vec<String>) -> Option<&'a mut Value> {
    let mut entries = table.iter_mut();
    let (key, value) = entries.next()?;
    if entries.next().is_some() {
        return None;
    }
    path.push(key.clone());
    match value {
        Value::Table(inner) => only_leaf(inner, path),
        leaf => Some(leaf),
    }
}

fn line_of(text: &str, path: &[String]) -> Option<usize> {
    let parsed = DeTable::parse(text).ok()?;
    let (first, rest) = path.split_first()?;
    let (key, mut value) = parsed
        .get_ref()
        .iter()
        .find(|(key, _)| key.get_ref() == first.as_str())?;
    let mut span = key.span();
    for name in rest {
        (span, value) = match value.get_ref() {
            DeValue::Table(table) => {
                let (key, value) = table
                    .iter()
                    .find(|(key, _)| key.get_ref() == name.as_str())?;
                (key.span(), value)
            }
            DeValue::Array(array) => {
                let element = array.get(name.parse::<usize>().ok()?)?;
                (element.span(), element)
            }
            _ => return None,
        };
    }
    Some(line_and_column(text, span.start).0)
}

fn line_and_column(text: &str, byte: usize) -> (usize, usize) {
    let before = &text.as_bytes()[..byte.min(text.len())];
    let start = before
        .iter()
        .rposition(|b| *b == b'\n')
        .map_or(0, |i| i + 1);
    let line = before.iter().filter(|b| **b == b'\n').count() + 1;
    (
        line,
        String::from_utf8_lossy(&before[start..]).chars().count() + 1,
    )
}
