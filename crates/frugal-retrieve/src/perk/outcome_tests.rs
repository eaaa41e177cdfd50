//! What meta-training leaves when it cannot go on.

use super::tests::{config, llama, tokenizer};
use super::*;

fn task(a: &str, b: &str) -> Task {
    Task {
        context: vec![format!("the boat is {a}"), format!("the coat is {b}")],
        questions: vec![Question {
            question: "the boat?".into(),
            answer: a.into(),
            support: Vec::new(),
        }],
    }
}

/// The error of learning at a rate for so many steps, the steps that were seen, and the state.
fn learn(lr: f64, max_steps: u64) -> (String, Vec<MetaStep>, PerkState) {
    let backbone = llama();
    let tokenizer = tokenizer();
    let texts = Texts::new(&tokenizer, 512).unwrap();
    let tasks = [task("red", "old"), task("old", "red"), task("new", "red")];
    let mut state = PerkState::new(config(4), &*backbone, 1).unwrap();
    let settings = MetaTrainConfig {
        lr,
        max_steps,
        warmup_ratio: 0.0,
        ..MetaTrainConfig::default()
    };
    let mut seen = Vec::new();
    let found = meta_train(
        &*backbone,
        &texts,
        &mut state,
        &tasks,
        &settings,
        &mut |step, _| {
            seen.push(step);
            true
        },
    );
    let error = found.map_or_else(|error| error.to_string(), |_| String::new());
    (error, seen, state)
}

#[test]
fn perk_a_rate_that_is_too_high_was_called_an_inner_one() {
    let (error, seen, state) = learn(1e30, 12);
    assert!(
        error.contains("(`lr`)") && !error.contains("inner_lr"),
        "{error}"
    );
    assert_eq!(seen.len(), 1);
    // Taken back: what gave the one finite loss is where learning began.
    let fresh = PerkState::new(config(4), &*llama(), 1).unwrap();
    assert_eq!(state.fast.values, fresh.fast.values);
    assert_eq!(state.rates, fresh.rates);
}

#[test]
fn perk_a_last_step_without_a_finite_result_was_no_error() {
    let (error, seen, state) = learn(1e300, 1);
    assert!(
        error.contains("what the update makes") && error.contains("(`lr`)"),
        "{error}"
    );
    assert!(seen.len() == 1 && state.is_finite());
}
