//! Mixture-of-Recursions beyond what its own crate tests: gradients of every weight, how it trains,
//! and files.

use std::sync::atomic::AtomicBool;

use burn::prelude::*;
use burn::tensor::activation::log_softmax;
use frugal::adapt::full::{Full, FullConfig};
use frugal::adapt::{Adapter, Mode, NoAdapter, Pass, Rows, merge, to_vec};
use frugal::model::load::{SafetensorsSource, read_json};
use frugal::model::save::write_model;
use frugal::model::{Backbone, Input, ModelConfig, WeightSource, build, random_weights};
use frugal::train::{Event, Target, Tokenized, TrainConfig, TrainRun, train};
use frugal_formats::gguf::gguf_metadata;
use serde_json::{Value, json};

use crate::support::{Golden, context, device, fixture, max_difference};

const CASES: [&str; 8] = [
    "models/mor",
    "mor/expert",
    "mor/expert-tanh-mlp",
    "mor/expert-kv",
    "mor/token",
    "mor/token-free-kv",
    "mor/recursive",
    "mor/recursive-kv",
];

fn model(case: &str) -> std::sync::Arc<dyn Backbone> {
    let folder = fixture(case);
    let raw = read_json(&folder.join("config.json")).unwrap();
    let config = ModelConfig::from_json(raw, case).unwrap();
    build(
        config,
        &SafetensorsSource::open(&folder).unwrap(),
        &device(),
    )
    .unwrap()
}

/// The mean over the next tokens of both sequences, and what the routers add to it.
fn loss(backbone: &dyn Backbone, pass: &mut dyn Pass, golden: &Golden) -> Tensor<1> {
    let sequences = [0, 1].map(|s| golden.input_ids(s));
    let lengths = sequences.map(<[u32]>::len);
    let ids = sequences.concat();
    let hidden = backbone
        .forward(&Input::new(&ids, &lengths), pass, None)
        .unwrap();
    let logits = backbone.logits(hidden, Rows::Tokens, pass).unwrap();
    let (mut total, mut start) = (Tensor::<1>::zeros([1], &device()), 0);
    for ids in sequences {
        let next: Vec<i64> = ids[1..].iter().map(|&id| i64::from(id)).collect();
        let count = next.len();
        let index = Tensor::<2, Int>::from_data(TensorData::new(next, [count, 1]), &device());
        let own = logits.clone().narrow(0, start, count);
        total = total - log_softmax(own, 1).gather(1, index).sum();
        start += ids.len();
    }
    let mean = total / (ids.len() - sequences.len()) as f32;
    match pass.auxiliary_loss() {
        Some(term) => mean + term,
        None => mean,
    }
}

#[test]
fn the_loss_and_the_gradient_of_every_weight_match_pytorch() {
    for case in CASES {
        let backbone = model(case);
        let golden = Golden::read(&fixture(case).join("golden.safetensors"));
        let full = Full::new(FullConfig {}, &context(backbone.as_ref(), 1)).unwrap();
        let mut pass = full.pass(Mode::Train { seed: 0 });
        let loss = loss(backbone.as_ref(), pass.as_mut(), &golden);
        let (found, wanted): (f32, f32) =
            (loss.clone().into_scalar(), golden.float("loss").unwrap()[0]);
        assert!(
            (found - wanted).abs() < 1e-4 * wanted,
            "{case}: {found}, not {wanted}"
        );
        let mut gradients = loss.backward();
        for parameter in full.parameters() {
            let name = parameter.name();
            let found = parameter.take_gradient(&mut gradients).map(to_vec);
            let Some((shape, wanted)) = golden.floats.get(&format!("grad.{name}")) else {
                let zero = found.is_none_or(|g| g.iter().all(|g| *g == 0.0));
                assert!(zero, "{case}: {name} has no gradient in PyTorch");
                continue;
            };
            assert_eq!(parameter.shape(), shape, "{case}: {name}");
            let found = found.unwrap_or_else(|| vec![0.0; wanted.len()]);
            let size = wanted.iter().fold(0.0f32, |m, g| m.max(g.abs()));
            let worst = max_difference(&found, wanted);
            assert!(
                worst <= 2e-4 * size + 1e-7,
                "{case}: {name}: {worst:e} of {size:e}"
            );
        }
    }
}

/// In use the pass of an adapter chooses as the bare model does: by each token's own score.
#[test]
fn what_is_evaluated_is_what_is_used() {
    for case in CASES {
        let backbone = model(case);
        let golden = Golden::read(&fixture(case).join("golden.safetensors"));
        let full = Full::new(FullConfig {}, &context(backbone.as_ref(), 1)).unwrap();
        let mut pass = full.pass(Mode::Eval);
        let evaluated = to_vec(loss(backbone.as_ref(), pass.as_mut(), &golden));
        let used = to_vec(loss(backbone.as_ref(), &mut NoAdapter, &golden));
        assert!(max_difference(&evaluated, &used) < 1e-5, "{case}");
    }
}

fn data() -> Vec<Tokenized> {
    let text = |i: u32| {
        let input_ids: Vec<u32> = (0..20)
            .map(|j| 5 + (i * 3 + j * (1 + i % 2)) % 40)
            .collect();
        let next = input_ids[1..].iter().map(|&id| id as i32);
        Tokenized {
            labels: Target::Tokens(next.chain([-100]).collect()),
            token_type_ids: vec![],
            input_ids,
        }
    };
    (0..12).map(text).collect()
}

fn fresh(more: Value) -> ModelConfig {
    let mut raw = json!({"model_type": "mor", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 5,
        "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 64, "initializer_range": 0.05,
        "tie_word_embeddings": true, "num_recursion": 3});
    raw.as_object_mut()
        .unwrap()
        .extend(more.as_object().unwrap().clone());
    ModelConfig::from_json(raw, "test").unwrap()
}

/// Trained weights and the losses of the steps.
fn trained(config: ModelConfig, epochs: f64) -> (Full, Vec<f64>, std::sync::Arc<dyn Backbone>) {
    let weights = random_weights(&config, 4, &device());
    let backbone = build(config, &weights, &device()).unwrap();
    let mut full = Full::new(FullConfig {}, &context(backbone.as_ref(), 0)).unwrap();
    let train_config = TrainConfig {
        lr: 1e-2,
        epochs,
        batch_size: 6,
        logging_steps: 1,
        warmup_ratio: 0.0,
        load_best_model_at_end: false,
        ..TrainConfig::default()
    };
    let mut losses = Vec::new();
    let mut observer = |event: &Event| {
        if let Event::Step { loss, .. } = event {
            losses.push(*loss);
        }
    };
    train(TrainRun {
        backbone: backbone.as_ref(),
        adapter: &mut full,
        head: None,
        train: &data(),
        validation: None,
        config: &train_config,
        folder: None,
        resume: false,
        stop: &AtomicBool::new(false),
        observer: &mut observer,
    })
    .unwrap();
    (full, losses, backbone)
}

#[test]
fn every_kind_of_router_learns() {
    for more in [
        json!({}),
        json!({"sampling": "aux_router"}),
        json!({"kv_sharing": true}),
        json!({"mor_type": "token_choice"}),
        json!({"mor_type": "none"}),
    ] {
        let (_, losses, _) = trained(fresh(more.clone()), 20.0);
        let (first, last) = (losses[0], losses[losses.len() - 1]);
        assert!(last < 0.6 * first, "{more}: {losses:?}");
    }
}

/// What the loss of an expert-choice router is for: a token's own score says whether it would have
/// been among the highest.
#[test]
fn scores_learn_who_is_taken() {
    let agreement = |coef: f64| {
        let (full, _, backbone) = trained(fresh(json!({"mor_aux_loss_coef": coef})), 20.0);
        let merged = merge::weights(backbone.as_ref(), Some(&full as &dyn Adapter)).unwrap();
        let model = merged.build(&device()).unwrap();
        let mut rows = Rowed::default();
        let texts = data();
        let ids: Vec<u32> = texts.iter().flat_map(|t| t.input_ids.clone()).collect();
        let lengths = vec![20; texts.len()];
        let input = Input::new(&ids, &lengths);
        model.forward(&input, &mut rows, None).unwrap();
        let all = ids.len() as f64;
        // Steps 2 and 3 take 13 and 6 of 20 in training.
        let share = |step: usize| rows.0.get(step).map_or(0.0, |n| *n as f64 / all);
        (share(1) - 0.65).abs() + (share(2) - 0.3).abs()
    };
    let (with, without) = (agreement(1.0), agreement(0.0));
    assert!(
        with < 0.2 && with < without,
        "{with} with, {without} without"
    );
}

/// Rows of the shared layer, step by step.
#[derive(Default)]
struct Rowed(Vec<usize>);

impl Pass for Rowed {
    fn after_block(&mut self, layer: usize, hidden_states: &Tensor<2>) {
        if (1..4).contains(&layer) {
            self.0.push(hidden_states.dims()[0]);
        }
    }
}

/// Algorithm 1 of arXiv 2408.15664: the bias moves by the rate at every step, up where less than the
/// mean was taken, and is not trained otherwise.
#[test]
fn the_bias_of_a_choice_follows_the_load() {
    let own = json!({"mor_type": "token_choice", "balancing": "loss_free", "router_bias_update_rate": 0.25});
    let (full, losses, _) = trained(fresh(own), 0.5);
    assert_eq!(losses.len(), 1);
    let parameters = full.parameters();
    let bias = parameters.iter().find(|p| p.name() == "model.router_bias");
    let mut moved = bias.unwrap().to_vec();
    moved.sort_by(f32::total_cmp);
    assert!(
        moved.iter().all(|b| [-0.25, 0.0, 0.25].contains(b)),
        "{moved:?}"
    );
    assert!(moved[0] == -0.25 && moved[2] == 0.25, "{moved:?}");
}

#[test]
fn files_hold_a_shared_layer_once_and_read_back() {
    for case in CASES {
        let backbone = model(case);
        let weights = merge::weights(backbone.as_ref(), None).unwrap();
        let folder = tempfile::tempdir().unwrap();
        write_model(
            folder.path(),
            &weights.config,
            &weights.tensors,
            Default::default(),
        )
        .unwrap();
        let original = SafetensorsSource::open(&fixture(case)).unwrap();
        let written = SafetensorsSource::open(folder.path()).unwrap();
        let sorted = |source: &SafetensorsSource| {
            let mut names = source.names();
            names.sort();
            names
        };
        assert_eq!(sorted(&written), sorted(&original), "{case}");
        for name in original.names() {
            let shape = original.shape(&name).unwrap();
            let [found, expected] = [&written, &original]
                .map(|source| frugal::model::read_values(source, &name, &shape).unwrap());
            assert_eq!(found, expected, "{case}: {name}");
        }
    }
    let error = gguf_metadata(
        &model("models/mor").info().raw,
        "tiny",
        frugal_formats::gguf::GgmlType::F32,
    );
    let error = error.unwrap_err().to_string();
    assert!(error.contains("mor"), "{error}");
}
