//! What the simulated and the real comparator share: orders, known answers, measures.

use std::collections::BTreeMap;
use std::convert::Infallible;

use frugal_nn::named_rng;
use frugal_retrieve::prp::{Answer, Comparator, Judge, PrpAlgorithm, rank};
use rand::seq::SliceRandom;

pub(super) const ALGORITHMS: [(&str, PrpAlgorithm); 3] = [
    ("all pairs", PrpAlgorithm::Allpair),
    ("heapsort", PrpAlgorithm::Sorting),
    ("sliding-10", PrpAlgorithm::Sliding(10)),
];

pub(super) const ORDERS: [&str; 3] = ["first stage", "reversed", "shuffled"];

/// One of the three orders of candidates 0 to `count - 1`, which stand in the first stage's order.
pub(super) fn order(name: &str, count: usize, seed: u64, query: &str) -> Vec<usize> {
    let mut order: Vec<usize> = (0..count).collect();
    match name {
        "reversed" => order.reverse(),
        "shuffled" => order.shuffle(&mut named_rng(seed, &format!("order {query}"))),
        _ => {}
    }
    order
}

/// Answers that are known, asked about candidates in another order.
struct Known<'k> {
    answers: &'k BTreeMap<(usize, usize), Answer>,
    order: &'k [usize],
}

impl Comparator for Known<'_> {
    type Error = Infallible;

    fn answer(&mut self, questions: &[(usize, usize)]) -> Result<Vec<Answer>, Infallible> {
        let answer = |&(a, b): &(usize, usize)| {
            let known = self.answers.get(&(self.order[a], self.order[b]));
            known.copied().unwrap_or(Answer::Neither)
        };
        Ok(questions.iter().map(answer).collect())
    }
}

/// The candidates as an algorithm ranks them from an order, and its calls.
pub(super) fn ranked(
    algorithm: PrpAlgorithm,
    answers: &BTreeMap<(usize, usize), Answer>,
    order: &[usize],
) -> (Vec<usize>, usize) {
    let mut known = Known { answers, order };
    let mut judge = Judge::new(&mut known);
    let Ok(ranking) = rank(algorithm, order.len(), 10, &mut judge);
    let found = ranking.order.iter().map(|&i| order[i]).collect();
    (found, judge.questions())
}

/// Every question about so many candidates.
pub(super) fn questions(count: usize) -> Vec<(usize, usize)> {
    let pairs = (0..count).flat_map(|a| (0..count).map(move |b| (a, b)));
    pairs.filter(|(a, b)| a != b).collect()
}

/// nDCG@10 of grades in ranked order, with the grade as gain; `all` are those of all judged
/// documents.
pub(super) fn ndcg(ranked: &[f64], all: &[f64]) -> f64 {
    let gain = |grades: &[f64]| -> f64 {
        let terms = grades.iter().take(10).enumerate();
        terms.map(|(i, g)| g / (i as f64 + 2.0).log2()).sum()
    };
    let mut best = all.to_vec();
    best.sort_by(|a, b| b.total_cmp(a));
    let ideal = gain(&best);
    if ideal > 0.0 {
        gain(ranked) / ideal
    } else {
        0.0
    }
}

/// The mean over queries of the largest difference that the first order makes.
pub(super) fn spread(by_order: &[Vec<f64>]) -> Vec<f64> {
    let queries = by_order.first().map_or(0, Vec::len);
    let of = |q: usize| {
        let values = by_order.iter().map(|values| values[q]);
        let (low, high) = values.fold((f64::MAX, f64::MIN), |(l, h), v| (l.min(v), h.max(v)));
        high - low
    };
    (0..queries).map(of).collect()
}

pub(super) fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len().max(1) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Worked by hand: gains 0, 2, 1 of judged grades 2, 1, 1.
    #[test]
    fn prp_study_ndcg_is_that_of_trec_eval() {
        let found = ndcg(&[0.0, 2.0, 1.0], &[2.0, 1.0, 1.0]);
        let (log3, log4) = (3.0_f64.log2(), 2.0);
        let expected = (2.0 / log3 + 1.0 / log4) / (2.0 + 1.0 / log3 + 1.0 / log4);
        assert!((found - expected).abs() < 1e-12);
        assert_eq!(ndcg(&[0.0], &[]), 0.0);
        assert_eq!(spread(&[vec![0.5, 1.0], vec![0.25, 1.0]]), [0.25, 0.0]);
    }

    #[test]
    fn prp_study_ranks_known_answers_from_any_order() {
        let answers: BTreeMap<(usize, usize), Answer> = questions(6)
            .into_iter()
            .map(|(a, b)| ((a, b), if a > b { Answer::A } else { Answer::B }))
            .collect();
        for name in ORDERS {
            for (_, algorithm) in ALGORITHMS {
                let (found, calls) = ranked(algorithm, &answers, &order(name, 6, 1, "q"));
                assert_eq!(found, [5, 4, 3, 2, 1, 0], "{name}");
                assert!(calls <= 30 || algorithm == PrpAlgorithm::Sorting, "{calls}");
            }
        }
    }
}
