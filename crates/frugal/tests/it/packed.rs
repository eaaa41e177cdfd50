//! Training over frozen weights in few bits.

use std::sync::atomic::AtomicBool;

use frugal::adapt::{AdaptError, Adapter, BuildContext, LoadedAdapter, merge, peft, registry};
use frugal::model::load::{Lookup, ModelFiles};
use frugal::model::{ActivationQuant, Backbone, Frozen, LoadOptions, Quantize, build_with};
use frugal::train::{
    CausalLm, Event, Memory, Target, Tokenized, TrainConfig, TrainRun, evaluate, train,
};
use serde_json::{Map, json};

use crate::support::{context, device};

const TEXTS: [&str; 4] = [
    "You have won a prize. Call this number now to claim it before midnight.",
    "Are you coming home for dinner tonight? I am making soup.",
    "Free entry in a weekly competition. Text WIN to take part.",
    "I will be late, the train stands still somewhere in the fields.",
];

fn examples(files: &ModelFiles) -> Vec<Tokenized> {
    tokenized(files, TEXTS)
}

fn tokenized(
    files: &ModelFiles,
    texts: impl IntoIterator<Item = impl AsRef<str>>,
) -> Vec<Tokenized> {
    let tokenizer = files.tokenizer().unwrap();
    let example = |text: &str| {
        let input_ids = tokenizer.encode(text, true).unwrap();
        let targets = input_ids[1..]
            .iter()
            .map(|&id| id as i32)
            .chain([-100])
            .collect();
        Tokenized {
            input_ids,
            token_type_ids: vec![],
            labels: Target::Tokens(targets),
        }
    };
    texts
        .into_iter()
        .map(|text| example(text.as_ref()))
        .collect()
}

fn lora(backbone: &dyn Backbone) -> Box<dyn Adapter> {
    let (info, sites) = (backbone.info(), backbone.sites());
    let context = BuildContext {
        info,
        sites,
        backbone: Some(backbone),
        device: device(),
        seed: 3,
        tokenize: None,
    };
    (registry::find("lora").unwrap().build)(&Map::from_iter([("r".to_owned(), json!(4))]), &context)
        .unwrap()
}

/// The loss of each of some steps of LoRA on the built-in model.
fn losses(quantize: Quantize, memory: Memory) -> Vec<f64> {
    losses_with(
        LoadOptions {
            quantize,
            ..LoadOptions::default()
        },
        memory,
    )
}

fn losses_with(options: LoadOptions, memory: Memory) -> Vec<f64> {
    let files = ModelFiles::open("builtin", &Lookup::default()).unwrap();
    let backbone = files.load_with(&device(), options).unwrap();
    losses_over(&files, backbone.as_ref(), memory)
}

fn losses_over(files: &ModelFiles, backbone: &dyn Backbone, memory: Memory) -> Vec<f64> {
    let mut adapter = lora(backbone);
    let config = TrainConfig {
        lr: 3e-3,
        max_steps: 12,
        batch_size: 4,
        logging_steps: 1,
        memory,
        ..TrainConfig::default()
    };
    let mut losses = Vec::new();
    let mut observer = |event: &Event| {
        if let Event::Step { loss, .. } = event {
            losses.push(*loss);
        }
    };
    train(TrainRun {
        backbone,
        adapter: adapter.as_mut(),
        head: None,
        train: &examples(files),
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
    let four_bits =
        [Quantize::Nf4, Quantize::Nf4Double, Quantize::Q4_0].map(|quantize| (quantize, 0.05));
    let eight_and_more = [Quantize::Bf16, Quantize::Q8_0, Quantize::Int8];
    for (quantize, tolerance) in eight_and_more
        .map(|quantize| (quantize, 0.005))
        .into_iter()
        .chain(four_bits)
    {
        let packed = losses(quantize, Memory::Balanced);
        for (found, expected) in packed.iter().zip(&dense) {
            assert!(
                (found / expected - 1.0).abs() < tolerance,
                "{quantize:?}: {packed:?} instead of {dense:?}"
            );
        }
    }
}

#[test]
fn lora_learns_with_products_of_integers() {
    let dense = losses(Quantize::None, Memory::Balanced);
    let options = |quantize| LoadOptions {
        quantize,
        activations: ActivationQuant::Int8,
        ..LoadOptions::default()
    };
    for quantize in [Quantize::Int8, Quantize::Q8_0] {
        let rounded = losses_with(options(quantize), Memory::Balanced);
        assert_ne!(
            rounded,
            losses(quantize, Memory::Balanced),
            "products were exact"
        );
        for (found, expected) in rounded.iter().zip(&dense) {
            assert!(
                (found / expected - 1.0).abs() < 0.01,
                "{quantize:?}: {rounded:?} instead of {dense:?}"
            );
        }
        assert_eq!(losses_with(options(quantize), Memory::Low), rounded);
    }
}

#[test]
fn a_run_is_the_same_whatever_it_keeps() {
    let balanced = losses(Quantize::None, Memory::Balanced);
    assert_eq!(losses(Quantize::None, Memory::Low), balanced);
    assert_eq!(losses(Quantize::None, Memory::Fast), balanced);
    assert_eq!(
        losses(Quantize::Nf4, Memory::Low),
        losses(Quantize::Nf4, Memory::Fast)
    );
}

#[test]
fn merging_into_packed_weights_says_what_would_work() {
    let files = ModelFiles::open("builtin", &Lookup::default()).unwrap();
    let options = LoadOptions {
        quantize: Quantize::Int8,
        ..LoadOptions::default()
    };
    let backbone = files.load_with(&device(), options).unwrap();
    let adapter = lora(backbone.as_ref());
    match merge::weights(backbone.as_ref(), Some(adapter.as_ref())).err() {
        Some(AdaptError::Unsupported { reason, .. }) => {
            assert!(
                reason.contains("int8") && reason.contains("quantize = \"none\""),
                "{reason}"
            );
        }
        other => panic!("{other:?}"),
    }
    // Without an adapter the weights can be had as what they are.
    assert!(merge::weights(backbone.as_ref(), None).is_ok());
}

/// Mean loss of some texts.
fn text_loss(files: &ModelFiles, backbone: &dyn Backbone, adapter: Option<&dyn Adapter>) -> f64 {
    loss(backbone, adapter, &examples(files))
}

fn loss(backbone: &dyn Backbone, adapter: Option<&dyn Adapter>, examples: &[Tokenized]) -> f64 {
    let found = evaluate(
        backbone,
        adapter,
        &CausalLm::default(),
        examples,
        2048,
        &AtomicBool::new(false),
    );
    found.unwrap().unwrap().metrics["loss"]
}

/// The real model in 4 bits, with and without the pair that makes up for the rounding.
#[test]
fn loftq_brings_the_rounded_model_nearer_to_the_exact_one() {
    let files = crate::real::files("smollm2-135m");
    let texts = frugal_core::data::builtin("sms-spam")
        .unwrap()
        .test
        .examples
        .into_iter()
        .take(100)
        .map(|example| match example {
            frugal_core::data::Example::Classification { text, .. } => text,
            other => panic!("{other:?}"),
        });
    let examples = tokenized(&files, texts);
    let exact = loss(crate::real::smollm2().as_ref(), None, &examples);
    let rounded = files
        .load_with(
            &device(),
            LoadOptions {
                quantize: Quantize::Nf4,
                ..LoadOptions::default()
            },
        )
        .unwrap();
    let lost = (loss(rounded.as_ref(), None, &examples) - exact).abs();
    let weights = distances(rounded.as_ref(), None);

    let method = registry::find("lora").unwrap();
    let settings =
        json!({"init_lora_weights": "loftq", "loftq_config": {"loftq_iter": 2}, "r": 16})
            .as_object()
            .unwrap()
            .clone();
    let options = method
        .load_options(
            &settings,
            &files.sites(),
            Some(Quantize::Nf4),
            LoadOptions::default(),
        )
        .unwrap();
    let backbone = files.load_with(&device(), options).unwrap();
    let adapter = (method.build)(&settings, &context(backbone.as_ref(), 1)).unwrap();
    for ((path, plain), (_, with)) in weights
        .iter()
        .zip(distances(backbone.as_ref(), Some(adapter.as_ref())))
    {
        assert!(with < 0.95 * plain, "{path}: {with} instead of {plain}");
    }
    let now = (loss(backbone.as_ref(), Some(adapter.as_ref()), &examples) - exact).abs();
    assert!(
        now < 0.9 * lost,
        "the loss is off by {now}, by rounding alone {lost}"
    );
}

/// `‖W − Q − s B A‖ / ‖W‖` of the queries, with their paths.
fn distances(backbone: &dyn Backbone, adapter: Option<&dyn Adapter>) -> Vec<(String, f32)> {
    let mut exact = std::collections::HashMap::new();
    crate::real::smollm2().visit_weights(&mut |part| {
        if let Frozen::Linear(map) = part {
            exact.insert(map.site, map.weight.dense());
        }
    });
    let mut found = Vec::new();
    backbone.visit_weights(&mut |part| {
        let Frozen::Linear(map) = part else { return };
        let path = &backbone.sites().info(map.site).path;
        if path.ends_with("q_proj") {
            let delta = adapter.and_then(|a| a.weight_delta(map).unwrap());
            let here = delta.map_or_else(|| map.weight.dense(), |delta| map.weight.dense() + delta);
            let norm =
                |m: burn::tensor::Tensor<2>| m.powi_scalar(2).sum().into_scalar::<f32>().sqrt();
            let weight = exact[&map.site].clone();
            found.push((path.clone(), norm(weight.clone() - here) / norm(weight)));
        }
    });
    found
}

#[test]
fn an_adapter_that_starts_from_rounding_is_read_over_the_same_weights() {
    let files = ModelFiles::open("builtin", &Lookup::default()).unwrap();
    let method = registry::find("lora").unwrap();
    let settings = json!({"r": 4, "init_lora_weights": "loftq", "loftq_config": {"loftq_bits": 8, "loftq_iter": 3}});
    let settings = settings.as_object().unwrap().clone();
    let message = |quantize| {
        method
            .load_options(
                &settings,
                &files.sites(),
                Some(quantize),
                LoadOptions::default(),
            )
            .unwrap_err()
            .to_string()
    };
    assert!(
        message(Quantize::None).contains("`quantize = \"int8\"`"),
        "{}",
        message(Quantize::None)
    );
    let options = method
        .load_options(
            &settings,
            &files.sites(),
            Some(Quantize::Int8),
            LoadOptions::default(),
        )
        .unwrap();
    let backbone = files.load_with(&device(), options).unwrap();
    let adapter = (method.build)(&settings, &context(backbone.as_ref(), 1)).unwrap();
    let entry = LoadedAdapter {
        adapter,
        head: None,
    };
    let expected = text_loss(&files, backbone.as_ref(), Some(entry.adapter.as_ref()));

    let folder = tempfile::tempdir().unwrap();
    peft::save(folder.path(), &entry, files.info(), "builtin").unwrap();
    let options =
        peft::load_options(Some(folder.path()), &files.sites(), LoadOptions::default()).unwrap();
    assert_eq!(options.quantize, Quantize::Int8);
    let again = files.load_with(&device(), options).unwrap();
    let (read, _) = peft::load(folder.path(), &context(again.as_ref(), 0), false).unwrap();
    assert_eq!(
        text_loss(&files, again.as_ref(), Some(read.adapter.as_ref())),
        expected
    );

    // Over exact weights its change would count twice.
    let dense = files.load(&device()).unwrap();
    let message = peft::load(folder.path(), &context(dense.as_ref(), 0), false)
        .err()
        .unwrap()
        .to_string();
    assert!(message.contains("was not rounded for it"), "{message}");
}

/// What PST leaves: most of each layer is zero.
#[test]
fn a_pruned_model_computes_the_same_without_its_zeros() {
    let files = ModelFiles::open("builtin", &Lookup::default()).unwrap();
    let backbone = files.load(&device()).unwrap();
    let pst = registry::find("pst").unwrap();
    let settings = json!({"current_sparsity": 0.9})
        .as_object()
        .unwrap()
        .clone();
    let adapter = (pst.build)(&settings, &context(backbone.as_ref(), 1)).unwrap();
    let merged = merge::weights(backbone.as_ref(), Some(adapter.as_ref())).unwrap();
    let load = |quantize| {
        build_with(
            merged.config.clone(),
            &merged.tensors,
            &device(),
            LoadOptions {
                quantize,
                ..LoadOptions::default()
            },
        )
    };
    let (dense, sparse) = (
        load(Quantize::None).unwrap(),
        load(Quantize::Sparse).unwrap(),
    );
    let mut maps = 0;
    sparse.visit_weights(&mut |part| {
        if let Frozen::Linear(map) = part
            && sparse.sites().info(map.site).kind.is_inner_linear()
        {
            let share = map.weight.bytes() as f64
                / (4.0 * map.weight.dims().iter().product::<usize>() as f64);
            assert!(
                map.weight.format() == Some("sparse") && (0.13..0.16).contains(&share),
                "{share}"
            );
            maps += 1;
        }
    });
    assert!(maps > 0);
    let expected = text_loss(&files, dense.as_ref(), None);
    assert!((text_loss(&files, sparse.as_ref(), None) / expected - 1.0).abs() < 1e-5);
    // A model without zeros is held as it is.
    let whole = files
        .load_with(
            &device(),
            LoadOptions {
                quantize: Quantize::Sparse,
                ..LoadOptions::default()
            },
        )
        .unwrap();
    assert_eq!(
        text_loss(&files, whole.as_ref(), None),
        text_loss(&files, backbone.as_ref(), None)
    );
    // Adapters learn beside it.
    let train = |backbone: &dyn Backbone| losses_over(&files, backbone, Memory::Balanced);
    for (found, expected) in train(sparse.as_ref()).iter().zip(train(dense.as_ref())) {
        assert!(
            (found / expected - 1.0).abs() < 1e-3,
            "{found} instead of {expected}"
        );
    }
}
