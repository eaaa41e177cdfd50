//! One try at reading a table of values, and the walks over tables that its answers need.

use serde::de::DeserializeOwned;
use serde_path_to_error::Segment;
use toml::{Table, Value};

use super::layer::get;

/// A serde error: the path it happened at and its text.
#[derive(Debug, PartialEq)]
pub(super) struct Failure {
    pub(super) path: Vec<String>,
    pub(super) message: String,
}

/// Calls `visit` with the path and content of every table below `table`, parents first.
pub(super) fn each_table(table: &Table, visit: &mut impl FnMut(&[String], &Table)) {
    fn walk(table: &Table, path: &mut Vec<String>, visit: &mut impl FnMut(&[String], &Table)) {
        for (key, value) in table {
            if let Value::Table(inner) = value {
                path.push(key.clone());
                visit(path, inner);
                walk(inner, path, visit);
                path.pop();
            }
        }
    }
    walk(table, &mut Vec::new(), visit);
}

pub(super) fn attempt<T: DeserializeOwned>(table: &Table) -> Result<T, Failure> {
    serde_path_to_error::deserialize(Value::Table(table.clone())).map_err(|e| {
        let segment = |s: &Segment| match s {
            Segment::Map { key } => Some(key.clone()),
            Segment::Seq { index } => Some(index.to_string()),
            Segment::Enum { variant } => Some(variant.clone()),
            Segment::Unknown => None,
        };
        let mut path: Vec<String> = e.path().iter().filter_map(segment).collect();
        while !path.is_empty() && get(table, &path).is_none() {
            path.pop();
        }
        Failure {
            path,
            message: e.inner().message().to_owned(),
        }
    })
}

/// Takes out the key, or the whole array if the path goes through one.
pub(super) fn remove(table: &mut Table, path: &[String]) -> bool {
    match path {
        [] => false,
        [key] => table.remove(key).is_some(),
        [key, rest @ ..] => match table.get_mut(key) {
            Some(Value::Table(inner)) => remove(inner, rest),
            Some(_) => table.remove(key).is_some(),
            None => false,
        },
    }
}
