//! Queries and their answers.

use std::collections::HashMap;

use rayon::prelude::*;

use super::matching::matching;
use super::open::Index;
use super::schema::ID;
use super::snapshot::{Loaded, Place, guarded};
use super::text;
use crate::bm25::Bm25;
use crate::error::IndexError;
use crate::filter::Filter;
use crate::fusion::{Fusion, fuse};
use crate::top_k::TopK;
use crate::vector::{Neighbor, VectorGraph, VectorIndex};

/// What is compared.
#[derive(Clone, Debug, PartialEq)]
pub enum Mode {
    /// The words, by BM25.
    Bm25,
    /// The vectors.
    Dense,
    /// Both; weights of a fusion are those of words and vectors, in this order.
    Hybrid(Fusion),
}

/// What is asked.
#[derive(Clone, Debug, PartialEq)]
pub struct Query {
    /// The question, for its words.
    pub text: Option<String>,
    /// Its vector, by the encoder of the index.
    pub vector: Option<Vec<f32>>,
    /// What is compared; otherwise everything that is given: words, vector, or both by their ranks.
    pub mode: Option<Mode>,
    /// How many documents are wanted.
    pub top_k: usize,
    /// How many of each kind are fused; otherwise `top_k`, but at least 100.
    pub depth: Option<usize>,
    /// What their metadata have to be.
    pub filter: Filter,
    /// The constants of BM25.
    pub bm25: Bm25,
    /// How much of the vectors is looked at.
    pub effort: Effort,
}

/// How the nearest vectors are found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effort {
    /// Along the graphs where the index has some, keeping at least this number of candidates. Where
    /// few documents are asked among, or many are wanted, and in files without a graph, all are
    /// looked at.
    Graph {
        /// Candidates.
        ef: usize,
    },
    /// All vectors are looked at.
    Exact,
}

impl Default for Effort {
    fn default() -> Self {
        Self::Graph { ef: 128 }
    }
}

/// A document that was found.
#[derive(Clone, Debug, PartialEq)]
pub struct Found {
    /// Its identifier.
    pub id: String,
    /// Its score in the mode of the query; higher is better.
    pub score: f64,
    /// Its score by words, where it was among the best.
    pub text_score: Option<f64>,
    /// Its score by vectors, where it was among the best.
    pub vector_score: Option<f64>,
}

/// Least number of documents of each kind that are fused.
const FUSED: usize = 100;

impl Query {
    fn new(text: Option<String>, vector: Option<Vec<f32>>) -> Self {
        Self {
            text,
            vector,
            mode: None,
            top_k: 10,
            depth: None,
            filter: Filter::default(),
            bm25: Bm25::default(),
            effort: Effort::default(),
        }
    }

    /// Asks for words.
    pub fn text(text: impl Into<String>) -> Self {
        Self::new(Some(text.into()), None)
    }

    /// Asks for a vector.
    pub fn vector(vector: Vec<f32>) -> Self {
        Self::new(None, Some(vector))
    }

    /// Asks for both.
    pub fn hybrid(text: impl Into<String>, vector: Vec<f32>) -> Self {
        Self::new(Some(text.into()), Some(vector))
    }

    /// With another number of documents than 10.
    pub fn top_k(mut self, top_k: usize) -> Self {
        self.top_k = top_k;
        self
    }

    /// With conditions.
    pub fn filter(mut self, filter: Filter) -> Self {
        self.filter = filter;
        self
    }

    /// With a mode.
    pub fn mode(mut self, mode: Mode) -> Self {
        self.mode = Some(mode);
        self
    }

    /// With other constants of BM25.
    pub fn bm25(mut self, bm25: Bm25) -> Self {
        self.bm25 = bm25;
        self
    }

    /// With another effort.
    pub fn effort(mut self, effort: Effort) -> Self {
        self.effort = effort;
        self
    }

    fn resolved_mode(&self) -> Result<Mode, IndexError> {
        let mode = match (&self.mode, &self.text, &self.vector) {
            (Some(mode), ..) => mode.clone(),
            (None, Some(_), Some(_)) => Mode::Hybrid(Fusion::default()),
            (None, Some(_), None) => Mode::Bm25,
            (None, None, Some(_)) => Mode::Dense,
            (None, None, None) => {
                return Err(IndexError::Query("a query needs a text or a vector".into()));
            }
        };
        let lacks = |what: &str| IndexError::Query(format!("this mode needs {what} to search for"));
        match mode {
            Mode::Bm25 | Mode::Hybrid(_) if self.text.is_none() => Err(lacks("a text")),
            Mode::Dense | Mode::Hybrid(_) if self.vector.is_none() => Err(lacks("a vector")),
            mode => Ok(mode),
        }
    }
}

/// Keys and scores, the best first.
type Ranking = Vec<(u64, f64)>;

impl Index {
    /// The best documents, the best first; equal scores in the order in which they were added.
    ///
    /// # Errors
    /// A query without what its mode needs, a vector of another length, a filter on a field that no
    /// document has, a damaged index.
    pub fn search(&self, query: &Query) -> Result<Vec<Found>, IndexError> {
        let found = self.search_batch(std::slice::from_ref(query))?;
        Ok(found.into_iter().next().unwrap_or_default())
    }

    /// Answers many queries at once, on all cores; vectors without filters share one pass over the
    /// index.
    ///
    /// # Errors
    /// As [`Index::search`].
    pub fn search_batch(&self, queries: &[Query]) -> Result<Vec<Vec<Found>>, IndexError> {
        let modes = queries.iter().map(Query::resolved_mode);
        let modes: Vec<Mode> = modes.collect::<Result<_, _>>()?;
        let dense = self.dense(queries, &modes)?;
        queries
            .par_iter()
            .zip(modes)
            .zip(dense)
            .map(|((query, mode), dense)| self.answer(query, mode, dense))
            .collect()
    }

    fn answer(&self, query: &Query, mode: Mode, dense: Ranking) -> Result<Vec<Found>, IndexError> {
        let words = match (&mode, &query.text) {
            (Mode::Bm25 | Mode::Hybrid(_), Some(text)) => {
                let allowed = self.allowed(query)?;
                let depth = depth(query, &mode);
                text::search(&self.snapshot, text, depth, query.bm25, allowed.as_deref())?
            }
            _ => Vec::new(),
        };
        let text_scores: HashMap<u64, f64> = words.iter().copied().collect();
        let vector_scores: HashMap<u64, f64> = dense.iter().copied().collect();
        let mut ranking = match mode {
            Mode::Bm25 => words,
            Mode::Dense => dense,
            Mode::Hybrid(fusion) => fuse(&[words, dense], &fusion)?,
        };
        ranking.truncate(query.top_k);
        let ids = self.ids(&ranking)?;
        let found = ranking.into_iter().zip(ids);
        Ok(found
            .map(|((key, score), id)| Found {
                id,
                score,
                text_score: text_scores.get(&key).copied(),
                vector_score: vector_scores.get(&key).copied(),
            })
            .collect())
    }

    /// Rankings by vectors; empty for queries that do not ask for them.
    fn dense(&self, queries: &[Query], modes: &[Mode]) -> Result<Vec<Ranking>, IndexError> {
        let mut rankings = vec![Vec::new(); queries.len()];
        let asking: Vec<(usize, &[f32])> = (queries.iter().enumerate())
            .filter(|(i, _)| modes[*i] != Mode::Bm25)
            .filter_map(|(i, query)| Some((i, query.vector.as_deref()?)))
            .collect();
        if asking.is_empty() {
            return Ok(rankings);
        }
        self.check_vectors(&asking)?;
        let loaded = self.snapshot.loaded()?;
        let first = asking.first().map(|(i, _)| queries[*i].effort);
        let (plain, filtered): (Vec<_>, Vec<_>) = (asking.into_iter()).partition(|(i, _)| {
            let query = &queries[*i];
            query.filter.conditions.is_empty() && Some(query.effort) == first
        });
        let deepest = |i: &usize| depth(&queries[*i], &modes[*i]);
        let joined: Vec<f32> = plain.iter().flat_map(|(_, v)| v.iter().copied()).collect();
        let k = plain.iter().map(|(i, _)| deepest(i)).max().unwrap_or(0);
        let effort = first.unwrap_or_default();
        let found = self.nearest(&joined, plain.len(), k, effort, loaded, None)?;
        for ((i, _), mut ranking) in plain.iter().zip(found) {
            ranking.truncate(deepest(i));
            rankings[*i] = ranking;
        }
        for (i, vector) in filtered {
            let allowed = self.allowed(&queries[i])?;
            let (k, effort) = (deepest(&i), queries[i].effort);
            let found = self.nearest(vector, 1, k, effort, loaded, allowed.as_deref())?;
            rankings[i] = found.into_iter().next().unwrap_or_default();
        }
        Ok(rankings)
    }

    fn check_vectors(&self, asking: &[(usize, &[f32])]) -> Result<(), IndexError> {
        let Some(encoder) = &self.settings().encoder else {
            return Err(IndexError::NeedsVector(
                "the index has no vectors; search it by its words, or make it with an encoder"
                    .into(),
            ));
        };
        match asking.iter().find(|(_, v)| v.len() != encoder.dimension) {
            None => Ok(()),
            Some((i, vector)) => Err(crate::vector::VectorError::Dimension {
                what: format!("the query vector {i}"),
                found: vector.len(),
                expected: encoder.dimension,
            }
            .into()),
        }
    }

    /// The nearest living documents over all files of vectors.
    fn nearest(
        &self,
        queries: &[f32],
        count: usize,
        k: usize,
        effort: Effort,
        loaded: &Loaded,
        allowed: Option<&[Vec<bool>]>,
    ) -> Result<Vec<Ranking>, IndexError> {
        let is_allowed = |place: Place| {
            allowed.is_none_or(|a| a[place.segment as usize][place.document as usize])
        };
        let mut best = vec![TopK::new(k); count];
        let snapshot = &self.snapshot;
        for (vectors, graph) in snapshot.vectors.iter().zip(&snapshot.graphs) {
            let wanted = |row: usize| loaded.place(vectors.key(row)).is_some_and(is_allowed);
            let found = match (graph, effort) {
                (Some(graph), Effort::Graph { ef }) if self.pays(k, loaded, allowed) => {
                    along(graph, queries, k, ef, wanted)?
                }
                _ => vectors.search_where(queries, k, wanted)?,
            };
            for (best, found) in best.iter_mut().zip(found) {
                found
                    .iter()
                    .for_each(|near| best.push(near.score, near.key));
            }
        }
        let rankings = best.into_iter().map(|best| {
            let sorted = best.into_sorted().into_iter();
            sorted.map(|scored| (scored.item, scored.score)).collect()
        });
        Ok(rankings.collect())
    }

    /// Whether a walk along a graph is worth it: it visits about as many vectors for each that it may
    /// return as there are vectors for each.
    fn pays(&self, k: usize, loaded: &Loaded, allowed: Option<&[Vec<bool>]>) -> bool {
        let there: usize = self.snapshot.vectors.iter().map(VectorIndex::len).sum();
        let fits = |place: &&Place| {
            allowed.is_none_or(|a| a[place.segment as usize][place.document as usize])
        };
        let wanted = loaded.places.iter().filter(fits).count();
        wanted >= there / 10 && k < wanted / 10
    }

    fn allowed(&self, query: &Query) -> Result<Option<Vec<Vec<bool>>>, IndexError> {
        match query.filter.conditions.is_empty() {
            true => Ok(None),
            false => matching(&self.snapshot, &query.filter).map(Some),
        }
    }

    fn ids(&self, ranking: &Ranking) -> Result<Vec<String>, IndexError> {
        let snapshot = &self.snapshot;
        let loaded = snapshot.loaded()?;
        guarded(&snapshot.folder, || {
            let mut columns = HashMap::new();
            let mut ids = Vec::with_capacity(ranking.len());
            for (key, _) in ranking {
                let mut id = String::new();
                if let Some(place) = loaded.place(*key) {
                    let column = match columns.entry(place.segment) {
                        std::collections::hash_map::Entry::Occupied(known) => known.into_mut(),
                        std::collections::hash_map::Entry::Vacant(new) => {
                            let reader = snapshot.searcher.segment_reader(place.segment);
                            new.insert(reader.fast_fields().str(ID)?)
                        }
                    };
                    if let Some(column) = column
                        && let Some(ord) = column.term_ords(place.document).next()
                    {
                        column.ord_to_str(ord, &mut id)?;
                    }
                }
                ids.push(id);
            }
            Ok(ids)
        })
    }
}

/// The nearest along a graph. A query to which it does not lead enough is answered exactly.
fn along(
    graph: &VectorGraph,
    queries: &[f32],
    k: usize,
    ef: usize,
    wanted: impl Fn(usize) -> bool + Sync,
) -> Result<Vec<Vec<Neighbor>>, IndexError> {
    let mut found = graph.search_where(queries, k, ef, &wanted)?;
    let width = graph.index().dimension();
    for (found, query) in found.iter_mut().zip(queries.chunks(width)) {
        if found.len() < k {
            let exact = graph.index().search_where(query, k, &wanted)?;
            *found = exact.into_iter().next().unwrap_or_default();
        }
    }
    Ok(found)
}

/// How many documents of each kind are looked for.
fn depth(query: &Query, mode: &Mode) -> usize {
    match mode {
        Mode::Hybrid(_) => query.depth.unwrap_or(FUSED).max(query.top_k),
        Mode::Bm25 | Mode::Dense => query.top_k,
    }
}
