//! Answers with known errors, to study the algorithms without a model.

use std::convert::Infallible;

use frugal_nn::named_rng;
use rand::Rng;

use super::judge::{Answer, Comparator};

/// Knows the relevance of each candidate, answers A whatever is asked with one probability, and
/// otherwise names the wrong one with another. The same question has the same answer.
#[derive(Clone, Debug)]
pub struct NoisyComparator {
    /// Of each candidate; of two with the same one A or B is named by chance.
    pub relevance: Vec<f64>,
    /// Probability of naming the less relevant one.
    pub flip: f64,
    /// Probability of answering A.
    pub position_bias: f64,
    /// Decides the errors.
    pub seed: u64,
}

impl Comparator for NoisyComparator {
    type Error = Infallible;

    fn answer(&mut self, questions: &[(usize, usize)]) -> Result<Vec<Answer>, Infallible> {
        let answer = |&(a, b): &(usize, usize)| {
            let mut rng = named_rng(self.seed, &format!("prp {a} {b}"));
            if rng.random::<f64>() < self.position_bias {
                return Answer::A;
            }
            let flip = if self.relevance[a] == self.relevance[b] {
                0.5
            } else {
                self.flip
            };
            let wrong = rng.random::<f64>() < flip;
            if (self.relevance[a] >= self.relevance[b]) != wrong {
                Answer::A
            } else {
                Answer::B
            }
        };
        Ok(questions.iter().map(answer).collect())
    }
}
