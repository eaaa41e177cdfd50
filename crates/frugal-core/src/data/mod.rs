//! Data sets: reading records from files, telling their format, splitting them.

mod builtin;
mod error;
mod example;
mod examples;
mod files;
mod format;
mod labels;
mod options;
mod parquet;
mod ranked;
mod read;
mod record;
mod row;
mod source;
mod stream;
mod table;
mod tags;
mod turns;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use sha2::{Digest, Sha256};

use examples::Sink;
use row::is_empty;
use source::Source;

pub use builtin::{Builtin, builtin};
pub use error::DataError;
pub use example::{Conversation, Example, Message};
pub use examples::TextRecord;
pub use format::Format;
pub use options::{Documents, Labels, LoadOptions};
pub use ranked::{Ranked, load_ranked};
pub use stream::{lines, records};

/// Records of one file, or a part of them.
#[derive(Clone, Debug, PartialEq)]
pub struct Dataset {
    /// The records.
    pub examples: Vec<Example>,
    /// Line of the file on which each record starts, from 1.
    pub lines: Vec<usize>,
    /// Their format.
    pub format: Format,
    /// The file, or the first of several.
    pub source: PathBuf,
    /// The record with which each file begins.
    pub starts: Vec<(usize, PathBuf)>,
    /// SHA-256 of the file, in hexadecimal.
    pub sha256: String,
    /// Records in the whole file.
    pub rows: usize,
    /// Names of the outputs that a head must have, where the file decides them: columns of labels,
    /// numbers. Empty where the labels themselves are the names.
    pub outputs: Vec<String>,
}

/// Reads a data set from a file: JSON lines, JSON, CSV, TSV, text or Parquet, perhaps packed with
/// gzip or Zstandard. `-` is standard input. JSON lines are read line by line.
///
/// # Errors
/// Names the file, and the line where there is one, and what was expected.
pub fn load(path: &Path, options: &LoadOptions) -> Result<Dataset, DataError> {
    let name = path.to_string_lossy();
    if ["http://", "https://"]
        .iter()
        .any(|start| name.starts_with(start))
        && !path.exists()
    {
        return Err(DataError::options(
            path,
            "is a web address: fetch the file first, or give a data set of the hub as `org/name`",
        ));
    }
    if path.is_dir() {
        return Err(DataError::options(
            path,
            "is a folder; give a file, or several as in `FOLDER/*.jsonl`",
        ));
    }
    read_from(path, Source::open(path)?, options)
}

/// Reads the records of several files of one format as one data set; a name may hold `*`, `?` and
/// `[...]` and then stands for the files that it matches, in the order of their names.
///
/// # Errors
/// As [`load`]; files of different formats, and a pattern that matches nothing.
pub fn load_all(names: &[String], options: &LoadOptions) -> Result<Dataset, DataError> {
    let mut files = Vec::new();
    for name in names {
        files.extend(files::matching(name)?);
    }
    let mut files = files.iter();
    let Some(first) = files.next() else {
        return Err(DataError::Empty {
            path: PathBuf::new(),
        });
    };
    let mut all = load(first, options)?;
    let mut hash = vec![all.sha256.clone()];
    for file in files {
        let next = load(file, options)?;
        if next.format != all.format {
            let (next, format, first) = (next.format, all.format, first.display());
            return Err(DataError::options(
                file,
                format!(
                    "holds {next} data and {first} {format} data; files that are read together must be of one format"
                ),
            ));
        }
        if next.outputs != all.outputs {
            return Err(DataError::options(
                &next.source,
                format!(
                    "holds the labels {}, the first file {}; files that are read together must have the same",
                    next.outputs.join(", "),
                    all.outputs.join(", ")
                ),
            ));
        }
        hash.push(next.sha256);
        all.rows += next.rows;
        all.examples.extend(next.examples);
        all.lines.extend(next.lines);
        all.starts.extend(
            next.starts
                .into_iter()
                .map(|(row, file)| (row + all.rows - next.rows, file)),
        );
    }
    if hash.len() > 1 {
        if [Format::Classification, Format::TokenClassification].contains(&all.format) {
            labels::check_names(&all.source, &all.examples, &all.lines)?;
        }
        all.sha256 = source::hex(&Sha256::digest(hash.concat()));
    }
    Ok(all)
}

/// As [`load`], for the content of a file that was read already; `path` tells its kind and is named
/// in errors.
///
/// # Errors
/// As [`load`].
pub fn parse(path: &Path, bytes: &[u8], options: &LoadOptions) -> Result<Dataset, DataError> {
    read_from(path, in_memory(path, bytes)?, options)
}

fn in_memory(path: &Path, bytes: &[u8]) -> Result<Source, DataError> {
    Source::new(path, Box::new(std::io::Cursor::new(bytes.to_vec())))
}

fn read_from(path: &Path, mut source: Source, options: &LoadOptions) -> Result<Dataset, DataError> {
    let mut sink = Sink::new(path, options);
    read::records(path, &mut source, options, &mut |record| sink.push(&record))?;
    let (format, outputs) = sink.finish()?;
    let (examples, lines) = (sink.examples, sink.lines);
    Ok(Dataset {
        rows: examples.len(),
        examples,
        lines,
        format,
        outputs,
        source: path.to_owned(),
        starts: vec![(0, path.to_owned())],
        sha256: source.sha256()?,
    })
}

/// Hands the texts of a file to `take`, one after another, until it returns false; a label need not
/// be there.
///
/// # Errors
/// As [`load`].
pub fn texts(
    path: &Path,
    options: &LoadOptions,
    take: &mut dyn FnMut(TextRecord) -> bool,
) -> Result<(), DataError> {
    let mut source = Source::open(path)?;
    let mut going = true;
    read::records(path, &mut source, options, &mut |record| {
        if going {
            going = take(examples::text_record(path, &record, options)?);
        }
        Ok(())
    })
}

/// The records of a file as JSON objects, whatever their fields mean; a table must have a row of
/// column names.
///
/// # Errors
/// As [`load`].
pub fn objects(
    path: &Path,
    bytes: &[u8],
) -> Result<Vec<serde_json::Map<String, serde_json::Value>>, DataError> {
    let options = LoadOptions {
        header: Some(true),
        ..LoadOptions::default()
    };
    let mut found = Vec::new();
    let mut source = in_memory(path, bytes)?;
    read::records(path, &mut source, &options, &mut |record| {
        found.push(record.fields);
        Ok(())
    })?;
    if found.is_empty() {
        return Err(DataError::Empty {
            path: path.to_owned(),
        });
    }
    Ok(found)
}

impl Dataset {
    /// The file that a record came from.
    pub fn file_of(&self, record: usize) -> &Path {
        let file = self.starts.iter().rev().find(|(first, _)| *first <= record);
        file.map_or(&self.source, |(_, file)| file)
    }

    /// Number of records.
    pub fn len(&self) -> usize {
        self.examples.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.examples.is_empty()
    }

    /// Names of the classes: by value if all are numbers, else by name.
    pub fn labels(&self) -> Vec<String> {
        if !self.outputs.is_empty() {
            return self.outputs.clone();
        }
        let labels = |e: &Example| match e {
            Example::Classification { label, .. } => vec![label.clone()],
            Example::Labeled { labels, .. } => labels.clone(),
            Example::Tagged { tags, .. } => tags.iter().flatten().cloned().collect(),
            _ => Vec::new(),
        };
        let names: BTreeSet<String> = self.examples.iter().flat_map(labels).collect();
        let mut names: Vec<String> = names.into_iter().collect();
        let numbers: Option<Vec<f64>> = names
            .iter()
            .map(|n| n.parse().ok().filter(|v: &f64| v.is_finite()))
            .collect();
        if let Some(numbers) = numbers {
            let mut order: Vec<usize> = (0..names.len()).collect();
            order.sort_by(|a, b| numbers[*a].total_cmp(&numbers[*b]));
            names = order.into_iter().map(|i| names[i].clone()).collect();
        }
        names
    }

    /// The first `n` records.
    pub fn take(&self, n: usize) -> Self {
        self.select(&(0..n.min(self.len())).collect::<Vec<_>>())
    }

    /// Divides the records at random, each part in the order of the file. A part has nearly the
    /// same share of every class; what the fractions leave over is dropped. The same seed gives the
    /// same parts.
    ///
    /// # Errors
    /// When a fraction is not above 0, they add up to more than 1, or a part would be empty.
    pub fn split(&self, fractions: &[f64], seed: u64) -> Result<Vec<Self>, DataError> {
        let refused = || DataError::Split {
            fractions: fractions.to_vec(),
            rows: self.len(),
        };
        // Three times 1/3 may add up to a little more than 1.
        if fractions.iter().any(|f| !f.is_finite() || *f <= 0.0)
            || fractions.iter().sum::<f64>() > 1.0 + 1e-9
        {
            return Err(refused());
        }
        let mut strata: BTreeMap<&str, Vec<Vec<usize>>> = BTreeMap::new();
        let mut anchors: BTreeMap<&str, usize> = BTreeMap::new();
        for (i, example) in self.examples.iter().enumerate() {
            let label = match example {
                Example::Classification { label, .. } => label.as_str(),
                _ => "",
            };
            let stratum = strata.entry(label).or_default();
            // What belongs to one text goes into one part.
            if let Example::Ranked { anchor, .. } = example {
                let at = *anchors.entry(anchor).or_insert(stratum.len());
                if at < stratum.len() {
                    stratum[at].push(i);
                    continue;
                }
            }
            stratum.push(vec![i]);
        }
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let mut parts = vec![Vec::new(); fractions.len()];
        for stratum in strata.values_mut() {
            stratum.shuffle(&mut rng);
            let (mut share, mut start) = (0.0, 0);
            for (part, fraction) in parts.iter_mut().zip(fractions) {
                share += fraction;
                let end = ((share * stratum.len() as f64).round() as usize).min(stratum.len());
                part.extend(stratum[start..end].iter().flatten());
                start = end;
            }
        }
        if parts.iter().any(Vec::is_empty) {
            return Err(refused());
        }
        parts.iter_mut().for_each(|part| part.sort_unstable());
        Ok(parts.iter().map(|part| self.select(part)).collect())
    }

    /// Where the files of some records begin among these.
    fn starts_of(&self, rows: &[usize]) -> Vec<(usize, PathBuf)> {
        let mut starts: Vec<(usize, PathBuf)> = Vec::new();
        for (i, &row) in rows.iter().enumerate() {
            let file = self.file_of(row);
            if starts.last().is_none_or(|(_, last)| last != file) {
                starts.push((i, file.to_owned()));
            }
        }
        starts
    }

    fn select(&self, rows: &[usize]) -> Self {
        Self {
            examples: rows.iter().map(|&i| self.examples[i].clone()).collect(),
            lines: rows.iter().map(|&i| self.lines[i]).collect(),
            starts: self.starts_of(rows),
            source: self.source.clone(),
            sha256: self.sha256.clone(),
            outputs: self.outputs.clone(),
            ..*self
        }
    }
}

#[cfg(test)]
mod tests;
