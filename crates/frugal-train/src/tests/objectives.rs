use super::*;
use crate::objective::{Forward, Metric, MicroBatch};

#[derive(serde::Deserialize)]
struct Case {
    model: String,
    problem: String,
    problem_type: String,
    input_ids: Vec<Vec<u32>>,
    labels: Value,
    weights: Option<Vec<f64>>,
    head: BTreeMap<String, Vec<f32>>,
    /// Loss and gradient norm of each.
    steps: Vec<[f64; 2]>,
}

impl Case {
    fn targets(&self) -> Vec<Target> {
        let numbers = |row: &Value| -> Vec<f32> {
            match row.as_array() {
                Some(row) => row.iter().map(|x| x.as_f64().unwrap() as f32).collect(),
                None => vec![row.as_f64().unwrap() as f32],
            }
        };
        let target = |row: &Value| match self.problem_type.as_str() {
            "regression" => Target::Values(numbers(row)),
            "multi_label_classification" => {
                let row = numbers(row);
                Target::Classes((0..row.len()).filter(|&i| row[i] == 1.0).collect())
            }
            _ => Target::Class(row.as_u64().unwrap() as usize),
        };
        self.labels.as_array().unwrap().iter().map(target).collect()
    }

    fn examples(&self) -> Vec<Tokenized> {
        let both = self.input_ids.iter().zip(self.targets());
        both.map(|(ids, labels)| Tokenized {
            input_ids: ids.clone(),
            token_type_ids: vec![],
            labels,
        })
        .collect()
    }

    fn config(&self) -> TrainConfig {
        let mut objective = Named::from(self.problem_type.as_str());
        if let Some(weights) = &self.weights {
            let named: Map<String, Value> = weights
                .iter()
                .enumerate()
                .map(|(i, w)| (i.to_string(), (*w).into()))
                .collect();
            let key = if self.problem_type.starts_with("multi") {
                "pos_weight"
            } else {
                "class_weights"
            };
            objective.settings.insert(key.into(), named.into());
        }
        TrainConfig {
            lr: 0.001,
            lr_scheduler_type: Scheduler::Constant,
            warmup_ratio: 0.0,
            max_steps: 3,
            logging_steps: 1,
            label_smoothing: if self.problem.ends_with("smoothed") {
                0.1
            } else {
                0.0
            },
            objective,
            ..TrainConfig::default()
        }
    }
}

#[test]
fn losses_of_numbers_and_of_several_labels_equal_those_of_transformers() {
    let file = read_json(&fixture("training/objectives.json")).unwrap();
    let cases: Vec<Case> = serde_json::from_value(file["cases"].clone()).unwrap();
    assert_eq!(cases.len(), 9);
    for case in cases {
        let (backbone, data) = (backbone(&case.model), case.examples());
        let outputs = case.head.values().map(Vec::len).max().unwrap() / backbone.info().hidden_size;
        for batch_size in [4, 3] {
            let config = TrainConfig {
                batch_size,
                gradient_accumulation_steps: 4usize.div_ceil(batch_size),
                ..case.config()
            };
            let mut setup = Setup::new(&*backbone, full(&*backbone), &data, config);
            let mut head = head(&*backbone, outputs);
            for parameter in head.parameters_mut() {
                let values = case.head[parameter.name()].clone();
                parameter.set(values);
            }
            setup.head = Some(head);
            setup.run().unwrap();
            let found: Vec<[f64; 2]> = setup
                .events
                .iter()
                .filter_map(|e| match e {
                    Event::Step {
                        loss, grad_norm, ..
                    } => Some([*loss, *grad_norm]),
                    _ => None,
                })
                .collect();
            let name = format!("{} with {}", case.model, case.problem);
            assert_eq!(found.len(), case.steps.len(), "{name}");
            for (found, expected) in found.iter().flatten().zip(case.steps.iter().flatten()) {
                assert!(
                    (found - expected).abs() < 2e-4 * expected.abs().max(1.0),
                    "{name}: {found} instead of {expected}"
                );
            }
        }
    }
}

/// Sequences whose number is the share of token 9, and whose label is whether there is any.
fn shares(count: usize) -> Vec<Tokenized> {
    let mut data = containing_nine(count);
    for example in &mut data {
        let nines = example.input_ids.iter().filter(|id| **id == 9).count();
        example.labels = Target::Values(vec![nines as f32]);
    }
    data
}

#[test]
fn regression_and_several_labels_are_learned_and_measured() {
    let bert = backbone("bert");
    let values = shares(32);
    let mut labels = values.clone();
    for example in &mut labels {
        example.labels = match &example.labels {
            Target::Values(values) if values[0] > 0.0 => Target::Classes(vec![0]),
            _ => Target::Classes(vec![]),
        };
    }
    for (objective, data, metric, larger) in [
        ("regression", &values, "pearson", true),
        ("regression", &values, "mse", false),
        ("multi_label_classification", &labels, "micro_f1", true),
    ] {
        let config = TrainConfig {
            lr: 0.01,
            epochs: 12.0,
            objective: objective.into(),
            metric_for_best_model: metric.into(),
            ..TrainConfig::default()
        };
        let mut setup = Setup::new(&*bert, full(&*bert), data, config);
        (setup.head, setup.validation) = (Some(head(&*bert, 1)), Some(data.as_slice()));
        let summary = setup.run().unwrap();
        let evaluations: Vec<f64> = setup
            .events
            .iter()
            .filter_map(|e| match e {
                Event::Evaluated { metrics, .. } => Some(metrics[metric]),
                _ => None,
            })
            .collect();
        let best = evaluations.iter().copied().fold(evaluations[0], |a, b| {
            if larger { a.max(b) } else { a.min(b) }
        });
        assert_eq!(summary.best.unwrap().value, best, "{evaluations:?}");
        assert!(best != evaluations[0], "{metric}: {evaluations:?}");
        if larger {
            assert!(best > 0.9, "{metric}: {evaluations:?}");
        }
    }
}

#[test]
fn labels_that_an_objective_cannot_learn_are_refused() {
    let bert = backbone("bert");
    let refused = |objective: &str, labels: Target, settings: Option<(&str, &str)>| {
        let mut data = containing_nine(2);
        data.iter_mut().for_each(|e| e.labels = labels.clone());
        let mut config = TrainConfig {
            objective: objective.into(),
            ..TrainConfig::default()
        };
        if let Some((key, value)) = settings {
            config.objective.settings.insert(key.into(), value.into());
        }
        let mut setup = Setup::new(&*bert, lora(&*bert, 0.0), &data, config);
        setup.head = Some(head(&*bert, 2));
        setup.run().unwrap_err().to_string()
    };
    let says = |error: String, part: &str| assert!(error.contains(part), "{error}");
    let values = |values: &[f32]| Target::Values(values.to_vec());
    says(
        refused("regression", values(&[1.0]), None),
        "training example 0: it has 1 numbers, but the head has 2 outputs",
    );
    says(
        refused("regression", values(&[1.0, f32::NAN]), None),
        "NaN is no number to learn",
    );
    says(
        refused("regression", Target::Class(0), None),
        "it has no number",
    );
    says(
        refused("multi_label", Target::Classes(vec![0, 2]), None),
        "label 2, but the head has 2 labels",
    );
    says(
        refused("multi_label", Target::Classes(vec![1, 1]), None),
        "comes twice",
    );
    says(
        refused("", Target::Classes(vec![1]), None),
        "it has no class of its own",
    );
    says(
        refused("ranking", Target::Class(0), None),
        "`objective`: \"ranking\" is no objective; there are causal_lm, classification, image_classification, multi_label, regression, token_classification, info_nce",
    );
    says(
        refused("", Target::Class(0), Some(("class_weights", "x=2"))),
        "a weight is given for the label \"x\", but the labels are 0, 1",
    );
    says(
        refused(
            "regression",
            values(&[1.0, 2.0]),
            Some(("class_weights", "balanced")),
        ),
        "class_weights",
    );
}

#[test]
fn settings_of_another_objective_were_refused_without_their_flag() {
    let made = |text: &str| {
        let named: Named = serde_json::from_str(text).unwrap();
        crate::objective::made(&named, &TrainConfig::default())
    };
    let refused = |text: &str| made(text).err().expect(text);
    for name in [
        "token_classification",
        "causal_lm",
        "regression",
        "info_nce",
        "bce",
    ] {
        let error = refused(&format!(
            r#"{{"name": "{name}", "class_weights": "balanced"}}"#
        ));
        for said in [
            name,
            "`--class-weights` (`class_weights`) has a part in `classification` and `image_classification` and `multi_label` alone: leave it out",
        ] {
            assert!(error.contains(said), "{name}: {error}");
        }
    }
    let error = refused(r#"{"name": "classification", "triplet_margin": 1.0}"#);
    assert!(
        error.contains("`triplet_margin` has a part in `triplet`"),
        "{error}"
    );
    let error = refused(r#"{"name": "classification", "colour": 1}"#);
    assert!(error.contains("leave `colour` out"), "{error}");
    assert!(made(r#"{"name": "classification", "class_weights": "balanced"}"#).is_ok());
}

/// Pulls the first and the second text of each example together: what a library user may write
/// without a change to the trainer.
struct Together;

impl Objective for Together {
    fn name(&self) -> &'static str {
        "together"
    }

    fn check_model(&self, _model: ModelParts<'_>) -> Result<(), String> {
        Ok(())
    }

    fn check_example(&self, _model: ModelParts<'_>, example: &Tokenized) -> Result<(), String> {
        match &example.labels {
            Target::Texts { lengths, .. } if lengths.len() == 2 => Ok(()),
            _ => Err("it is no pair".into()),
        }
    }

    fn num_targets(&self, _model: ModelParts<'_>, _example: &Tokenized) -> f64 {
        1.0
    }

    fn loss(
        &self,
        examples: &[&Tokenized],
        forward: &mut Forward<'_>,
    ) -> Result<Tensor<1>, frugal_nn::ModelError> {
        let (hidden, layout) = MicroBatch::new(examples).hidden_states(forward)?;
        let pooled = frugal_nn::mean_pool(hidden, &layout.cu_seqlens);
        let of = |first: usize| {
            let rows: Vec<usize> = (0..examples.len()).map(|i| 2 * i + first).collect();
            frugal_nn::select_rows(pooled.clone(), &rows)
        };
        Ok((of(0) - of(1)).powi_scalar(2).sum())
    }

    fn metrics(&self) -> &'static [Metric] {
        const METRICS: &[Metric] = &[Metric::smaller("loss")];
        METRICS
    }

    fn meter<'a>(&'a self, _model: ModelParts<'a>) -> Box<dyn crate::objective::Meter + 'a> {
        unreachable!("there are no validation data")
    }
}

#[test]
fn an_objective_over_pairs_of_texts_needs_no_other_trainer() {
    let bert = backbone("bert");
    let pair = |i: u32| Tokenized {
        input_ids: vec![i + 1, i + 2, i + 3, i + 20, i + 21],
        token_type_ids: vec![],
        labels: Target::Texts {
            lengths: vec![3, 2],
            scores: vec![],
        },
    };
    let data: Vec<Tokenized> = (0..8).map(pair).collect();
    let config = TrainConfig {
        lr: 0.01,
        epochs: 5.0,
        logging_steps: 1,
        ..TrainConfig::default()
    };
    let (mut adapter, stop) = (lora(&*bert, 0.0), AtomicBool::new(false));
    let mut losses = Vec::new();
    let run = TrainRun {
        backbone: &*bert,
        adapter: adapter.as_mut(),
        head: None,
        train: &data,
        validation: None,
        config: &config,
        folder: None,
        resume: false,
        stop: &stop,
        observer: &mut |event: &Event| {
            if let Event::Step { loss, .. } = event {
                losses.push(*loss);
            }
        },
    };
    train_with(run, Box::new(Together)).unwrap();
    assert!(losses[4] < 0.8 * losses[0], "{losses:?}");
}

#[test]
fn balanced_weights_follow_from_the_training_data() {
    let bert = backbone("bert");
    let head = head(&*bert, 2);
    let model = ModelParts::new(&*bert, Some(&head));
    let mut data = containing_nine(4);
    data.push(data[0].clone());
    // Three of class 0, two of class 1: n / (classes · n of the class), as scikit-learn has it.
    let settings = r#"{"name": "classification", "class_weights": "balanced"}"#;
    let config = TrainConfig {
        objective: serde_json::from_str(settings).unwrap(),
        ..TrainConfig::default()
    };
    let mut objective = crate::objective::for_model(&config, model).unwrap();
    objective.fit(model, &data).unwrap();
    let weights = [&data[0], &data[1]].map(|e| objective.num_targets(model, e));
    assert!((weights[0] - 5.0 / 6.0).abs() < 1e-6 && (weights[1] - 1.25).abs() < 1e-6);
}
