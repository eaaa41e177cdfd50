//! Whether a passage is about a question, by its words.

use std::collections::HashSet;

use frugal_eval::rag::content_words;
use frugal_index::Analyzer;

use super::passage::Passage;

/// The share of the question's content words, by their stems, that stand in the passage or its title.
/// A question without content words asks for nothing in particular: 1.
pub fn question_coverage(question: &str, passage: &Passage) -> f64 {
    let stems = |text: &str| Analyzer::English.terms(text);
    let asked: HashSet<String> = stems(&content_words(question).join(" "))
        .into_iter()
        .collect();
    if asked.is_empty() {
        return 1.0;
    }
    let there: HashSet<String> = stems(&format!("{} {}", passage.title, passage.text))
        .into_iter()
        .collect();
    asked.intersection(&there).count() as f64 / asked.len() as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_passage_is_about_a_question_by_the_stems_of_its_content_words() {
        let passage = Passage {
            title: "Bridges".into(),
            text: "It was opened in 1931.".into(),
            ..Passage::default()
        };
        assert_eq!(
            question_coverage("When did the bridge open?", &passage),
            1.0
        );
        assert_eq!(
            question_coverage("Where does the bridge end?", &passage),
            0.5
        );
        assert_eq!(question_coverage("What is it?", &passage), 1.0);
    }
}
