//! Comparisons in both orders, with what was answered before.

use std::collections::BTreeMap;

/// Which of two passages an answer names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The one shown first.
    A,
    /// The one shown second.
    B,
    /// Neither, or both.
    Neither,
}

/// Says which of two passages answers a query better.
pub trait Comparator {
    /// What can go wrong.
    type Error;

    /// An answer for each question: the candidates that are shown as passage A and as passage B.
    ///
    /// # Errors
    /// What keeps it from answering.
    fn answer(&mut self, questions: &[(usize, usize)]) -> Result<Vec<Answer>, Self::Error>;
}

/// What both orders together say of a pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Preference {
    /// Both name the first of the pair.
    First,
    /// Both name the second.
    Second,
    /// They contradict each other, or one names neither.
    Tie,
}

impl Preference {
    /// Of the pair in its own order and in the other one.
    fn of(own: Answer, other: Answer) -> Self {
        match (own, other) {
            (Answer::A, Answer::B) => Self::First,
            (Answer::B, Answer::A) => Self::Second,
            _ => Self::Tie,
        }
    }
}

/// Asks a comparator in both orders and counts. A question that was answered is not asked again,
/// which changes the cost and never a ranking, as long as equal questions have equal answers.
pub struct Judge<'c, C> {
    comparator: &'c mut C,
    answers: BTreeMap<(usize, usize), Answer>,
    questions: usize,
}

impl<'c, C: Comparator> Judge<'c, C> {
    /// Nothing was asked yet.
    pub fn new(comparator: &'c mut C) -> Self {
        Self {
            comparator,
            answers: BTreeMap::new(),
            questions: 0,
        }
    }

    /// The preference of each pair.
    ///
    /// # Errors
    /// Those of the comparator.
    pub fn prefer(&mut self, pairs: &[(usize, usize)]) -> Result<Vec<Preference>, C::Error> {
        self.questions += 2 * pairs.len();
        let mut new: Vec<(usize, usize)> = pairs
            .iter()
            .flat_map(|&(a, b)| [(a, b), (b, a)])
            .filter(|question| !self.answers.contains_key(question))
            .collect();
        // Questions with the same passage A come together, for comparators that share its work.
        new.sort_unstable();
        new.dedup();
        if !new.is_empty() {
            let found = self.comparator.answer(&new)?;
            self.answers.extend(new.into_iter().zip(found));
        }
        let answer = |question| {
            let found = self.answers.get(&question);
            found.copied().unwrap_or(Answer::Neither)
        };
        Ok(pairs
            .iter()
            .map(|&(a, b)| Preference::of(answer((a, b)), answer((b, a))))
            .collect())
    }

    /// Questions of the algorithm so far, two for each comparison: the calls of a comparator
    /// without memory.
    pub fn questions(&self) -> usize {
        self.questions
    }

    /// Questions that the comparator was asked.
    pub fn calls(&self) -> usize {
        self.answers.len()
    }

    /// The share of the pairs asked that are ties: small models answer by position, and then all are.
    pub fn conflict_rate(&self) -> Option<f64> {
        let pairs: Vec<Preference> = self.pairs().map(|(_, preference)| preference).collect();
        let ties = pairs.iter().filter(|p| **p == Preference::Tie).count();
        (!pairs.is_empty()).then(|| ties as f64 / pairs.len() as f64)
    }

    /// The share of the triples with three known pairs that go round in a circle.
    pub fn cycle_rate(&self) -> Option<f64> {
        let known: BTreeMap<(usize, usize), Preference> = self.pairs().collect();
        let (mut triples, mut cycles) = (0_usize, 0_usize);
        for (&(a, b), first) in &known {
            for (&(_, c), second) in known.range((b, 0)..=(b, usize::MAX)) {
                let Some(third) = known.get(&(a, c)) else {
                    continue;
                };
                triples += 1;
                let around = [*first, *second, *third];
                cycles += usize::from(
                    around == [Preference::First, Preference::First, Preference::Second]
                        || around == [Preference::Second, Preference::Second, Preference::First],
                );
            }
        }
        (triples > 0).then(|| cycles as f64 / triples as f64)
    }

    /// Pairs with answers in both orders, the smaller number first.
    fn pairs(&self) -> impl Iterator<Item = ((usize, usize), Preference)> + '_ {
        self.answers.iter().filter_map(|(&(a, b), &own)| {
            let other = self.answers.get(&(b, a)).filter(|_| a < b)?;
            Some(((a, b), Preference::of(own, *other)))
        })
    }
}
