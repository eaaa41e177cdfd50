//! SciFact's queries with the first documents of BM25, for studies of rankers.

use frugal_eval::retrieval::Qrels;
use frugal_index::{
    Analyzer, Bm25, Bm25Index, CorpusOptions, IndexError, read_corpus, read_queries,
};
use frugal_nn::named_rng;
use rand::seq::SliceRandom;

use super::{StudyError, StudyRequest};

/// Queries with the texts of their candidates in the order of BM25.
pub(super) struct Scifact {
    pub(super) texts: Vec<String>,
    ids: Vec<String>,
    index: Bm25Index,
    queries: Vec<(String, String)>,
    pub(super) test: Qrels,
    pub(super) train: Qrels,
}

pub(super) struct Case {
    pub(super) query: String,
    pub(super) candidates: Vec<usize>,
    pub(super) grades: Vec<f64>,
    pub(super) all: Vec<f64>,
}

fn failed<E: std::error::Error + Send + Sync + 'static>(error: E) -> StudyError {
    StudyError::arm("SciFact", error)
}

impl Scifact {
    pub(super) fn read(request: &StudyRequest<'_>) -> Result<Self, StudyError> {
        let corpus = request.data("scifact/corpus.jsonl.gz")?;
        let mut data = Self {
            texts: Vec::new(),
            ids: Vec::new(),
            index: Bm25Index::new(Analyzer::English),
            queries: read_queries(&request.data("scifact/queries.jsonl")?).map_err(failed)?,
            test: Qrels::read(&request.data("scifact/qrels-test.tsv")?).map_err(failed)?,
            train: Qrels::read(&request.data("scifact/qrels-train.tsv")?).map_err(failed)?,
        };
        let (texts, ids, index) = (&mut data.texts, &mut data.ids, &mut data.index);
        read_corpus::<IndexError>(&corpus, &CorpusOptions::default(), |document| {
            let text = document.title_and_text();
            index.add(&text);
            texts.push(text);
            ids.push(document.id);
            Ok(())
        })
        .map_err(failed)?;
        Ok(data)
    }

    fn case(&self, id: &str, query: &str, qrels: &Qrels, depth: usize) -> Result<Case, StudyError> {
        let found = self
            .index
            .search(query, depth, Bm25::default())
            .map_err(failed)?;
        let candidates: Vec<usize> = found.into_iter().map(|(i, _)| i).collect();
        let judged = qrels.get(id);
        let grade = |i: &usize| {
            judged
                .and_then(|j| j.get(&self.ids[*i]))
                .map_or(0.0, |&g| f64::from(g))
        };
        Ok(Case {
            query: query.to_owned(),
            grades: candidates.iter().map(grade).collect(),
            all: judged
                .iter()
                .flat_map(|j| j.values())
                .map(|&g| f64::from(g))
                .collect(),
            candidates,
        })
    }

    /// Judged queries in an order of their own for each seed, of which BM25 finds an answer.
    pub(super) fn cases(
        &self,
        qrels: &Qrels,
        seed: u64,
        count: usize,
        depth: usize,
    ) -> Result<Vec<Case>, StudyError> {
        let judged = self
            .queries
            .iter()
            .filter(|(id, _)| qrels.get(id).is_some());
        let mut judged: Vec<&(String, String)> = judged.collect();
        judged.shuffle(&mut named_rng(seed, "prp queries"));
        let mut cases = Vec::new();
        for (id, query) in judged {
            if cases.len() == count {
                break;
            }
            let case = self.case(id, query, qrels, depth)?;
            if case.grades.iter().any(|&g| g > 0.0) {
                cases.push(case);
            }
        }
        Ok(cases)
    }
}
