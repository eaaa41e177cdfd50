//! Tables with a column of paths.

use std::path::Path;

use frugal_core::{data, fs};
use serde_json::{Map, Value};

use super::set::{Content, ImageSet, Part};
use crate::error::MediaError;

/// Columns that hold paths, of which the first that is there is taken.
const PATHS: &[&str] = &["image", "path", "file_name", "image_path", "file"];
/// Columns that hold classes.
const LABELS: &[&str] = &["label", "class", "category"];
/// Columns that name the part.
const PARTS: &[&str] = &["split", "part"];

/// Each record is an image; paths are relative to the table's folder. Without a column of classes no
/// image has one.
pub(super) fn open(path: &Path) -> Result<ImageSet, MediaError> {
    let records = data::objects(path, &fs::read_data(path)?)?;
    let folder = path.parent().unwrap_or(Path::new(""));
    let mut set = ImageSet::default();
    for (i, record) in records.iter().enumerate() {
        let bad = |reason: String| MediaError::set(path, format!("record {}: {reason}", i + 1));
        let Some((key, image)) = first(record, PATHS) else {
            return Err(bad(format!(
                "there is no path of an image: give it in a column called {}",
                PATHS.join(", ")
            )));
        };
        let Some(image) = image.as_str().filter(|image| !image.is_empty()) else {
            return Err(bad(format!(
                "`{key}` must be the path of an image, not {image}"
            )));
        };
        let label = match first(record, LABELS) {
            None => None,
            Some((key, Value::String(label))) if label.trim().is_empty() => {
                return Err(bad(format!(
                    "`{key}` is empty: name the class of each image, or leave the column away where no image has one"
                )));
            }
            Some((_, Value::String(label))) => Some(label.clone()),
            Some((_, Value::Number(label))) => Some(label.to_string()),
            Some((key, other)) => {
                return Err(bad(format!(
                    "`{key}` must be a name or a number, not {other}"
                )));
            }
        };
        let part = match first(record, PARTS) {
            None => Part::Train,
            Some((key, value)) => value.as_str().and_then(Part::of_folder).ok_or_else(|| {
                bad(format!(
                    "`{key}` must be train, validation or test, not {value}"
                ))
            })?,
        };
        set.add(part, Content::File(folder.join(image)), label.as_deref());
    }
    Ok(set)
}

/// The first of these columns that has a value.
fn first<'a>(record: &'a Map<String, Value>, keys: &[&'a str]) -> Option<(&'a str, &'a Value)> {
    let value = |key: &&'a str| Some((*key, record.get(*key).filter(|v| !v.is_null())?));
    keys.iter().find_map(value)
}
