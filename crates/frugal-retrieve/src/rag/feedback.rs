//! Another query from what was found: pseudo-relevance feedback.

use std::collections::{BTreeMap, BTreeSet};

use frugal_eval::rag::content_words;

use super::passage::Passage;

/// The query with the `terms` words that tell its best `feedback` passages from the other ones: by
/// their frequency there, times BM25's inverse document frequency among all passages. `None` where
/// they have no word that the query lacks.
pub fn expand_query(
    query: &str,
    found: &[Passage],
    feedback: usize,
    terms: usize,
) -> Option<String> {
    let asked: BTreeSet<String> = content_words(query).into_iter().collect();
    let words: Vec<Vec<String>> = found
        .iter()
        .map(|passage| content_words(&format!("{} {}", passage.title, passage.text)))
        .collect();
    let mut documents: BTreeMap<&str, f64> = BTreeMap::new();
    for words in &words {
        for word in words.iter().collect::<BTreeSet<_>>() {
            *documents.entry(word).or_default() += 1.0;
        }
    }
    let count = found.len() as f64;
    let mut weights: BTreeMap<&str, f64> = BTreeMap::new();
    for word in words.iter().take(feedback).flatten() {
        let n = documents.get(word.as_str()).copied().unwrap_or(1.0);
        let idf = (1.0 + (count - n + 0.5) / (n + 0.5)).ln();
        *weights.entry(word).or_default() += idf;
    }
    let mut ranked: Vec<(&str, f64)> = weights
        .into_iter()
        .filter(|(word, _)| !asked.contains(*word))
        .collect();
    ranked.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(b.0)));
    let new: Vec<&str> = ranked
        .into_iter()
        .take(terms)
        .map(|(word, _)| word)
        .collect();
    (!new.is_empty()).then(|| format!("{query} {}", new.join(" ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_that_tell_the_best_from_the_rest_are_added() {
        let passage = |text: &str| Passage {
            text: text.into(),
            ..Passage::default()
        };
        let found = [
            passage("bridge opened river river"),
            passage("bridge closed"),
            passage("bridge closed"),
        ];
        // river: 2 ln(1 + 2.5/1.5) = 1.96; opened: 0.98; bridge is in the query.
        let expanded = expand_query("the bridge", &found, 1, 2);
        assert_eq!(expanded.as_deref(), Some("the bridge river opened"));
        assert_eq!(expand_query("bridge closed", &found[1..2], 1, 2), None);
        assert_eq!(expand_query("bridge", &[], 1, 2), None);
    }
}
