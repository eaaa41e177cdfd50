//! What the model answered, kept on disk while an evaluation runs, so that one that was killed can
//! go on.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::Path;

use serde::{Deserialize, Serialize};

use frugal_core::fs::FileError;

/// What the model said to one request.
#[derive(Clone, Debug, PartialEq)]
pub enum Answer {
    /// Log-likelihood of each choice in nats, and whether the choice is what the model would write
    /// itself.
    Choices(Vec<(f64, bool)>),
    /// What it wrote.
    Written(Written),
    /// Log-likelihood of the text in nats, and its number of tokens.
    Rolling(f64, usize),
}

/// A text that a model wrote.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Written {
    /// The text.
    pub text: String,
    /// Log-likelihood of its tokens in nats, its end among them, and how many they are; `None`
    /// where the model does not say.
    pub likelihood: Option<(f64, usize)>,
}

impl From<&str> for Written {
    fn from(text: &str) -> Self {
        Self {
            text: text.to_owned(),
            likelihood: None,
        }
    }
}

#[derive(Serialize, Deserialize)]
struct Line {
    hash: String,
    answer: Kept,
}

/// An [`Answer`] whose numbers are texts: they are read back bit for bit, so a resumed run gives
/// the same scores.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Kept {
    Choices(Vec<(String, bool)>),
    Text(String),
    Written(String, String, usize),
    Rolling(String, usize),
}

impl From<&Answer> for Kept {
    fn from(answer: &Answer) -> Self {
        let exact = |v: &f64| format!("{v:?}");
        match answer {
            Answer::Choices(all) => {
                Self::Choices(all.iter().map(|(v, greedy)| (exact(v), *greedy)).collect())
            }
            Answer::Written(Written {
                text,
                likelihood: Some((sum, tokens)),
            }) => Self::Written(text.clone(), exact(sum), *tokens),
            Answer::Written(Written { text, .. }) => Self::Text(text.clone()),
            Answer::Rolling(v, tokens) => Self::Rolling(exact(v), *tokens),
        }
    }
}

impl Kept {
    fn answer(self) -> Option<Answer> {
        Some(match self {
            Self::Choices(all) => {
                let parse = |(v, greedy): (String, bool)| v.parse().ok().map(|v| (v, greedy));
                Answer::Choices(all.into_iter().map(parse).collect::<Option<_>>()?)
            }
            Self::Text(text) => Answer::Written(text.as_str().into()),
            Self::Written(text, sum, tokens) => Answer::Written(Written {
                text,
                likelihood: Some((sum.parse().ok()?, tokens)),
            }),
            Self::Rolling(v, tokens) => Answer::Rolling(v.parse().ok()?, tokens),
        })
    }
}

/// A file with an answer on each line, in the order in which they came.
pub struct AnswerLog {
    file: Option<File>,
    known: HashMap<String, Answer>,
    path: std::path::PathBuf,
}

impl AnswerLog {
    /// Keeps answers in memory only.
    pub fn in_memory() -> Self {
        Self {
            file: None,
            known: HashMap::new(),
            path: "".into(),
        }
    }

    /// Opens or begins the log. A last line that was not written to its end is dropped.
    ///
    /// # Errors
    /// When the file cannot be read or written.
    pub fn open(path: &Path) -> Result<Self, FileError> {
        if let Some(folder) = path.parent() {
            frugal_core::fs::create_dir(folder)?;
        }
        let mut known = HashMap::new();
        let mut whole = 0;
        if path.exists() {
            let bytes = frugal_core::fs::read_data(path)?;
            for line in bytes.split_inclusive(|b| *b == b'\n') {
                if line.last() != Some(&b'\n') {
                    break;
                }
                whole += line.len() as u64;
                // A damaged line costs only the sample that it was for.
                if let Ok(line) = serde_json::from_slice::<Line>(line)
                    && let Some(answer) = line.answer.answer()
                {
                    known.insert(line.hash, answer);
                }
            }
        }
        let file = OpenOptions::new()
            .create(true)
            .append(true)
            .open(path)
            .map_err(FileError::at(path, "cannot write"))?;
        file.set_len(whole)
            .map_err(FileError::at(path, "cannot write"))?;
        Ok(Self {
            file: Some(file),
            known,
            path: path.to_owned(),
        })
    }

    /// The answer to the sample with this hash, if there is one.
    pub fn get(&self, hash: &str) -> Option<&Answer> {
        self.known.get(hash)
    }

    /// Adds an answer.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn add(&mut self, hash: &str, answer: Answer) -> Result<(), FileError> {
        if let Some(file) = &mut self.file {
            let mut text = serde_json::to_string(&Line {
                hash: hash.into(),
                answer: Kept::from(&answer),
            })
            .unwrap_or_default();
            text.push('\n');
            // One call for one line, so that at most the last one is ever incomplete.
            file.write_all(text.as_bytes())
                .map_err(FileError::at(&self.path, "cannot write"))?;
        }
        self.known.insert(hash.into(), answer);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_half_written_line_is_dropped_and_the_rest_kept() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a/answers.jsonl");
        let mut log = AnswerLog::open(&path).unwrap();
        log.add(
            "one",
            Answer::Choices(vec![(-1.5, true), (-0.1 - 0.2, false)]),
        )
        .unwrap();
        log.add("two", Answer::Written("a\nb".into())).unwrap();
        drop(log);
        let whole = std::fs::read(&path).unwrap();
        for cut in 1..=whole.len() {
            std::fs::write(&path, &whole[..cut]).unwrap();
            let mut log = AnswerLog::open(&path).unwrap();
            let lines = whole[..cut].iter().filter(|b| **b == b'\n').count();
            assert_eq!(log.get("one").is_some(), lines >= 1, "cut at {cut}");
            assert_eq!(log.get("two").is_some(), lines >= 2, "cut at {cut}");
            log.add("three", Answer::Rolling(-297.600_929_519_182_2, 4))
                .unwrap();
            drop(log);
            let log = AnswerLog::open(&path).unwrap();
            assert_eq!(
                log.get("three"),
                Some(&Answer::Rolling(-297.600_929_519_182_2, 4)),
                "cut at {cut}"
            );
            if lines >= 1 {
                assert_eq!(
                    log.get("one"),
                    Some(&Answer::Choices(vec![(-1.5, true), (-0.1 - 0.2, false)]))
                );
            }
        }
    }
}
