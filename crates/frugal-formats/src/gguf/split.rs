//! Models in several files, `NAME-00001-of-00003.gguf`: which files there are, and their headers
//! as one.
//!
//! As `llama-gguf-split` and the `gguf` Python package write them: each part says which it is
//! (`split.no`, counted from 0), of how many (`split.count`), and how many tensors all parts have
//! together (`split.tensors.count`). Everything else of the metadata stands in the first.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use super::{Gguf, GgufError, GgufProblem, Value};

const COUNT: &str = "split.count";
const NUMBER: &str = "split.no";
const TENSORS: &str = "split.tensors.count";
/// Digits of the numbers in a part's name.
const DIGITS: usize = 5;

/// The name of a file that is one of several.
#[derive(Clone, Debug, PartialEq, Eq)]
struct PartName {
    /// Everything before `-00001-of-00003.gguf`, folder included.
    prefix: PathBuf,
    /// Which part, from 1.
    number: usize,
    count: usize,
}

impl PartName {
    fn of(path: &Path) -> Option<Self> {
        let stem = path.file_name()?.to_str()?.strip_suffix(".gguf")?;
        let (rest, count) = stem.rsplit_once("-of-")?;
        let (prefix, number) = rest.rsplit_once('-')?;
        let digits = |text: &str| {
            let valid = text.len() == DIGITS && text.bytes().all(|b| b.is_ascii_digit());
            text.parse::<usize>().ok().filter(|_| valid)
        };
        let (number, count) = (digits(number)?, digits(count)?);
        (1..=count).contains(&number).then(|| Self {
            prefix: path.with_file_name(prefix),
            number,
            count,
        })
    }

    /// Where part `number`, from 1, is.
    fn path(&self, number: usize) -> PathBuf {
        let mut name = self.prefix.clone().into_os_string();
        name.push(format!(
            "-{number:0DIGITS$}-of-{count:0DIGITS$}.gguf",
            count = self.count
        ));
        name.into()
    }
}

/// The files that a GGUF model is read from, if `path` is one of them, as far as they are there:
/// the parts of a split model in order, by their names alone; otherwise just `path`.
pub fn files_of(path: &Path) -> Vec<PathBuf> {
    let Some(name) = PartName::of(path) else {
        return vec![path.to_owned()];
    };
    (1..=name.count)
        .map(|number| name.path(number))
        .filter(|part| part == path || part.is_file())
        .collect()
}

/// The name of a GGUF model: that of its file without the ending and the number of a part.
pub fn model_name(path: &Path) -> String {
    let prefix = PartName::of(path).map(|name| name.prefix);
    let path = prefix.as_deref().unwrap_or(path);
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    name.strip_suffix(".gguf").unwrap_or(&name).to_owned()
}

/// Where all parts of the model are of which `head` is the header of the file `path`; `None` for a
/// model in one file.
///
/// # Errors
/// [`GgufError`] where name and header contradict each other, or a part is missing.
pub fn part_paths(head: &Gguf, path: &Path) -> Result<Option<Vec<PathBuf>>, GgufError> {
    find(head, path).map_err(|problem| problem.in_file(head.source()))
}

fn find(head: &Gguf, path: &Path) -> Result<Option<Vec<PathBuf>>, GgufProblem> {
    let name = PartName::of(path);
    let count = optional_count(head, COUNT)?.unwrap_or(1);
    let Some(name) = name else {
        if count == 1 {
            return Ok(None);
        }
        return Err(GgufProblem::Split(format!(
            "it is one of {count} parts, and the others are found by its name, which must end in \
             -00001-of-{count:05}.gguf or another number: give all parts back the names that they had"
        )));
    };
    if count != name.count {
        return Err(GgufProblem::Split(format!(
            "its name says part {} of {}, but `{COUNT}` says {count}: give the file back the name \
             that it had",
            name.number, name.count
        )));
    }
    let paths = || (1..=count).map(|number| name.path(number));
    let mut missing = paths().filter(|part| part != path && !part.is_file());
    if let Some(first) = missing.next() {
        let more = match missing.count() {
            0 => "is".to_owned(),
            n => format!("and {n} more are"),
        };
        return Err(GgufProblem::Split(format!(
            "the model is in {count} parts, of which `{}` {more} missing: fetch all parts into one \
             folder",
            first.display()
        )));
    }
    Ok((count > 1).then(|| paths().collect()))
}

/// A number of the split, whatever integer type holds it; more than fit into five digits are none.
fn optional_count(part: &Gguf, key: &str) -> Result<Option<usize>, GgufProblem> {
    let Some(value) = part.get(key) else {
        return Ok(None);
    };
    let limit = 10_usize.pow(DIGITS as u32);
    let count = value.as_u64().and_then(|n| usize::try_from(n).ok());
    let valid = count.filter(|&n| n < limit && (n > 0 || key != COUNT));
    valid
        .map(Some)
        .ok_or_else(|| GgufProblem::metadata(key, format!("{value:?} is no number of parts")))
}

impl Gguf {
    /// The headers of all parts of a model, in order, as one: tensors say by
    /// [`TensorInfo::part`](super::TensorInfo::part) in which file they are.
    ///
    /// # Errors
    /// [`GgufError`] that names the part which contradicts the others.
    pub fn join(parts: Vec<Self>) -> Result<Self, GgufError> {
        let Some(first) = parts.first() else {
            return Err(GgufProblem::Split("no parts".into()).in_file(""));
        };
        let count = parts.len();
        let mut seen = HashSet::new();
        for (number, part) in parts.iter().enumerate() {
            check_part(part, number, count, first)
                .and_then(|()| check_names(part, &mut seen))
                .map_err(|problem| problem.in_file(part.source()))?;
        }
        let said = tensor_count(first).map_err(|problem| problem.in_file(first.source()))?;
        if said != Some(seen.len() as u64) {
            let why = match said {
                Some(said) => format!("{said}, but the {count} parts have {}", seen.len()),
                None => "missing, so that nothing says whether the parts are complete".into(),
            };
            return Err(GgufProblem::metadata(TENSORS, why).in_file(first.source()));
        }
        Ok(Self::joined(parts))
    }

    fn joined(parts: Vec<Self>) -> Self {
        let mut all = Self {
            sources: Vec::new(),
            version: 0,
            metadata: Vec::new(),
            keys: Default::default(),
            tensors: Vec::new(),
            names: Default::default(),
        };
        for (number, part) in parts.into_iter().enumerate() {
            if number == 0 {
                all.version = part.version;
                all.metadata = part.metadata;
            }
            all.sources.extend(part.sources);
            for mut tensor in part.tensors {
                tensor.part = number;
                all.names.insert(tensor.name.clone(), all.tensors.len());
                all.tensors.push(tensor);
            }
        }
        // They are the parts' own and say nothing of the whole.
        all.metadata.retain(|(key, _)| !key.starts_with("split."));
        let keys = all.metadata.iter().enumerate();
        all.keys = keys.map(|(i, (key, _))| (key.clone(), i)).collect();
        all
    }
}

/// Number, count and metadata of a part.
fn check_part(part: &Gguf, number: usize, count: usize, first: &Gguf) -> Result<(), GgufProblem> {
    for (key, expected) in [(COUNT, count), (NUMBER, number)] {
        match optional_count(part, key)? {
            Some(found) if found == expected => {}
            Some(found) => {
                let why = format!("{found}, but by its name it is {expected}");
                return Err(GgufProblem::metadata(key, why));
            }
            None => {
                let why = "missing, so the file is no part of a model";
                return Err(GgufProblem::metadata(key, why));
            }
        }
    }
    if tensor_count(part)?.is_some_and(|n| Some(n) != tensor_count(first).ok().flatten()) {
        let why = "differs from that of the first part: the files are of different models";
        return Err(GgufProblem::metadata(TENSORS, why));
    }
    let own = |key: &str| key.starts_with("split.") || key == "general.alignment";
    for (key, value) in part.metadata().iter().filter(|(key, _)| !own(key)) {
        if first.get(key) != Some(value) {
            let why = "differs from the first part, where a model's metadata is: the files are of \
                       different models";
            return Err(GgufProblem::metadata(key, why));
        }
    }
    Ok(())
}

fn tensor_count(part: &Gguf) -> Result<Option<u64>, GgufProblem> {
    let Some(value) = part.get(TENSORS) else {
        return Ok(None);
    };
    let count = value.as_u64().map(Some);
    count.ok_or_else(|| GgufProblem::metadata(TENSORS, format!("{value:?} is not a count")))
}

fn check_names<'a>(part: &'a Gguf, seen: &mut HashSet<&'a str>) -> Result<(), GgufProblem> {
    for tensor in part.tensors() {
        if !seen.insert(&tensor.name) {
            return Err(GgufProblem::Split(format!(
                "tensor {} is in an earlier part too",
                tensor.name
            )));
        }
    }
    Ok(())
}

/// Refuses the header of a single part where a whole model is needed.
pub(super) fn check_whole(gguf: &Gguf) -> Result<(), GgufProblem> {
    match gguf.get(COUNT).and_then(Value::as_u64) {
        Some(count) if count > 1 => {
            let part = gguf.get(NUMBER).and_then(Value::as_u64).unwrap_or(0) + 1;
            Err(GgufProblem::Split(format!(
                "it is part {part} of a model in {count} files, read without the others"
            )))
        }
        _ => Ok(()),
    }
}
