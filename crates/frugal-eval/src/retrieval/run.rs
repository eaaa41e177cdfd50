//! Rankings, as TREC writes them.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use frugal_core::fs::write_atomic_with;

use super::error::RetrievalError;
use super::line::{check_id, is_comment};

/// A document that was found.
#[derive(Clone, Debug, PartialEq)]
pub struct Hit {
    /// Its identifier.
    pub id: String,
    /// How well it fits; higher is better.
    pub score: f64,
}

/// What a system found for each query.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Run {
    /// The system's name.
    pub name: String,
    queries: BTreeMap<String, Ranking>,
}

#[derive(Clone, Debug, Default, PartialEq)]
struct Ranking {
    hits: Vec<Hit>,
    ids: BTreeSet<String>,
}

impl Run {
    /// An empty run of a system.
    pub fn new(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            queries: BTreeMap::new(),
        }
    }

    /// Reads a file, which may be packed with gzip or Zstandard, of lines `query Q0 document rank
    /// score system`. The rank is not used: the scores say the order.
    ///
    /// # Errors
    /// A line that is something else, a score that is not a finite number, a document that is found
    /// twice for one query, a file without a line.
    pub fn read(path: &Path) -> Result<Self, RetrievalError> {
        let mut run = Self::default();
        frugal_core::data::lines(path, |number, line| run.line(path, number, line))?;
        run.finish(path)
    }

    /// As [`Run::read`], for text that was read already; `path` is for errors.
    ///
    /// # Errors
    /// As [`Run::read`].
    pub fn parse(path: &Path, text: &str) -> Result<Self, RetrievalError> {
        let mut run = Self::default();
        for (i, line) in text.lines().enumerate() {
            run.line(path, i + 1, line)?;
        }
        run.finish(path)
    }

    /// Adds a document.
    ///
    /// # Errors
    /// A document that is there already for this query, a score that is not a finite number.
    pub fn insert(
        &mut self,
        query: &str,
        document: &str,
        score: f64,
    ) -> Result<(), RetrievalError> {
        let of = |text: &str| text.to_owned();
        if !score.is_finite() {
            let (query, document) = (of(query), of(document));
            return Err(RetrievalError::Score {
                query,
                document,
                score,
            });
        }
        let ranking = self.queries.entry(of(query)).or_default();
        if !ranking.ids.insert(of(document)) {
            let (query, document) = (of(query), of(document));
            return Err(RetrievalError::Duplicate { query, document });
        }
        ranking.hits.push(Hit {
            id: of(document),
            score,
        });
        Ok(())
    }

    /// Notes a query for which nothing was found, so that it counts.
    pub fn insert_empty(&mut self, query: &str) {
        self.queries.entry(query.to_owned()).or_default();
    }

    /// The ranking of a query in the order in which trec_eval reads it: by the score as a 32-bit
    /// number, equal ones by the identifier, the later one first.
    pub fn ranking(&self, query: &str) -> Option<Vec<&Hit>> {
        let mut hits: Vec<&Hit> = self.queries.get(query)?.hits.iter().collect();
        hits.sort_by(|a, b| order(a, b));
        Some(hits)
    }

    /// Queries in the order of their identifiers.
    pub fn queries(&self) -> impl Iterator<Item = &str> {
        self.queries.keys().map(String::as_str)
    }

    /// Number of queries.
    pub fn len(&self) -> usize {
        self.queries.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.queries.is_empty()
    }

    /// Writes TREC's form, each ranking in the order of [`Run::ranking`], scores with all their
    /// digits. Queries for which nothing was found have no line: average over all queries then.
    ///
    /// # Errors
    /// An identifier or a name with white space; a file that cannot be written.
    pub fn write(&self, path: &Path) -> Result<(), RetrievalError> {
        check_id(&self.name)?;
        for (query, ranking) in &self.queries {
            check_id(query)?;
            ranking.hits.iter().try_for_each(|hit| check_id(&hit.id))?;
        }
        Ok(write_atomic_with(path, |file| {
            for query in self.queries.keys() {
                let hits = self.ranking(query).unwrap_or_default();
                for (i, hit) in hits.into_iter().enumerate() {
                    let (rank, name) = (i + 1, &self.name);
                    writeln!(file, "{query} Q0 {} {rank} {} {name}", hit.id, hit.score)?;
                }
            }
            Ok(())
        })?)
    }

    fn line(&mut self, path: &Path, number: usize, line: &str) -> Result<(), RetrievalError> {
        if is_comment(line) {
            return Ok(());
        }
        let wrong = |problem: String| RetrievalError::line(path, number, problem);
        let cells: Vec<&str> = line.split_whitespace().collect();
        let [query, _, document, _, score, name] = cells[..] else {
            let count = cells.len();
            return Err(wrong(format!(
                "{count} columns; expected six: `query Q0 document rank score system`"
            )));
        };
        let score: f64 = score
            .parse()
            .map_err(|_| wrong(format!("the score `{score}` is not a number")))?;
        self.insert(query, document, score)
            .map_err(|error| wrong(error.to_string()))?;
        if self.name.is_empty() {
            self.name = name.to_owned();
        }
        Ok(())
    }

    fn finish(self, path: &Path) -> Result<Self, RetrievalError> {
        match self.is_empty() {
            false => Ok(self),
            true => Err(RetrievalError::Empty {
                path: path.into(),
                what: "ranked document",
            }),
        }
    }
}

/// trec_eval holds scores in 32 bits, so ones that differ by less are equal.
fn order(a: &Hit, b: &Hit) -> Ordering {
    let by_score = (b.score as f32).total_cmp(&(a.score as f32));
    // Minus zero is zero.
    let by_score = match a.score == b.score {
        true => Ordering::Equal,
        false => by_score,
    };
    by_score.then_with(|| b.id.as_bytes().cmp(a.id.as_bytes()))
}
