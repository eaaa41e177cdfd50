//! Fast search by BM25: what each term adds to each document is known before the first query.

use std::collections::HashMap;
use std::ops::Range;

use rayon::prelude::*;

use super::{Bm25, Bm25Index};
use crate::analyzer::Analyzer;
use crate::error::IndexError;
use crate::top_k::{Scored, TopK};

/// A term in this share of the documents or more has a weight for each document, in order, which
/// processors add several at a time.
const DENSE_SHARE: usize = 4;
/// Scores are compared with the lowest of the best this many at a time.
const CHUNK: usize = 64;

/// Where the weights of a term are.
#[derive(Clone, Debug)]
enum Place {
    /// Documents and weights, in the order of the documents.
    Listed(Range<usize>),
    /// The weight of every document, zero where the term is not in it.
    Dense(Range<usize>),
}

/// The postings of a [`Bm25Index`] with the weights of one pair of constants (eager scoring, as in
/// Lù 2024, arXiv 2407.03618).
///
/// Sums of weights in single precision find the candidates; those that rounding could have put in
/// the wrong place are summed again in double precision, so that [`search`](Self::search) gives what
/// [`Bm25Index::search`] gives.
///
/// ```
/// use frugal_index::{Analyzer, Bm25, Bm25Index};
/// let mut index = Bm25Index::new(Analyzer::English);
/// index.add("flutter of wings");
/// let weights = index.weights(Bm25::default())?;
/// assert_eq!(weights.search("wing", 10)[0].0, 0);
/// # Ok::<(), frugal_index::IndexError>(())
/// ```
#[derive(Clone, Debug)]
pub struct Bm25Weights<'a> {
    index: &'a Bm25Index,
    constants: Bm25,
    mean: f64,
    terms: HashMap<&'a str, Place>,
    documents: Vec<u32>,
    listed: Vec<f32>,
    dense: Vec<f32>,
}

impl Bm25Index {
    /// The weights of every posting for these constants: 8 bytes a posting beside the index.
    ///
    /// # Errors
    /// Constants outside their range.
    pub fn weights(&self, constants: Bm25) -> Result<Bm25Weights<'_>, IndexError> {
        let constants = constants.check()?;
        let mut weights = Bm25Weights {
            index: self,
            constants,
            mean: self.mean_length(),
            terms: HashMap::with_capacity(self.postings.len()),
            documents: Vec::new(),
            listed: Vec::new(),
            dense: Vec::new(),
        };
        for (term, list) in &self.postings {
            let idf = Bm25::idf(self.len() as u64, list.len() as u64);
            let weight = |(document, frequency): &(u32, u32)| {
                weights_of(self, constants, weights.mean, idf, *document, *frequency) as f32
            };
            let place = if list.len() * DENSE_SHARE >= self.len() {
                let start = weights.dense.len();
                weights.dense.resize(start + self.len(), 0.0);
                for posting in list {
                    weights.dense[start + posting.0 as usize] = weight(posting);
                }
                Place::Dense(start..weights.dense.len())
            } else {
                let start = weights.listed.len();
                weights
                    .documents
                    .extend(list.iter().map(|(document, _)| *document));
                weights.listed.extend(list.iter().map(weight));
                Place::Listed(start..weights.listed.len())
            };
            weights.terms.insert(term, place);
        }
        Ok(weights)
    }
}

fn weights_of(
    index: &Bm25Index,
    constants: Bm25,
    mean: f64,
    idf: f64,
    document: u32,
    frequency: u32,
) -> f64 {
    let frequency = f64::from(frequency);
    let norm = constants.norm(f64::from(index.lengths[document as usize]), mean);
    idf * frequency * (constants.k1 + 1.0) / (frequency + norm)
}

impl Bm25Weights<'_> {
    /// The `k` best documents that hold a term of the query, with their scores; equal scores in the
    /// order in which they were added.
    pub fn search(&self, query: &str, k: usize) -> Vec<(usize, f64)> {
        self.search_into(query, k, &mut Vec::new())
    }

    /// [`search`](Self::search) for many queries at once, on all threads.
    pub fn search_batch<Q: AsRef<str> + Sync>(
        &self,
        queries: &[Q],
        k: usize,
    ) -> Vec<Vec<(usize, f64)>> {
        queries
            .par_iter()
            .map_init(Vec::new, |sums, query| {
                self.search_into(query.as_ref(), k, sums)
            })
            .collect()
    }

    fn search_into(&self, query: &str, k: usize, sums: &mut Vec<f32>) -> Vec<(usize, f64)> {
        sums.clear();
        sums.resize(self.index.len(), 0.0);
        let mut terms = Vec::new();
        let analyzer: Analyzer = self.index.analyzer;
        analyzer.each(query, |term| {
            let (Some(list), Some(place)) = (self.index.postings.get(term), self.terms.get(term))
            else {
                return;
            };
            let idf = Bm25::idf(self.index.len() as u64, list.len() as u64);
            terms.push((idf, list.as_slice()));
            match place {
                Place::Dense(range) => {
                    let weights = &self.dense[range.clone()];
                    sums.iter_mut().zip(weights).for_each(|(sum, w)| *sum += w);
                }
                Place::Listed(range) => {
                    let documents = &self.documents[range.clone()];
                    for (document, weight) in documents.iter().zip(&self.listed[range.clone()]) {
                        sums[*document as usize] += weight;
                    }
                }
            }
        });
        let mut top = TopK::new(k);
        for document in self.candidates(sums, k, terms.len()) {
            top.push(self.exact(&terms, document), document);
        }
        let found = top.into_sorted().into_iter();
        found
            .map(|Scored { score, item }| (item as usize, score))
            .collect()
    }

    /// Every document that may be among the `k` best, given that each sum in single precision is
    /// off by at most one rounding of each weight and of each addition.
    fn candidates(&self, sums: &[f32], k: usize, terms: usize) -> Vec<u32> {
        if k == 0 || terms == 0 {
            return Vec::new();
        }
        let slack = 1.0 - 2.0 * (terms as f32 + 1.0) * f32::EPSILON;
        let mut found: Vec<(f32, u32)> = Vec::new();
        // Each cut keeps the k best and what is within rounding of the last of them.
        let mut lowest = f32::MIN_POSITIVE;
        let cut = |found: &mut Vec<(f32, u32)>, lowest: &mut f32| {
            if found.len() > k {
                let (_, kth, _) = found.select_nth_unstable_by(k - 1, |a, b| b.0.total_cmp(&a.0));
                *lowest = (kth.0 * slack).max(*lowest);
                found.retain(|(sum, _)| sum >= lowest);
            }
        };
        let mut full = 4 * k.min(sums.len()) + CHUNK;
        for (chunk, part) in sums.chunks(CHUNK).enumerate() {
            let mut any = false;
            for sum in part {
                any |= *sum >= lowest;
            }
            if any {
                let documents = (chunk * CHUNK) as u32..;
                let best = part
                    .iter()
                    .zip(documents)
                    .filter(|(sum, _)| **sum >= lowest);
                found.extend(best.map(|(sum, document)| (*sum, document)));
                if found.len() >= full {
                    cut(&mut found, &mut lowest);
                    // Where many are equal a cut removes few: the next one comes later.
                    full = full.max(2 * found.len());
                }
            }
        }
        cut(&mut found, &mut lowest);
        found.into_iter().map(|(_, document)| document).collect()
    }

    /// The score in double precision, summed in the order of the query's terms, of which the idf and
    /// the postings are given.
    fn exact(&self, terms: &[(f64, &[(u32, u32)])], document: u32) -> f64 {
        let mut score = 0.0;
        for (idf, list) in terms {
            if let Ok(at) = list.binary_search_by_key(&document, |(document, _)| *document) {
                let frequency = list[at].1;
                score += weights_of(
                    self.index,
                    self.constants,
                    self.mean,
                    *idf,
                    document,
                    frequency,
                );
            }
        }
        score
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn index(texts: &[String]) -> Bm25Index {
        let mut index = Bm25Index::new(Analyzer::Whitespace);
        texts.iter().for_each(|text| index.add(text));
        index
    }

    proptest! {
        /// Few words, so that scores tie, terms are in most documents or in few, and rows are cut.
        #[test]
        fn weights_find_what_the_definition_finds(
            texts in prop::collection::vec("([a-e] ){0,6}[f-z]{0,2}", 0..300),
            queries in prop::collection::vec("([a-g] ){0,5}[x-z]{0,2}", 1..6),
            k in 0usize..40, k1 in 0.0..3.0, b in 0.0..1.0,
        ) {
            let index = index(&texts);
            let constants = Bm25 { k1, b };
            let weights = index.weights(constants).unwrap();
            let found = weights.search_batch(&queries, k);
            for (query, found) in queries.iter().zip(found) {
                prop_assert_eq!(&found, &index.search(query, k, constants).unwrap());
                prop_assert_eq!(found, weights.search(query, k));
            }
        }
    }

    #[test]
    fn every_document_may_be_asked_for_and_constants_are_checked() {
        let index = index(&["a b".into(), "b".into(), String::new()]);
        let weights = index.weights(Bm25::default()).unwrap();
        assert_eq!(weights.search("b", usize::MAX).len(), 2);
        assert!(index.weights(Bm25 { k1: -1.0, b: 0.0 }).is_err());
    }
}
