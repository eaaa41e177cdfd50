//! What does a concept mean here? One name may stand for several definitions.

use std::collections::BTreeMap;

use frugal_index::{Analyzer, Bm25, Bm25Index};

use super::concepts::{Concept, Statement};
use super::error::CramfError;
use super::knowledge::KnowledgeBase;

/// Writes the query of each concept; a language model may explain the concept in its place.
pub trait QueryAugmenter {
    /// One query for each concept, in their order.
    ///
    /// # Errors
    /// Whatever the augmenter meets.
    fn queries(
        &self,
        statement: &Statement,
        concepts: &[Concept],
    ) -> Result<Vec<String>, CramfError>;
}

/// The concept's name and nothing else.
#[derive(Clone, Copy, Debug, Default)]
pub struct ConceptAlone;

impl QueryAugmenter for ConceptAlone {
    fn queries(&self, _: &Statement, concepts: &[Concept]) -> Result<Vec<String>, CramfError> {
        Ok(concepts.iter().map(|c| c.name.clone()).collect())
    }
}

/// The concept's name, the domain that most definitions like the statement belong to, and the
/// sentences around the concept.
pub struct ContextAugmenter<'a> {
    base: &'a KnowledgeBase,
    words: Bm25Index,
    /// Sentences of the context, the concept's own first.
    pub sentences: usize,
    /// Definitions that decide the domain.
    pub neighbors: usize,
}

impl<'a> ContextAugmenter<'a> {
    /// Indexes the descriptions.
    #[must_use]
    pub fn new(base: &'a KnowledgeBase) -> Self {
        let mut words = Bm25Index::new(Analyzer::English);
        base.definitions().iter().for_each(|d| words.add(&d.text()));
        Self {
            base,
            words,
            sentences: 2,
            neighbors: 20,
        }
    }

    /// The domain of most of the definitions that share the statement's words; the first in the
    /// alphabet of several.
    ///
    /// # Errors
    /// None with the constants used here.
    pub fn domain(&self, statement: &Statement) -> Result<Option<&'a str>, CramfError> {
        let found = self
            .words
            .search(&statement.text(), self.neighbors, Bm25::default())?;
        let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
        for (index, _) in found {
            let domain = self.base.definitions()[index].domain();
            *counts.entry(domain).or_default() += 1;
        }
        counts.remove("");
        let most = counts.into_iter().rev().max_by_key(|(_, count)| *count);
        Ok(most.map(|(domain, _)| domain))
    }

    fn context(&self, statement: &Statement, concept: &Concept) -> String {
        let sentences = statement.sentences();
        let first = concept
            .sentence
            .min(sentences.len().saturating_sub(self.sentences));
        let end = (first + self.sentences).min(sentences.len());
        sentences[first..end].join(" ")
    }
}

impl QueryAugmenter for ContextAugmenter<'_> {
    fn queries(
        &self,
        statement: &Statement,
        concepts: &[Concept],
    ) -> Result<Vec<String>, CramfError> {
        let domain = self.domain(statement)?.unwrap_or_default();
        let domain = domain.replace('_', " ");
        let query = |concept: &Concept| {
            let context = self.context(statement, concept);
            let parts = [concept.name.as_str(), &domain, &context];
            let parts: Vec<&str> = parts.into_iter().filter(|part| !part.is_empty()).collect();
            parts.join(". ")
        };
        Ok(concepts.iter().map(query).collect())
    }
}
