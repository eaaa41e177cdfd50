//! Which names of a library look like these words?

use std::cmp::Ordering;
use std::collections::{HashMap, HashSet};

use frugal_index::Analyzer;
use regex::RegexBuilder;

use super::error::CramfError;
use super::identifier::{name_key, words_of_name};
use super::knowledge::KnowledgeBase;

/// Names by their words and by patterns.
pub struct SymbolChannel {
    /// Full names, in the order of the definitions.
    names: Vec<String>,
    keys: Vec<String>,
    /// Number of different words of a name.
    sizes: Vec<usize>,
    by_word: HashMap<String, Vec<u32>>,
    /// Smallest share of a name's words that a query must have.
    pub min_share: f64,
}

impl SymbolChannel {
    /// Reads the names.
    #[must_use]
    pub fn new(base: &KnowledgeBase) -> Self {
        let mut channel = Self {
            names: Vec::new(),
            keys: Vec::new(),
            sizes: Vec::new(),
            by_word: HashMap::new(),
            min_share: 0.5,
        };
        for (index, definition) in (0u32..).zip(base.definitions()) {
            let words = stems(&definition.name);
            channel.sizes.push(words.len());
            for word in words {
                channel.by_word.entry(word).or_default().push(index);
            }
            channel.names.push(definition.name.clone());
            channel.keys.push(name_key(&definition.name));
        }
        channel
    }

    /// The `n` names that have the greatest share `|query ∩ name| / |name|` of their words in the
    /// query; of equal ones, the name itself, then the one with more words in common, then the
    /// earlier one.
    #[must_use]
    pub fn search(&self, query: &str, n: usize) -> Vec<(u32, f64)> {
        let mut common: HashMap<u32, usize> = HashMap::new();
        for word in stems(query) {
            for index in self.by_word.get(&word).into_iter().flatten() {
                *common.entry(*index).or_default() += 1;
            }
        }
        let (query, key) = (query.trim(), name_key(query.trim()));
        let named = |index: u32| {
            let index = index as usize;
            usize::from(self.names[index] == query) + usize::from(self.keys[index] == key)
        };
        let mut found: Vec<(u32, f64, usize, usize)> = common
            .into_iter()
            .map(|(i, both)| {
                let share = both as f64 / self.sizes[i as usize].max(1) as f64;
                (i, share, named(i), both)
            })
            .filter(|(_, share, ..)| *share >= self.min_share)
            .collect();
        found.sort_by(|a, b| {
            let share = b.1.total_cmp(&a.1);
            let rest = (b.2, b.3).cmp(&(a.2, a.3));
            share.then(rest).then(a.0.cmp(&b.0))
        });
        let found = found.into_iter().take(n);
        found.map(|(index, share, ..)| (index, share)).collect()
    }

    /// The first `n` names that a regular expression matches, in small or capital letters, the
    /// shortest first.
    ///
    /// # Errors
    /// A pattern that is none.
    pub fn matching(&self, pattern: &str, n: usize) -> Result<Vec<u32>, CramfError> {
        let regex = RegexBuilder::new(pattern)
            .case_insensitive(true)
            .build()
            .map_err(|e| CramfError::Pattern {
                pattern: pattern.to_owned(),
                reason: e.to_string(),
            })?;
        let mut found: Vec<u32> = (0u32..)
            .zip(&self.names)
            .filter(|(_, name)| regex.is_match(name))
            .map(|(index, _)| index)
            .collect();
        let length = |index: &u32| self.names[*index as usize].chars().count();
        found.sort_by(|a, b| match length(a).cmp(&length(b)) {
            Ordering::Equal => a.cmp(b),
            other => other,
        });
        found.truncate(n);
        Ok(found)
    }

    /// A pattern for names that have these words one after another.
    #[must_use]
    pub fn pattern_of(words: &str) -> String {
        let words: Vec<String> = words_of_name(words)
            .iter()
            .map(|word| regex::escape(word))
            .collect();
        words.join("[._]?")
    }
}

/// The stems of a name's words.
fn stems(name: &str) -> HashSet<String> {
    let words = words_of_name(name).into_iter();
    words
        .map(|word| {
            let stem = Analyzer::English.terms(&word).concat();
            if stem.is_empty() { word } else { stem }
        })
        .collect()
}
