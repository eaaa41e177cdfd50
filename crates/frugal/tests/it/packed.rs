//! Training over frozen weights in few bits.

use std::sync::atomic::AtomicBool;

use frugal::adapt::{AdaptError, Adapter, BuildContext, merge, registry};
use frugal::model::load::{Lookup, ModelFiles};
use frugal::model::{Activations, Backbone, LoadOptions, Quantize};
use frugal::train::{Event, Memory, Target, Tokenized, TrainConfig, TrainRun, train};
use serde_json::{Map, json};

use crate::support::device;

const TEXTS: [&str; 4] = [
    "You have won a prize. Call this number now to claim it before midnight.",
    "Are you coming home for dinner tonight? I am making soup.",
    "Free entry in a weekly competition. Text WIN to take part.",
    "I will be late, the train stands still somewhere in the fields.",
];

fn examples(files: &ModelFiles) -> Vec<Tokenized> {
    let tokenizer = files.tokenizer().unwrap();
    let example = |text: &&str| {
        let input_ids = tokenizer.encode(text, true).unwrap();
        let targets = input_ids[1..].iter().map(|&id| id as i32).chain([-100]).collect();
        Tokenized { input_ids, token_type_ids: vec![], labels: Target::Tokens(targets) }
    };
    TEXTS.iter().map(example).collect()
}

fn lora(backbone: &dyn Backbone) -> Box<dyn Adapter> {
    let (config, sites) = (backbone.config(), backbone.sites());
    let context = BuildContext { config, sites, backbone: Some(backbone), device: device(), seed: 3, tokenize: None };
    (registry::find("lora").unwrap().build)(&Map::from_iter([("r".to_owned(), json!(4))]), &context).unwrap()
}

/// The loss of each of some steps of LoRA on the built-in model.
fn losses(quantize: Quantize, memory: Memory) -> Vec<f64> {
    losses_with(LoadOptions { quantize, ..LoadOptions::default() }, memory)
}

fn losses_with(options: LoadOptions, memory: Memory) -> Vec<f64> {
    let files = ModelFiles::open("builtin", &Lookup::default()).unwrap();
    let backbone = files.load_with(&device(), options).unwrap();
    let mut adapter = lora(backbone.as_ref());
    let config = TrainConfig { lr: 3e-3, max_steps: 12, batch_size: 4, logging_steps: 1, memory, ..TrainConfig::default() };
    let mut losses = Vec::new();
    let mut observer = |event: &Event| {
        if let Event::Step { loss, .. } = event {
            losses.push(*loss);
        }
    };
    train(TrainRun {
        backbone: backbone.as_ref(),
        adapter: adapter.as_mut(),
        head: None,
        train: &examples(&files),
        validation: None,
        config: &config,
        folder: None,
        resume: false,
        stop: &AtomicBool::new(false),
        observer: &mut observer,
    })
    .unwrap();
    losses
}

#[test]
fn lora_learns_over_packed_weights_as_over_dense_ones() {
    let dense = losses(Quantize::None, Memory::Balanced);
    assert!(dense[11] < 0.8 * dense[0], "{dense:?}");
    for (quantize, tolerance) in [(Quantize::Q8_0, 0.005), (Quantize::Int8, 0.005), (Quantize::Nf4, 0.05), (Quantize::Q4_0, 0.05)] {
        let packed = losses(quantize, Memory::Balanced);
        for (found, expected) in packed.iter().zip(&dense) {
            assert!((found / expected - 1.0).abs() < tolerance, "{quantize:?}: {packed:?} instead of {dense:?}");
        }
    }
}

#[test]
fn lora_learns_with_products_of_integers() {
    let dense = losses(Quantize::None, Memory::Balanced);
    let options = |quantize| LoadOptions { quantize, activations: Activations::Int8 };
    for quantize in [Quantize::Int8, Quantize::Q8_0] {
        let rounded = losses_with(options(quantize), Memory::Balanced);
        assert_ne!(rounded, losses(quantize, Memory::Balanced), "products were exact");
        for (found, expected) in rounded.iter().zip(&dense) {
            assert!((found / expected - 1.0).abs() < 0.01, "{quantize:?}: {rounded:?} instead of {dense:?}");
        }
        assert_eq!(losses_with(options(quantize), Memory::Low), rounded);
    }
}

#[test]
fn a_run_is_the_same_whatever_it_keeps() {
    let balanced = losses(Quantize::None, Memory::Balanced);
    assert_eq!(losses(Quantize::None, Memory::Low), balanced);
    assert_eq!(losses(Quantize::None, Memory::Fast), balanced);
    assert_eq!(losses(Quantize::Nf4, Memory::Low), losses(Quantize::Nf4, Memory::Fast));
}

#[test]
fn merging_into_packed_weights_says_what_would_work() {
    let files = ModelFiles::open("builtin", &Lookup::default()).unwrap();
    let options = LoadOptions { quantize: Quantize::Int8, ..LoadOptions::default() };
    let backbone = files.load_with(&device(), options).unwrap();
    let adapter = lora(backbone.as_ref());
    match merge::weights(backbone.as_ref(), Some(adapter.as_ref())).err() {
        Some(AdaptError::Unsupported { reason, .. }) => {
            assert!(reason.contains("int8") && reason.contains("quantize = \"none\""), "{reason}");
        }
        other => panic!("{other:?}"),
    }
    // Without an adapter the weights can be had as what they are.
    assert!(merge::weights(backbone.as_ref(), None).is_ok());
}
