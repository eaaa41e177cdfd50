//! Relevance judgements, as TREC and BEIR write them.

use std::collections::BTreeMap;
use std::path::Path;

use frugal_core::fs::write_atomic_with;

use super::error::RetrievalError;
use super::line::{check_id, is_comment};

/// Grades of documents for queries. Identifiers are strings: `007` is not `7`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Qrels {
    queries: BTreeMap<String, BTreeMap<String, i32>>,
}

/// The two kinds of files, told by the number of columns.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// `query document grade`, perhaps under a line of column names.
    Beir,
    /// `query iteration document grade`.
    Trec,
}

struct Judgement<'a> {
    kind: Kind,
    query: &'a str,
    document: &'a str,
    grade: &'a str,
}

impl Qrels {
    /// Reads a file, which may be packed with gzip or Zstandard: lines of four columns (TREC: query,
    /// iteration, document, grade) or of three (BEIR: query, document, grade). BEIR's line of column
    /// names, empty lines and lines of `#` and a space are skipped.
    ///
    /// # Errors
    /// A line that is neither, a grade that is not a whole number, a document that is judged twice
    /// for one query, a file without a judgement.
    pub fn read(path: &Path) -> Result<Self, RetrievalError> {
        let mut reader = Reader::default();
        frugal_core::data::lines(path, |number, line| reader.line(path, number, line))?;
        reader.finish(path)
    }

    /// As [`Qrels::read`], for text that was read already; `path` is for errors.
    ///
    /// # Errors
    /// As [`Qrels::read`].
    pub fn parse(path: &Path, text: &str) -> Result<Self, RetrievalError> {
        let mut reader = Reader::default();
        for (i, line) in text.lines().enumerate() {
            reader.line(path, i + 1, line)?;
        }
        reader.finish(path)
    }

    /// Adds a judgement. Above 0 is relevant, 0 is not, below 0 counts as not judged.
    ///
    /// # Errors
    /// A document that is judged already for this query.
    pub fn insert(
        &mut self,
        query: &str,
        document: &str,
        grade: i32,
    ) -> Result<(), RetrievalError> {
        let judged = self.queries.entry(query.to_owned()).or_default();
        match judged.insert(document.to_owned(), grade) {
            None => Ok(()),
            Some(before) => {
                judged.insert(document.to_owned(), before);
                Err(RetrievalError::Duplicate {
                    query: query.into(),
                    document: document.into(),
                })
            }
        }
    }

    /// The judgements of one query.
    pub fn get(&self, query: &str) -> Option<&BTreeMap<String, i32>> {
        self.queries.get(query)
    }

    /// Queries with their judgements, in the order of their identifiers.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &BTreeMap<String, i32>)> {
        self.queries
            .iter()
            .map(|(id, judged)| (id.as_str(), judged))
    }

    /// Number of queries.
    pub fn len(&self) -> usize {
        self.queries.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.queries.is_empty()
    }

    /// Writes TREC's form: `query 0 document grade`.
    ///
    /// # Errors
    /// An identifier with white space; a file that cannot be written.
    pub fn write_trec(&self, path: &Path) -> Result<(), RetrievalError> {
        self.write(path, "", |query, document, grade| {
            format!("{query} 0 {document} {grade}")
        })
    }

    /// Writes BEIR's form: tab-separated, with a line of column names.
    ///
    /// # Errors
    /// An identifier with white space; a file that cannot be written.
    pub fn write_beir(&self, path: &Path) -> Result<(), RetrievalError> {
        let header = "query-id\tcorpus-id\tscore\n";
        self.write(path, header, |query, document, grade| {
            format!("{query}\t{document}\t{grade}")
        })
    }

    fn write(
        &self,
        path: &Path,
        header: &str,
        line: impl Fn(&str, &str, i32) -> String,
    ) -> Result<(), RetrievalError> {
        for (query, judged) in &self.queries {
            check_id(query)?;
            judged.keys().try_for_each(|document| check_id(document))?;
        }
        Ok(write_atomic_with(path, |file| {
            file.write_all(header.as_bytes())?;
            for (query, judged) in &self.queries {
                for (document, grade) in judged {
                    writeln!(file, "{}", line(query, document, *grade))?;
                }
            }
            Ok(())
        })?)
    }
}

#[derive(Default)]
struct Reader {
    qrels: Qrels,
    kind: Option<Kind>,
}

impl Reader {
    fn line(&mut self, path: &Path, number: usize, line: &str) -> Result<(), RetrievalError> {
        if is_comment(line) {
            return Ok(());
        }
        let wrong = |problem: String| RetrievalError::line(path, number, problem);
        let found = columns(line).map_err(wrong)?;
        // Column names come before all judgements, and only in BEIR's files.
        if found.kind == Kind::Beir && self.kind.is_none() && is_header(&found) {
            self.kind = Some(Kind::Beir);
            return Ok(());
        }
        if *self.kind.get_or_insert(found.kind) != found.kind {
            return Err(wrong(
                "three columns and four in one file: either all lines are `query document grade` or all are `query iteration document grade`"
                    .into(),
            ));
        }
        let grade = found.grade.parse().map_err(|_| {
            wrong(format!(
                "the grade `{}` is not a whole number; expected `query document grade` or `query iteration document grade`",
                found.grade
            ))
        })?;
        self.qrels
            .insert(found.query, found.document, grade)
            .map_err(|error| wrong(error.to_string()))
    }

    fn finish(self, path: &Path) -> Result<Qrels, RetrievalError> {
        match self.qrels.is_empty() {
            false => Ok(self.qrels),
            true => Err(RetrievalError::Empty {
                path: path.into(),
                what: "judgement",
            }),
        }
    }
}

fn is_header(line: &Judgement) -> bool {
    line.grade.parse::<f64>().is_err()
        && (line.query.contains("query") || ["score", "rel", "relevance"].contains(&line.grade))
}

fn columns(line: &str) -> Result<Judgement<'_>, String> {
    // Between tabs an identifier of BEIR may hold spaces.
    let tabs: Vec<&str> = line.split('\t').map(str::trim).collect();
    let cells = match tabs.len() {
        3 => tabs,
        _ => line.split_whitespace().collect(),
    };
    match cells[..] {
        [query, document, grade] if !query.is_empty() && !document.is_empty() => Ok(Judgement {
            kind: Kind::Beir,
            query,
            document,
            grade,
        }),
        [query, _, document, grade] => Ok(Judgement {
            kind: Kind::Trec,
            query,
            document,
            grade,
        }),
        _ => Err(format!(
            "{} columns; expected three (`query document grade`) or four (`query iteration document grade`)",
            cells.len()
        )),
    }
}
