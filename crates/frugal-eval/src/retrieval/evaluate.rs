//! Measures of a run, per query and on average.

use std::collections::BTreeMap;

use super::error::RetrievalError;
use super::measure::{Judged, Measure};
use super::qrels::Qrels;
use super::run::Run;

/// How a run is compared with the judgements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// Average over all queries with judgements; one that the run lacks counts as 0 (`-c`).
    /// Otherwise only over the queries of the run.
    pub all_queries: bool,
    /// Grade from which a document counts as relevant for the measures that do not use gains (`-l`).
    pub level: u32,
    /// Leave out documents that nobody judged (`-J`). Otherwise they count as not relevant.
    pub judged_only: bool,
    /// Documents that are looked at for each query (`-M`).
    pub depth: Option<usize>,
    /// Leave out the document that has the query's own identifier, as BEIR does.
    pub ignore_identical_ids: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            all_queries: false,
            level: 1,
            judged_only: false,
            depth: None,
            ignore_identical_ids: false,
        }
    }
}

/// Values of one query.
#[derive(Clone, Debug, PartialEq)]
pub struct QueryScores {
    /// The query.
    pub id: String,
    /// Whether the run has a ranking for it.
    pub in_run: bool,
    /// One value for each measure.
    pub values: Vec<f64>,
}

/// Values of a run.
#[derive(Clone, Debug, PartialEq)]
pub struct Evaluation {
    /// Name of the run.
    pub name: String,
    /// What was measured.
    pub measures: Vec<Measure>,
    /// The queries that count, in the order of their identifiers.
    pub queries: Vec<QueryScores>,
    /// Mean of each measure over these queries.
    pub means: Vec<f64>,
    /// Queries with judgements that the run lacks. They count only with [`Options::all_queries`].
    pub missing: Vec<String>,
    /// Queries of the run without judgements; they never count.
    pub without_judgements: Vec<String>,
}

/// Measures a run.
///
/// # Errors
/// No query has both judgements and a ranking.
pub fn evaluate(
    qrels: &Qrels,
    run: &Run,
    measures: &[Measure],
    options: &Options,
) -> Result<Evaluation, RetrievalError> {
    let mut queries = Vec::new();
    let mut missing = Vec::new();
    for (id, judged) in qrels.iter() {
        let grades = grades(id, judged, run, options);
        if grades.is_none() {
            missing.push(id.to_owned());
        }
        if grades.is_some() || options.all_queries {
            queries.push(QueryScores {
                id: id.into(),
                in_run: grades.is_some(),
                values: values(judged, &grades.unwrap_or_default(), measures, options),
            });
        }
    }
    if missing.len() == qrels.len() {
        let first = |mut ids: Box<dyn Iterator<Item = &str> + '_>| {
            ids.next().map(str::to_owned).unwrap_or_default()
        };
        return Err(RetrievalError::NoCommonQuery {
            run: run.len(),
            qrels: qrels.len(),
            run_example: first(Box::new(run.queries())),
            qrels_example: first(Box::new(qrels.iter().map(|(id, _)| id))),
        });
    }
    let unjudged = run.queries().filter(|id| qrels.get(id).is_none());
    Ok(Evaluation {
        name: run.name.clone(),
        measures: measures.to_vec(),
        means: means(&queries, measures.len()),
        without_judgements: unjudged.map(str::to_owned).collect(),
        queries,
        missing,
    })
}

/// Grades down the ranking, 0 for what is not judged.
fn grades(
    query: &str,
    judged: &BTreeMap<String, i32>,
    run: &Run,
    options: &Options,
) -> Option<Vec<i32>> {
    // A grade below 0 says that the document was seen, but not judged.
    let grade = |id: &str| judged.get(id).copied().filter(|grade| *grade >= 0);
    let hits = run.ranking(query)?.into_iter();
    let kept = hits.filter(|hit| !(options.ignore_identical_ids && hit.id == query));
    // trec_eval cuts before it drops what is not judged.
    let kept = kept.take(options.depth.unwrap_or(usize::MAX));
    let grades = kept.map(|hit| grade(&hit.id));
    Some(match options.judged_only {
        true => grades.flatten().collect(),
        // Below every level, even 0.
        false => grades.map(|grade| grade.unwrap_or(-1)).collect(),
    })
}

fn values(
    judged: &BTreeMap<String, i32>,
    grades: &[i32],
    measures: &[Measure],
    options: &Options,
) -> Vec<f64> {
    let level = i32::try_from(options.level).unwrap_or(i32::MAX);
    let mut ideal: Vec<i32> = judged.values().copied().filter(|g| *g > 0).collect();
    ideal.sort_unstable_by(|a, b| b.cmp(a));
    let judged = Judged {
        grades,
        ideal: &ideal,
        relevant: judged.values().filter(|grade| **grade >= level).count(),
        level,
    };
    measures.iter().map(|m| m.value(&judged)).collect()
}

fn means(queries: &[QueryScores], measures: usize) -> Vec<f64> {
    let mean = |i: usize| {
        let sum: f64 = queries.iter().map(|query| query.values[i]).sum();
        sum / queries.len() as f64
    };
    (0..measures).map(mean).collect()
}

impl Evaluation {
    /// The mean of a measure, if it was asked for.
    pub fn mean(&self, measure: Measure) -> Option<f64> {
        let place = self.measures.iter().position(|m| *m == measure)?;
        self.means.get(place).copied()
    }

    /// The values of a measure, one for each query that counts, if it was asked for.
    pub fn per_query(&self, measure: Measure) -> Option<Vec<f64>> {
        let place = self.measures.iter().position(|m| *m == measure)?;
        Some(self.queries.iter().map(|q| q.values[place]).collect())
    }
}
