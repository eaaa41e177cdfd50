//! Text to terms, as Lucene's analyzers of the same names do it.

use std::fmt;
use std::str::FromStr;

use frostem::{Algorithm, Stemmer};
use serde::{Deserialize, Serialize};
use unicode_segmentation::UnicodeSegmentation;

use crate::error::IndexError;

/// How a text becomes terms. The same one has to be used for documents and queries.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Analyzer {
    /// What stands between white space, as it is.
    Whitespace,
    /// Words by Unicode's rules (UAX #29), in lower case.
    Standard,
    /// As `standard`, without the possessive `'s` and Lucene's 33 English stop words, and with
    /// Porter's stemmer. Anserini's and Pyserini's baselines use it.
    #[default]
    English,
}

/// Longer words are cut into pieces of this many characters, as by Lucene.
const LONGEST: usize = 255;

/// Lucene's English stop words.
const STOP_WORDS: [&str; 33] = [
    "a", "an", "and", "are", "as", "at", "be", "but", "by", "for", "if", "in", "into", "is", "it",
    "no", "not", "of", "on", "or", "such", "that", "the", "their", "then", "there", "these",
    "they", "this", "to", "was", "will", "with",
];

impl Analyzer {
    /// All analyzers.
    pub const ALL: [Self; 3] = [Self::Whitespace, Self::Standard, Self::English];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Whitespace => "whitespace",
            Self::Standard => "standard",
            Self::English => "english",
        }
    }

    /// Hands the terms of a text to `take`, in their order.
    pub fn each(self, text: &str, mut take: impl FnMut(&str)) {
        match self {
            Self::Whitespace => text
                .split_whitespace()
                .for_each(|word| pieces(word, &mut take)),
            Self::Standard => words(text, |word| take(&word.to_lowercase())),
            Self::English => {
                let stemmer = Stemmer::new(Algorithm::Porter);
                words(text, |word| {
                    let word = without_possessive(word).to_lowercase();
                    if STOP_WORDS.binary_search(&word.as_str()).is_err() {
                        take(&stemmer.stem(&word));
                    }
                });
            }
        }
    }

    /// The terms of a text.
    ///
    /// ```
    /// use frugal_index::Analyzer;
    /// assert_eq!(Analyzer::English.terms("The wing's flutters"), ["wing", "flutter"]);
    /// assert_eq!(Analyzer::Standard.terms("The wing's flutters"), ["the", "wing's", "flutters"]);
    /// ```
    pub fn terms(self, text: &str) -> Vec<String> {
        let mut terms = Vec::new();
        self.each(text, |term| terms.push(term.to_owned()));
        terms
    }
}

fn words(text: &str, mut take: impl FnMut(&str)) {
    for word in text.unicode_words() {
        pieces(word, &mut take);
    }
}

fn pieces(word: &str, take: &mut impl FnMut(&str)) {
    let mut rest = word;
    while let Some((end, _)) = rest.char_indices().nth(LONGEST) {
        let (piece, behind) = rest.split_at(end);
        take(piece);
        rest = behind;
    }
    take(rest);
}

fn without_possessive(word: &str) -> &str {
    let apostrophe = ['\'', '\u{2019}', '\u{ff07}'];
    let stem = word.strip_suffix(['s', 'S']);
    stem.and_then(|stem| stem.strip_suffix(apostrophe))
        .unwrap_or(word)
}

impl fmt::Display for Analyzer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Analyzer {
    type Err = IndexError;

    fn from_str(name: &str) -> Result<Self, IndexError> {
        let found = Self::ALL.into_iter().find(|a| a.name() == name);
        found.ok_or_else(|| IndexError::Name {
            kind: "analyzer",
            name: name.into(),
            known: Self::ALL.map(|a| format!("`{a}`")).join(", "),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stop_words_are_sorted_for_the_search_in_them() {
        assert!(STOP_WORDS.is_sorted());
    }

    #[test]
    fn english_terms_are_those_of_lucene() {
        let terms = |text: &str| Analyzer::English.terms(text);
        // Porter's stemmer, not its successor: `skies` to `ski`, `generously` to `gener`.
        assert_eq!(terms("Skies DYING generously"), ["ski", "dy", "gener"]);
        assert_eq!(terms("NASA\u{2019}s dogs' tail's"), ["nasa", "dog", "tail"]);
        assert_eq!(
            terms("3.14 a1 x_y, foo-bar"),
            ["3.14", "a1", "x_y", "foo", "bar"]
        );
        assert_eq!(terms("the of AND"), [] as [&str; 0]);
        assert_eq!(terms("β-catenin Zürich"), ["β", "catenin", "zürich"]);
    }

    #[test]
    fn whitespace_keeps_words_as_they_are_and_long_ones_are_cut() {
        assert_eq!(Analyzer::Whitespace.terms(" A,b  The\n"), ["A,b", "The"]);
        let long = "é".repeat(600);
        let lengths: Vec<usize> = Analyzer::Standard
            .terms(&long)
            .iter()
            .map(|t| t.chars().count())
            .collect();
        assert_eq!(lengths, [255, 255, 90]);
        assert!("snowball".parse::<Analyzer>().is_err());
    }
}
