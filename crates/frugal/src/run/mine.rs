//! Hard negatives from an index: what `frugal mine` does, for programs.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use frugal_core::data::{DataError, records};
use frugal_eval::retrieval::Qrels;
use frugal_index::{Document, read_queries};
use frugal_retrieve::mine::{Candidate, Excluded, MineOptions};
use frugal_retrieve::{Collection, SearchMode, SearchOptions, document_of};
use serde::Serialize;
use serde_json::{Map, Value};

use super::{Rerank, Reranker, RunError};

/// Names of the column of the query, and of those of its answers, as texts and as identifiers.
const QUERIES: [&str; 5] = ["anchor", "query", "question", "sentence1", "text"];
const POSITIVES: [&str; 3] = ["positive", "positives", "answer"];
const POSITIVE_IDS: [&str; 4] = [
    "positive_id",
    "positive_ids",
    "positive_doc_id",
    "positive_doc_ids",
];
/// Queries that are searched together.
const BATCH: usize = 64;

/// An answer to a query.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Positive {
    /// A document of the index.
    Id(String),
    /// A text, in the index or not.
    Text(String),
}

/// A query with its answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MineQuery {
    /// The query.
    pub text: String,
    /// Its answers, at least one.
    pub positives: Vec<Positive>,
}

/// A query with an answer and what only looks like one.
#[derive(Clone, Debug, PartialEq)]
pub struct Mined<'a> {
    /// The query.
    pub query: &'a str,
    /// Its answer.
    pub positive: &'a str,
    /// How near the answer is, where that is known.
    pub positive_score: Option<f64>,
    /// Texts and scores of the negatives, the hardest first.
    pub negatives: &'a [(String, f64)],
}

/// What was mined.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct MineReport {
    /// Queries.
    pub queries: usize,
    /// Pairs of a query and an answer.
    pub pairs: usize,
    /// Negatives of all queries.
    pub negatives: usize,
    /// Queries with fewer negatives than were wanted.
    pub short: usize,
    /// Queries without any.
    pub without: usize,
    /// First and last rank that were considered, from 1.
    pub ranks: (usize, usize),
    /// Candidates that were left out, by reason.
    pub excluded: Excluded,
    /// Mean score of answers.
    pub positive_score: Option<f64>,
    /// Mean score of negatives.
    pub negative_score: Option<f64>,
}

fn invalid(path: &Path, line: usize, reason: &str) -> RunError {
    RunError::Invalid(format!("{}:{line}: {reason}", path.display()))
}

fn texts(value: Value) -> Option<Vec<String>> {
    match value {
        Value::String(text) => Some(vec![text]),
        Value::Number(number) => Some(vec![number.to_string()]),
        Value::Array(list) => {
            let one = |value| texts(value).filter(|found| found.len() == 1);
            let all: Option<Vec<_>> = list.into_iter().map(one).collect();
            Some(all?.into_iter().flatten().collect())
        }
        _ => None,
    }
}

/// Queries and answers of a file: the query under `anchor`, `query`, `question` or `text`, its answers
/// under `positive` (a text or several) or `positive_ids` (documents of the index); or of a BEIR folder
/// or a file of queries with identifiers, whose answers are in `qrels`. Records of one query count as
/// one query with several answers.
///
/// # Errors
/// Files that cannot be read, records without query or answer.
pub fn read_mine_queries(
    data: &Path,
    qrels: Option<&Path>,
    split: &str,
) -> Result<Vec<MineQuery>, RunError> {
    let own: Option<PathBuf> = data
        .is_dir()
        .then(|| data.join("qrels").join(format!("{split}.tsv")));
    let found = match qrels.map(Path::to_owned).or(own) {
        Some(qrels) => judged(data, &qrels)?,
        None => written(data)?,
    };
    if found.is_empty() {
        let text = format!("{}: no query with an answer", data.display());
        return Err(RunError::Invalid(text));
    }
    Ok(found)
}

fn judged(data: &Path, qrels: &Path) -> Result<Vec<MineQuery>, RunError> {
    let qrels = Qrels::read(qrels).map_err(|e| RunError::Invalid(e.to_string()))?;
    let queries = read_queries(data).map_err(frugal_retrieve::RetrieveError::from)?;
    let mut found = Vec::new();
    for (id, text) in queries {
        let judged = qrels.get(&id).into_iter().flatten();
        let right = judged.filter(|(_, grade)| **grade > 0);
        let positives: Vec<Positive> = right.map(|(id, _)| Positive::Id(id.clone())).collect();
        if !positives.is_empty() {
            found.push(MineQuery { text, positives });
        }
    }
    Ok(found)
}

struct ReadError(RunError);

impl From<DataError> for ReadError {
    fn from(error: DataError) -> Self {
        Self(error.into())
    }
}

fn written(data: &Path) -> Result<Vec<MineQuery>, RunError> {
    let mut found: Vec<MineQuery> = Vec::new();
    let mut places: HashMap<String, usize> = HashMap::new();
    let read = records(data, |line, mut fields| -> Result<(), ReadError> {
        let query =
            record(&mut fields).map_err(|reason| ReadError(invalid(data, line, &reason)))?;
        let place = *places.entry(query.text.clone()).or_insert(found.len());
        match found.get_mut(place) {
            Some(known) => {
                let new = query.positives.into_iter();
                let new: Vec<_> = new.filter(|p| !known.positives.contains(p)).collect();
                known.positives.extend(new);
            }
            None => found.push(query),
        }
        Ok(())
    });
    read.map_err(|ReadError(error)| error)?;
    Ok(found)
}

fn record(fields: &mut Map<String, Value>) -> Result<MineQuery, String> {
    let mut take = |names: &[&str]| {
        let name = names.iter().find(|name| fields.contains_key(**name))?;
        let value = fields.remove(*name)?;
        Some(((*name).to_owned(), value))
    };
    let (name, query) = take(&QUERIES).ok_or_else(|| {
        format!(
            "no query: expected one of the columns {}",
            QUERIES.join(", ")
        )
    })?;
    let text = match query {
        Value::String(text) if !text.trim().is_empty() => text,
        _ => return Err(format!("`{name}` is not a text, or empty")),
    };
    let mut positives: Vec<Positive> = Vec::new();
    for (names, make) in [
        (&POSITIVE_IDS[..], Positive::Id as fn(String) -> Positive),
        (&POSITIVES[..], Positive::Text),
    ] {
        if let Some((name, value)) = take(names) {
            let found = texts(value)
                .ok_or_else(|| format!("`{name}` is neither a text nor a list of texts"))?;
            if found.iter().any(|text| text.trim().is_empty()) {
                return Err(format!("`{name}` is empty"));
            }
            positives.extend(found.into_iter().map(make));
        }
    }
    if positives.is_empty() {
        return Err(format!(
            "no answer: expected `positive` or `positive_ids`, or judgements by `--qrels`; the columns are {}",
            fields.keys().cloned().collect::<Vec<_>>().join(", ")
        ));
    }
    Ok(MineQuery { text, positives })
}

/// An answer as it is in the index: one document, several pieces of one, or a text alone.
struct Resolved {
    texts: Vec<String>,
    document: Option<String>,
}

fn resolve(collection: &Collection, query: &MineQuery) -> Result<Vec<Resolved>, RunError> {
    let of = |positive: &Positive| match positive {
        Positive::Text(text) => Ok(Resolved {
            texts: vec![text.clone()],
            document: None,
        }),
        Positive::Id(id) => {
            let whole = collection.document(id)?;
            let mut texts: Vec<String> = whole.iter().map(Document::title_and_text).collect();
            if whole.is_none() {
                while let Some(piece) = collection.document(&format!("{id}#{}", texts.len()))? {
                    texts.push(piece.title_and_text());
                }
            }
            if texts.is_empty() {
                return Err(RunError::Invalid(format!(
                    "the index has no document `{id}`, the answer to {:?}: index it, or give the answer as a text under `positive`",
                    query.text
                )));
            }
            Ok(Resolved {
                texts,
                document: Some(id.clone()),
            })
        }
    };
    query.positives.iter().map(of).collect()
}

impl Resolved {
    fn is(&self, document: &Document) -> bool {
        let by_id = self.document.as_ref();
        if by_id.is_some_and(|id| *id == document.id || id == document_of(document)) {
            return true;
        }
        let titled = document.title_and_text();
        let same = |text: &String| text.trim() == titled || text.trim() == document.text.trim();
        self.texts.iter().any(same)
    }
}

/// Mines negatives for all queries, and hands each pair of a query and an answer to `take` with its
/// negatives. Without a reranker, similarities are those of the search; with one, its scores, and
/// candidates are ranked by them. `progress` is told how many more queries are done, and ends the
/// work by answering false.
///
/// # Errors
/// Options that choose nothing, margins where a search gives no similarities, answers that are not in
/// the index, an interruption.
pub fn mine(
    collection: &Collection,
    reranker: Option<&Reranker>,
    queries: &[MineQuery],
    options: &MineOptions,
    mode: SearchMode,
    take: &mut dyn FnMut(&Mined<'_>),
    progress: &mut dyn FnMut(usize) -> bool,
) -> Result<MineReport, RunError> {
    let declared = queries.iter().map(|query| query.positives.len()).max();
    let declared = declared.unwrap_or(0);
    // Rescoring without a threshold changes nothing in sentence-transformers; here it ranks.
    let rescored = reranker.is_some();
    let checked = options.validate(declared, rescored);
    checked.map_err(|error| RunError::Invalid(error.to_string()))?;
    if options.has_margin() && !rescored && mode != SearchMode::Dense {
        return Err(RunError::Invalid(
            "margins compare similarities, which a search by words or by fused ranks does not give: search by `--mode dense`, or score by `--filter-model`".into(),
        ));
    }
    let last = options.last_rank(declared, rescored);
    let resolved = queries
        .iter()
        .map(|query| resolve(collection, query))
        .collect::<Result<Vec<_>, _>>()?;
    let pieces = |answers: &Vec<Resolved>| answers.iter().map(|a| a.texts.len()).sum::<usize>();
    let most = resolved.iter().map(pieces).max().unwrap_or(0);
    let search = SearchOptions {
        mode: Some(mode),
        top_k: last.saturating_add(most),
        ..SearchOptions::default()
    };
    let mut work = Work {
        collection,
        reranker,
        options,
        mode,
        last,
        report: MineReport {
            queries: queries.len(),
            ranks: (options.range_min + 1, last),
            ..MineReport::default()
        },
        sums: [0.0; 2],
        counts: [0; 2],
    };
    let mut number = 0;
    for (queries, answers) in queries.chunks(BATCH).zip(resolved.chunks(BATCH)) {
        let asked: Vec<&str> = queries.iter().map(|query| query.text.as_str()).collect();
        let found = collection.search(&asked, &search)?;
        for ((query, answers), hits) in queries.iter().zip(answers).zip(found) {
            let mut documents = Vec::with_capacity(hits.len());
            for hit in hits {
                let document = collection.document(&hit.id)?;
                documents.extend(document.map(|document| (document, hit.score)));
            }
            work.one(number, &query.text, answers, &documents, take)?;
            number += 1;
            if !progress(1) {
                return Err(RunError::Interrupted);
            }
        }
    }
    Ok(work.finish())
}

struct Work<'a> {
    collection: &'a Collection,
    reranker: Option<&'a Reranker>,
    options: &'a MineOptions,
    mode: SearchMode,
    last: usize,
    report: MineReport,
    sums: [f64; 2],
    counts: [usize; 2],
}

impl Work<'_> {
    /// Scores of texts for a query, where the search or the reranker gives any.
    fn scores(&self, query: &str, texts: &[&str]) -> Result<Option<Vec<f64>>, RunError> {
        if let Some(reranker) = self.reranker {
            let found = reranker.scores(query, texts, &mut |_| true)?;
            return Ok(Some(found.into_iter().map(f64::from).collect()));
        }
        match self.mode {
            SearchMode::Dense => Ok(self.collection.similarities(query, texts)?),
            _ => Ok(None),
        }
    }

    fn one(
        &mut self,
        number: u64,
        query: &str,
        answers: &[Resolved],
        documents: &[(Document, f64)],
        take: &mut dyn FnMut(&Mined<'_>),
    ) -> Result<(), RunError> {
        // Of a document in pieces, the piece nearest to the query is the answer.
        let mut positives: Vec<(&str, Option<f64>)> = Vec::new();
        for answer in answers {
            let texts: Vec<&str> = answer.texts.iter().map(String::as_str).collect();
            let best = match self.scores(query, &texts)? {
                None => texts.first().map(|text| (*text, None)),
                Some(scores) => {
                    let pairs = texts.iter().zip(scores);
                    let best = pairs.max_by(|a, b| a.1.total_cmp(&b.1));
                    best.map(|(text, score)| (*text, Some(score)))
                }
            };
            positives.extend(best);
        }
        let texts: Vec<String> = documents.iter().map(|(d, _)| d.title_and_text()).collect();
        let rescored = match self.reranker {
            None => None,
            Some(_) => {
                let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
                self.scores(query, &texts)?
            }
        };
        let candidates: Vec<Candidate> = documents
            .iter()
            .enumerate()
            .map(|(i, (document, score))| Candidate {
                score: rescored.as_ref().map_or(*score, |scores| scores[i]),
                positive: answers.iter().any(|answer| answer.is(document)),
            })
            .collect();
        let lowest = positives.iter().filter_map(|(_, score)| *score);
        let lowest = lowest.reduce(f64::min);
        let (places, excluded) = self.options.select(&candidates, lowest, self.last, number);
        let negatives: Vec<(String, f64)> = places
            .into_iter()
            .map(|place| (texts[place].clone(), candidates[place].score))
            .collect();
        self.report.excluded.add(excluded);
        self.report.negatives += negatives.len();
        self.report.short += usize::from(negatives.len() < self.options.number);
        self.report.without += usize::from(negatives.is_empty());
        self.count(1, negatives.iter().map(|(_, score)| *score));
        for (positive, positive_score) in positives {
            self.report.pairs += 1;
            self.count(0, positive_score.into_iter());
            take(&Mined {
                query,
                positive,
                positive_score,
                negatives: &negatives,
            });
        }
        Ok(())
    }

    fn count(&mut self, which: usize, scores: impl Iterator<Item = f64>) {
        for score in scores {
            self.sums[which] += score;
            self.counts[which] += 1;
        }
    }

    fn finish(mut self) -> MineReport {
        let mean = |i: usize| (self.counts[i] > 0).then(|| self.sums[i] / self.counts[i] as f64);
        let means = [mean(0), mean(1)];
        [self.report.positive_score, self.report.negative_score] = means;
        self.report
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(lines: &str) -> Result<Vec<MineQuery>, String> {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("queries.jsonl");
        std::fs::write(&file, lines).unwrap();
        read_mine_queries(&file, None, "train").map_err(|error| error.to_string())
    }

    #[test]
    fn records_of_one_query_are_one_query_with_several_answers() {
        let found = read(
            "{\"query\": \"a\", \"positive\": \"x\"}\n{\"query\": \"b\", \"positive_ids\": [\"7\", 8]}\n{\"query\": \"a\", \"positive\": [\"x\", \"y\"]}\n",
        )
        .unwrap();
        let text = |text: &str| Positive::Text(text.into());
        let id = |id: &str| Positive::Id(id.into());
        assert_eq!(found.len(), 2);
        assert_eq!(found[0].positives, [text("x"), text("y")]);
        assert_eq!(found[1].positives, [id("7"), id("8")]);
    }

    #[test]
    fn a_record_without_an_answer_is_named_with_its_line() {
        let error =
            read("{\"query\": \"a\", \"positive\": \"x\"}\n{\"query\": \"b\", \"label\": 1}\n");
        let error = error.unwrap_err();
        assert!(error.contains("queries.jsonl:2: no answer"), "{error}");
        let error = read("{\"query\": \"a\", \"positive\": {}}\n").unwrap_err();
        assert!(error.contains("neither a text nor a list"), "{error}");
        let error = read("{\"q\": \"a\"}\n").unwrap_err();
        assert!(error.contains("no query"), "{error}");
    }
}
