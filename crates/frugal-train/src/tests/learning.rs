use super::*;

/// All steps logged, one batch an epoch.
fn config() -> TrainConfig {
    TrainConfig {
        logging_steps: 1,
        warmup_ratio: 0.0,
        ..TrainConfig::default()
    }
}

#[test]
fn losses_and_gradient_norms_equal_those_of_transformers() {
    // Written by transformers 5.23.0 and torch 2.15.0: LlamaForCausalLM of fixtures/models/llama on
    // the examples of `counting`, cross-entropy summed over the targets and divided by their
    // number, clip_grad_norm_(1.0), AdamW(lr=0.01) with weight decay 0.1 on what
    // Trainer.get_decay_parameter_names gives, get_linear_schedule_with_warmup(1, 5).
    let expected = [
        (7.14102840423584, 14.030068397521973, 0.0),
        (7.14102840423584, 14.030068397521973, 0.01),
        (2.9682254791259766, 8.076250076293945, 0.0075),
        (1.4084868431091309, 3.7448747158050537, 0.005),
        (0.7792954444885254, 2.4408018589019775, 0.0025),
    ];
    let (backbone, data) = (backbone("llama"), counting(&[5, 9, 3, 7]));
    for (batch_size, gradient_accumulation_steps, packing) in
        [(4, 1, false), (1, 4, false), (3, 2, false), (1, 4, true)]
    {
        let config = TrainConfig {
            lr: 0.01,
            weight_decay: 0.1,
            max_steps: 5,
            warmup_steps: 1,
            batch_size,
            gradient_accumulation_steps,
            packing,
            max_tokens: 12,
            ..config()
        };
        let mut setup = Setup::new(&*backbone, full(&*backbone), &data, config);
        setup.run().unwrap();
        let steps = setup.events.iter().filter_map(|e| {
            if let Event::Step {
                loss,
                grad_norm,
                lr,
                ..
            } = e
            {
                Some((*loss, *grad_norm, *lr))
            } else {
                None
            }
        });
        let steps: Vec<_> = steps.collect();
        assert_eq!(steps.len(), expected.len());
        for (found, expected) in steps.iter().zip(&expected) {
            let close =
                |a: f64, b: f64, tolerance: f64| (a - b).abs() <= tolerance * b.abs().max(1.0);
            let equal = close(found.0, expected.0, 1e-4)
                && close(found.1, expected.1, 1e-4)
                && close(found.2, expected.2, 1e-12);
            assert!(
                equal,
                "batch {batch_size} x {gradient_accumulation_steps}: {found:?} instead of {expected:?}"
            );
        }
    }
}

#[test]
fn evaluation_equals_the_likelihood_of_the_reference_logits() {
    for name in ["llama", "gemma3_text"] {
        let bytes = std::fs::read(fixture("models").join(name).join("golden.safetensors")).unwrap();
        let golden = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        let (mut examples, mut expected, mut targets) = (Vec::new(), 0.0f64, 0);
        for sequence in 0..2 {
            let ids = golden.tensor(&format!("seq{sequence}.input_ids")).unwrap();
            let ids: Vec<u32> = ids
                .data()
                .as_chunks::<8>()
                .0
                .iter()
                .map(|b| i64::from_le_bytes(*b) as u32)
                .collect();
            let logits = golden.tensor(&format!("seq{sequence}.logits")).unwrap();
            let logits: Vec<f64> = logits
                .data()
                .as_chunks::<4>()
                .0
                .iter()
                .map(|b| f64::from(f32::from_le_bytes(*b)))
                .collect();
            let vocab = logits.len() / ids.len();
            for (row, &next) in logits.chunks(vocab).zip(&ids[1..]) {
                expected += row.iter().map(|x| x.exp()).sum::<f64>().ln() - row[next as usize];
                targets += 1;
            }
            let labels = ids[1..]
                .iter()
                .map(|&id| id as i32)
                .chain([IGNORE_INDEX])
                .collect();
            examples.push(Tokenized {
                input_ids: ids,
                token_type_ids: vec![],
                labels: Target::Tokens(labels),
            });
        }
        let expected = expected / f64::from(targets);
        let backbone = backbone(name);
        let lora = lora(&*backbone, 0.5);
        for (adapter, max_tokens) in [(None, 100), (None, 1), (Some(&*lora), 100)] {
            let stop = AtomicBool::new(false);
            let found = evaluate(
                &*backbone,
                adapter,
                &CausalLm::default(),
                &examples,
                max_tokens,
                &stop,
            )
            .unwrap()
            .unwrap();
            assert_eq!(found.targets, targets as usize);
            assert!(
                (found.metrics["loss"] - expected).abs() < 2e-5,
                "{name}: {} instead of {expected}",
                found.metrics["loss"]
            );
            assert!((found.metrics["perplexity"] - expected.exp()).abs() < 2e-4 * expected.exp());
        }
    }
}

#[test]
fn an_adapted_output_head_is_learned_through_its_logits() {
    // With the head adapted no plain weight exists; at its start the adapter changes nothing, so
    // the losses agree.
    let (backbone, data) = (backbone("llama"), counting(&[5, 9, 3, 7]));
    let with_targets = |targets: &str| {
        let lora = LoraConfig {
            target_modules: frugal_adapt::Names::Pattern(targets.into()),
            ..LoraConfig::default()
        };
        let adapter = Lora::new(lora, &context(&*backbone)).unwrap();
        let mut setup = Setup::new(
            &*backbone,
            Box::new(adapter),
            &data,
            TrainConfig {
                lr: 0.02,
                max_steps: 20,
                label_smoothing: 0.1,
                ..self::config()
            },
        );
        setup.run().unwrap();
        setup.losses()
    };
    let (head, query) = (with_targets("lm_head"), with_targets(".*q_proj"));
    assert!(
        (head[0] - query[0]).abs() < 1e-5,
        "{} and {}",
        head[0],
        query[0]
    );
    assert!(head[19] < 0.8 * head[0], "{head:?}");
}

#[test]
fn language_modelling_learns_a_pattern() {
    let (backbone, data) = (backbone("llama"), counting(&[12, 9, 10, 7, 8, 11, 6, 12]));
    let config = TrainConfig {
        lr: 0.02,
        epochs: 15.0,
        batch_size: 4,
        packing: true,
        max_tokens: 40,
        ..config()
    };
    let mut setup = Setup::new(&*backbone, lora(&*backbone, 0.0), &data, config);
    let outcome = setup.run().unwrap();
    let losses = setup.losses();
    assert_eq!(
        (outcome.ending, outcome.step),
        (StopReason::Finished, losses.len() as u64)
    );
    assert_eq!(outcome.tokens, 15 * 75);
    assert!(losses[losses.len() - 1] < 0.3 * losses[0], "{losses:?}");
}

#[test]
fn classification_learns_on_encoders_and_decoders() {
    for name in ["bert", "roberta", "llama"] {
        let (backbone, data) = (backbone(name), containing_nine(32));
        let config = TrainConfig {
            lr: 0.005,
            epochs: 40.0,
            metric_for_best_model: "accuracy".into(),
            ..config()
        };
        let mut setup = Setup::new(&*backbone, lora(&*backbone, 0.0), &data, config);
        setup.head = Some(head(&*backbone, 2));
        setup.validation = Some(&data);
        let outcome = setup.run().unwrap();
        let evaluation = outcome.evaluation.unwrap();
        assert_eq!(evaluation.gold, (0..32).map(|j| j % 2).collect::<Vec<_>>());
        let right = evaluation
            .gold
            .iter()
            .zip(&evaluation.predicted)
            .filter(|(a, b)| a == b)
            .count();
        assert_eq!(evaluation.metrics["accuracy"], right as f64 / 32.0);
        assert!(
            outcome.best.unwrap().value >= 0.9,
            "{name}: {:?}",
            setup.losses()
        );
    }
}

#[test]
fn hooks_and_the_auxiliary_loss_count_once_a_step() {
    let (backbone, data) = (backbone("llama"), counting(&[5, 9, 3, 7]));
    let run = |batch_size, gradient_accumulation_steps, hooked: bool| {
        let calls: Arc<Mutex<Vec<_>>> = Arc::default();
        let inner = lora(&*backbone, 0.0);
        let square: f64 = inner
            .parameters()
            .iter()
            .flat_map(|p| p.to_vec())
            .map(|x| f64::from(x).powi(2))
            .sum();
        let adapter = if hooked {
            Box::new(Hooked {
                inner,
                calls: calls.clone(),
            })
        } else {
            inner
        };
        let config = TrainConfig {
            batch_size,
            gradient_accumulation_steps,
            max_steps: 2,
            ..config()
        };
        let mut setup = Setup::new(&*backbone, adapter, &data, config);
        setup.run().unwrap();
        let calls = calls.lock().unwrap().clone();
        (setup.losses(), square, calls)
    };
    let (plain, square, _) = run(4, 1, false);
    for (batch_size, steps) in [(4, 1), (1, 4)] {
        let (losses, _, calls) = run(batch_size, steps, true);
        assert!(
            (losses[0] - plain[0] - square).abs() < 1e-4 * square,
            "{} = {} + {square}",
            losses[0],
            plain[0]
        );
        assert_eq!(
            calls,
            [("before", 0), ("after", 1), ("before", 1), ("after", 2)]
        );
    }
}

#[test]
fn the_backbone_stays_as_it_was() {
    let (backbone, data) = (backbone("llama"), counting(&[5, 9, 3, 7]));
    let stop = AtomicBool::new(false);
    let before = evaluate(&*backbone, None, &CausalLm::default(), &data, 100, &stop).unwrap();
    Setup::new(
        &*backbone,
        lora(&*backbone, 0.0),
        &data,
        TrainConfig {
            lr: 0.1,
            ..config()
        },
    )
    .run()
    .unwrap();
    assert_eq!(
        evaluate(&*backbone, None, &CausalLm::default(), &data, 100, &stop).unwrap(),
        before
    );
}

#[test]
fn the_run_stops_when_evaluations_stop_improving() {
    let (backbone, data) = (backbone("llama"), counting(&[5, 9, 3, 7]));
    // At this rate no weight changes, so every evaluation equals the first.
    let config = TrainConfig {
        lr: 1e-30,
        epochs: 10.0,
        early_stopping_patience: 2,
        ..config()
    };
    let mut setup = Setup::new(&*backbone, lora(&*backbone, 0.0), &data, config);
    setup.validation = Some(&data);
    let outcome = setup.run().unwrap();
    assert_eq!(
        (outcome.ending, outcome.step, outcome.best.unwrap().step),
        (StopReason::EarlyStopped, 3, 1)
    );
    assert_eq!(
        setup.events.last(),
        Some(&Event::EarlyStop {
            step: 3,
            evaluations: 2
        })
    );
}

#[test]
fn the_best_weights_come_back_in_memory() {
    let (backbone, data) = (backbone("llama"), counting(&[5, 9, 3, 7]));
    let mut opposite = data.clone();
    for example in &mut opposite {
        let Target::Tokens(targets) = &mut example.labels else {
            unreachable!()
        };
        targets
            .iter_mut()
            .filter(|t| **t != IGNORE_INDEX)
            .for_each(|t| *t = 63 - *t);
    }
    let run = |load_best_model_at_end, max_steps| {
        let config = TrainConfig {
            lr: 0.05,
            lr_scheduler_type: Scheduler::Constant,
            max_steps,
            load_best_model_at_end,
            ..config()
        };
        let mut setup = Setup::new(&*backbone, lora(&*backbone, 0.0), &data, config);
        setup.validation = Some(&opposite);
        (setup.run().unwrap(), setup.bits())
    };
    let (best, restored) = run(true, 6);
    let step = best.best.unwrap().step;
    assert!(
        best.restored_best && step < 6,
        "the weights must get worse on the opposite of what they learn"
    );
    assert_eq!(restored, run(false, step).1);
}

#[test]
fn what_cannot_work_is_refused_before_any_work() {
    let (backbone, bert, data) = (backbone("llama"), backbone("bert"), counting(&[5, 4]));
    let refused = |change: &dyn Fn(&mut Setup<'_>)| {
        let mut setup = Setup::new(&*backbone, lora(&*backbone, 0.0), &data, config());
        change(&mut setup);
        let error = setup.run().unwrap_err().to_string();
        assert!(setup.events.is_empty());
        error
    };
    let says = |change: &dyn Fn(&mut Setup<'_>), parts: &[&str]| {
        let error = refused(change);
        assert!(parts.iter().all(|part| error.contains(part)), "{error}");
    };
    says(
        &|s| (s.config.lr, s.config.batch_size) = (-1.0, 0),
        &["`lr`: -1", "`batch_size`: 0"],
    );
    says(&|s| s.train = &[], &["training data has no example"]);
    says(
        &|s| s.validation = Some(&[]),
        &["evaluation data has no example"],
    );
    says(
        &|s| s.head = Some(head(s.backbone, 2)),
        &["training example 0", "needs a class"],
    );
    says(
        &|s| s.config.early_stopping_patience = 1,
        &["early_stopping_patience", "validation"],
    );
    says(
        &|s| (s.validation, s.config.metric_for_best_model) = (Some(s.train), "f1".into()),
        &["`f1`", "perplexity, loss"],
    );
    let classes = containing_nine(3);
    let adapter = || lora(&*bert, 0.0);
    let mut setup = Setup::new(&*bert, adapter(), &data, config());
    assert!(
        setup
            .run()
            .unwrap_err()
            .to_string()
            .contains("`bert` models have no language-model head")
    );
    let mut setup = Setup::new(&*bert, adapter(), &classes, config());
    setup.head = Some(head(&*bert, 1));
    assert_eq!(
        setup.run().unwrap_err().to_string(),
        "training example 1: class 1, but the head has 1 labels"
    );
    let mut foreign = data.clone();
    foreign[1].input_ids[2] = 64;
    let mut setup = Setup::new(&*backbone, lora(&*backbone, 0.0), &foreign, config());
    assert!(
        setup
            .run()
            .unwrap_err()
            .to_string()
            .contains("training example 1: token id 64 is outside the vocabulary of 64")
    );
}
