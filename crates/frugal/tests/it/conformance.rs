//! What every registered method must hold, on a decoder and an encoder. A method joins by its line
//! in the registry.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use burn::tensor::{Tensor, TensorData};
use frugal::adapt::Method;
use frugal::adapt::registry::METHODS;
use frugal::adapt::{
    AdaptError, Adapter, BuildContext, Fixed, Head, HeadConfig, LoadedAdapter, Mode, NoAdapter,
    Pass, Pooling, merge, peft, to_vec,
};
use frugal::model::{Backbone, Frozen, Input, SequenceLayout, StateOptions};
use frugal::train::{Event, Target, Tokenized, TrainConfig, TrainRun, train};
use serde_json::{Map, json};

use crate::support::{context, device, max_difference, model};

const MODELS: [&str; 2] = ["llama", "bert"];
const IDS: [u32; 9] = [3, 7, 1, 12, 30, 5, 9, 2, 60];

struct Setup {
    name: String,
    method: &'static Method,
    backbone: Arc<dyn Backbone>,
    adapter: Box<dyn Adapter>,
}

fn setups() -> impl Iterator<Item = Setup> {
    METHODS.iter().flat_map(|method| {
        models(method)
            .into_iter()
            .map(move |model| setup(method, model, 1))
    })
}

/// The models that have what the method acts on (biases, for one): every method has one at least.
fn models(method: &Method) -> Vec<&'static str> {
    let refused = |name: &&&str| {
        let backbone = model(name, "config.json");
        matches!(
            (method.build)(&settings(method), &context(backbone.as_ref(), 1)),
            Err(AdaptError::Unsupported { .. })
        )
    };
    let models: Vec<&str> = MODELS
        .iter()
        .filter(|name| !refused(name))
        .copied()
        .collect();
    assert!(!models.is_empty(), "{}", method.name);
    models
}

fn setup(method: &'static Method, model_name: &str, seed: u64) -> Setup {
    let backbone = model(model_name, "config.json");
    let context = context(backbone.as_ref(), seed);
    let adapter = (method.build)(&settings(method), &context)
        .unwrap_or_else(|e| panic!("{} on {model_name}: {e}", method.name));
    drop(context);
    Setup {
        name: format!("{} on {model_name}", method.name),
        method,
        adapter,
        backbone,
    }
}

/// The defaults, but for what the tiny models have no room for: sizes and lengths of pieces are at
/// most 8.
pub fn settings(method: &Method) -> Map<String, serde_json::Value> {
    let known = (method.defaults)();
    let few = |name: &str| name == "r" || name.ends_with("_size") || name.ends_with("_length");
    let pieces = known
        .iter()
        .filter(|(name, value)| few(name) && value.as_u64() > Some(8))
        .map(|(name, _)| (name.as_str(), json!(8)));
    let others = [
        ("num_virtual_tokens", json!(4)),
        ("n_frequency", json!(100)),
        ("init_vector_bank_bound", json!(0.2)),
        // The two tokens that tell the classes of the examples apart.
        ("token_indices", json!([10, 11])),
        // In place of folders of trained adapters.
        (
            "members",
            json!([{"bottleneck_dim": 4}, {"bottleneck_dim": 6}]),
        ),
    ];
    let others = others
        .into_iter()
        .filter(|(name, _)| known.contains_key(*name));
    pieces
        .chain(others)
        .map(|(name, value)| (name.to_owned(), value))
        .collect()
}

fn head(backbone: &dyn Backbone, seed: u64) -> Head {
    let config = HeadConfig {
        labels: vec!["no".into(), "yes".into()],
        pooling: Pooling::default_for(backbone.info()),
    };
    Head::new(config, backbone.info(), &device(), seed)
}

fn hidden(backbone: &dyn Backbone, adapter: Option<&dyn Adapter>) -> Vec<f32> {
    hidden_in(
        backbone,
        adapter.map_or_else(|| Box::new(NoAdapter) as _, |a| a.pass(Mode::Eval)),
    )
}

fn hidden_in(backbone: &dyn Backbone, mut pass: Box<dyn Pass + '_>) -> Vec<f32> {
    to_vec(
        backbone
            .forward(&Input::new(&IDS, &[4, 5]), pass.as_mut(), None)
            .unwrap(),
    )
}

/// Texts whose class is their first token.
fn examples() -> Vec<Tokenized> {
    let example = |i: u32| Tokenized {
        input_ids: (0..4 + i % 3)
            .map(|j| {
                if j == 0 {
                    10 + i % 2
                } else {
                    20 + (i * 7 + j * 3) % 30
                }
            })
            .collect(),
        token_type_ids: vec![],
        labels: Target::Class((i % 2) as usize),
    };
    (0..12).map(example).collect()
}

/// The method's own rate, raised for models without any training.
fn config(method: &Method) -> TrainConfig {
    // High rates bear less of it.
    let lr = (40.0 * method.default_lr).min((16.0 * method.default_lr).clamp(0.04, 0.1));
    TrainConfig {
        lr,
        batch_size: 4,
        epochs: 8.0,
        logging_steps: 1,
        warmup_ratio: 0.0,
        load_best_model_at_end: false,
        ..TrainConfig::default()
    }
}

/// Trains in place; the losses of all steps.
fn run(setup: &mut Setup, head: &mut Head, data: &[Tokenized], config: &TrainConfig) -> Vec<f64> {
    run_until(setup, head, data, config, None, u64::MAX)
}

/// The same with checkpoints in `folder`, continuing from there, and stopping after this step.
fn run_until(
    setup: &mut Setup,
    head: &mut Head,
    data: &[Tokenized],
    config: &TrainConfig,
    folder: Option<&std::path::Path>,
    last: u64,
) -> Vec<f64> {
    let (mut losses, stop) = (Vec::new(), AtomicBool::new(false));
    let mut observer = |event: &Event| {
        if let Event::Step { loss, step, .. } = event {
            losses.push(*loss);
            stop.store(*step >= last, std::sync::atomic::Ordering::Relaxed);
        }
    };
    train(TrainRun {
        backbone: setup.backbone.as_ref(),
        adapter: setup.adapter.as_mut(),
        head: Some(head),
        train: data,
        validation: None,
        config,
        folder,
        resume: folder.is_some(),
        stop: &stop,
        observer: &mut observer,
    })
    .unwrap_or_else(|e| panic!("{}: {e}", setup.name));
    losses
}

fn bits(adapter: &dyn Adapter) -> Vec<(String, Vec<u32>)> {
    adapter
        .parameters()
        .into_iter()
        .map(|p| {
            (
                p.name().to_owned(),
                p.to_vec().iter().map(|v| v.to_bits()).collect(),
            )
        })
        .collect()
}

fn base_bits(backbone: &dyn Backbone) -> Vec<u32> {
    let mut all = Vec::new();
    let mut add = |values: Vec<f32>| all.extend(values.iter().map(|v| v.to_bits()));
    backbone.visit_weights(&mut |part| match part {
        Frozen::Linear(l) => {
            add(to_vec(l.weight.dense()));
            l.bias.iter().for_each(|b| add(to_vec(b.clone())));
        }
        Frozen::Embedding(e) => add(to_vec(e.weight.dense())),
        Frozen::Norm(n) => {
            add(to_vec(n.weight.clone()));
            n.bias.iter().for_each(|b| add(to_vec(b.clone())));
        }
    });
    all
}

#[test]
fn names_of_methods_are_those_they_are_registered_under() {
    for setup in setups() {
        assert_eq!(setup.adapter.method(), setup.method.name);
        assert_eq!(
            setup.adapter.supports_mixed_batch(),
            setup.method.capabilities.mixed_batch,
            "{}",
            setup.name
        );
    }
}

#[test]
fn nothing_changes_before_training_where_promised() {
    for setup in setups() {
        let base = hidden(setup.backbone.as_ref(), None);
        let adapted = hidden(setup.backbone.as_ref(), Some(setup.adapter.as_ref()));
        let difference = max_difference(&base, &adapted);
        if setup.method.capabilities.identity_at_init {
            assert!(difference < 1e-5, "{}: {difference:e}", setup.name);
        } else {
            assert!(
                difference > 1e-3,
                "{}: it promises less than it does",
                setup.name
            );
        }
    }
}

#[test]
fn planning_without_a_model_counts_the_same_parameters() {
    for setup in setups() {
        let context = BuildContext {
            backbone: None,
            ..context(setup.backbone.as_ref(), 1)
        };
        let planned = (setup.method.build)(&settings(setup.method), &context).unwrap();
        let shapes = |a: &dyn Adapter| {
            a.parameters()
                .iter()
                .map(|p| (p.name().to_owned(), p.len(), p.is_trainable()))
                .collect::<Vec<_>>()
        };
        assert_eq!(
            shapes(planned.as_ref()),
            shapes(setup.adapter.as_ref()),
            "{}",
            setup.name
        );
    }
}

#[test]
fn training_learns_reaches_every_parameter_and_leaves_the_base_alone() {
    for mut setup in setups() {
        let mut head = head(setup.backbone.as_ref(), 1);
        let (base, before) = (
            base_bits(setup.backbone.as_ref()),
            bits(setup.adapter.as_ref()),
        );
        let config = config(setup.method);
        let losses = run(&mut setup, &mut head, &examples(), &config);
        assert!(
            losses[losses.len() - 1] < 0.9 * losses[0],
            "{}: {losses:?}",
            setup.name
        );
        assert_eq!(base, base_bits(setup.backbone.as_ref()), "{}", setup.name);
        let after = bits(setup.adapter.as_ref());
        for ((name, old), ((_, new), parameter)) in before
            .iter()
            .zip(after.iter().zip(setup.adapter.parameters()))
        {
            // Positions and segments that no example has, and keys' biases under softmax, get no
            // gradient by nature.
            let reached = old != new || name.contains("position") || name.contains("key.bias");
            assert_eq!(reached, parameter.is_trainable(), "{}: {name}", setup.name);
        }
    }
}

#[test]
fn merged_weights_compute_the_same_after_training() {
    for mut setup in setups() {
        let mut head = head(setup.backbone.as_ref(), 1);
        let config = config(setup.method);
        run(&mut setup, &mut head, &examples(), &config);
        let adapted = hidden(setup.backbone.as_ref(), Some(setup.adapter.as_ref()));
        // Weights that are kept from the first pass for the second.
        let fixed = Fixed::new(Some(setup.adapter.as_ref()));
        for _ in 0..2 {
            let difference =
                max_difference(&adapted, &hidden_in(setup.backbone.as_ref(), fixed.pass()));
            assert!(difference < 1e-4, "{}: {difference:e}", setup.name);
        }
        match merge::weights(setup.backbone.as_ref(), Some(setup.adapter.as_ref())) {
            Ok(weights) => {
                assert!(setup.method.capabilities.merge, "{}", setup.name);
                let merged = weights.build(&device()).unwrap();
                let difference = max_difference(&adapted, &hidden(merged.as_ref(), None));
                assert!(difference < 1e-4, "{}: {difference:e}", setup.name);
            }
            Err(error) => assert!(!setup.method.capabilities.merge, "{}: {error}", setup.name),
        }
    }
}

#[test]
fn files_keep_every_bit() {
    for mut setup in setups() {
        let mut head = head(setup.backbone.as_ref(), 1);
        let config = config(setup.method);
        run(&mut setup, &mut head, &examples(), &config);
        // Some methods keep less than they train, with the same effect.
        let trained = hidden(setup.backbone.as_ref(), Some(setup.adapter.as_ref()));
        let adapter = setup.adapter.to_inference().unwrap_or(setup.adapter);
        let difference = max_difference(
            &trained,
            &hidden(setup.backbone.as_ref(), Some(adapter.as_ref())),
        );
        assert!(difference < 1e-5, "{}: {difference:e}", setup.name);
        assert!(adapter.to_inference().is_none(), "{}", setup.name);
        let expected = bits(adapter.as_ref());
        let entry = LoadedAdapter {
            adapter,
            head: Some(head),
        };
        let dir = tempfile::tempdir().unwrap();
        peft::save(dir.path(), &entry, setup.backbone.info(), "base").unwrap();
        let (read, report) = peft::load(dir.path(), &context(setup.backbone.as_ref(), 9), false)
            .unwrap_or_else(|e| panic!("{}: {e}", setup.name));
        assert!(report.is_exact());
        assert_eq!(bits(read.adapter.as_ref()), expected, "{}", setup.name);
        let logits = |entry: &LoadedAdapter| {
            let mut pass = entry.adapter.pass(Mode::Eval);
            let hidden = setup
                .backbone
                .forward(&Input::new(&IDS, &[4, 5]), pass.as_mut(), None)
                .unwrap();
            let layout = SequenceLayout::new(&[4, 5]);
            to_vec::<2>(entry.head.as_ref().unwrap().forward(
                hidden,
                &layout,
                setup.backbone.as_ref(),
                pass.as_mut(),
                Mode::Eval,
            ))
        };
        assert_eq!(logits(&entry), logits(&read), "{}", setup.name);
    }
}

#[test]
fn an_interrupted_run_that_is_resumed_gives_the_same_bits() {
    for method in METHODS {
        let config = config(method);
        let trained = |stops: &[u64]| {
            let dir = tempfile::tempdir().unwrap();
            let mut state = Vec::new();
            for &last in stops {
                let mut setup = setup(method, models(method)[0], 1);
                let mut head = head(setup.backbone.as_ref(), 1);
                run_until(
                    &mut setup,
                    &mut head,
                    &examples(),
                    &config,
                    Some(dir.path()),
                    last,
                );
                let kept: Vec<(String, Vec<u32>)> = setup
                    .adapter
                    .state()
                    .into_iter()
                    .map(|(name, v)| (name, v.iter().map(|v| v.to_bits()).collect()))
                    .collect();
                state = [bits(setup.adapter.as_ref()), kept].concat();
            }
            state
        };
        assert_eq!(
            trained(&[u64::MAX]),
            trained(&[5, 14, u64::MAX]),
            "{}",
            method.name
        );
    }
}

#[test]
fn one_seed_gives_one_result_and_another_seed_another() {
    for method in METHODS {
        let result = |seed: u64| {
            let mut setup = setup(method, models(method)[0], seed);
            let mut head = head(setup.backbone.as_ref(), seed);
            run(
                &mut setup,
                &mut head,
                &examples(),
                &TrainConfig {
                    seed,
                    ..config(method)
                },
            );
            bits(setup.adapter.as_ref())
        };
        let first = result(5);
        assert_eq!(first, result(5), "{}", method.name);
        assert_ne!(first, result(6), "{}", method.name);
    }
}

#[test]
fn mixed_batches_equal_separate_ones_where_promised() {
    for mut setup in setups().filter(|s| s.method.capabilities.mixed_batch) {
        let mut head = head(setup.backbone.as_ref(), 1);
        let config = config(setup.method);
        run(&mut setup, &mut head, &examples(), &config);
        let alone = hidden(setup.backbone.as_ref(), Some(setup.adapter.as_ref()));
        let base = hidden(setup.backbone.as_ref(), None);
        let mut set = frugal::adapt::AdapterSet::default();
        set.insert(
            "a",
            LoadedAdapter {
                adapter: setup.adapter,
                head: None,
            },
        );
        let layout = SequenceLayout::new(&[4, 5]);
        let choice = frugal::adapt::ActiveAdapters::PerSequence(vec![Some("a".into()), None]);
        let mut pass = set.pass(&choice, &layout, Mode::Eval).unwrap();
        let mixed = to_vec::<2>(
            setup
                .backbone
                .forward(&Input::new(&IDS, &[4, 5]), pass.as_mut(), None)
                .unwrap(),
        );
        let split = 4 * setup.backbone.info().hidden_size;
        assert!(
            max_difference(&mixed[..split], &alone[..split]) < 1e-5,
            "{}",
            setup.name
        );
        assert!(
            max_difference(&mixed[split..], &base[split..]) < 1e-5,
            "{}",
            setup.name
        );
    }
}

#[test]
fn the_norm_of_a_sum_is_the_norm() {
    for mut setup in setups() {
        let mut head = head(setup.backbone.as_ref(), 1);
        let config = config(setup.method);
        run(&mut setup, &mut head, &examples(), &config);
        let d = setup.backbone.info().hidden_size;
        let terms = |shift: usize| {
            let values: Vec<f32> = (0..IDS.len() * d)
                .map(|i| ((i + shift) as f32 * 0.37).sin())
                .collect();
            Tensor::<2>::from_data(TensorData::new(values, [IDS.len(), d]), &device())
        };
        let mut norms = Vec::new();
        setup.backbone.visit_weights(&mut |part| {
            if let Frozen::Norm(norm) = part {
                norms.push(norm.clone());
            }
        });
        for norm in norms.iter().filter(|norm| norm.weight.dims() == [d]) {
            let [_, fused] = setup
                .adapter
                .pass(Mode::Eval)
                .add_norm(norm, terms(1), terms(2));
            let expected = setup
                .adapter
                .pass(Mode::Eval)
                .norm(norm, frugal_kernels::add(terms(1), terms(2)));
            assert_eq!(
                to_vec(fused),
                to_vec(expected),
                "{}: `norm` is changed and `norm_change` does not say so",
                setup.name
            );
        }
    }
}

#[test]
fn tokens_one_at_a_time_give_what_all_at_once_give() {
    for method in METHODS
        .iter()
        .filter(|method| models(method).contains(&"llama"))
    {
        let mut setup = setup(method, "llama", 1);
        let mut head = head(setup.backbone.as_ref(), 1);
        run(&mut setup, &mut head, &examples(), &config(method));
        let (ids, backbone) = (&IDS[..6], setup.backbone.as_ref());
        let mut pass = setup.adapter.pass(Mode::Eval);
        let whole = to_vec(
            backbone
                .forward(&Input::new(ids, &[ids.len()]), pass.as_mut(), None)
                .unwrap(),
        );
        let mut cache = backbone.new_state(1, StateOptions::default()).unwrap();
        let (fixed, mut single) = (Fixed::new(Some(setup.adapter.as_ref())), Vec::new());
        for id in ids {
            let layout = SequenceLayout::with_past(&[1], &cache.past());
            let input = Input::tokens(std::slice::from_ref(id), layout);
            let mut pass = fixed.pass();
            single.extend(to_vec(
                backbone
                    .forward(&input, pass.as_mut(), Some(&mut cache))
                    .unwrap(),
            ));
        }
        let difference = max_difference(&whole, &single);
        assert!(difference < 1e-4, "{}: {difference:e}", method.name);
    }
}

#[test]
fn unknown_settings_are_answered_with_the_nearest() {
    let backbone = model("llama", "config.json");
    for method in METHODS {
        let settings = Map::from_iter([("lora_alhpa".to_owned(), json!(1))]);
        let error = (method.build)(&settings, &context(backbone.as_ref(), 0))
            .err()
            .unwrap()
            .to_string();
        assert!(
            error.contains("unknown setting `lora_alhpa`") && error.contains(method.name),
            "{error}"
        );
    }
}
