//! What every store refuses, before anything is sent.

use std::collections::HashSet;

use serde_json::{Map, Value};

use super::entry::StoreEntry;
use super::error::StoreError;
use super::settings::StoreSettings;
use crate::error::IndexError;
use crate::filter::{Filter, flattened};
use crate::vector::check_vector;

/// Longest identifier in bytes.
const LONGEST_ID: usize = 4096;

pub(super) fn entries(settings: &StoreSettings, entries: &[StoreEntry]) -> Result<(), StoreError> {
    let mut seen = HashSet::new();
    for entry in entries {
        let id = entry.document.id.as_str();
        let short = || id.chars().take(80).collect::<String>();
        if id.is_empty() {
            return Err(IndexError::EmptyId.into());
        }
        if id.len() > LONGEST_ID || id.contains('\0') {
            let problem = format!(
                "the identifier `{}` has more than {LONGEST_ID} bytes or one that is 0",
                short().replace('\0', "\\0")
            );
            return Err(IndexError::Query(problem).into());
        }
        if entry.document.is_blank() {
            return Err(IndexError::EmptyText { id: short() }.into());
        }
        if !seen.insert(id) {
            return Err(StoreError::DuplicateId { id: short() });
        }
        vector(
            settings,
            &entry.vector,
            &format!("the vector of `{}`", short()),
        )?;
    }
    Ok(())
}

pub(super) fn vector(
    settings: &StoreSettings,
    vector: &[f32],
    name: &str,
) -> Result<(), StoreError> {
    let encoder = &settings.encoder;
    Ok(check_vector(
        vector,
        encoder.dimension,
        encoder.metric,
        name,
    )?)
}

/// A field that no document has is a mistake, not an empty answer.
pub(super) fn fields<'a>(
    filter: &Filter,
    all: impl Iterator<Item = &'a Map<String, Value>>,
) -> Result<(), StoreError> {
    let mut known = HashSet::new();
    for metadata in all {
        flattened(metadata, &mut |name, _| {
            known.insert(name.to_owned());
        });
    }
    let missing = filter.conditions.iter().find(|c| !known.contains(&c.field));
    match missing {
        Some(condition) if !known.is_empty() => Err(IndexError::Filter {
            filter: condition.to_string(),
            problem: format!("no document has a field `{}`", condition.field),
        }
        .into()),
        _ => Ok(()),
    }
}
