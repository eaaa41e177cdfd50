//! Records of several texts: pairs, triplets, scored pairs, the texts of a query. Columns have the
//! names that sentence-transformers' data sets have.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use serde_json::Value;
use sha2::{Digest, Sha256};

use super::error::DataError;
use super::example::Example;
use super::files;
use super::format::Format;
use super::options::LoadOptions;
use super::read;
use super::record::{Record, kind};
use super::source::{self, Source};
use super::{Dataset, is_empty};
use crate::suggest::did_you_mean;

/// Names of the text that the others are compared with.
const ANCHOR: &[&str] = &[
    "anchor",
    "query",
    "question",
    "sentence1",
    "sentence_1",
    "premise",
];
/// Names of the text that belongs to it, or of the second of two.
const POSITIVE: &[&str] = &[
    "positive",
    "answer",
    "response",
    "passage",
    "document",
    "sentence2",
    "sentence_2",
    "hypothesis",
];
/// Names of lists of texts.
const DOCUMENTS: &[&str] = &["documents", "docs", "passages"];
/// Names of what was said of the texts.
const SCORES: &[&str] = &["score", "scores", "label", "labels"];
/// Columns that say where a record comes from.
const IDLE: &[&str] = &[
    "id",
    "_id",
    "qid",
    "pid",
    "docid",
    "query_id",
    "query-id",
    "corpus_id",
    "corpus-id",
    "doc_id",
    "idx",
    "index",
    "source",
    "dataset",
    "language",
    "lang",
    "split",
];

const ACCEPTED: &str = "the columns are `anchor` (or `query`, `question`, `sentence1`), `positive` (or `answer`, `passage`, `document`, `sentence2`), \
                        `negative` (also `negative_1`, `negative_2`, ... or a list `negatives`), or a list `documents`, and `score` or `label` (a number or a list). \
                        Others can be mapped, as in `--column anchor=NAME`";

/// What the texts of a record are for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ranked {
    /// Each becomes a vector.
    Vectors,
    /// Each is read together with the query; records of one query are joined, and each text has a
    /// label: 1 for a positive and 0 for a negative where the file does not say.
    Lists,
}

/// Reads records of several texts from the files that these names stand for, as [`super::load_all`].
///
/// # Errors
/// Names the file, the line and the column.
pub fn load_ranked(
    names: &[String],
    ranked: Ranked,
    options: &LoadOptions,
) -> Result<Dataset, DataError> {
    let mut files = Vec::new();
    for name in names {
        files.extend(files::matching(name)?);
    }
    let Some(first) = files.first() else {
        return Err(DataError::Empty {
            path: PathBuf::new(),
        });
    };
    if let Some(format) = options.format {
        let problem = format!(
            "`format = {format}` is not a setting of records of several texts: leave it out, and {ACCEPTED}"
        );
        return Err(DataError::options(first, problem));
    }
    let mut all = Dataset {
        examples: Vec::new(),
        lines: Vec::new(),
        format: Format::Pair,
        source: first.clone(),
        starts: Vec::new(),
        sha256: String::new(),
        rows: 0,
        outputs: Vec::new(),
    };
    let options = LoadOptions {
        header: options.header.or(Some(true)),
        ..options.clone()
    };
    let mut sums = Vec::new();
    for file in &files {
        if file.is_dir() {
            return Err(DataError::options(
                file,
                "is a folder; give a file, or several as in `FOLDER/*.jsonl`",
            ));
        }
        all.starts.push((all.examples.len(), file.clone()));
        let (mut source, before) = (Source::open(file)?, all.examples.len());
        read::records(file, &mut source, &options, &mut |record| {
            let row = Row::of(file, &record, &options)?;
            all.examples.push(row.example(ranked)?);
            all.lines.push(record.line);
            Ok(())
        })?;
        if all.examples.len() == before {
            return Err(DataError::Empty { path: file.clone() });
        }
        sums.push(source.sha256()?);
    }
    all.sha256 = match <[String; 1]>::try_from(sums) {
        Ok([one]) => one,
        Err(sums) => source::hex(&Sha256::digest(sums.concat())),
    };
    all.rows = all.examples.len();
    if ranked == Ranked::Lists {
        join(&mut all);
    }
    Ok(all)
}

/// Makes one record of those that have one query, where the first of them is.
fn join(all: &mut Dataset) {
    let mut place: HashMap<String, usize> = HashMap::new();
    let (mut examples, mut lines, mut kept): (Vec<Example>, Vec<usize>, Vec<usize>) =
        (Vec::new(), Vec::new(), Vec::new());
    for (at, example) in std::mem::take(&mut all.examples).into_iter().enumerate() {
        let Example::Ranked {
            anchor,
            texts,
            scores,
        } = example
        else {
            continue;
        };
        let known = place.get(&anchor).and_then(|at| examples.get_mut(*at));
        if let Some(Example::Ranked {
            texts: all_texts,
            scores: all_scores,
            ..
        }) = known
        {
            all_texts.extend(texts);
            all_scores.extend(scores);
            continue;
        }
        place.insert(anchor.clone(), examples.len());
        lines.push(all.lines[at]);
        kept.push(at);
        examples.push(Example::Ranked {
            anchor,
            texts,
            scores,
        });
    }
    // A file begins with the first of its records that is left.
    let starts = all.starts.iter().map(|(first, file)| {
        let at = kept.iter().position(|row| row >= first);
        (at.unwrap_or(kept.len()), file.clone())
    });
    all.starts = starts.collect();
    (all.examples, all.lines) = (examples, lines);
    all.rows = all.examples.len();
}

/// One record with the roles of its columns.
struct Row<'a> {
    path: &'a Path,
    record: &'a Record,
    anchor: &'a str,
    positive: Option<&'a str>,
    negatives: Vec<&'a str>,
    documents: Option<&'a str>,
    scores: Option<&'a str>,
}

/// `negative`, `negative_1`, `negative2`, `negatives`: the number behind it.
fn negative(name: &str) -> Option<usize> {
    let rest = name.strip_prefix("negative")?;
    match rest {
        "" | "s" => Some(0),
        _ => rest.strip_prefix('_').unwrap_or(rest).parse().ok(),
    }
}

impl<'a> Row<'a> {
    fn of(path: &'a Path, record: &'a Record, options: &'a LoadOptions) -> Result<Self, DataError> {
        let problem = |problem: String| DataError::line(path, record.line, problem);
        let fields = &record.fields;
        let mut roles: HashMap<&str, &str> = HashMap::new();
        const ROLES: [&str; 5] = ["anchor", "positive", "negative", "documents", "score"];
        for (role, column) in &options.columns {
            let role = match role.as_str() {
                role if ANCHOR.contains(&role) => "anchor",
                role if POSITIVE.contains(&role) => "positive",
                role if negative(role).is_some() => "negative",
                role if DOCUMENTS.contains(&role) => "documents",
                role if SCORES.contains(&role) => "score",
                other => {
                    let near = did_you_mean(other, ROLES)
                        .map_or(String::new(), |near| format!(" (did you mean {near:?}?)"));
                    return Err(DataError::options(
                        path,
                        format!(
                            "columns: {other:?} is no role{near}; the roles are {}",
                            ROLES.join(", ")
                        ),
                    ));
                }
            };
            if !fields.contains_key(column) {
                let found: Vec<&str> = fields.keys().map(String::as_str).collect();
                return Err(problem(format!(
                    "no column {column:?}, which is to be {role:?}; there are {}",
                    found.join(", ")
                )));
            }
            roles.insert(column, role);
        }
        let given = |role: &str| {
            let mapped = roles.iter().find(|(_, own)| **own == role);
            mapped.map(|(column, _)| *column)
        };
        let named = |role: &str, names: &[&str]| -> Result<Option<&'a str>, DataError> {
            if let Some(column) = given(role) {
                return Ok(fields.get_key_value(column).map(|(name, _)| name.as_str()));
            }
            let free = |name: &&str| {
                fields.get(*name).is_some_and(|v| !is_empty(v)) && !roles.contains_key(*name)
            };
            let mut found = names.iter().copied().filter(free);
            let first = found.next();
            if let (Some(first), Some(second)) = (first, found.next()) {
                return Err(problem(format!(
                    "both `{first}` and `{second}` can be the {role}: say which, as in `--column {role}={first}`, and take the other out"
                )));
            }
            Ok(first.and_then(|name| fields.get_key_value(name).map(|(name, _)| name.as_str())))
        };
        let mut negatives: Vec<&str> = fields
            .keys()
            .map(String::as_str)
            .filter(|name| match roles.get(*name) {
                Some(role) => *role == "negative",
                None => negative(name).is_some() && given("negative").is_none(),
            })
            .filter(|name| fields.get(*name).is_some_and(|v| !is_empty(v)))
            .collect();
        negatives.sort_by_key(|name| negative(name));
        let row = Self {
            path,
            record,
            anchor: named("anchor", ANCHOR)?.unwrap_or_default(),
            positive: named("positive", POSITIVE)?,
            negatives,
            documents: named("documents", DOCUMENTS)?,
            scores: named("score", SCORES)?,
        };
        row.check(&roles)?;
        Ok(row)
    }

    /// Every column has a role, or says nothing of the texts.
    fn check(&self, roles: &HashMap<&str, &str>) -> Result<(), DataError> {
        let found = || -> String {
            let names: Vec<&str> = self.record.fields.keys().map(String::as_str).collect();
            names.join(", ")
        };
        if self.anchor.is_empty() {
            return Err(self.problem(format!(
                "no `anchor`: the record has {}, and {ACCEPTED}",
                found()
            )));
        }
        if self.positive.is_none() && self.documents.is_none() {
            return Err(self.problem(format!(
                "nothing beside `{}`: the record has {}, and {ACCEPTED}",
                self.anchor,
                found()
            )));
        }
        if self.documents.is_some() && (self.positive.is_some() || !self.negatives.is_empty()) {
            return Err(self.problem(
                "a list of `documents` beside a positive or negatives: give one or the other",
            ));
        }
        let used = |name: &str| {
            name == self.anchor
                || [self.positive, self.documents, self.scores].contains(&Some(name))
                || self.negatives.contains(&name)
        };
        for (name, value) in &self.record.fields {
            let idle = IDLE.contains(&name.to_lowercase().as_str()) || is_empty(value);
            if !used(name) && !idle && !roles.contains_key(name.as_str()) {
                return Err(self.problem(format!(
                    "`{name}` has no part in this, and leaving it out could change what is learned: take it out of the file, or map it; {ACCEPTED}"
                )));
            }
        }
        Ok(())
    }

    fn problem(&self, problem: impl Into<String>) -> DataError {
        DataError::line(self.path, self.record.line, problem)
    }

    fn texts(&self, name: &str) -> Result<Vec<String>, DataError> {
        let text = |value: &Value| match value {
            Value::String(text) if text.trim().is_empty() => {
                Err(self.problem(format!("`{name}` holds an empty text")))
            }
            Value::String(text) => Ok(text.clone()),
            other => Err(self.problem(format!("`{name}` must be a text, not {}", kind(other)))),
        };
        match listed(self.record.fields.get(name)) {
            Some(Value::Array(items)) => items.iter().map(text).collect(),
            Some(value) => Ok(vec![text(&value)?]),
            None => Err(self.problem(format!("`{name}` is missing"))),
        }
    }

    fn one(&self, name: &str) -> Result<String, DataError> {
        let value = self.record.fields.get(name);
        match value {
            Some(Value::String(text)) if !text.trim().is_empty() => Ok(text.clone()),
            Some(Value::String(_)) | Some(Value::Null) | None => {
                Err(self.problem(format!("`{name}` holds an empty text")))
            }
            Some(other) => {
                Err(self.problem(format!("`{name}` must be a text, not {}", kind(other))))
            }
        }
    }

    fn numbers(&self, name: &str) -> Result<Vec<f32>, DataError> {
        let number = |value: &Value| {
            let found = match value {
                Value::Number(number) => number.as_f64(),
                Value::Bool(yes) => Some(f64::from(u8::from(*yes))),
                Value::String(text) => text.trim().parse().ok(),
                _ => None,
            };
            found
                .filter(|x| x.is_finite() && x.abs() <= f64::from(f32::MAX))
                .map(|x| x as f32)
                .ok_or_else(|| {
                    let shown: String = value.to_string().chars().take(30).collect();
                    self.problem(format!(
                        "`{name}` must be a number, or a list of numbers, not {shown}"
                    ))
                })
        };
        match listed(self.record.fields.get(name)) {
            Some(Value::Array(items)) => items.iter().map(number).collect(),
            Some(value) => Ok(vec![number(&value)?]),
            None => Ok(Vec::new()),
        }
    }

    fn example(&self, ranked: Ranked) -> Result<Example, DataError> {
        let anchor = self.one(self.anchor)?;
        let mut texts = match (self.positive, self.documents) {
            (Some(positive), _) if ranked == Ranked::Lists => self.texts(positive)?,
            (Some(positive), _) => vec![self.one(positive)?],
            (None, Some(documents)) => self.texts(documents)?,
            (None, None) => Vec::new(),
        };
        let positives = texts.len();
        for negative in &self.negatives {
            texts.extend(self.texts(negative)?);
        }
        if texts.is_empty() {
            return Err(self.problem("the list of documents is empty"));
        }
        let mut scores = self
            .scores
            .map_or(Ok(Vec::new()), |name| self.numbers(name))?;
        if ranked == Ranked::Lists {
            if scores.is_empty() && self.documents.is_some() {
                return Err(self.problem("the `documents` have no `labels`, which say what answers the query: a list of as many numbers"));
            }
            if scores.is_empty() {
                scores = (0..texts.len())
                    .map(|i| f32::from(u8::from(i < positives)))
                    .collect();
            }
            if scores.len() != texts.len() {
                return Err(self.problem(format!(
                    "{} labels for {} texts: each text needs one",
                    scores.len(),
                    texts.len()
                )));
            }
        }
        Ok(Example::Ranked {
            anchor,
            texts,
            scores,
        })
    }
}

/// A list that a table holds as JSON in one cell.
fn listed(value: Option<&Value>) -> Option<Value> {
    match value? {
        Value::String(text) if text.trim_start().starts_with('[') => {
            let list = serde_json::from_str(text).ok();
            Some(
                list.filter(Value::is_array)
                    .unwrap_or_else(|| text.as_str().into()),
            )
        }
        value => Some(value.clone()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_as(
        name: &str,
        content: &str,
        ranked: Ranked,
        columns: &[(&str, &str)],
    ) -> Result<Dataset, String> {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join(name);
        std::fs::write(&file, content).unwrap();
        let columns = columns
            .iter()
            .map(|(a, b)| ((*a).to_owned(), (*b).to_owned()));
        let options = LoadOptions {
            columns: columns.collect(),
            ..LoadOptions::default()
        };
        load_ranked(&[file.display().to_string()], ranked, &options).map_err(|e| e.to_string())
    }

    fn ranked(anchor: &str, texts: &[&str], scores: &[f32]) -> Example {
        Example::Ranked {
            anchor: anchor.into(),
            texts: texts.iter().map(|t| (*t).to_owned()).collect(),
            scores: scores.to_vec(),
        }
    }

    #[test]
    fn columns_of_sentence_transformers_are_known_by_their_names() {
        for (content, expected) in [
            (
                r#"{"anchor": "a", "positive": "p"}"#,
                ranked("a", &["p"], &[]),
            ),
            (
                r#"{"id": 7, "query": "a", "answer": "p"}"#,
                ranked("a", &["p"], &[]),
            ),
            (
                r#"{"sentence1": "a", "sentence2": "p", "score": 0.5}"#,
                ranked("a", &["p"], &[0.5]),
            ),
            (
                r#"{"query": "a", "positive": "p", "negative_2": "y", "negative_1": "x"}"#,
                ranked("a", &["p", "x", "y"], &[]),
            ),
            (
                r#"{"anchor": "a", "positive": "p", "negatives": ["x", "y"], "label": [3, 1, 2]}"#,
                ranked("a", &["p", "x", "y"], &[3.0, 1.0, 2.0]),
            ),
        ] {
            let found = read_as("a.jsonl", content, Ranked::Vectors, &[]).unwrap();
            assert_eq!(found.examples, [expected], "{content}");
        }
        let table = "left,right,how\nx,y,1\n";
        let columns = [("anchor", "left"), ("positive", "right"), ("score", "how")];
        let found = read_as("a.csv", table, Ranked::Vectors, &columns).unwrap();
        assert_eq!(found.examples, [ranked("x", &["y"], &[1.0])]);
    }

    #[test]
    fn records_of_one_query_are_one_list_for_a_reranker() {
        let content = r#"{"query": "q", "passage": "a", "label": 1}
{"query": "r", "docs": ["c", "d"], "labels": [0, 2]}
{"query": "q", "passage": "b", "label": 0}
{"query": "s", "positive": "e", "negative": "f"}"#;
        let found = read_as("a.jsonl", content, Ranked::Lists, &[]).unwrap();
        let expected = [
            ranked("q", &["a", "b"], &[1.0, 0.0]),
            ranked("r", &["c", "d"], &[0.0, 2.0]),
            ranked("s", &["e", "f"], &[1.0, 0.0]),
        ];
        assert_eq!(found.examples, expected);
        assert_eq!(found.lines, [1, 2, 4]);
    }

    #[test]
    fn wrong_columns_are_named_with_their_line() {
        for (content, said) in [
            (
                r#"{"text": "a", "label": 1}"#,
                "a.jsonl:1: no `anchor`: the record has text, label",
            ),
            (r#"{"query": "a"}"#, "nothing beside `query`"),
            (
                r#"{"query": "a", "answer": "b", "title": "c"}"#,
                "`title` has no part in this",
            ),
            (
                r#"{"query": "a", "answer": "b", "passage": "c"}"#,
                "both `answer` and `passage` can be the positive",
            ),
            (
                r#"{"query": "a", "answer": 7}"#,
                "`answer` must be a text, not a number",
            ),
            (
                r#"{"query": " ", "answer": "b"}"#,
                "`query` holds an empty text",
            ),
            (
                r#"{"query": "a", "answer": "b", "score": "high"}"#,
                "`score` must be a number",
            ),
            (
                r#"{"query": "a", "answer": "b", "score": 1e300}"#,
                "`score` must be a number",
            ),
            (
                r#"{"query": "a", "documents": ["b"], "negative": "c"}"#,
                "give one or the other",
            ),
        ] {
            let error = read_as("a.jsonl", content, Ranked::Vectors, &[]).unwrap_err();
            assert!(error.contains(said), "{content}: {error}");
        }
        let lists = |content: &str| read_as("a.jsonl", content, Ranked::Lists, &[]).unwrap_err();
        let error = lists(r#"{"query": "a", "documents": ["b", "c"], "labels": [1]}"#);
        assert!(error.contains("1 labels for 2 texts"), "{error}");
        assert!(lists(r#"{"query": "a", "documents": ["b"]}"#).contains("no `labels`"));
        let error = read_as(
            "a.jsonl",
            r#"{"query": "a", "answer": "b"}"#,
            Ranked::Vectors,
            &[("ancor", "query")],
        )
        .unwrap_err();
        assert!(error.contains("did you mean \"anchor\"?"), "{error}");
    }
}
