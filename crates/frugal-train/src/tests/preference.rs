//! Direct preference optimisation on a tiny decoder.

use frugal_nn::{Input, NoAdapter, Rows, to_vec};

use super::*;
use crate::objective;

/// Two answers to each prompt: one counts on, the other does not.
fn preferences(count: u32) -> Vec<Tokenized> {
    let example = |j: u32| {
        let prompt: Vec<u32> = (0..4).map(|i| (3 * i + 7 * j + 1) % 64).collect();
        let better: Vec<u32> = (4..8).map(|i| (3 * i + 7 * j + 1) % 64).collect();
        let worse: Vec<u32> = (0..3).map(|i| (5 * i * i + 11 * j + 2) % 64).collect();
        let (mut input_ids, mut targets) = (Vec::new(), Vec::new());
        for answer in [&better, &worse] {
            let ids = [prompt.as_slice(), answer.as_slice()].concat();
            let next = |i: usize| match i + 1 < ids.len() && i + 1 >= prompt.len() {
                true => ids[i + 1] as i32,
                false => IGNORE_INDEX,
            };
            targets.extend((0..ids.len()).map(next));
            input_ids.extend(&ids);
        }
        let labels = Target::Preference {
            targets,
            chosen: prompt.len() + better.len(),
        };
        Tokenized {
            input_ids,
            token_type_ids: vec![],
            labels,
        }
    };
    (0..count).map(example).collect()
}

fn dpo(settings: &str) -> TrainConfig {
    TrainConfig {
        lr: 0.01,
        lr_scheduler_type: Scheduler::Constant,
        warmup_ratio: 0.0,
        max_steps: 12,
        batch_size: 3,
        logging_steps: 1,
        objective: Named {
            name: "dpo".into(),
            settings: serde_json::from_str(settings).unwrap(),
        },
        ..TrainConfig::default()
    }
}

/// Log-probabilities of both answers in double precision from the logits, and the tokens of the first.
fn by_hand(
    backbone: &dyn Backbone,
    adapter: Option<&dyn Adapter>,
    example: &Tokenized,
) -> ([f64; 2], usize) {
    let Target::Preference { targets, chosen } = &example.labels else {
        unreachable!("only preferences are made")
    };
    let mut found = [0.0; 2];
    let mut tokens = 0;
    for (answer, part) in [0..*chosen, *chosen..targets.len()].into_iter().enumerate() {
        let ids = &example.input_ids[part.clone()];
        let mut own: Box<dyn Pass + '_> = match adapter {
            Some(adapter) => adapter.pass(Mode::Eval),
            None => Box::new(NoAdapter),
        };
        let hidden = backbone
            .forward(&Input::new(ids, &[ids.len()]), own.as_mut(), None)
            .unwrap();
        let logits = to_vec(backbone.logits(hidden, Rows::Tokens, own.as_mut()).unwrap());
        for (row, target) in logits.chunks(logits.len() / ids.len()).zip(&targets[part]) {
            if *target == IGNORE_INDEX {
                continue;
            }
            let sum: f64 = row.iter().map(|v| f64::from(*v).exp()).sum();
            found[answer] += f64::from(row[*target as usize]) - sum.ln();
            tokens += usize::from(answer == 0);
        }
    }
    (found, tokens)
}

#[test]
fn the_model_without_its_adapter_is_the_reference_and_margins_grow_from_ln_2() {
    let (backbone, data) = (backbone("llama"), preferences(9));
    for (settings, beta, alpha) in [
        ("{}", 0.1, 0.0),
        (r#"{"beta": 0.4, "rpo_alpha": 0.5}"#, 0.4, 0.5),
    ] {
        let config = dpo(settings);
        let objective = objective::made(&config.objective, &config).unwrap();
        let mut setup = Setup::new(&*backbone, lora(&*backbone, 0.0), &data, config);
        let measured = |adapter: &dyn Adapter| {
            let stop = AtomicBool::new(false);
            let found = evaluate(
                &*backbone,
                Some(adapter),
                objective.as_ref(),
                &data,
                64,
                &stop,
            );
            let found = found.unwrap().unwrap();
            let metric = |name: &str| found.metrics[name];
            [metric("loss"), metric("reward_margin"), metric("accuracy")]
        };
        let expected = |adapter: &dyn Adapter| {
            let (mut loss, mut margins, mut right) = (0.0, 0.0, 0.0);
            for example in &data {
                let ([better, worse], tokens) = by_hand(&*backbone, Some(adapter), example);
                let ([of_better, of_worse], _) = by_hand(&*backbone, None, example);
                let margin = beta * ((better - of_better) - (worse - of_worse));
                loss += (1.0 + (-margin).exp()).ln() - alpha * better / tokens as f64;
                margins += margin;
                right += f64::from(u8::from(margin > 0.0));
            }
            [loss, margins, right].map(|sum| sum / data.len() as f64)
        };
        let before = measured(setup.adapter.as_ref());
        if alpha == 0.0 {
            assert!(
                (before[0] - std::f64::consts::LN_2).abs() < 1e-6,
                "{before:?}"
            );
        }
        assert!(before[1].abs() < 1e-6, "{before:?}");
        setup.run().unwrap();
        // The step's loss is the mean over its pairs.
        let first = setup.losses()[0];
        assert!((first - before[0]).abs() < alpha + 1e-5, "{first}");
        let after = measured(setup.adapter.as_ref());
        for (found, expected) in after.iter().zip(expected(setup.adapter.as_ref())) {
            assert!(
                (found - expected).abs() < 1e-4,
                "{found} instead of {expected}"
            );
        }
        assert!(
            after[0] < before[0] - 0.01 && after[1] > 0.01,
            "{before:?} {after:?}"
        );
        assert!(after[2] > 0.8, "{after:?}");
    }
}

#[test]
fn data_of_the_other_kind_are_refused_with_what_to_do() {
    let backbone = backbone("llama");
    let run = |data: &[Tokenized], config: TrainConfig| {
        let mut setup = Setup::new(&*backbone, lora(&*backbone, 0.0), data, config);
        setup.run().unwrap_err().to_string()
    };
    let said = run(&counting(&[8, 9]), dpo("{}"));
    assert!(said.contains("prompt, chosen and rejected"), "{said}");
    let said = run(&preferences(2), TrainConfig::default());
    assert!(said.contains("train.objective.name=dpo"), "{said}");
    let said = run(
        &preferences(2),
        TrainConfig {
            label_smoothing: 0.1,
            ..dpo("{}")
        },
    );
    assert!(said.contains("label_smoothing"), "{said}");
    let said = run(&preferences(2), dpo(r#"{"beta": -1}"#));
    assert!(said.contains("`beta`"), "{said}");
}
