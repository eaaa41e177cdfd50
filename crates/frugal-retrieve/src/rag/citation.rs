//! Which passages an answer rests on.

use frugal_eval::rag::{sentences, token_recall};
use serde::Serialize;

use super::passage::Passage;

/// Share of a sentence's content words from which a passage counts as its source.
const RECALL: f64 = 0.7;

/// How a citation was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum CitedBy {
    /// The answer names its number.
    Answer,
    /// The answer names none, and most words of one of its sentences stand in the passage.
    Words,
}

/// A passage that an answer rests on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Citation {
    /// Its number in the prompt, from 1.
    pub number: usize,
    /// Its identifier.
    pub id: String,
    /// The document that it is of.
    pub document: String,
    /// Title of the document.
    pub title: String,
    /// How it was found.
    pub by: CitedBy,
}

/// The passages that an answer cites by number (`[1]`, `[1, 3]`), in their order. Where it cites none
/// that there is, those that most words of a sentence come from, the best one for each sentence.
pub fn cite(answer: &str, passages: &[Passage]) -> Vec<Citation> {
    let named = numbers(answer, passages.len());
    let (numbers, by) = match named.is_empty() {
        false => (named, CitedBy::Answer),
        true => (by_words(answer, passages), CitedBy::Words),
    };
    let citation = |number: usize| {
        let passage = &passages[number - 1];
        Citation {
            number,
            id: passage.id.clone(),
            document: passage.document.clone(),
            title: passage.title.clone(),
            by,
        }
    };
    numbers.into_iter().map(citation).collect()
}

fn numbers(answer: &str, most: usize) -> Vec<usize> {
    let mut found = Vec::new();
    for (at, _) in answer.match_indices('[') {
        let Some(inside) = answer[at + 1..].split(']').next() else {
            continue;
        };
        // A bracket that is not closed, or holds other text, cites nothing.
        if inside.len() == answer.len() - at - 1 {
            continue;
        }
        let parts: Option<Vec<usize>> = inside.split(',').map(|n| n.trim().parse().ok()).collect();
        found.extend(parts.into_iter().flatten());
    }
    found.retain(|number| (1..=most).contains(number));
    found.sort_unstable();
    found.dedup();
    found
}

fn by_words(answer: &str, passages: &[Passage]) -> Vec<usize> {
    let mut found: Vec<usize> = Vec::new();
    for sentence in sentences(answer) {
        let mut best = (0.0, 0);
        for (i, passage) in passages.iter().enumerate() {
            let recall = token_recall(sentence, &format!("{} {}", passage.title, passage.text));
            if recall > best.0 {
                best = (recall, i + 1);
            }
        }
        if best.0 >= RECALL {
            found.push(best.1);
        }
    }
    found.sort_unstable();
    found.dedup();
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn passages() -> Vec<Passage> {
        let texts = [
            "The bridge over the Lenn was opened in 1931.",
            "Ships carry slate to the coast.",
            "The tower stands on a hill.",
        ];
        let passage = |(i, text): (usize, &&str)| Passage {
            id: format!("d{i}"),
            text: (*text).into(),
            ..Passage::default()
        };
        texts.iter().enumerate().map(passage).collect()
    }

    fn found(answer: &str) -> Vec<(usize, CitedBy)> {
        let cited = cite(answer, &passages());
        cited.into_iter().map(|c| (c.number, c.by)).collect()
    }

    #[test]
    fn numbers_in_brackets_are_citations_if_there_is_such_a_passage() {
        use CitedBy::Answer;
        assert_eq!(
            found("In 1931 [1]. By ship [3, 2]."),
            [(1, Answer), (2, Answer), (3, Answer)]
        );
        assert_eq!(found("See [2] and [7] and [note] and [2"), [(2, Answer)]);
        assert!(found("A different thing altogether [9] [").is_empty());
    }

    #[test]
    fn an_answer_without_numbers_is_traced_by_its_words() {
        use CitedBy::Words;
        assert_eq!(
            found("The bridge was opened in 1931. Nobody lives there. Ships carry slate."),
            [(1, Words), (2, Words)]
        );
        assert!(found("Nobody knows.").is_empty());
    }
}
