//! Where a task's records are, and reading them.

use std::path::{Path, PathBuf};

use serde_json::Value;

use super::record::Record;
use super::task::Task;
use super::{Context, EvalError, functions};
use crate::measurement::sha256;
use frugal_core::data;

/// Endings of data files, in the order in which they are looked for.
const ENDINGS: [&str; 7] = ["jsonl", "json", "jsonl.gz", "csv", "tsv", "parquet", "txt"];

/// The file that is measured, its SHA-256 and its records.
pub(super) fn test(
    task: &Task,
    context: &Context,
) -> Result<(PathBuf, String, Vec<Record>), EvalError> {
    let hub = &task.source.hub;
    let path = if task.source.test.is_empty() {
        on_hub(task, context, &hub.test)?
    } else {
        file(task, context, &task.source.test, &hub.test)?
    };
    let (records, digest) = read(&path, task.source.lines)?;
    Ok((path, digest, made(task, &task.process_docs, records)?))
}

/// The records that examples are taken from, if they are not those that are measured.
pub(super) fn fewshot(task: &Task, context: &Context) -> Result<Option<Vec<Record>>, EvalError> {
    let source = &task.source;
    let hub = &source.hub;
    let path = if !source.fewshot.is_empty() {
        file(task, context, &source.fewshot, &hub.fewshot)?
    } else if hub.fewshot == hub.test {
        return Ok(None);
    } else if source.test.is_empty() {
        on_hub(task, context, &hub.fewshot)?
    } else {
        let place = find(&source.test, context)?;
        if !place.is_dir() {
            return Err(EvalError::Task {
                task: task.name.clone(),
                reason: format!(
                    "its examples come from the split `{}` of the data set: in place of {} give a folder that holds `{}.jsonl` and `{}.jsonl`, or take `--num-fewshot 0`",
                    hub.fewshot, source.test, hub.test, hub.fewshot
                ),
            });
        }
        file(task, context, &source.test, &hub.fewshot)?
    };
    let (records, _) = read(&path, source.lines)?;
    let function = task
        .fewshot
        .process_docs
        .as_ref()
        .unwrap_or(&task.process_docs);
    made(task, function, records).map(Some)
}

fn made(task: &Task, function: &str, records: Vec<Record>) -> Result<Vec<Record>, EvalError> {
    let records = if function.is_empty() {
        records
    } else {
        functions::docs(function, records).map_err(|(row, reason)| EvalError::Record {
            task: task.name.clone(),
            row,
            reason,
        })?
    };
    if records.is_empty() {
        return Err(EvalError::Task {
            task: task.name.clone(),
            reason: "no record is left of the data".into(),
        });
    }
    Ok(records)
}

/// A file, or the file of a split in a folder.
fn file(task: &Task, context: &Context, given: &str, split: &str) -> Result<PathBuf, EvalError> {
    let place = find(given, context)?;
    if !place.is_dir() {
        return Ok(place);
    }
    let hub = &task.source.hub;
    let folders = [place.join(&hub.name), place.clone()];
    let split = if split.is_empty() { "test" } else { split };
    of_split(&folders, split).ok_or_else(|| EvalError::Task {
        task: task.name.clone(),
        reason: format!(
            "{} holds no `{split}.jsonl`, .json, .csv or .tsv",
            place.display()
        ),
    })
}

fn of_split(folders: &[PathBuf], split: &str) -> Option<PathBuf> {
    let files = |folder: &PathBuf| ENDINGS.map(|ending| folder.join(format!("{split}.{ending}")));
    folders.iter().flat_map(files).find(|path| path.is_file())
}

/// A data set of the hub, in the data folder under its name.
fn on_hub(task: &Task, context: &Context, split: &str) -> Result<PathBuf, EvalError> {
    let hub = &task.source.hub;
    let short = hub.path.rsplit('/').next().unwrap_or(&hub.path);
    let mut folders = Vec::new();
    for base in [context.task_folder.as_deref(), context.data.as_deref()]
        .into_iter()
        .flatten()
    {
        for name in [hub.path.as_str(), short] {
            folders.push(base.join(name).join(&hub.name));
            folders.push(base.join(name));
        }
    }
    let mut configuration = if hub.name.is_empty() {
        String::new()
    } else {
        format!(", configuration `{}`", hub.name)
    };
    if !hub.settings.is_empty() {
        configuration += &format!(", {}", hub.settings.trim_end_matches("; "));
    }
    of_split(&folders, split).ok_or_else(|| EvalError::Task {
        task: task.name.clone(),
        reason: format!(
            "its data are the split `{split}` of `{}` on the hub{configuration}: write `TASK.yaml:FILE`, or `TASK.yaml:FOLDER` with `{split}.jsonl` in it, or put `{short}/{split}.jsonl` into the data folder (`--data-dir`, FRUGAL_DATA)",
            hub.path
        ),
    })
}

/// Beside the task, in the data folder, and the path as it is.
fn find(file: &str, context: &Context) -> Result<PathBuf, EvalError> {
    let folders = [context.task_folder.as_deref(), context.data.as_deref()];
    let places: Vec<PathBuf> = folders
        .into_iter()
        .flatten()
        .map(|folder| folder.join(file))
        .chain([PathBuf::from(file)])
        .collect();
    let found = places.iter().find(|p| p.is_file());
    found
        .or_else(|| places.iter().find(|p| p.is_dir()))
        .cloned()
        .ok_or_else(|| EvalError::NoData { file: file.into() })
}

fn read(path: &Path, lines: bool) -> Result<(Vec<Record>, String), EvalError> {
    let bytes = frugal_core::fs::read_data(path)?;
    let digest = sha256(&bytes);
    let name = path.to_string_lossy();
    let (bytes, inner) = match name.strip_suffix(".gz") {
        Some(inner) => {
            let whole = !lines && is_text(Path::new(inner));
            let most = if whole { MOST_OF_TEXT } else { MOST };
            (unzip(path, &bytes, most)?, PathBuf::from(inner))
        }
        None => (bytes, path.to_owned()),
    };
    let of_text = |text: &str| Record::from_iter([("text".to_owned(), Value::from(text))]);
    let records = if is_text(&inner) {
        let text = String::from_utf8(bytes).map_err(|e| EvalError::Text {
            path: path.to_owned(),
            byte: e.utf8_error().valid_up_to(),
        })?;
        // A text is measured as a whole unless the task says otherwise.
        if lines {
            text.lines().map(of_text).collect()
        } else {
            vec![of_text(&text)]
        }
    } else {
        data::objects(&inner, &bytes)?
    };
    Ok((records, digest))
}

fn is_text(path: &Path) -> bool {
    path.extension().is_some_and(|e| e == "txt" || e == "md")
}

/// Most bytes that a compressed file may hold.
const MOST: u64 = 1 << 30;
/// The same of a text that is measured as a whole.
const MOST_OF_TEXT: u64 = 128 << 20;

fn unzip(path: &Path, bytes: &[u8], most: u64) -> Result<Vec<u8>, EvalError> {
    use std::io::Read;
    let mut out = Vec::new();
    flate2::read::MultiGzDecoder::new(bytes)
        .take(most + 1)
        .read_to_end(&mut out)
        .map_err(frugal_core::fs::FileError::at(path, "cannot decompress"))?;
    if out.len() as u64 > most {
        return Err(EvalError::Task {
            task: path.display().to_string(),
            reason: format!(
                "it holds more than {} MiB when it is decompressed: unpack the file first if that is wanted",
                most >> 20
            ),
        });
    }
    Ok(out)
}
