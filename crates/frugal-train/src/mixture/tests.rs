use std::collections::BTreeMap;

use frugal_core::pretext::{CLASSES, Special, special_names};

use super::*;
use crate::named::Named;
use crate::source::ExampleSource;
use crate::{Target, Tokenized};

/// The numbers of the formula in double precision, computed apart.
#[test]
fn rewards_are_those_of_the_formula() {
    for (old, new, wanted) in [
        (4.5, 4.2, 0.951797),
        (0.6, 0.5207, 0.953504),
        (3.0, 2.9, 0.0807207),
        (3.0, 3.1, -0.0834577),
        (3.0, 2.99, 8.1964e-5),
        (2.0, 1.0, 1.0),
        (1.0, 2.0, -1.0),
        (2.5, 2.5, 0.0),
        (f64::NAN, 1.0, 0.0),
        (0.0, 0.0, 0.0),
    ] {
        let found = reward(old, new);
        let error = (found - wanted).abs();
        assert!(
            error <= 1e-5 * wanted.abs().max(1e-4),
            "{old} to {new}: {found}, not {wanted}"
        );
    }
}

#[test]
fn another_arm_like_its_class_leaves_the_totals() {
    let (rewards, classes) = ([0.5, -0.25, 0.125], [0, 1, 0]);
    let totals = class_totals(&rewards, &classes);
    assert_eq!(totals, [0.3125, -0.25]);
    let more = class_totals(&[0.5, -0.25, 0.125, -0.25, -0.25], &[0, 1, 0, 1, 1]);
    assert_eq!(more, totals);
    // As the score of a candidate counts it.
    let score = |rewards: &[f64], classes: &[usize]| -> f64 {
        let weights = class_weights(classes);
        rewards.iter().zip(weights).map(|(r, w)| r * w).sum()
    };
    let doubled = score(&[0.5, -0.25, 0.125, -0.25], &[0, 1, 0, 1]);
    assert!((doubled - score(&rewards, &classes)).abs() < 1e-15);
}

#[test]
fn evaluations_are_those_of_the_paper() {
    let schedule = ControllerConfig::default().schedule();
    let due: Vec<u64> = (0..=5000).filter(|step| schedule.is_due(*step)).collect();
    assert_eq!(
        due,
        [0, 10, 50, 250, 500, 1000, 1500, 2000, 3000, 4000, 5000]
    );
    assert!(!schedule.decides(249) && schedule.decides(250));
}

fn small() -> ControllerConfig {
    ControllerConfig {
        uniform_steps: 2,
        evaluations: vec![1, 2, 3, 4],
        evaluation_interval: 1,
        candidates: 64,
        top_candidates: 4,
        fit_steps: 20,
        reward_layers: 2,
        reward_width: 8,
        reward_lr: 5e-3,
    }
}

#[test]
fn an_action_is_a_distribution_and_uniform_at_first() {
    let classes = vec![0, 0, 1, 2, 2, 2];
    let mut controller = Controller::new(small(), classes.clone(), 3);
    let uniform = vec![1.0 / 6.0; 6];
    assert_eq!(controller.action(), uniform);
    assert!(controller.measured(0, &[4.0; 6]).is_empty());
    controller.measured(1, &[3.9, 3.8, 3.0, 4.0, 4.1, 3.5]);
    assert_eq!(controller.action(), uniform, "too early to decide");
    for step in 2..6 {
        let rewards = controller.measured(step, &[3.5, 3.5, 2.8, f64::NAN, 3.9, 3.4]);
        assert_eq!(rewards.len(), 3);
        let action = controller.action();
        let sum: f64 = action.iter().map(|share| f64::from(*share)).sum();
        assert!((sum - 1.0).abs() < 1e-6 && action.iter().all(|share| *share >= 0.0));
        assert_ne!(action, uniform);
    }
}

/// Arms of which one pays by its own share and the others never: in the end it has more than its share.
#[test]
fn what_pays_is_drawn_more_often() {
    let arms = 4;
    let config = ControllerConfig {
        candidates: 256,
        fit_steps: 60,
        uniform_steps: 2,
        ..small()
    };
    let mut mean = 0.0;
    for seed in 0..3 {
        let mut controller = Controller::new(config.clone(), (0..arms).collect(), seed);
        let mut losses = vec![4.0; arms];
        controller.measured(0, &losses);
        for step in 1..14 {
            // The more it is drawn, the more it learns; the others forget alike.
            losses[1] *= 1.0 - 0.12 * f64::from(controller.action()[1]);
            for arm in [0, 2, 3] {
                losses[arm] *= 1.01;
            }
            controller.measured(step, &losses);
            if step >= 10 {
                mean += f64::from(controller.action()[1]) / 12.0;
            }
        }
    }
    assert!(mean > 0.3, "{mean} on average, of 0.25");
}

#[test]
fn the_reward_model_learns_what_it_saw_and_steps_from_its_state() {
    let history: Vec<reward_model::Evaluated> = (0..6)
        .map(|i| reward_model::Evaluated {
            losses: vec![4.0 - 0.3 * i as f32, 3.0, 2.0 + 0.1 * i as f32],
            action: vec![0.2 + 0.1 * (i % 3) as f32, 0.5, 0.3 - 0.1 * (i % 3) as f32],
            rewards: vec![0.5, -0.25, if i % 2 == 0 { 0.8 } else { -0.8 }],
        })
        .collect();
    let mut model = RewardModel::new(3, [2, 16], 1e-2, 1);
    // The way out begins as 0, so that nothing is foretold.
    let first = model.predict(&history, &[2.5, 3.0, 2.5], &[vec![0.3, 0.5, 0.2]]);
    assert_eq!(first, [[0.0; 3]]);
    let before = model.fit(&history, 1);
    let after = model.fit(&history, 400);
    assert!(after < 0.1 * before, "{before} to {after}");
    // A candidate behind five evaluations is the sixth of six.
    let last = &history[5];
    let stepped = model.predict(
        &history[..5],
        &last.losses,
        std::slice::from_ref(&last.action),
    );
    for (found, wanted) in stepped[0].iter().zip(&last.rewards) {
        assert!((found - wanted).abs() < 0.4, "{found}, not {wanted}");
    }
}

fn special() -> Special {
    let names = special_names(64);
    let id = |name: &str| Some(500 + names.iter().position(|n| n == name)? as u32);
    Special::find(64, id).unwrap()
}

fn stream(length: usize) -> Vec<u32> {
    (0..length as u32)
        .map(|i| (i * 7919 + i / 3) % 499)
        .collect()
}

fn mixture(kind: MixtureKind, config: &MixtureConfig) -> Mixture {
    let (train, validation) = (stream(3000), stream(800));
    let text = MixtureText {
        train: &train,
        validation: &validation,
        max_length: 64,
        max_tokens: 256,
        micro_batches: 2,
    };
    Mixture::new(kind, config, special(), &text, 5).unwrap()
}

fn class_of(example: &Tokenized) -> &'static str {
    let special = special();
    let found = CLASSES.iter().zip(&special.classes);
    let mut of = found.filter(|(_, id)| example.input_ids.contains(id));
    of.next().unwrap().0.name
}

#[test]
fn shares_are_those_of_the_mixture() {
    let count = |kind, config: &MixtureConfig| {
        let mut mixture = mixture(kind, config);
        let mut counts: BTreeMap<&str, f64> = BTreeMap::new();
        let mut all = 0.0;
        for _ in 0..60 {
            for batch in mixture.step() {
                let tokens: usize = batch.iter().map(Tokenized::len).sum();
                assert!(tokens <= 256, "{tokens}");
                for example in batch {
                    assert!(example.len() <= 64);
                    *counts.entry(class_of(&example)).or_default() += 1.0;
                    all += 1.0;
                }
            }
        }
        counts.values_mut().for_each(|count| *count /= all);
        counts
    };
    let plain = MixtureConfig::default();
    assert_eq!(
        count(MixtureKind::Ntp, &plain),
        [("next_token", 1.0)].into()
    );
    let ul2 = count(MixtureKind::Ul2, &plain);
    for (name, share) in [("next_token", 0.6), ("prefix_lm", 0.2), ("infilling", 0.2)] {
        assert!((ul2[name] - share).abs() < 0.06, "{ul2:?}");
    }
    let all = count(MixtureKind::Fixed, &plain);
    assert_eq!(all.len(), 7);
    assert!((all["infilling"] - 0.375).abs() < 0.06, "{all:?}");
    let given = MixtureConfig {
        weights: [("copying".to_owned(), 3.0), ("prefix_lm".to_owned(), 1.0)].into(),
        ..plain
    };
    let given = count(MixtureKind::Fixed, &given);
    assert!(
        given.len() == 2 && (given["copying"] - 0.75).abs() < 0.08,
        "{given:?}"
    );
}

#[test]
fn a_restored_mixture_makes_the_same_examples() {
    let config = MixtureConfig {
        controller: small(),
        eval_samples: 1,
        ..MixtureConfig::default()
    };
    let losses = |step: u64| -> Vec<f64> {
        (0..96)
            .map(|arm| 5.0 - 0.1 * step as f64 + 0.01 * ((arm * 7 + step as usize) % 11) as f64)
            .collect()
    };
    let go = |mixture: &mut Mixture, steps: std::ops::Range<u64>| {
        let mut made = Vec::new();
        for step in steps {
            if mixture.is_due(step) {
                mixture.measured(step, &losses(step));
            }
            made.push(mixture.step());
        }
        made
    };
    let mut whole = mixture(MixtureKind::Birdie, &config);
    let first = go(&mut whole, 0..4);
    let state = whole.state();
    let rest = go(&mut whole, 4..7);
    let mut again = mixture(MixtureKind::Birdie, &config);
    again.restore(&state).unwrap();
    assert_eq!(again.state(), state);
    assert_eq!(go(&mut again, 4..7), rest);
    assert_eq!(again.state(), whole.state());
    assert_ne!(first[3], rest[0]);
    for (name, values) in [
        ("drawn", vec![0.5; 4]),
        ("action", vec![1.0]),
        ("reward_model.steps", vec![]),
    ] {
        let mut broken = state.clone();
        broken.insert(name.into(), values);
        assert!(again.restore(&broken).unwrap_err().contains(name));
    }
}

#[test]
fn targets_are_behind_the_separator_alone() {
    let mut mixture = mixture(MixtureKind::Fixed, &MixtureConfig::default());
    for example in mixture.step().concat() {
        let Target::Tokens(targets) = &example.labels else {
            panic!()
        };
        let generate = mixture.generate();
        let prefix = frugal_core::pretext::prefix_length(&example.input_ids, generate);
        assert!(targets[..prefix].iter().all(|t| *t < 0));
        assert!(targets[prefix..].iter().all(|t| *t >= 0));
    }
}

#[test]
fn settings_that_do_not_fit_are_named() {
    let read = |text: &str| {
        let named: Named = serde_json::from_str(text).unwrap();
        MixtureConfig::read(&named)
    };
    let (kind, config) =
        read(r#"{"name": "birdie", "candidates": 16, "eval_samples": 2}"#).unwrap();
    assert_eq!(kind, MixtureKind::Birdie);
    assert_eq!((config.controller.candidates, config.eval_samples), (16, 2));
    for (text, key) in [
        (r#"{"name": "birdy"}"#, "name"),
        (r#"{"name": "birdie", "candidate": 3}"#, "candidate"),
        (r#"{"name": "birdie", "candidates": 0}"#, "candidates"),
        (
            r#"{"name": "birdie", "top_candidates": 4096}"#,
            "top_candidates",
        ),
        (r#"{"name": "birdie", "length_scale": -1}"#, "length_scale"),
        (
            r#"{"name": "birdie", "weights": {"copying": 1}}"#,
            "weights",
        ),
        (r#"{"name": "mixture", "weights": {"copy": 1}}"#, "weights"),
        (
            r#"{"name": "mixture", "weights": {"copying": -1}}"#,
            "weights",
        ),
        (r#"{"name": "ntp", "classes": ["copying"]}"#, "classes"),
        (r#"{"name": "birdie", "reward_lr": 0}"#, "reward_lr"),
    ] {
        let (found, reason) = read(text).unwrap_err();
        assert_eq!(found, key, "{reason}");
    }
    let text = MixtureText {
        train: &[],
        validation: &[1, 2],
        max_length: 64,
        max_tokens: 64,
        micro_batches: 1,
    };
    let config = MixtureConfig::default();
    let error = Mixture::new(MixtureKind::Fixed, &config, special(), &text, 0)
        .err()
        .unwrap();
    assert!(
        error.contains("infilling") && error.contains("64"),
        "{error}"
    );
}

/// They were read, checked and never looked at.
#[test]
fn settings_of_the_controller_did_nothing_in_other_mixtures() {
    let config = serde_json::to_value(ControllerConfig::default()).unwrap();
    let mut settings = config.as_object().unwrap().clone();
    settings.insert("eval_samples".into(), 4.into());
    assert_eq!(settings.len(), 10);
    for (name, kind, _) in MIXTURES {
        for (key, value) in &settings {
            let named = Named {
                name: (*name).into(),
                settings: [(key.clone(), value.clone())].into_iter().collect(),
            };
            let found = MixtureConfig::read(&named);
            if *kind == MixtureKind::Birdie {
                assert!(found.is_ok(), "{key}: {found:?}");
                continue;
            }
            let (at, reason) = found.unwrap_err();
            assert_eq!(at, *key);
            assert!(
                reason.contains("`birdie`") && reason.contains(&format!("`{name}`")),
                "{reason}"
            );
        }
    }
}
