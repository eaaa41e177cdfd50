//! Scores of named entities: runs of words that a tag for each word marks.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::{ClassScores, MetricError, ratio};

/// A run of words of one kind.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Entity {
    /// Its kind: `PER` of `B-PER` and `I-PER`.
    #[serde(rename = "type")]
    pub kind: String,
    /// The first word, from 0.
    pub start: usize,
    /// The word behind the last one.
    pub end: usize,
}

/// The entities that the tags of words mark, in their order: `B-` and `I-` begin and continue one,
/// `E-` and `S-` end one or are one, `O` is outside.
///
/// As `seqeval.metrics.sequence_labeling.get_entities` (seqeval 1.2.2) reads them, which is lenient:
/// an `I-` behind another kind or outside begins an entity, and a tag without prefix is read as if
/// its first letter were one.
pub fn entities(tags: &[&str]) -> Vec<Entity> {
    let mut found = Vec::new();
    let (mut last, mut last_kind, mut start) = ('O', "", 0);
    for (i, tag) in tags.iter().copied().chain(["O"]).enumerate() {
        let (mark, kind) = parts(tag);
        let changes = last_kind != kind;
        let ends = matches!(last, 'E' | 'S')
            || matches!((last, mark), ('B' | 'I', 'B' | 'S' | 'O'))
            || (!matches!(last, 'O' | '.') && changes);
        if ends {
            found.push(Entity {
                kind: last_kind.to_owned(),
                start,
                end: i,
            });
        }
        let begins = matches!(mark, 'B' | 'S')
            || matches!((last, mark), ('E' | 'S' | 'O', 'E' | 'I'))
            || (!matches!(mark, 'O' | '.') && changes);
        if begins {
            start = i;
        }
        (last, last_kind) = (mark, kind);
    }
    found
}

/// The mark of a tag and the kind behind it.
fn parts(tag: &str) -> (char, &str) {
    let mut letters = tag.chars();
    // An empty tag is outside.
    let mark = letters.next().unwrap_or('O');
    let rest = letters.as_str();
    let kind = rest.split_once('-').map_or(rest, |(_, kind)| kind);
    (mark, if kind.is_empty() { "_" } else { kind })
}

/// The tag of what follows in a word that has this one: `I-PER` behind `B-PER`.
pub fn continued(tag: &str) -> Option<String> {
    tag.strip_prefix("B-").map(|kind| format!("I-{kind}"))
}

/// Scores of a tagger, as `seqeval.metrics` (1.2.2) defines them with `zero_division=0`: an entity
/// is right if its kind, its first and its last word are.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EntityReport {
    /// Share of the entities found that are right.
    pub precision: f64,
    /// Share of the entities that were found.
    pub recall: f64,
    /// Harmonic mean of the two (`average="micro"`).
    pub f1: f64,
    /// Share of the words whose tag is right.
    pub accuracy: f64,
    /// Words.
    pub words: usize,
    /// One entry for each kind, by name.
    pub kinds: Vec<ClassScores>,
}

impl EntityReport {
    /// Scores what was said of each word of each text against what is so.
    ///
    /// # Errors
    /// If the numbers of texts or words differ, or there is no word.
    pub fn new(gold: &[Vec<&str>], predicted: &[Vec<&str>]) -> Result<Self, MetricError> {
        let lengths = |texts: &[Vec<&str>]| texts.iter().map(Vec::len).collect::<Vec<_>>();
        let words = lengths(gold).iter().sum();
        if lengths(gold) != lengths(predicted) {
            let predicted = lengths(predicted).iter().sum();
            return Err(MetricError::Lengths {
                gold: words,
                predicted,
            });
        }
        if words == 0 {
            return Err(MetricError::Empty);
        }
        let of = |texts: &[Vec<&str>]| -> BTreeSet<(usize, Entity)> {
            let each = texts.iter().enumerate();
            each.flat_map(|(text, tags)| entities(tags).into_iter().map(move |e| (text, e)))
                .collect()
        };
        let (so, said) = (of(gold), of(predicted));
        // Of each kind: found rightly, found, there.
        let mut counts: BTreeMap<&str, [usize; 3]> = BTreeMap::new();
        let both = so.intersection(&said);
        for (i, (_, entity)) in both
            .map(|e| (0_usize, e))
            .chain(said.iter().map(|e| (1, e)))
            .chain(so.iter().map(|e| (2, e)))
        {
            counts.entry(&entity.kind).or_default()[i] += 1;
        }
        let kinds = counts
            .iter()
            .map(|(kind, &[right, claimed, support])| ClassScores {
                label: (*kind).to_owned(),
                precision: ratio(right, claimed),
                recall: ratio(right, support),
                f1: ratio(2 * right, claimed + support),
                support,
            })
            .collect();
        let right = so.intersection(&said).count();
        let tags = gold.iter().flatten().zip(predicted.iter().flatten());
        Ok(Self {
            precision: ratio(right, said.len()),
            recall: ratio(right, so.len()),
            f1: ratio(2 * right, said.len() + so.len()),
            accuracy: ratio(tags.filter(|(g, p)| g == p).count(), words),
            words,
            kinds,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Deserialize)]
    struct Case {
        gold: Vec<Vec<String>>,
        predicted: Vec<Vec<String>>,
        /// Kind, first and last word of each text of `gold`.
        entities: Vec<Vec<(String, usize, usize)>>,
        precision: f64,
        recall: f64,
        f1: f64,
        accuracy: f64,
        kinds: BTreeMap<String, [f64; 4]>,
    }

    fn tags(texts: &[Vec<String>]) -> Vec<Vec<&str>> {
        fn of(text: &[String]) -> Vec<&str> {
            text.iter().map(String::as_str).collect()
        }
        texts.iter().map(|text| of(text)).collect()
    }

    #[test]
    fn entities_and_their_scores_equal_those_of_seqeval() {
        let text = include_str!("../../../../fixtures/metrics/entities.json");
        let file: serde_json::Value = serde_json::from_str(text).unwrap();
        let cases: Vec<Case> = serde_json::from_value(file["cases"].clone()).unwrap();
        assert_eq!(cases.len(), 40);
        let close = |a: f64, b: f64| assert!((a - b).abs() < 1e-12, "{a} instead of {b}");
        for case in &cases {
            let (gold, predicted) = (tags(&case.gold), tags(&case.predicted));
            for (tags, expected) in gold.iter().zip(&case.entities) {
                let found: Vec<_> = entities(tags)
                    .into_iter()
                    .map(|e| (e.kind, e.start, e.end - 1))
                    .collect();
                assert_eq!(&found, expected, "{tags:?}");
            }
            let report = EntityReport::new(&gold, &predicted).unwrap();
            close(report.precision, case.precision);
            close(report.recall, case.recall);
            close(report.f1, case.f1);
            close(report.accuracy, case.accuracy);
            let kinds: Vec<&String> = report.kinds.iter().map(|k| &k.label).collect();
            assert_eq!(kinds, case.kinds.keys().collect::<Vec<_>>());
            for kind in &report.kinds {
                let [precision, recall, f1, support] = case.kinds[&kind.label];
                close(kind.precision, precision);
                close(kind.recall, recall);
                close(kind.f1, f1);
                assert_eq!(kind.support, support as usize);
            }
        }
    }

    #[test]
    fn another_number_of_words_is_refused() {
        let (two, one) = (vec![vec!["O", "O"]], vec![vec!["O"]]);
        assert!(EntityReport::new(&two, &one).is_err());
        // As many words, but not in the same texts.
        let parted = vec![vec!["O"], vec!["O"]];
        assert!(EntityReport::new(&two, &parted).is_err());
        assert_eq!(EntityReport::new(&[], &[]), Err(MetricError::Empty));
    }
}
