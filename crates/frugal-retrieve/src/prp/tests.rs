//! The algorithms against their published costs and worked cases, and prompts, scores and shared
//! beginnings of real tokenizers and small models.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use burn::prelude::Device;
use frugal_core::tokenizer::TextTokenizer;
use frugal_models::load::{Lookup, ModelFiles};
use frugal_nn::{ActiveAdapters, Backbone, named_rng};
use rand::seq::SliceRandom;

use super::*;

/// Answers from a function of the two candidates.
struct Answers<F>(F);

impl<F: FnMut(usize, usize) -> Answer> Comparator for Answers<F> {
    type Error = Infallible;

    fn answer(&mut self, questions: &[(usize, usize)]) -> Result<Vec<Answer>, Infallible> {
        Ok(questions.iter().map(|&(a, b)| (self.0)(a, b)).collect())
    }
}

const ALL: [PrpAlgorithm; 3] = [
    PrpAlgorithm::Allpair,
    PrpAlgorithm::Sorting,
    PrpAlgorithm::Sliding(10),
];

fn ranked<C: Comparator<Error = Infallible>>(
    algorithm: PrpAlgorithm,
    count: usize,
    comparator: &mut C,
) -> (PrpRanking, usize) {
    let mut judge = Judge::new(comparator);
    let Ok(ranking) = rank(algorithm, count, 10, &mut judge);
    (ranking, judge.questions())
}

fn exact(relevance: Vec<f64>) -> NoisyComparator {
    NoisyComparator {
        relevance,
        flip: 0.0,
        position_bias: 0.0,
        seed: 0,
    }
}

fn shuffled(count: usize, seed: u64) -> Vec<f64> {
    let mut relevance: Vec<f64> = (0..count).map(|i| i as f64).collect();
    relevance.shuffle(&mut named_rng(seed, "shuffle"));
    relevance
}

#[test]
fn prp_calls_are_those_of_the_paper() {
    let calls = |algorithm, count| ranked(algorithm, count, &mut exact(shuffled(count, 1))).1;
    for (count, expected) in [(10, 90), (20, 380), (100, 9900)] {
        assert_eq!(calls(PrpAlgorithm::Allpair, count), expected);
    }
    for (count, expected) in [(10, 90), (20, 290), (100, 1890)] {
        assert_eq!(calls(PrpAlgorithm::Sliding(10), count), expected);
    }
}

/// Comparisons of `llmrankers/pairwise.py`'s heapsort for the first ten, mean of 50 shuffles.
#[test]
fn prp_heapsort_compares_as_seldom_as_the_published_one() {
    for (count, published) in [(10, 38.4), (20, 83.2), (50, 165.2), (100, 277.9)] {
        let total: usize = (0..50)
            .map(|seed| {
                let mut comparator = exact(shuffled(count, seed));
                ranked(PrpAlgorithm::Sorting, count, &mut comparator).1 / 2
            })
            .sum();
        let mean = total as f64 / 50.0;
        assert!(mean <= 1.1 * published, "{count}: {mean}");
        assert!(mean >= 0.5 * published, "{count}: {mean}");
    }
}

#[test]
fn prp_with_a_perfect_comparator_finds_the_true_order() {
    for seed in 0..5 {
        let relevance = shuffled(23, seed);
        let mut truth: Vec<usize> = (0..23).collect();
        truth.sort_by(|&a, &b| relevance[b].total_cmp(&relevance[a]));
        for algorithm in ALL {
            let (ranking, _) = ranked(algorithm, 23, &mut exact(relevance.clone()));
            assert_eq!(ranking.order[..10], truth[..10], "{algorithm:?}");
            let unique: BTreeSet<usize> = ranking.order.iter().copied().collect();
            assert_eq!(unique.len(), 23, "{algorithm:?} lost a candidate");
            if algorithm == PrpAlgorithm::Allpair {
                for (rank, &candidate) in ranking.order.iter().enumerate() {
                    assert_eq!(ranking.scores[candidate], (22 - rank) as f64);
                }
            }
        }
    }
}

#[test]
fn prp_ties_and_answers_by_position_leave_the_first_order() {
    for count in [0, 1, 2, 7, 20] {
        for algorithm in ALL {
            for always in [Answer::A, Answer::B, Answer::Neither] {
                let (ranking, _) = ranked(algorithm, count, &mut Answers(|_, _| always));
                let expected: Vec<usize> = (0..count).collect();
                assert_eq!(ranking.order, expected, "{algorithm:?} {always:?}");
                if algorithm == PrpAlgorithm::Allpair && count > 0 {
                    let half = (count as f64 - 1.0) / 2.0;
                    assert!(ranking.scores.iter().all(|&score| score == half));
                }
            }
        }
    }
    let mut comparator = Answers(|_, _| Answer::A);
    let mut judge = Judge::new(&mut comparator);
    let Ok(_) = rank(PrpAlgorithm::Allpair, 6, 6, &mut judge);
    assert_eq!(judge.conflict_rate(), Some(1.0));
    assert_eq!(judge.cycle_rate(), Some(0.0));
}

#[test]
fn prp_scores_of_all_pairs_sum_to_the_number_of_pairs() {
    let mut comparator = NoisyComparator {
        relevance: shuffled(12, 3),
        flip: 0.3,
        position_bias: 0.3,
        seed: 9,
    };
    let (ranking, _) = ranked(PrpAlgorithm::Allpair, 12, &mut comparator);
    assert_eq!(ranking.scores.iter().sum::<f64>(), 66.0);
}

/// a ≻ b, b ≻ c, c ≻ a, and d loses to all.
#[test]
fn prp_counts_a_circle() {
    let mut comparator = Answers(|a, b| match (a, b) {
        (0, 1) | (1, 2) | (2, 0) | (0..3, 3) => Answer::A,
        _ => Answer::B,
    });
    let mut judge = Judge::new(&mut comparator);
    let Ok(ranking) = rank(PrpAlgorithm::Allpair, 4, 4, &mut judge);
    assert_eq!(ranking.scores, [2.0, 2.0, 2.0, 0.0]);
    assert_eq!(ranking.order, [0, 1, 2, 3]);
    // One of the four triples.
    assert_eq!(judge.cycle_rate(), Some(0.25));
    assert_eq!(judge.conflict_rate(), Some(0.0));
}

#[test]
fn prp_asks_nothing_twice() {
    let mut asked = Vec::new();
    let relevance = shuffled(20, 5);
    let mut comparator = Answers(|a, b| {
        asked.push((a, b));
        if relevance[a] > relevance[b] {
            Answer::A
        } else {
            Answer::B
        }
    });
    let mut judge = Judge::new(&mut comparator);
    let Ok(_) = rank(PrpAlgorithm::Sliding(10), 20, 10, &mut judge);
    let (questions, calls) = (judge.questions(), judge.calls());
    let unique: BTreeSet<(usize, usize)> = asked.iter().copied().collect();
    assert_eq!((asked.len(), unique.len()), (calls, calls));
    assert!(calls < questions, "{calls} of {questions}");
}

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../fixtures")
        .join(name)
}

/// A small model with its tokenizer.
fn small(name: &str) -> (Arc<dyn Backbone>, TextTokenizer) {
    let folder = fixture(&format!("harness/{name}"));
    let files = ModelFiles::open(&folder.display().to_string(), &Lookup::default()).unwrap();
    let backbone = files.load(&Device::flex()).unwrap();
    (backbone, TextTokenizer::from_folder(&folder).unwrap())
}

const QUERY: &str = "wing flutter";
const PASSAGES: [&str; 4] = [
    "flutter of wings at supersonic speed",
    "heat transfer in a laminar boundary layer",
    "a wing",
    "the stability of thin cylinders under load, and what follows of it for shells",
];

fn questions() -> Vec<(usize, usize)> {
    (0..4)
        .flat_map(|a| (0..4).map(move |b| (a, b)))
        .filter(|(a, b)| a != b)
        .collect()
}

fn model<'t>(
    (backbone, tokenizer): &'t (Arc<dyn Backbone>, TextTokenizer),
    options: PrpOptions,
) -> PrpModel<'t> {
    PrpModel::new(
        backbone.clone(),
        Arc::default(),
        ActiveAdapters::Base,
        tokenizer,
        options,
    )
    .unwrap()
}

/// Log-likelihoods of the whole texts, computed without anything shared, against those of the
/// comparator: for decoders with full and with sliding attention.
#[test]
fn prp_shared_beginnings_change_no_score() {
    for name in ["llama", "gemma3_text"] {
        let small = small(name);
        let options = PrpOptions {
            passage_tokens: 12,
            ..PrpOptions::default()
        };
        let one_by_one: Vec<f64> = {
            let mut model = model(
                &small,
                PrpOptions {
                    batch_tokens: 1,
                    kept_tokens: 0,
                    ..options.clone()
                },
            );
            questions()
                .iter()
                .map(|question| {
                    let mut query = model.query(QUERY, &PASSAGES).unwrap();
                    query.log_odds(&[*question]).unwrap()[0]
                })
                .collect()
        };
        let mut model = model(&small, options);
        let mut query = model.query(QUERY, &PASSAGES).unwrap();
        let together = query.log_odds(&questions()).unwrap();
        let [computed, all] = query.tokens();
        assert!(computed < all, "{computed} of {all} tokens");
        assert!(together.iter().any(|odds| odds.abs() > 1e-3));
        for (a, b) in one_by_one.iter().zip(&together) {
            assert!((a - b).abs() < 1e-4, "{name}: {a} {b}");
        }
    }
}

#[test]
fn prp_answers_begin_where_their_own_token_does() {
    for name in ["llama", "gemma3_text"] {
        let (_, tokenizer) = small(name);
        let prompt = PrpPrompt::new(&tokenizer, &PrpOptions::default()).unwrap();
        let text = prompt.text(QUERY, PASSAGES[0], Some(PASSAGES[1])).unwrap();
        let found = prompt.scored(QUERY, PASSAGES[0], PASSAGES[1]).unwrap();
        for (letter, answer) in ["A", "B"].iter().zip(&found.answers) {
            let ids = [found.ids.clone(), answer.clone()].concat();
            let whole = tokenizer.decode(&ids, true).unwrap();
            assert!(whole.ends_with(&format!("Passage {letter}")), "{whole}");
            assert!(text.contains("Output Passage A or Passage B:"));
        }
    }
}

#[test]
fn prp_generation_answers_every_question() {
    let small = small("llama");
    let options = PrpOptions {
        mode: PrpMode::Generation,
        passage_tokens: 12,
        ..PrpOptions::default()
    };
    let mut model = model(&small, options);
    let mut query = model.query(QUERY, &PASSAGES).unwrap();
    assert_eq!(query.answer(&questions()).unwrap().len(), 12);
}

#[test]
fn prp_cuts_long_passages_and_refuses_what_cannot_be_asked() {
    let small = small("llama");
    let options = PrpOptions {
        passage_tokens: 3,
        ..PrpOptions::default()
    };
    let prompt = PrpPrompt::new(&small.1, &options).unwrap();
    let cut = prompt.cut(PASSAGES[3]).unwrap();
    assert!(cut.len() < PASSAGES[3].len() && PASSAGES[3].starts_with(cut));
    assert!(small.1.encode(cut, false).unwrap().len() <= 3);
    let options = PrpOptions {
        passage_tokens: 0,
        ..PrpOptions::default()
    };
    assert!(PrpPrompt::new(&small.1, &options).is_err());
}

/// Log-odds of whole texts by transformers.
#[test]
fn prp_log_odds_are_those_of_transformers() {
    let text = std::fs::read_to_string(fixture("rankers.json")).unwrap();
    let golden: serde_json::Value = serde_json::from_str(&text).unwrap();
    for case in golden["pairwise"].as_array().unwrap() {
        let name = case["model"].as_str().unwrap();
        let small = small(name);
        let options = PrpOptions {
            chat: Some(false),
            ..PrpOptions::default()
        };
        let mut model = model(&small, options);
        let passages = case["passages"].as_array().unwrap();
        let passages: Vec<&str> = passages.iter().map(|p| p.as_str().unwrap()).collect();
        let rows = case["log_odds"].as_array().unwrap();
        let number = |row: &serde_json::Value, i: usize| row[i].as_f64().unwrap();
        let questions: Vec<(usize, usize)> = rows
            .iter()
            .map(|row| (number(row, 0) as usize, number(row, 1) as usize))
            .collect();
        let mut query = model
            .query(case["query"].as_str().unwrap(), &passages)
            .unwrap();
        let found = query.log_odds(&questions).unwrap();
        for (row, found) in rows.iter().zip(found) {
            let expected = number(row, 2);
            assert!((found - expected).abs() < 1e-3, "{name} {row}: {found}");
        }
    }
}
