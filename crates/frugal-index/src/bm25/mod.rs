//! Exact BM25 in memory, with the constants and the analyzer of one's choice.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};

use crate::analyzer::Analyzer;
use crate::error::IndexError;
use crate::top_k::{Scored, TopK};

mod weights;

pub use weights::Bm25Weights;

/// The constants of BM25.
///
/// Score of a document for a query: the sum over the query's terms of
/// `idf * tf (k1 + 1) / (tf + k1 (1 - b + b length / mean length))`, with Lucene's
/// `idf = ln(1 + (N - n + 0.5) / (n + 0.5))`. A term that the query repeats counts each time.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Bm25 {
    /// How slowly the frequency of a term saturates.
    pub k1: f64,
    /// How much long documents are held back, from 0 to 1.
    pub b: f64,
}

impl Default for Bm25 {
    /// Those of Anserini's and Pyserini's baselines: k1 0.9, b 0.4. Lucene's own are 1.2 and 0.75.
    fn default() -> Self {
        Self { k1: 0.9, b: 0.4 }
    }
}

impl Bm25 {
    pub(crate) fn check(self) -> Result<Self, IndexError> {
        match self.k1.is_finite() && self.k1 >= 0.0 && (0.0..=1.0).contains(&self.b) {
            true => Ok(self),
            false => Err(IndexError::Constants {
                k1: self.k1,
                b: self.b,
            }),
        }
    }

    pub(crate) fn idf(documents: u64, with_term: u64) -> f64 {
        let (all, with) = (documents as f64, with_term as f64);
        (1.0 + (all - with + 0.5) / (with + 0.5)).ln()
    }

    /// What is added to the frequency in the denominator.
    pub(crate) fn norm(self, length: f64, mean_length: f64) -> f64 {
        let ratio = match mean_length > 0.0 {
            true => length / mean_length,
            false => 0.0,
        };
        self.k1 * (1.0 - self.b + self.b * ratio)
    }
}

/// An index of texts in memory; documents are numbered in the order in which they are added.
///
/// ```
/// use frugal_index::{Analyzer, Bm25, Bm25Index};
/// let mut index = Bm25Index::new(Analyzer::English);
/// index.add("flutter of wings");
/// index.add("heat transfer");
/// let found = index.search("wing", 10, Bm25::default())?;
/// assert_eq!(found[0].0, 0);
/// # Ok::<(), frugal_index::IndexError>(())
/// ```
#[derive(Clone, Debug)]
pub struct Bm25Index {
    analyzer: Analyzer,
    postings: HashMap<String, Vec<(u32, u32)>>,
    lengths: Vec<u32>,
}

impl Bm25Index {
    /// An empty index.
    pub fn new(analyzer: Analyzer) -> Self {
        Self {
            analyzer,
            postings: HashMap::new(),
            lengths: Vec::new(),
        }
    }

    /// Adds a document.
    pub fn add(&mut self, text: &str) {
        let document = self.lengths.len() as u32;
        let mut length = 0;
        self.analyzer.each(text, |term| {
            length += 1;
            let list = match self.postings.get_mut(term) {
                Some(list) => list,
                None => self.postings.entry(term.to_owned()).or_default(),
            };
            match list.last_mut() {
                Some((last, frequency)) if *last == document => *frequency += 1,
                _ => list.push((document, 1)),
            }
        });
        self.lengths.push(length);
    }

    fn mean_length(&self) -> f64 {
        let total: u64 = self.lengths.iter().map(|l| u64::from(*l)).sum();
        total as f64 / (self.lengths.len() as f64).max(1.0)
    }

    /// Number of documents.
    pub fn len(&self) -> usize {
        self.lengths.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.lengths.is_empty()
    }

    /// The `k` best documents that hold a term of the query, with their scores; equal scores in the
    /// order in which they were added.
    ///
    /// # Errors
    /// Constants outside their range.
    pub fn search(
        &self,
        query: &str,
        k: usize,
        constants: Bm25,
    ) -> Result<Vec<(usize, f64)>, IndexError> {
        let constants = constants.check()?;
        let (count, mean) = (self.lengths.len() as u64, self.mean_length());
        let mut scores: HashMap<u32, f64> = HashMap::new();
        self.analyzer.each(query, |term| {
            let list = self.postings.get(term).map_or(&[][..], Vec::as_slice);
            let idf = Bm25::idf(count, list.len() as u64);
            for (document, frequency) in list {
                let frequency = f64::from(*frequency);
                let norm = constants.norm(f64::from(self.lengths[*document as usize]), mean);
                let score = idf * frequency * (constants.k1 + 1.0) / (frequency + norm);
                *scores.entry(*document).or_default() += score;
            }
        });
        let mut top = TopK::new(k);
        scores
            .into_iter()
            .for_each(|(document, score)| top.push(score, document));
        let found = top.into_sorted().into_iter();
        Ok(found
            .map(|Scored { score, item }| (item as usize, score))
            .collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn index(texts: &[&str]) -> Bm25Index {
        let mut index = Bm25Index::new(Analyzer::Whitespace);
        texts.iter().for_each(|text| index.add(text));
        index
    }

    #[test]
    fn the_worked_value_of_bm25_holds() {
        let constants = Bm25 { k1: 1.2, b: 0.75 };
        let found = index(&["x x y z", "y z", "z a b"]);
        let found = found.search("x", 5, constants).unwrap();
        assert_eq!(found.len(), 1);
        assert!((found[0].1 - 1.233_042).abs() < 1e-6, "{}", found[0].1);
        assert!((Bm25::idf(3, 1) - 0.980_829).abs() < 1e-6);
    }

    #[test]
    fn an_unrelated_document_changes_only_the_number_and_the_mean_length() {
        let constants = Bm25 { k1: 1.2, b: 0.0 };
        let few = index(&["x y", "y"]).search("x", 5, constants).unwrap();
        let more = index(&["x y", "y", "q q q"]);
        let more = more.search("x", 5, constants).unwrap();
        let ratio = Bm25::idf(3, 1) / Bm25::idf(2, 1);
        assert!((more[0].1 / few[0].1 - ratio).abs() < 1e-12);
    }

    #[test]
    fn a_repeated_term_of_the_query_counts_each_time() {
        let index = index(&["x y", "y"]);
        let once = index.search("x", 5, Bm25::default()).unwrap();
        let twice = index.search("x x", 5, Bm25::default()).unwrap();
        assert!((twice[0].1 - 2.0 * once[0].1).abs() < 1e-12);
    }

    #[test]
    fn constants_outside_their_range_and_empty_queries_are_no_accident() {
        let index = index(&["x"]);
        for (k1, b) in [(-1.0, 0.5), (f64::NAN, 0.5), (1.0, 1.5)] {
            assert!(index.search("x", 1, Bm25 { k1, b }).is_err());
        }
        assert_eq!(index.search("", 5, Bm25::default()).unwrap(), []);
        let empty = super::Bm25Index::new(Analyzer::English);
        assert_eq!(empty.search("x", 5, Bm25::default()).unwrap(), []);
    }
}
