//! A comparator whose errors are known.

use std::collections::BTreeMap;

use frugal_nn::{named_rng, standard_normal};
use frugal_retrieve::prp::{Answer, Comparator, NoisyComparator};

use super::ranked::{ALGORITHMS, ORDERS, mean, ndcg, order, questions, ranked, spread};
use crate::run::study::{Outcome, StudyError, StudyEvent, StudyRequest};

/// Probability of a wrong answer, and of answering A whatever is asked.
const NOISE: [(f64, f64); 5] = [(0.0, 0.0), (0.1, 0.0), (0.3, 0.0), (0.0, 0.5), (0.1, 0.5)];

/// Candidates of a query.
const COUNT: usize = 20;

pub(super) fn steps(request: &StudyRequest<'_>) -> u64 {
    (NOISE.len() * request.seeds.len()) as u64
}

pub(super) fn run(
    request: &StudyRequest<'_>,
    outcome: &mut Outcome,
    observe: &mut dyn FnMut(StudyEvent),
) -> Result<(), StudyError> {
    let queries = if request.smoke { 5 } else { 200 };
    outcome.notes.push(format!(
        "Simulated: {queries} queries with {COUNT} candidates, of which the three most relevant have the grades 3, 2 and 1; the first stage sees relevance with noise of its own size. Probability of a wrong answer and of answering by position are in the name of the arm."
    ));
    for (flip, bias) in NOISE {
        let mut order_matters: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
        for &seed in &request.seeds {
            request.check()?;
            for (name, spreads) in one(flip, bias, seed, queries, outcome) {
                order_matters.entry(name).or_default().extend(spreads);
            }
            let what = format!("simulated, wrong {flip}, by position {bias}, seed {seed}");
            observe(StudyEvent::Step { what });
        }
        let pairs = order_matters
            .get("all pairs")
            .zip(order_matters.get("sliding-10"));
        if let Some((all, sliding)) = pairs.filter(|_| (flip, bias) != (0.0, 0.0)) {
            let differences: Vec<f64> = sliding.iter().zip(all).map(|(s, a)| s - a).collect();
            outcome.judge_differences(
                format!("simulated (wrong {flip}, by position {bias}): the first order matters less to all pairs than to sliding-10"),
                &differences,
            );
        }
    }
    Ok(())
}

/// One noise and seed; how much the first order matters to each algorithm, by query.
fn one(
    flip: f64,
    bias: f64,
    seed: u64,
    queries: usize,
    outcome: &mut Outcome,
) -> Vec<(&'static str, Vec<f64>)> {
    let mut found: BTreeMap<(&str, &str), Vec<(f64, usize)>> = BTreeMap::new();
    let mut first_stage = Vec::new();
    for query in 0..queries {
        let (grades, answers) = simulate(flip, bias, seed, query);
        first_stage.push(ndcg(&grades, &grades));
        for (name, algorithm) in ALGORITHMS {
            for from in ORDERS {
                let start = order(from, COUNT, seed, &query.to_string());
                let (list, calls) = ranked(algorithm, &answers, &start);
                let list: Vec<f64> = list.iter().map(|&i| grades[i]).collect();
                let values = found.entry((name, from)).or_default();
                values.push((ndcg(&list, &grades), calls));
            }
        }
    }
    let arm = |name: &str| format!("simulated {flip}/{bias}: {name}");
    outcome.add(&arm("first stage"), "nDCG@10", seed, mean(&first_stage));
    let mut spreads = Vec::new();
    for (name, _) in ALGORITHMS {
        let mut by_order = Vec::new();
        for from in ORDERS {
            let values = found.remove(&(name, from)).unwrap_or_default();
            let (quality, calls): (Vec<f64>, Vec<f64>) =
                values.into_iter().map(|(q, c)| (q, c as f64)).unzip();
            let arm = arm(&format!("{name}, {from}"));
            outcome.add(&arm, "nDCG@10", seed, mean(&quality));
            outcome.add(&arm, "calls per query", seed, mean(&calls));
            by_order.push(quality);
        }
        spreads.push((name, spread(&by_order)));
    }
    spreads
}

/// Grades in the order of the first stage, and all answers.
fn simulate(
    flip: f64,
    bias: f64,
    seed: u64,
    query: usize,
) -> (Vec<f64>, BTreeMap<(usize, usize), Answer>) {
    let mut rng = named_rng(seed, &format!("prp study {query}"));
    let mut draw = || -> Vec<f32> { (0..COUNT).map(|_| standard_normal(&mut rng)).collect() };
    let (relevance, noise) = (draw(), draw());
    let mut candidates: Vec<usize> = (0..COUNT).collect();
    let seen = |i: usize| relevance[i] + noise[i];
    candidates.sort_by(|&a, &b| seen(b).total_cmp(&seen(a)));
    let relevance: Vec<f64> = candidates
        .iter()
        .map(|&i| f64::from(relevance[i]))
        .collect();
    let mut best: Vec<usize> = (0..COUNT).collect();
    best.sort_by(|&a, &b| relevance[b].total_cmp(&relevance[a]));
    let mut grades = vec![0.0; COUNT];
    for (grade, &i) in [3.0, 2.0, 1.0].iter().zip(&best) {
        grades[i] = *grade;
    }
    let mut comparator = NoisyComparator {
        relevance,
        flip,
        position_bias: bias,
        seed: seed.wrapping_mul(1_000_003).wrapping_add(query as u64),
    };
    let asked = questions(COUNT);
    let Ok(answers) = comparator.answer(&asked);
    (grades, asked.into_iter().zip(answers).collect())
}
