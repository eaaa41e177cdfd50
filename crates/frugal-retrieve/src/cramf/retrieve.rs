//! From a statement to the definitions that it needs.

use frugal_index::{Fusion, fuse};

use super::augment::QueryAugmenter;
use super::concepts::{Concept, ConceptExtractor, Statement};
use super::error::CramfError;
use super::knowledge::KnowledgeBase;
use super::semantic::{DefinitionReranker, SemanticChannel};
use super::symbols::SymbolChannel;

/// Which channels are searched.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Channels {
    /// Both.
    #[default]
    Both,
    /// Names alone.
    Symbols,
    /// Descriptions alone.
    Semantic,
}

/// How many definitions are looked at and kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CramfOptions {
    /// Which channels are searched.
    pub channels: Channels,
    /// Names that the symbol channel gives.
    pub symbols: usize,
    /// Descriptions that the semantic channel finds.
    pub semantic: usize,
    /// Those of them that are left after they were ordered anew.
    pub semantic_kept: usize,
    /// Definitions of a concept.
    pub per_concept: usize,
    /// Definitions of a statement.
    pub per_statement: usize,
}

impl Default for CramfOptions {
    /// 10 to 5 to 3 as in the paper; 5 names and 8 definitions of a statement are ours.
    fn default() -> Self {
        Self {
            channels: Channels::Both,
            symbols: 5,
            semantic: 10,
            semantic_kept: 5,
            per_concept: 3,
            per_statement: 8,
        }
    }
}

/// The steps of concept retrieval. Without an extractor the statement is one concept, without a
/// reranker the order is that of the joined ranks.
#[derive(Clone, Copy)]
pub struct Cramf<'a> {
    /// What is searched.
    pub base: &'a KnowledgeBase,
    /// Concepts of a statement.
    pub extractor: Option<&'a dyn ConceptExtractor>,
    /// Queries of the concepts.
    pub augmenter: &'a dyn QueryAugmenter,
    /// Names.
    pub symbols: &'a SymbolChannel,
    /// Descriptions.
    pub semantic: &'a dyn SemanticChannel,
    /// Order of what was found.
    pub reranker: Option<&'a dyn DefinitionReranker>,
    /// Numbers.
    pub options: CramfOptions,
}

/// What was found for a concept; definitions by their number in the knowledge base, the best first.
#[derive(Clone, Debug, PartialEq)]
pub struct ConceptResult {
    /// The concept.
    pub concept: Concept,
    /// What was searched for by meaning.
    pub query: String,
    /// By names.
    pub symbols: Vec<(u32, f64)>,
    /// By descriptions.
    pub semantic: Vec<(u32, f64)>,
    /// Both joined, by reciprocal ranks.
    pub merged: Vec<(u32, f64)>,
    /// The best of these.
    pub chosen: Vec<(u32, f64)>,
}

/// What was found for a statement.
#[derive(Clone, Debug, PartialEq)]
pub struct Retrieved {
    /// Its concepts.
    pub concepts: Vec<ConceptResult>,
    /// The definitions to show, the best first, without repetitions.
    pub definitions: Vec<(u32, f64)>,
}

impl Cramf<'_> {
    /// The definitions that a statement needs.
    ///
    /// # Errors
    /// What its parts meet.
    pub fn retrieve(&self, text: &str) -> Result<Retrieved, CramfError> {
        let statement = Statement::new(text);
        let concepts = match self.extractor {
            Some(extractor) => extractor.extract(&statement)?,
            None => Vec::new(),
        };
        // A statement that names nothing is searched as a whole.
        let (concepts, queries) = if concepts.is_empty() {
            let text = statement.text();
            if text.is_empty() {
                return Ok(Retrieved {
                    concepts: Vec::new(),
                    definitions: Vec::new(),
                });
            }
            (vec![whole(&text)], vec![text])
        } else {
            let queries = self.augmenter.queries(&statement, &concepts)?;
            (concepts, queries)
        };
        let semantic = self.semantic(&queries)?;
        let mut results = Vec::with_capacity(concepts.len());
        for ((concept, query), semantic) in concepts.into_iter().zip(queries).zip(semantic) {
            results.push(self.concept(concept, query, semantic)?);
        }
        Ok(Retrieved {
            definitions: self.of_statement(&results),
            concepts: results,
        })
    }

    fn semantic(&self, queries: &[String]) -> Result<Vec<Vec<(u32, f64)>>, CramfError> {
        if self.options.channels == Channels::Symbols {
            return Ok(vec![Vec::new(); queries.len()]);
        }
        let texts: Vec<&str> = queries.iter().map(String::as_str).collect();
        let mut found = self.semantic.search(&texts, self.options.semantic)?;
        for (ranking, query) in found.iter_mut().zip(queries) {
            self.rerank(query, ranking)?;
            ranking.truncate(self.options.semantic_kept);
        }
        Ok(found)
    }

    fn concept(
        &self,
        concept: Concept,
        query: String,
        semantic: Vec<(u32, f64)>,
    ) -> Result<ConceptResult, CramfError> {
        let symbols = self.symbols_of(&concept)?;
        let rankings: Vec<Vec<(u32, f64)>> = [&symbols, &semantic]
            .into_iter()
            .filter(|ranking| !ranking.is_empty())
            .cloned()
            .collect();
        let merged = fuse(&rankings, &Fusion::default())?;
        let mut chosen = merged.clone();
        self.rerank(&query, &mut chosen)?;
        chosen.truncate(self.options.per_concept);
        Ok(ConceptResult {
            concept,
            query,
            symbols,
            semantic,
            merged,
            chosen,
        })
    }

    /// Names by their words, then those that have the concept's words one after another.
    fn symbols_of(&self, concept: &Concept) -> Result<Vec<(u32, f64)>, CramfError> {
        if self.options.channels == Channels::Semantic {
            return Ok(Vec::new());
        }
        let most = self.options.symbols;
        let mut found = self.symbols.search(&concept.name, most);
        let pattern = SymbolChannel::pattern_of(&concept.name);
        if found.len() < most && !pattern.is_empty() {
            for index in self.symbols.matching(&pattern, most)? {
                if found.len() < most && found.iter().all(|(known, _)| *known != index) {
                    found.push((index, 0.0));
                }
            }
        }
        Ok(found)
    }

    fn rerank(&self, query: &str, ranking: &mut [(u32, f64)]) -> Result<(), CramfError> {
        let Some(reranker) = self.reranker else {
            return Ok(());
        };
        let definitions = self.base.definitions();
        let texts: Vec<String> = ranking
            .iter()
            .map(|(index, _)| definitions[*index as usize].text())
            .collect();
        let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
        if texts.is_empty() {
            return Ok(());
        }
        let scores = reranker.scores(query, &texts)?;
        if scores.len() != texts.len() || scores.iter().any(|score| score.is_nan()) {
            return Err(CramfError::Scores {
                scores: scores.len(),
                texts: texts.len(),
            });
        }
        for (found, score) in ranking.iter_mut().zip(scores) {
            found.1 = score;
        }
        ranking.sort_by(|a, b| b.1.total_cmp(&a.1));
        Ok(())
    }

    /// The best definition of each concept, then the second best of each, and so on: scores of different
    /// queries are not on one scale.
    fn of_statement(&self, results: &[ConceptResult]) -> Vec<(u32, f64)> {
        let mut found: Vec<(u32, f64)> = Vec::new();
        for rank in 0..self.options.per_concept {
            for (index, score) in results.iter().filter_map(|r| r.chosen.get(rank)) {
                if found.iter().all(|(known, _)| known != index) {
                    found.push((*index, *score));
                }
            }
        }
        found.truncate(self.options.per_statement);
        found
    }
}

fn whole(text: &str) -> Concept {
    Concept {
        name: text.to_owned(),
        terms: frugal_index::Analyzer::English.terms(text),
        sentence: 0,
        weight: 0.0,
        known: false,
    }
}
