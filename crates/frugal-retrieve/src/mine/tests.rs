use serde_json::Value;

use super::*;

fn number(case: &Value, key: &str) -> Option<f64> {
    case[key].as_f64()
}

fn options(case: &Value) -> MineOptions {
    let count = |key: &str| case[key].as_u64().map(|n| n as usize);
    MineOptions {
        number: count("num_negatives").unwrap_or(3),
        range_min: count("range_min").unwrap_or(0),
        range_max: count("range_max"),
        max_score: number(case, "max_score"),
        min_score: number(case, "min_score"),
        absolute_margin: number(case, "absolute_margin"),
        relative_margin: number(case, "relative_margin"),
        random: None,
    }
}

/// Written by `scripts/golden/hard_negatives.py`.
fn fixture() -> Value {
    let path = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../../fixtures/retrieval/hard_negatives.json"
    );
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

fn matrix(value: &Value) -> Vec<Vec<f64>> {
    serde_json::from_value(value.clone()).unwrap()
}

#[test]
fn negatives_are_those_of_sentence_transformers() {
    let fixture = fixture();
    let scores = matrix(&fixture["scores"]);
    let rescored = matrix(&fixture["cross_encoder_scores"]);
    let positives: Vec<Vec<usize>> = serde_json::from_value(fixture["positives"].clone()).unwrap();
    let max_positives = positives.iter().map(Vec::len).max().unwrap();
    let cases = fixture["cases"].as_array().unwrap();
    assert!(cases.len() >= 10);
    for case in cases {
        let options = options(&case["options"]);
        let cross = case["cross_encoder"].as_bool().unwrap();
        let last = options.last_rank(max_positives, cross);
        options.validate(max_positives, cross).unwrap();
        let mut triplets: Vec<[usize; 3]> = Vec::new();
        for (query, row) in scores.iter().enumerate() {
            let mut order: Vec<usize> = (0..row.len()).collect();
            order.sort_by(|a, b| row[*b].total_cmp(&row[*a]));
            order.truncate(last + max_positives);
            let judged = if cross { &rescored[query] } else { row };
            let candidates: Vec<Candidate> = order
                .iter()
                .map(|&document| Candidate {
                    score: judged[document],
                    positive: positives[query].contains(&document),
                })
                .collect();
            let of_positives = positives[query].iter().map(|&p| judged[p]);
            let lowest = of_positives.reduce(f64::min);
            let (found, _) = options.select(&candidates, lowest, last, query as u64);
            for positive in &positives[query] {
                triplets.extend(found.iter().map(|&place| [query, *positive, order[place]]));
            }
        }
        let expected: Vec<[usize; 3]> = serde_json::from_value(case["triplets"].clone()).unwrap();
        assert_eq!(triplets, expected, "{}", case["options"]);
    }
}

fn ranked(scores: &[f64]) -> Vec<Candidate> {
    let candidate = |score: &f64| Candidate {
        score: *score,
        positive: false,
    };
    scores.iter().map(candidate).collect()
}

#[test]
fn drawn_negatives_lie_in_the_range_and_depend_on_seed_and_query_alone() {
    let candidates = ranked(
        &(0..30)
            .map(|i| 1.0 - f64::from(i) / 100.0)
            .collect::<Vec<_>>(),
    );
    let options = MineOptions {
        number: 3,
        range_min: 5,
        range_max: Some(20),
        random: Some(1),
        ..MineOptions::default()
    };
    let draw = |options: &MineOptions, query| options.select(&candidates, None, 20, query).0;
    let first = draw(&options, 0);
    assert_eq!(first, draw(&options, 0));
    assert!(first.is_sorted(), "the best first");
    let other = MineOptions {
        random: Some(2),
        ..options
    };
    let mut seen = std::collections::BTreeSet::new();
    for query in 0..50 {
        let found = draw(&options, query);
        assert_eq!(found.len(), 3);
        assert!(
            found.iter().all(|place| (5..20).contains(place)),
            "{found:?}"
        );
        seen.extend(found);
    }
    assert_eq!(
        seen.len(),
        15,
        "every rank of the range is drawn at some time"
    );
    assert!((0..50).any(|query| draw(&options, query) != draw(&other, query)));
}

#[test]
fn too_few_candidates_are_all_taken() {
    let options = MineOptions {
        number: 3,
        random: Some(0),
        ..MineOptions::default()
    };
    assert_eq!(options.select(&ranked(&[0.5, 0.4]), None, 4, 0).0, [0, 1]);
    assert!(options.select(&[], None, 4, 0).0.is_empty());
}

#[test]
fn options_that_choose_nothing_are_named() {
    let good = MineOptions {
        number: 3,
        ..MineOptions::default()
    };
    good.validate(1, false).unwrap();
    for (options, expected) in [
        (MineOptions { number: 0, ..good }, "at least 1"),
        (
            MineOptions {
                range_min: 5,
                range_max: Some(7),
                ..good
            },
            "ranks 6 to 7",
        ),
        (
            MineOptions {
                absolute_margin: Some(-0.1),
                ..good
            },
            "absolute_margin is -0.1",
        ),
        (
            MineOptions {
                max_score: Some(f64::NAN),
                ..good
            },
            "max_score",
        ),
    ] {
        let error = options.validate(1, false).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
}
