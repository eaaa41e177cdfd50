//! Which concepts does a statement speak of?

use std::collections::{HashMap, HashSet};
use std::sync::LazyLock;

use frugal_index::Analyzer;
use regex::Regex;
use unicode_segmentation::UnicodeSegmentation;

use super::error::CramfError;
use super::knowledge::KnowledgeBase;

/// A text in sentences, without marks of formulas.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Statement {
    sentences: Vec<String>,
}

/// LaTeX commands that say how a thing looks, not what it is.
const LOOKS: &[&str] = &[
    "begin",
    "end",
    "frac",
    "left",
    "right",
    "mathbb",
    "mathbf",
    "mathcal",
    "mathfrak",
    "mathrm",
    "operatorname",
    "text",
    "textbf",
    "textit",
    "quad",
    "qquad",
    "cdots",
    "ldots",
    "dots",
    "cdot",
    "times",
    "geq",
    "leq",
    "neq",
    "le",
    "ge",
    "to",
    "rightarrow",
    "in",
    "displaystyle",
    "overline",
    "underline",
    "big",
    "bigl",
    "bigr",
    "item",
    "align",
    "aligned",
    "equation",
    "enumerate",
];

static COMMAND: LazyLock<Option<Regex>> = LazyLock::new(|| Regex::new(r"\\([A-Za-z]+)\*?").ok());
static SIGNS: LazyLock<Option<Regex>> = LazyLock::new(|| Regex::new(r"[$\\{}^_&~\[\]]+").ok());

impl Statement {
    /// The sentences of a text.
    #[must_use]
    pub fn new(text: &str) -> Self {
        let plain = match (COMMAND.as_ref(), SIGNS.as_ref()) {
            (Some(command), Some(signs)) => {
                let words = command.replace_all(text, |found: &regex::Captures<'_>| {
                    match LOOKS.contains(&&found[1]) {
                        true => " ".to_owned(),
                        false => format!(" {} ", &found[1]),
                    }
                });
                signs.replace_all(&words, " ").into_owned()
            }
            _ => text.to_owned(),
        };
        let sentences = plain.unicode_sentences();
        let sentences = sentences.map(|s| s.split_whitespace().collect::<Vec<_>>().join(" "));
        Self {
            sentences: sentences.filter(|s| !s.is_empty()).collect(),
        }
    }

    /// Its sentences.
    #[must_use]
    pub fn sentences(&self) -> &[String] {
        &self.sentences
    }

    /// All of it.
    #[must_use]
    pub fn text(&self) -> String {
        self.sentences.join(" ")
    }
}

/// A concept of a statement.
#[derive(Clone, Debug, PartialEq)]
pub struct Concept {
    /// Its words as the statement has them.
    pub name: String,
    /// Its terms.
    pub terms: Vec<String>,
    /// The sentence in which it stands first.
    pub sentence: usize,
    /// How rare its terms are, in sum.
    pub weight: f64,
    /// Whether the knowledge base has a concept of this name.
    pub known: bool,
}

/// Finds the concepts of a statement; a language model may do it, also by rewriting the statement.
pub trait ConceptExtractor {
    /// The concepts, the most telling first.
    ///
    /// # Errors
    /// Whatever the extractor meets.
    fn extract(&self, statement: &Statement) -> Result<Vec<Concept>, CramfError>;
}

/// The longest names of concepts that the knowledge base has, then other runs of one to three words
/// that are rare in it.
pub struct DictionaryExtractor<'a> {
    base: &'a KnowledgeBase,
    frequency: HashMap<String, u32>,
    longest: usize,
    /// Smallest inverse document frequency of a term that stands for a concept by itself.
    pub min_idf: f64,
    /// Most concepts of a statement.
    pub limit: usize,
}

struct Word {
    surface: String,
    term: String,
    sentence: usize,
}

impl<'a> DictionaryExtractor<'a> {
    /// Counts the terms of the descriptions.
    #[must_use]
    pub fn new(base: &'a KnowledgeBase) -> Self {
        let mut frequency: HashMap<String, u32> = HashMap::new();
        for definition in base.definitions() {
            let terms: HashSet<String> = Analyzer::English
                .terms(&definition.text())
                .into_iter()
                .collect();
            terms
                .into_iter()
                .for_each(|term| *frequency.entry(term).or_default() += 1);
        }
        let lengths = base.concepts().keys().map(|c| c.split(' ').count());
        Self {
            longest: lengths.max().unwrap_or(1).min(5),
            base,
            frequency,
            min_idf: 3.0,
            limit: 6,
        }
    }

    /// `ln(N / n)`; of a term that no description has, zero: it can find nothing.
    fn idf(&self, term: &str) -> f64 {
        match self.frequency.get(term) {
            Some(n) => (self.base.definitions().len() as f64 / f64::from(*n)).ln(),
            None => 0.0,
        }
    }

    fn concept(&self, words: &[Word], known: bool) -> Concept {
        let terms: Vec<String> = words.iter().map(|word| word.term.clone()).collect();
        let surface: Vec<&str> = words.iter().map(|word| word.surface.as_str()).collect();
        Concept {
            name: surface.join(" "),
            weight: terms.iter().map(|term| self.idf(term)).sum(),
            terms,
            sentence: words.first().map_or(0, |word| word.sentence),
            known,
        }
    }

    /// The longest concept of the knowledge base that begins with the first of these words.
    fn known(&self, words: &[Word]) -> Option<usize> {
        let here = words.first()?.sentence;
        let most = words.iter().take_while(|word| word.sentence == here);
        let most = most.count().min(self.longest);
        (1..=most).rev().find(|&n| {
            let terms: Vec<&str> = words[..n].iter().map(|word| word.term.as_str()).collect();
            let telling = n > 1 || self.idf(terms[0]) >= self.min_idf;
            telling && self.base.concepts().contains_key(&terms.join(" "))
        })
    }
}

impl ConceptExtractor for DictionaryExtractor<'_> {
    fn extract(&self, statement: &Statement) -> Result<Vec<Concept>, CramfError> {
        let words = words(statement);
        let mut found: Vec<Concept> = Vec::new();
        let mut at = 0;
        while at < words.len() {
            if let Some(n) = self.known(&words[at..]) {
                found.push(self.concept(&words[at..at + n], true));
                at += n;
                continue;
            }
            // A run of words that no concept has, and that are rare enough each.
            let here = words[at].sentence;
            let run = words[at..].iter().take(3).enumerate().take_while(|(i, w)| {
                let new = *i == 0 || self.known(&words[at + i..]).is_none();
                new && w.sentence == here && self.idf(&w.term) >= self.min_idf
            });
            match run.count() {
                0 => at += 1,
                n => {
                    found.push(self.concept(&words[at..at + n], false));
                    at += n;
                }
            }
        }
        let mut seen = HashSet::new();
        found.retain(|concept| seen.insert(concept.terms.clone()));
        found.sort_by(|a, b| {
            let known = b.known.cmp(&a.known);
            known.then_with(|| b.weight.total_cmp(&a.weight))
        });
        found.truncate(self.limit);
        Ok(found)
    }
}

fn words(statement: &Statement) -> Vec<Word> {
    let mut words = Vec::new();
    for (sentence, text) in statement.sentences().iter().enumerate() {
        for surface in text.unicode_words() {
            // Signs of formulas are single letters.
            let terms = Analyzer::English.terms(surface);
            let telling = terms.into_iter().filter(|term| term.chars().count() > 1);
            words.extend(telling.map(|term| Word {
                surface: surface.to_owned(),
                term,
                sentence,
            }));
        }
    }
    words
}
