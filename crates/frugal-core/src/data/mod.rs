//! Data sets: reading records from files, telling their format, splitting them.

mod builtin;
mod error;
mod format;
mod read;
mod table;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

pub use builtin::{Builtin, builtin};
pub use error::DataError;
pub use format::Format;

/// One turn of a conversation.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Message {
    /// `system`, `user`, `assistant`, or what the chat template knows besides.
    pub role: String,
    /// What was said.
    pub content: String,
}

impl Message {
    /// A turn of the given role.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        Self {
            role: role.into(),
            content: content.into(),
        }
    }
}

/// One record of a data set.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Example {
    /// A document to model.
    Text {
        /// The document.
        text: String,
    },
    /// A prompt and what should follow it.
    PromptCompletion {
        /// What is given.
        prompt: String,
        /// What is to be learnt.
        completion: String,
    },
    /// A conversation.
    Messages(Vec<Message>),
    /// A text, or two, and its class.
    Classification {
        /// The text.
        text: String,
        /// The second text of a pair.
        text_pair: Option<String>,
        /// Name of the class.
        label: String,
    },
    /// Two texts that belong together.
    Pair {
        /// The first.
        anchor: String,
        /// What belongs to it.
        positive: String,
    },
    /// A text, one that belongs to it and one that does not.
    Triplet {
        /// The first.
        anchor: String,
        /// What belongs to it.
        positive: String,
        /// What does not.
        negative: String,
    },
    /// A prompt with a better and a worse answer.
    Preference {
        /// What is given.
        prompt: String,
        /// The better answer.
        chosen: String,
        /// The worse answer.
        rejected: String,
    },
}

/// Where a document of a `.txt` file ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Documents {
    /// Each line that is not blank is a document.
    Lines,
    /// Lines up to a blank line are a document.
    Blocks,
}

/// How to read a file. The default finds out by itself.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LoadOptions {
    /// Format of the records; otherwise told from the keys of the first one.
    pub format: Option<Format>,
    /// Our name of a column to its name in the file, or to its number from 1 in a table without
    /// header: `{ text = "review", label = "stars" }`.
    pub columns: BTreeMap<String, String>,
    /// Whether the first row of a `.csv` or `.tsv` file holds column names; otherwise told from
    /// that row.
    pub header: Option<bool>,
    /// Where a document of a `.txt` file ends; otherwise at blank lines if there are any, else at
    /// each line.
    pub documents: Option<Documents>,
}

/// Records of one file, or a part of them.
#[derive(Clone, Debug, PartialEq)]
pub struct Dataset {
    /// The records.
    pub examples: Vec<Example>,
    /// Line of the file on which each record starts, from 1.
    pub lines: Vec<usize>,
    /// Their format.
    pub format: Format,
    /// The file.
    pub source: PathBuf,
    /// SHA-256 of the file, in hexadecimal.
    pub sha256: String,
    /// Records in the whole file.
    pub rows: usize,
}

/// Reads a data set from a file.
///
/// # Errors
/// Names the file, and the line where there is one, and what was expected.
pub fn load(path: &Path, options: &LoadOptions) -> Result<Dataset, DataError> {
    if path.is_dir() {
        return Err(DataError::options(path, "is a folder; give a file"));
    }
    parse(path, &crate::fs::read(path)?, options)
}

/// As [`load`], for the content of a file that was read already; `path` tells its kind and is named
/// in errors.
///
/// # Errors
/// As [`load`].
pub fn parse(path: &Path, bytes: &[u8], options: &LoadOptions) -> Result<Dataset, DataError> {
    let records = read::records(path, bytes, options)?;
    let (format, examples) = format::examples(path, &records, options)?;
    let sha256 = Sha256::digest(bytes)
        .iter()
        .map(|b| format!("{b:02x}"))
        .collect();
    let lines = records.iter().map(|r| r.line).collect();
    Ok(Dataset {
        rows: examples.len(),
        examples,
        lines,
        format,
        source: path.to_owned(),
        sha256,
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
    Ok(read::records(path, bytes, &options)?
        .into_iter()
        .map(|r| r.fields)
        .collect())
}

impl Dataset {
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
        let label = |e: &Example| match e {
            Example::Classification { label, .. } => Some(label.clone()),
            _ => None,
        };
        let names: BTreeSet<String> = self.examples.iter().filter_map(label).collect();
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
        let mut strata: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
        for (i, example) in self.examples.iter().enumerate() {
            let label = if let Example::Classification { label, .. } = example {
                label.as_str()
            } else {
                ""
            };
            strata.entry(label).or_default().push(i);
        }
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let mut parts = vec![Vec::new(); fractions.len()];
        for stratum in strata.values_mut() {
            stratum.shuffle(&mut rng);
            let (mut share, mut start) = (0.0, 0);
            for (part, fraction) in parts.iter_mut().zip(fractions) {
                share += fraction;
                let end = ((share * stratum.len() as f64).round() as usize).min(stratum.len());
                part.extend_from_slice(&stratum[start..end]);
                start = end;
            }
        }
        if parts.iter().any(Vec::is_empty) {
            return Err(refused());
        }
        parts.iter_mut().for_each(|part| part.sort_unstable());
        Ok(parts.iter().map(|part| self.select(part)).collect())
    }

    fn select(&self, rows: &[usize]) -> Self {
        Self {
            examples: rows.iter().map(|&i| self.examples[i].clone()).collect(),
            lines: rows.iter().map(|&i| self.lines[i]).collect(),
            source: self.source.clone(),
            sha256: self.sha256.clone(),
            ..*self
        }
    }
}

#[cfg(test)]
mod tests;
