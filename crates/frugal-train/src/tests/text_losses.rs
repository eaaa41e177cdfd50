use super::*;
use crate::objective::{Objective, made};

/// One loss of sentence-transformers over vectors.
#[derive(serde::Deserialize)]
struct OfVectors {
    name: String,
    objective: Value,
    texts: usize,
    dimension: usize,
    vectors: Vec<f32>,
    scores: Vec<Vec<f32>>,
    loss: f64,
    gradient: Vec<f32>,
}

/// One over the scores of lists.
#[derive(serde::Deserialize)]
struct OfLists {
    name: String,
    objective: Value,
    labels: Vec<Vec<f32>>,
    scores: Vec<f32>,
    loss: f64,
    gradient: Vec<f32>,
}

fn cases<T: serde::de::DeserializeOwned>(key: &str) -> Vec<T> {
    let file = read_json(&fixture("training/losses.json")).unwrap();
    serde_json::from_value(file[key].clone()).unwrap()
}

fn objective(settings: &Value) -> Box<dyn Objective> {
    let named: Named = serde_json::from_value(settings.clone()).unwrap();
    made(&named, &TrainConfig::default()).unwrap()
}

/// Value and gradient of a loss over a matrix.
fn slope(
    values: &[f32],
    shape: [usize; 2],
    loss: impl FnOnce(Tensor<2>) -> Tensor<1>,
) -> (f64, Vec<f32>) {
    let data = TensorData::new(values.to_vec(), shape);
    let x = Tensor::<2>::from_data(data, &Device::flex().autodiff()).require_grad();
    let loss = loss(x.clone());
    let value = frugal_nn::to_vec(loss.clone().inner())[0];
    let gradient = x.grad(&loss.backward()).unwrap();
    (f64::from(value), frugal_nn::to_vec(gradient))
}

fn compare(name: &str, found: (f64, Vec<f32>), targets: f64, loss: f64, gradient: &[f32]) {
    let value = found.0 / targets;
    assert!(
        (value - loss).abs() < 1e-5 * loss.abs().max(1.0),
        "{name}: {value} instead of {loss}"
    );
    assert_eq!(found.1.len(), gradient.len(), "{name}");
    for (found, expected) in found.1.iter().zip(gradient) {
        let found = found / targets as f32;
        assert!(
            (found - expected).abs() < 1e-5 * expected.abs().max(1.0),
            "{name}: {found} instead of {expected}"
        );
    }
}

#[test]
fn losses_of_vectors_and_their_gradients_equal_those_of_sentence_transformers() {
    let cases: Vec<OfVectors> = cases("embedding");
    assert_eq!(cases.len(), 14);
    for case in cases {
        let count = case.vectors.len() / case.texts / case.dimension;
        let examples: Vec<Tokenized> = (0..count)
            .map(|i| Tokenized {
                input_ids: (0..case.texts)
                    .map(|t| (i * case.texts + t) as u32)
                    .collect(),
                token_type_ids: vec![],
                labels: Target::Texts {
                    lengths: vec![1; case.texts],
                    scores: case.scores.get(i).cloned().unwrap_or_default(),
                },
            })
            .collect();
        let objective = objective(&case.objective);
        let examples: Vec<&Tokenized> = examples.iter().collect();
        let shape = [count * case.texts, case.dimension];
        let found = slope(&case.vectors, shape, |x| {
            objective.loss_of_outputs(&examples, x).unwrap()
        });
        let name = format!("{}: {}", objective.name(), case.name);
        compare(&name, found, count as f64, case.loss, &case.gradient);
    }
}

#[test]
fn losses_of_lists_and_their_gradients_equal_those_of_sentence_transformers() {
    let bert = backbone("bert");
    let model = objective::ModelParts::new(&*bert, None);
    let cases: Vec<OfLists> = cases("reranking");
    assert_eq!(cases.len(), 12);
    for case in cases {
        let objective = objective(&case.objective);
        let examples: Vec<Tokenized> = case
            .labels
            .iter()
            .map(|labels| Tokenized {
                input_ids: vec![1; labels.len()],
                token_type_ids: vec![],
                labels: Target::Texts {
                    lengths: vec![1; labels.len()],
                    scores: labels.clone(),
                },
            })
            .collect();
        let targets: f64 = examples
            .iter()
            .map(|e| objective.num_targets(model, e))
            .sum();
        let examples: Vec<&Tokenized> = examples.iter().collect();
        let found = slope(&case.scores, [case.scores.len(), 1], |x| {
            objective.loss_of_outputs(&examples, x).unwrap()
        });
        let name = format!("{}: {}", objective.name(), case.name);
        compare(&name, found, targets, case.loss, &case.gradient);
    }
}

/// Pairs of texts that share their first tokens, with a negative each.
fn triples(count: u32) -> Vec<Tokenized> {
    let triple = |i: u32| {
        let at = |k: u32| 3 + (7 * i + 5 * k) % 60;
        Tokenized {
            input_ids: vec![at(0), at(1), at(2), at(0), at(1), at(3), at(4), at(5)],
            token_type_ids: vec![],
            labels: Target::Texts {
                lengths: vec![3, 3, 2],
                scores: vec![],
            },
        }
    };
    (0..count).map(triple).collect()
}

/// The first step's loss and gradients' norm, and the values after three steps.
fn steps(objective: &str, dropout: f64) -> (Vec<[f64; 2]>, Vec<f32>) {
    let bert = backbone("bert");
    let data = triples(24);
    let config = TrainConfig {
        lr: 1e-3,
        batch_size: 24,
        max_steps: 3,
        logging_steps: 1,
        max_grad_norm: 0.0,
        optim: "sgd".into(),
        objective: serde_json::from_str(objective).unwrap(),
        ..TrainConfig::default()
    };
    let mut setup = Setup::new(&*bert, lora(&*bert, dropout), &data, config);
    setup.run().unwrap();
    let found = setup.events.iter().filter_map(|event| match event {
        Event::Step {
            loss, grad_norm, ..
        } => Some([*loss, *grad_norm]),
        _ => None,
    });
    let values = setup
        .adapter
        .parameters()
        .into_iter()
        .flat_map(Parameter::to_vec);
    (found.collect(), values.collect())
}

#[test]
fn gradients_of_a_large_batch_in_parts_are_those_of_the_whole_batch() {
    for extra in ["", r#", "matryoshka_dims": [16, 8]"#] {
        let whole = steps(&format!(r#"{{"name": "info_nce"{extra}}}"#), 0.0);
        for size in [1, 5, 23] {
            let settings = format!(r#"{{"name": "info_nce", "mini_batch_size": {size}{extra}}}"#);
            let parts = steps(&settings, 0.0);
            for (a, b) in whole.0.iter().flatten().zip(parts.0.iter().flatten()) {
                assert!(
                    (a - b).abs() < 1e-5 * a.abs().max(1.0),
                    "{size}: {b}, not {a}"
                );
            }
            let apart = whole.1.iter().zip(&parts.1).map(|(a, b)| (a - b).abs());
            assert!(apart.fold(0.0, f32::max) < 1e-5, "{size}");
        }
    }
    // With dropout the second pass of a part is the same as the first: the loss goes down.
    let settings = r#"{"name": "info_nce", "mini_batch_size": 5}"#;
    assert!(
        steps(settings, 0.3)
            .0
            .iter()
            .flatten()
            .all(|x| x.is_finite())
    );
}

#[test]
fn a_text_that_comes_twice_is_no_negative_of_itself() {
    let pair = |a: u32, b: u32| Tokenized {
        input_ids: vec![a, b],
        token_type_ids: vec![],
        labels: Target::Texts {
            lengths: vec![1, 1],
            scores: vec![],
        },
    };
    let of = |pairs: &[Tokenized], settings: &str| {
        let objective = objective(&serde_json::from_str(settings).unwrap());
        let examples: Vec<&Tokenized> = pairs.iter().collect();
        let vectors = [1.0, 0.0, 0.6, 0.8, 0.0, 1.0, 0.6, 0.8];
        slope(&vectors, [4, 2], |x| {
            objective.loss_of_outputs(&examples, x).unwrap()
        })
        .0
    };
    let plain = r#"{"name": "info_nce", "mask_duplicates": false}"#;
    let masked = r#"{"name": "info_nce"}"#;
    // Two anchors with one and the same positive: without each other's copy nothing is left to tell.
    let twice = [pair(1, 2), pair(3, 2)];
    assert!((of(&twice, plain) - 2.0 * 2.0_f64.ln()).abs() < 1e-5);
    assert!(of(&twice, masked).abs() < 1e-6);
    // One anchor with two positives.
    assert!(of(&[pair(1, 2), pair(1, 4)], masked).abs() < 1e-6);
    let apart = [pair(1, 2), pair(3, 4)];
    assert_eq!(of(&apart, masked), of(&apart, plain));
}

#[test]
fn texts_that_an_objective_cannot_learn_are_refused_with_what_would_do() {
    let bert = backbone("bert");
    let refused =
        |settings: &str, lengths: Vec<usize>, scores: Vec<f32>, outputs: usize, batch: usize| {
            let count: usize = lengths.iter().sum();
            let example = Tokenized {
                input_ids: vec![5; count],
                token_type_ids: vec![],
                labels: Target::Texts { lengths, scores },
            };
            let data = vec![example; 4];
            let config = TrainConfig {
                batch_size: batch,
                objective: serde_json::from_str(settings).unwrap(),
                ..TrainConfig::default()
            };
            let mut setup = Setup::new(&*bert, lora(&*bert, 0.0), &data, config);
            setup.head = (outputs > 0).then(|| head(&*bert, outputs));
            setup.run().unwrap_err().to_string()
        };
    for (settings, lengths, scores, outputs, batch, said) in [
        (
            r#""triplet""#,
            vec![1, 1],
            vec![],
            0,
            4,
            "`info_nce` takes the other examples",
        ),
        (
            r#""info_nce""#,
            vec![1, 1],
            vec![0.5],
            0,
            4,
            "take `cosent`",
        ),
        (
            r#""info_nce""#,
            vec![1, 1],
            vec![],
            0,
            1,
            "at least 2 of them",
        ),
        (
            r#""info_nce""#,
            vec![1, 1],
            vec![],
            2,
            4,
            "no use for a head",
        ),
        (r#""cosent""#, vec![1, 1], vec![], 0, 4, "it has no `score`"),
        (
            r#""margin_mse""#,
            vec![1, 1, 1],
            vec![],
            0,
            4,
            "it has 0 scores",
        ),
        (
            r#""kl_distill""#,
            vec![1, 1, 1],
            vec![1.0],
            0,
            4,
            "needs one of a teacher for each of the 2 texts",
        ),
        (
            r#""list_net""#,
            vec![1, 1],
            vec![1.0, 0.0],
            0,
            4,
            "needs a head with one output",
        ),
        (
            r#""pairwise""#,
            vec![1],
            vec![1.0],
            1,
            4,
            "`bce` learns from single ones",
        ),
        (
            r#""bce""#,
            vec![1, 1],
            vec![1.0, 3.0],
            1,
            4,
            "the label 3 is not between 0 and 1",
        ),
        (
            r#""bce""#,
            vec![1, 1],
            vec![1.0, f32::NAN],
            1,
            4,
            "a label is no number",
        ),
        (
            r#"{"name": "info_nce", "matryoshka_dims": [4096]}"#,
            vec![1, 1],
            vec![],
            0,
            4,
            "4096 given, but the vectors have",
        ),
        (
            r#"{"name": "info_nce", "matryoshka_dim": [8]}"#,
            vec![1, 1],
            vec![],
            0,
            4,
            "matryoshka_dim",
        ),
        (
            r#"{"name": "info_nce", "scale": 5, "temperature": 2}"#,
            vec![1, 1],
            vec![],
            0,
            4,
            "give one of them",
        ),
        (
            r#"{"name": "info_nce", "scale": 0}"#,
            vec![1, 1],
            vec![],
            0,
            4,
            "must be positive",
        ),
    ] {
        let error = refused(settings, lengths, scores, outputs, batch);
        assert!(error.contains(said), "{settings}: {error}");
    }
}

#[test]
fn an_encoder_learns_to_find_what_belongs_together() {
    let bert = backbone("bert");
    let data = triples(16);
    let config = TrainConfig {
        lr: 0.01,
        batch_size: 8,
        epochs: 8.0,
        objective: "multiple_negatives_ranking".into(),
        metric_for_best_model: "mrr@10".into(),
        ..TrainConfig::default()
    };
    let mut setup = Setup::new(&*bert, full(&*bert), &data, config);
    setup.validation = Some(data.as_slice());
    setup.run().unwrap();
    let found: Vec<f64> = setup
        .events
        .iter()
        .filter_map(|event| match event {
            Event::Evaluated { metrics, .. } => Some(metrics["mrr@10"]),
            _ => None,
        })
        .collect();
    assert!(found.last().unwrap() > &0.9, "{found:?}");
}
