use std::sync::Arc;

use frugal_models::{ModelConfig, build, random_weights};
use frugal_nn::{Backbone, Input, NoAdapter, SequenceLayout, named_rng, standard_normal, to_vec};
use serde_json::json;

use super::*;

const IDS: [u32; 7] = [3, 7, 1, 12, 30, 5, 9];

fn bert(layers: usize, width: usize, vocabulary: usize) -> ModelConfig {
    let config = json!({"model_type": "bert", "hidden_size": width, "intermediate_size": 2 * width,
        "num_hidden_layers": layers, "num_attention_heads": 4, "vocab_size": vocabulary,
        "max_position_embeddings": 64, "type_vocab_size": 2, "initializer_range": 0.3});
    ModelConfig::from_json(config, "test").unwrap()
}

fn model(layers: usize) -> Arc<dyn Backbone> {
    let config = bert(layers, 16, 40);
    let weights = random_weights(&config, 1, &Device::flex());
    build(config, &weights, &Device::flex()).unwrap()
}

fn adapter(settings: Value, backbone: &dyn Backbone) -> Iaa {
    let config = IaaConfig::parse(settings.as_object().unwrap()).unwrap();
    let context = BuildContext {
        info: backbone.info(),
        sites: backbone.sites(),
        backbone: Some(backbone),
        device: Device::flex(),
        seed: 3,
        tokenize: None,
    };
    Iaa::new(config, &context).unwrap()
}

fn randomize(adapter: &mut Iaa) {
    for parameter in adapter.parameters_mut() {
        let mut rng = named_rng(11, parameter.name());
        let values = (0..parameter.len()).map(|_| 0.4 * standard_normal(&mut rng));
        parameter.set(values.collect());
    }
}

fn input() -> Input<'static> {
    Input::tokens(&IDS, SequenceLayout::new(&[IDS.len()]))
}

fn output(backbone: &dyn Backbone, pass: &mut dyn Pass) -> Vec<f32> {
    let input = input();
    to_vec(backbone.forward(&input, pass, None).unwrap())
}

fn largest(a: &[f32], b: &[f32]) -> f32 {
    a.iter()
        .zip(b)
        .fold(0.0, |worst, (a, b)| worst.max((a - b).abs()))
}

fn count(settings: Value, layers: usize, width: usize) -> usize {
    let config = bert(layers, width, 8);
    let context = BuildContext {
        info: &config.info(),
        sites: &config.sites(),
        backbone: None,
        device: Device::flex(),
        seed: 0,
        tokenize: None,
    };
    let build = METHOD.build;
    build(settings.as_object().unwrap(), &context)
        .unwrap()
        .num_trainable()
}

#[test]
fn parameters_are_as_many_as_in_the_tables_of_the_paper() {
    let iaa = |aside: &str, inside: usize, beside: usize| json!({"aside": aside, "inside_dim": inside, "aside_dim": beside});
    for (settings, expected) in [
        (iaa("layer", 16, 0), 589_824),
        (iaa("sub_layer", 8, 8), 589_824),
        (iaa("model", 15, 24), 589_824),
        (iaa("layer", 12, 8), 589_824),
        (iaa("layer", 12, 12), 663_552),
        (iaa("layer", 200, 0), 7_372_800),
        (iaa("s", 100, 100), 7_372_800),
        (iaa("l", 50, 300), 7_372_800),
        (iaa("m", 185, 960), 8_294_400),
        (iaa("M", 185, 360), 7_372_800),
        (json!({}), 589_824),
    ] {
        assert_eq!(count(settings.clone(), 12, 768), expected, "{settings}");
    }
    for settings in [iaa("layer", 16, 0), iaa("layer", 12, 8)] {
        assert_eq!(count(settings, 6, 384), 147_456);
    }
}

#[test]
fn nothing_changes_before_training_not_by_a_bit() {
    let model = model(3);
    let base = output(model.as_ref(), &mut NoAdapter);
    for aside in ["sub_layer", "layer", "model"] {
        let adapter = adapter(json!({"aside": aside}), model.as_ref());
        let found = output(model.as_ref(), adapter.pass(Mode::Eval).as_mut());
        assert!(
            base.iter()
                .zip(&found)
                .all(|(a, b)| a.to_bits() == b.to_bits()),
            "{aside}"
        );
    }
}

#[test]
fn the_path_is_added_behind_the_norm_of_the_block() {
    let model = model(1);
    let mut adapter = adapter(json!({"inside_dim": 0, "aside_dim": 5}), model.as_ref());
    randomize(&mut adapter);
    let input = input();
    let x = model.stem(&input, &mut NoAdapter).unwrap().hidden_states;
    let network = adapter.path.get(0, SubLayer::Mlp).unwrap();
    let expected = to_vec(network.forward(x, Mode::Eval));
    let base = output(model.as_ref(), &mut NoAdapter);
    let found = output(model.as_ref(), adapter.pass(Mode::Eval).as_mut());
    let change: Vec<f32> = found.iter().zip(&base).map(|(a, b)| a - b).collect();
    assert!(largest(&expected, &[0.0; 7 * 16]) > 0.5);
    assert!(largest(&change, &expected) < 1e-5);
}

#[test]
fn beside_one_block_and_beside_the_model_are_the_same_where_there_is_one_block() {
    let one = model(1);
    let outputs = ["layer", "model"].map(|aside| {
        let mut adapter = adapter(json!({"aside": aside}), one.as_ref());
        randomize(&mut adapter);
        output(one.as_ref(), adapter.pass(Mode::Eval).as_mut())
    });
    assert_eq!(outputs[0], outputs[1]);
    assert!(largest(&outputs[0], &output(one.as_ref(), &mut NoAdapter)) > 0.1);

    let two = model(2);
    let outputs = ["layer", "model"].map(|aside| {
        let mut adapter = adapter(json!({"aside": aside}), two.as_ref());
        randomize(&mut adapter);
        output(two.as_ref(), adapter.pass(Mode::Eval).as_mut())
    });
    assert!(largest(&outputs[0], &outputs[1]) > 0.1);
}

/// Blocks whose norms have no gain give the same whatever they read.
fn constant_blocks() -> Arc<dyn Backbone> {
    let config = bert(3, 16, 40);
    let mut weights = random_weights(&config, 1, &Device::flex());
    for (_, site) in config
        .sites()
        .iter()
        .filter(|(_, site)| site.layer.is_some())
    {
        if site.kind == frugal_nn::SiteKind::Norm {
            let zeros = Tensor::zeros([16], &Device::flex());
            weights.insert_vector(format!("{}.weight", site.path), zeros);
        }
    }
    build(config, &weights, &Device::flex()).unwrap()
}

/// Sizes of the gradients of the output by the first block's networks, those of the path last.
fn first_gradients(settings: Value) -> Vec<(String, f32)> {
    let backbone = constant_blocks();
    let mut adapter = adapter(settings, backbone.as_ref());
    randomize(&mut adapter);
    let mode = Mode::Train { seed: 0 };
    let input = input();
    let mut pass = adapter.pass(mode);
    let y = backbone.forward(&input, pass.as_mut(), None).unwrap();
    let mut gradients = y.powi_scalar(2).sum().backward();
    drop(pass);
    let first = adapter
        .parameters()
        .into_iter()
        .filter(|p| p.name().contains("layer.0."));
    first
        .map(|p| {
            let size = p.take_gradient(&mut gradients).map_or(0.0, |g| {
                to_vec(g)
                    .iter()
                    .fold(0.0, |worst: f32, v| worst.max(v.abs()))
            });
            (p.name().to_owned(), size)
        })
        .collect()
}

#[test]
fn gradients_reach_the_first_block_past_blocks_that_let_nothing_through() {
    for (name, size) in first_gradients(json!({"inside_dim": 0, "aside_dim": 6})) {
        assert!(size > 1e-3, "{name}: {size}");
    }
    let scattered = first_gradients(json!({"inside_dim": 6, "aside_dim": 0}));
    assert_eq!(scattered.len(), 4);
    for (name, size) in scattered {
        assert_eq!(size, 0.0, "{name}");
    }
}

#[test]
fn a_pass_without_the_block_where_the_path_begins_says_so() {
    let model = model(2);
    let adapter = adapter(json!({"aside": "model"}), model.as_ref());
    let input = input();
    let state = model.stem(&input, &mut NoAdapter).unwrap();
    let mut pass = adapter.pass(Mode::Eval);
    model.blocks(1..2, state, pass.as_mut(), None).unwrap();
    let message = pass.take_error().unwrap().to_string();
    assert!(message.contains("begins at block 0"), "{message}");
}

#[test]
fn an_adapter_of_nothing_is_refused() {
    let check = METHOD.check;
    let settings = json!({"inside_dim": 0, "aside_dim": 0});
    let message = check(settings.as_object().unwrap())
        .unwrap_err()
        .to_string();
    assert!(message.contains("nothing would be trained"), "{message}");
}
