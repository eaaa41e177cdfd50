//! Measures without a judge: words of answers, identifiers of passages.

use std::collections::{BTreeSet, HashMap};

/// Words as SQuAD compares them: lower case, without punctuation and articles.
fn words(text: &str) -> Vec<String> {
    let mut plain = text.to_lowercase();
    plain.retain(|c| !c.is_ascii_punctuation());
    let articles = ["a", "an", "the"];
    plain
        .split_whitespace()
        .filter(|word| !articles.contains(word))
        .map(str::to_owned)
        .collect()
}

/// Whether an answer is the reference, as SQuAD compares them.
pub fn exact_match(answer: &str, reference: &str) -> bool {
    words(answer) == words(reference)
}

/// F1 over the words of answer and reference, as SQuAD counts it.
pub fn token_f1(answer: &str, reference: &str) -> f64 {
    let (answer, reference) = (words(answer), words(reference));
    if answer.is_empty() || reference.is_empty() {
        return f64::from(u8::from(answer == reference));
    }
    let mut left: HashMap<&str, usize> = HashMap::new();
    for word in &reference {
        *left.entry(word).or_default() += 1;
    }
    let mut same = 0.0;
    for word in &answer {
        if let Some(count) = left.get_mut(word.as_str()).filter(|count| **count > 0) {
            *count -= 1;
            same += 1.0;
        }
    }
    2.0 * same / (answer.len() + reference.len()) as f64
}

fn shared(retrieved: &[&str], gold: &[&str]) -> (f64, f64, f64) {
    let retrieved: BTreeSet<&str> = retrieved.iter().copied().collect();
    let gold: BTreeSet<&str> = gold.iter().copied().collect();
    let both = retrieved.intersection(&gold).count() as f64;
    (both, retrieved.len() as f64, gold.len() as f64)
}

/// The share of retrieved identifiers that are right; `None` where none was retrieved.
pub fn id_precision(retrieved: &[&str], gold: &[&str]) -> Option<f64> {
    let (both, retrieved, _) = shared(retrieved, gold);
    (retrieved > 0.0).then(|| both / retrieved)
}

/// The share of right identifiers that were retrieved; `None` where there is none.
pub fn id_recall(retrieved: &[&str], gold: &[&str]) -> Option<f64> {
    let (both, _, gold) = shared(retrieved, gold);
    (gold > 0.0).then(|| both / gold)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_compared_as_squad_does() {
        assert!(exact_match("The Eiffel Tower!", "eiffel tower"));
        assert_eq!(token_f1("in Paris, France", "Paris"), 0.5);
        assert_eq!(token_f1("", ""), 1.0);
        assert_eq!(token_f1("x", ""), 0.0);
    }

    #[test]
    fn identifiers_are_sets() {
        assert_eq!(id_precision(&["a", "a", "b"], &["a", "c"]), Some(0.5));
        assert_eq!(id_recall(&["a", "b"], &["a", "c", "d"]), Some(1.0 / 3.0));
        assert_eq!(
            (id_precision(&[], &["a"]), id_recall(&["a"], &[])),
            (None, None)
        );
    }
}
