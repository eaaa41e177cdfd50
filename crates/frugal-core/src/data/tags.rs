//! Records of words with a tag for each, as data sets for named entities have them.

use serde_json::Value;

use super::error::DataError;
use super::example::Example;
use super::labels::list;
use super::record::kind;
use super::row::Row;

/// What stands for a word of which nothing is said.
const UNTAGGED: i64 = -100;

/// Words with a tag for each.
pub(super) fn example(row: &Row<'_>) -> Result<Example, DataError> {
    let (tokens, tags) = (tokens(row)?, tags(row)?);
    check_lengths(row, &tokens, &tags)?;
    Ok(Example::Tagged { tokens, tags })
}

/// There must be as many tags as words.
pub(super) fn check_lengths(
    row: &Row<'_>,
    tokens: &[String],
    tags: &[Option<String>],
) -> Result<(), DataError> {
    if tokens.len() == tags.len() {
        return Ok(());
    }
    Err(row.problem(format!(
        "{} tokens, but {} tags: there must be one for each",
        tokens.len(),
        tags.len()
    )))
}

/// The items of a list; a table holds it as JSON, or as Python writes it, in one cell.
fn items(row: &Row<'_>, key: &str) -> Result<Vec<Value>, DataError> {
    let value = row.required(key)?;
    let read = match value {
        Value::Array(items) => Some(items.clone()),
        Value::String(text) => list(text.trim()),
        _ => None,
    };
    read.ok_or_else(|| {
        row.problem(format!(
            "{key:?} must be a list with an item for each word, not {}",
            kind(value)
        ))
    })
}

/// The words of a record.
pub(super) fn tokens(row: &Row<'_>) -> Result<Vec<String>, DataError> {
    let word = |item: Value| match item {
        Value::String(word) => Ok(word),
        other => Err(row.problem(format!("{other} in the list of tokens is no text"))),
    };
    items(row, "tokens")?.into_iter().map(word).collect()
}

/// What is said of each; none for a word of which nothing is.
pub(super) fn tags(row: &Row<'_>) -> Result<Vec<Option<String>>, DataError> {
    let names = &row.options.label_names;
    let tag = |item: Value| {
        match &item {
        Value::Null => Ok(None),
        Value::String(tag) if !tag.trim().is_empty() => {
            if names.is_empty() || names.contains(tag) {
                return Ok(Some(tag.clone()));
            }
            Err(row.problem(format!("the tag {tag:?} is not in `label_names`")))
        }
        Value::Number(number) if number.as_i64() == Some(UNTAGGED) => Ok(None),
        Value::Number(_) if names.is_empty() => Err(row.problem(format!(
            "the tag {item} is a number, and entities are told by names such as B-PER: give the names in the order of \
             their numbers, as in `--set data.label_names='[\"O\", \"B-PER\", \"I-PER\"]'`"
        ))),
        Value::Number(number) => {
            let place = number.as_u64().and_then(|n| usize::try_from(n).ok());
            let name = place.and_then(|place| names.get(place));
            name.map(|name| Some(name.clone())).ok_or_else(|| {
                row.problem(format!(
                    "the tag {item} is none of the {} in `label_names` (0 to {})",
                    names.len(),
                    names.len() - 1
                ))
            })
        }
        other => Err(row.problem(format!("{other} in the list of tags is no tag"))),
    }
    };
    items(row, "ner_tags")?.into_iter().map(tag).collect()
}
