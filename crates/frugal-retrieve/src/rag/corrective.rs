//! The corrective loop: what was found is graded, and searched for again in other words if too
//! little of it is of use.
//!
//! Source: Yan et al., Corrective Retrieval Augmented Generation (2024), with a second search of the
//! same corpus in the place of the web search.

use std::collections::HashMap;

use super::passage::Passage;

/// What the loop asks for.
pub trait Corrective {
    /// What can go wrong.
    type Error;

    /// Passages for a query, the best first.
    ///
    /// # Errors
    /// A search that fails.
    fn retrieve(&mut self, query: &str) -> Result<Vec<Passage>, Self::Error>;

    /// For each passage, whether it helps to answer the question.
    ///
    /// # Errors
    /// A grader that fails.
    fn grade(&mut self, question: &str, passages: &[Passage]) -> Result<Vec<bool>, Self::Error>;

    /// Another query for the question, of the query that was asked and all that was found; `None`
    /// where there is none.
    ///
    /// # Errors
    /// A rewriter that fails.
    fn rewrite(
        &mut self,
        question: &str,
        query: &str,
        found: &[Passage],
    ) -> Result<Option<String>, Self::Error>;
}

/// When the loop is content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CorrectiveOptions {
    /// Relevant passages that suffice.
    pub min_relevant: usize,
    /// Most further searches.
    pub max_iterations: usize,
    /// Most passages that are kept.
    pub keep: usize,
}

impl Default for CorrectiveOptions {
    fn default() -> Self {
        Self {
            min_relevant: 1,
            max_iterations: 2,
            keep: 5,
        }
    }
}

/// What the loop found.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Corrected {
    /// Relevant passages in the order in which they were found.
    pub passages: Vec<Passage>,
    /// Queries that were asked, the question first.
    pub queries: Vec<String>,
    /// Passages that were graded.
    pub graded: usize,
    /// Those of them that are not relevant.
    pub dropped: usize,
}

/// Searches, grades, and searches again until enough is relevant. No passage is graded twice.
///
/// # Errors
/// What its parts meet.
pub fn correct<C: Corrective>(
    corrective: &mut C,
    question: &str,
    options: CorrectiveOptions,
) -> Result<Corrected, C::Error> {
    let mut corrected = Corrected::default();
    let mut seen: HashMap<String, bool> = HashMap::new();
    let mut all: Vec<Passage> = Vec::new();
    let mut query = question.to_owned();
    loop {
        let found = corrective.retrieve(&query)?;
        corrected.queries.push(query.clone());
        let new: Vec<Passage> = found
            .into_iter()
            .filter(|passage| !seen.contains_key(&passage.id))
            .collect();
        let verdicts = corrective.grade(question, &new)?;
        corrected.graded += new.len();
        for (passage, relevant) in new.into_iter().zip(verdicts) {
            seen.insert(passage.id.clone(), relevant);
            match relevant {
                true if corrected.passages.len() < options.keep => {
                    corrected.passages.push(passage.clone());
                }
                true => {}
                false => corrected.dropped += 1,
            }
            all.push(passage);
        }
        if corrected.passages.len() >= options.min_relevant.min(options.keep)
            || corrected.queries.len() > options.max_iterations
        {
            return Ok(corrected);
        }
        match corrective.rewrite(question, &query, &all)? {
            Some(other) if !corrected.queries.contains(&other) => query = other,
            _ => return Ok(corrected),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::convert::Infallible;

    struct Scripted {
        found: HashMap<&'static str, Vec<&'static str>>,
        relevant: fn(&str) -> bool,
        graded: usize,
    }

    impl Corrective for Scripted {
        type Error = Infallible;
        fn retrieve(&mut self, query: &str) -> Result<Vec<Passage>, Infallible> {
            let ids = self.found.get(query).cloned().unwrap_or_default();
            let passage = |id: &str| Passage {
                id: id.into(),
                ..Passage::default()
            };
            Ok(ids.into_iter().map(passage).collect())
        }
        fn grade(&mut self, _: &str, passages: &[Passage]) -> Result<Vec<bool>, Infallible> {
            self.graded += passages.len();
            Ok(passages.iter().map(|p| (self.relevant)(&p.id)).collect())
        }
        fn rewrite(
            &mut self,
            _: &str,
            query: &str,
            _: &[Passage],
        ) -> Result<Option<String>, Infallible> {
            Ok(Some(format!("{query}+")))
        }
    }

    fn run(relevant: fn(&str) -> bool, options: CorrectiveOptions) -> (Vec<String>, Corrected) {
        let mut scripted = Scripted {
            found: HashMap::from([
                ("q", vec!["a", "b", "c"]),
                ("q+", vec!["b", "d"]),
                ("q++", vec!["e"]),
            ]),
            relevant,
            graded: 0,
        };
        let corrected = correct(&mut scripted, "q", options).unwrap();
        assert_eq!(scripted.graded, corrected.graded);
        let ids = corrected.passages.iter().map(|p| p.id.clone()).collect();
        (ids, corrected)
    }

    #[test]
    fn a_judge_that_finds_all_relevant_changes_nothing_but_the_number_of_calls() {
        let (ids, corrected) = run(|_| true, CorrectiveOptions::default());
        assert_eq!(ids, ["a", "b", "c"]);
        assert_eq!((corrected.queries.len(), corrected.graded), (1, 3));
    }

    #[test]
    fn irrelevant_passages_are_dropped_and_searched_for_again_without_a_second_grade() {
        let (ids, corrected) = run(|id| id == "d", CorrectiveOptions::default());
        assert_eq!(ids, ["d"]);
        assert_eq!(corrected.queries, ["q", "q+"]);
        assert_eq!((corrected.graded, corrected.dropped), (4, 3));
    }

    #[test]
    fn the_loop_ends_when_nothing_is_ever_relevant() {
        let (ids, corrected) = run(|_| false, CorrectiveOptions::default());
        assert!(ids.is_empty());
        assert_eq!(corrected.queries, ["q", "q+", "q++"]);
        assert_eq!(corrected.dropped, 5);
    }

    #[test]
    fn no_more_is_kept_than_was_asked_for() {
        let options = CorrectiveOptions {
            min_relevant: 9,
            keep: 2,
            ..CorrectiveOptions::default()
        };
        let (ids, corrected) = run(|_| true, options);
        assert_eq!(ids, ["a", "b"]);
        assert_eq!(corrected.queries.len(), 1);
    }
}
