//! Hard negatives: passages that look like an answer and are none, to train encoders and rerankers.
//!
//! What is chosen is what `mine_hard_negatives` of sentence-transformers 6.2 chooses of the same scores:
//! positives are taken out, then candidates that are too near to the positive (or over `max_score`,
//! or under `min_score`), and only then ranks are counted.

use rand::seq::index::sample;
use thiserror::Error;

/// Which candidates become negatives.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct MineOptions {
    /// Negatives of a query.
    pub number: usize,
    /// Best candidates that are passed over.
    pub range_min: usize,
    /// Rank of the last candidate that is considered; otherwise enough for `number`, and ten times as
    /// many where scores may exclude some.
    pub range_max: Option<usize>,
    /// Highest score of a negative.
    pub max_score: Option<f64>,
    /// Lowest score of a negative.
    pub min_score: Option<f64>,
    /// How far below the positive's score a negative's has to be.
    pub absolute_margin: Option<f64>,
    /// The same as a share of the magnitude of the positive's score.
    pub relative_margin: Option<f64>,
    /// Draw among the candidates by this seed; otherwise the best are taken.
    pub random: Option<u64>,
}

/// Options that choose nothing.
#[derive(Clone, Debug, PartialEq, Error)]
pub enum MineError {
    /// No negatives.
    #[error("the number of negatives must be at least 1")]
    NoNumber,
    /// Ranks without room for so many.
    #[error(
        "{number} negatives of a query cannot be taken from ranks {from} to {to}: lower the number or the first rank, or raise the last"
    )]
    Range {
        /// The number.
        number: usize,
        /// First rank, from 1.
        from: usize,
        /// Last rank.
        to: usize,
    },
    /// A number that is no margin or score.
    #[error("{name} is {value}: it must be {expected}")]
    Value {
        /// Which one.
        name: &'static str,
        /// The number.
        value: f64,
        /// What it must be.
        expected: &'static str,
    },
}

/// A candidate for a query.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Candidate {
    /// Its similarity to the query; higher is nearer.
    pub score: f64,
    /// Whether it is an answer.
    pub positive: bool,
}

/// Candidates that were left out, by reason.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Excluded {
    /// Answers.
    pub positives: usize,
    /// Within the absolute or relative margin of the positive's score.
    pub margin: usize,
    /// Over `max_score`.
    pub max_score: usize,
    /// Under `min_score`.
    pub min_score: usize,
}

impl Excluded {
    /// Adds those of another query.
    pub fn add(&mut self, other: Self) {
        self.positives += other.positives;
        self.margin += other.margin;
        self.max_score += other.max_score;
        self.min_score += other.min_score;
    }
}

impl MineOptions {
    /// Whether scores may exclude candidates.
    pub fn has_thresholds(&self) -> bool {
        self.has_margin() || self.max_score.is_some() || self.min_score.is_some()
    }

    /// Whether scores are compared with the positive's.
    pub fn has_margin(&self) -> bool {
        self.absolute_margin.is_some() || self.relative_margin.is_some()
    }

    /// Rank of the last candidate that is considered, for queries with at most so many positives.
    /// `rescored` says that scores are those of a cross-encoder.
    pub fn last_rank(&self, max_positives: usize, rescored: bool) -> usize {
        // As in sentence-transformers, a lowest score alone needs no more candidates: those that it
        // excludes are the last ones, unless a cross-encoder scores anew.
        let excludes =
            self.has_margin() || self.max_score.is_some() || (rescored && self.min_score.is_some());
        let wanted = if excludes {
            10 * self.number
        } else {
            self.number
        };
        let usual = self.range_min.saturating_add(wanted + max_positives);
        self.range_max.unwrap_or(usual)
    }

    /// Refuses what chooses nothing.
    ///
    /// # Errors
    /// No negatives, ranks without room for them, margins below 0, numbers that are not finite.
    pub fn validate(&self, max_positives: usize, rescored: bool) -> Result<(), MineError> {
        if self.number == 0 {
            return Err(MineError::NoNumber);
        }
        for (name, value) in [("max_score", self.max_score), ("min_score", self.min_score)] {
            if let Some(value) = value.filter(|value| !value.is_finite()) {
                let expected = "a finite number";
                return Err(MineError::Value {
                    name,
                    value,
                    expected,
                });
            }
        }
        let margins = [
            ("absolute_margin", self.absolute_margin),
            ("relative_margin", self.relative_margin),
        ];
        for (name, value) in margins {
            if let Some(value) = value.filter(|value| !value.is_finite() || *value < 0.0) {
                let expected = "a finite number of at least 0";
                return Err(MineError::Value {
                    name,
                    value,
                    expected,
                });
            }
        }
        let last = self.last_rank(max_positives, rescored);
        if last < self.range_min.saturating_add(self.number) {
            return Err(MineError::Range {
                number: self.number,
                from: self.range_min + 1,
                to: last,
            });
        }
        Ok(())
    }

    /// Places of the negatives among the candidates of one query, the best first, and what was left
    /// out. `positive` is the lowest score of the query's positives, `query` its number, which
    /// decides what is drawn. Candidates are the best `last_rank + max_positives` ones.
    pub fn select(
        &self,
        candidates: &[Candidate],
        positive: Option<f64>,
        last_rank: usize,
        query: u64,
    ) -> (Vec<usize>, Excluded) {
        let mut excluded = Excluded::default();
        let mut left: Vec<usize> = Vec::new();
        for (place, candidate) in candidates.iter().enumerate() {
            let count = match self.reason(candidate, positive) {
                None => {
                    left.push(place);
                    continue;
                }
                Some(Reason::Positive) => &mut excluded.positives,
                Some(Reason::Margin) => &mut excluded.margin,
                Some(Reason::MaxScore) => &mut excluded.max_score,
                Some(Reason::MinScore) => &mut excluded.min_score,
            };
            *count += 1;
        }
        left.sort_by(|a, b| candidates[*b].score.total_cmp(&candidates[*a].score));
        left.truncate(last_rank);
        let mut left = left.split_off(self.range_min.min(left.len()));
        if let Some(seed) = self.random.filter(|_| left.len() > self.number) {
            let mut rng = frugal_nn::named_rng(seed, &format!("hard negatives of query {query}"));
            let mut drawn = sample(&mut rng, left.len(), self.number).into_vec();
            drawn.sort_unstable();
            left = drawn.into_iter().map(|i| left[i]).collect();
        }
        left.truncate(self.number);
        (left, excluded)
    }

    fn reason(&self, candidate: &Candidate, positive: Option<f64>) -> Option<Reason> {
        let score = candidate.score;
        if candidate.positive {
            return Some(Reason::Positive);
        }
        if let Some(positive) = positive {
            let near = self.absolute_margin.is_some_and(|m| score + m > positive);
            let relative = self.relative_margin;
            if near || relative.is_some_and(|m| score > positive - positive.abs() * m) {
                return Some(Reason::Margin);
            }
        }
        if self.max_score.is_some_and(|most| score > most) {
            return Some(Reason::MaxScore);
        }
        let low = self.min_score.is_some_and(|least| score < least);
        low.then_some(Reason::MinScore)
    }
}

enum Reason {
    Positive,
    Margin,
    MaxScore,
    MinScore,
}

#[cfg(test)]
mod tests;
