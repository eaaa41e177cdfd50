//! RMoE and WideNet beyond what all backbones are tested for: the loss with what routers add to it,
//! gradients of shared weights, every setting against PyTorch, files, and what must be equal.

use std::sync::Arc;

use burn::prelude::*;
use burn::tensor::activation::log_softmax;
use frugal::adapt::{Adapter, Mode, NoAdapter, Pass, Rows, merge, registry, to_vec};
use frugal::model::load::{SafetensorsSource, read_json};
use frugal::model::save::write_model;
use frugal::model::{
    Backbone, Input, MemorySource, ModelConfig, WeightSource, build, random_weights, read_values,
};
use frugal_formats::gguf::{GgmlType, gguf_metadata};
use serde_json::{Map, Value, json};

use crate::support::{Golden, context, device, fixture, max_difference, model};

const MODELS: [&str; 2] = ["rmoe", "widenet"];

fn adapter(method: &str, settings: Value, backbone: &dyn Backbone) -> Box<dyn Adapter> {
    let Value::Object(settings) = settings else {
        panic!("{settings}")
    };
    (registry::find(method).unwrap().build)(&settings, &context(backbone, 1)).unwrap()
}

fn golden(name: &str, file: &str) -> Golden {
    Golden::read(&fixture("models").join(name).join(file))
}

/// Both sequences of the golden file in one batch: the mean over their next tokens and what the
/// routers add, and the logits.
fn loss(backbone: &dyn Backbone, adapter: &dyn Adapter, golden: &Golden) -> (Tensor<1>, Tensor<2>) {
    let sequences: Vec<&[u32]> = golden
        .sequences()
        .into_iter()
        .map(|s| golden.input_ids(s))
        .collect();
    let lengths: Vec<usize> = sequences.iter().map(|ids| ids.len()).collect();
    let mut pass = adapter.pass(Mode::Train { seed: 0 });
    let ids = sequences.concat();
    let hidden = backbone
        .forward(&Input::new(&ids, &lengths), pass.as_mut(), None)
        .unwrap();
    let logits = backbone
        .logits(hidden, Rows::Tokens, pass.as_mut())
        .unwrap();
    let (mut total, mut start) = (Tensor::<1>::zeros([1], &device()), 0);
    for ids in &sequences {
        let next: Vec<i64> = ids[1..].iter().map(|&id| i64::from(id)).collect();
        let count = next.len();
        let index = Tensor::<2, Int>::from_data(TensorData::new(next, [count, 1]), &device());
        let own = logits.clone().narrow(0, start, count);
        total = total - log_softmax(own, 1).gather(1, index).sum();
        start += ids.len();
    }
    let of_routers = pass.auxiliary_loss().expect("routers add to the loss");
    let mean = total / (ids.len() - sequences.len()) as f32;
    (mean + of_routers, logits)
}

/// Compares the loss, the logits where there are some, and all gradients whose names begin so.
fn compare(what: &str, backbone: &dyn Backbone, golden: &Golden, expected: &Golden, prefix: &str) {
    let full = adapter("full", json!({}), backbone);
    let (loss, logits) = loss(backbone, full.as_ref(), golden);
    let wanted = expected.float(&format!("{prefix}loss")).unwrap()[0];
    let found: f32 = loss.clone().into_scalar();
    assert!(
        (found - wanted).abs() < 2e-5 * wanted,
        "{what}: {found}, not {wanted}"
    );
    if let Some(wanted) = expected.float(&format!("{prefix}logits")) {
        let worst = max_difference(&to_vec(logits.inner()), wanted);
        assert!(worst < 1e-4, "{what}: logits {worst:e}");
    }
    let mut gradients = loss.backward();
    let mut parameters = full.parameters();
    parameters.sort_by_key(|p| p.name().to_owned());
    let start = format!("{prefix}grad.");
    let all = expected.floats.iter();
    for (name, (shape, wanted)) in all.filter(|(name, _)| name.starts_with(&start)) {
        let name = &name[start.len()..];
        let own = parameters.iter().find(|p| p.name() == name);
        let parameter = own.unwrap_or_else(|| panic!("{what}: there is no {name}"));
        assert_eq!(parameter.shape(), shape, "{what}: {name}");
        let zeros = || vec![0.0; parameter.len()];
        let found = parameter.take_gradient(&mut gradients);
        let found = found.map_or_else(zeros, to_vec);
        let size = wanted.iter().fold(1e-4f32, |m, g| m.max(g.abs()));
        let worst = max_difference(&found, wanted);
        assert!(
            worst <= 3e-4 * size,
            "{what}: {name}: {worst:e} of {size:e}"
        );
    }
}

#[test]
fn the_loss_and_the_gradient_of_every_weight_match_pytorch() {
    for name in MODELS {
        let (backbone, expected) = (
            model(name, "config.json"),
            golden(name, "gradients.safetensors"),
        );
        let full = adapter("full", json!({}), backbone.as_ref());
        assert_eq!(full.parameters().len(), expected.floats.len() - 1, "{name}");
        let golden = golden(name, "golden.safetensors");
        compare(name, backbone.as_ref(), &golden, &expected, "");
    }
}

/// A model of a configuration with weights from two places.
fn build_from(
    config: &ModelConfig,
    value: impl Fn(&str) -> (Vec<usize>, Vec<f32>),
) -> Arc<dyn Backbone> {
    let mut weights = MemorySource::default();
    for (name, _, _) in random_weights(config, 0, &device()).iter() {
        let (shape, values) = value(&name);
        match *shape.as_slice() {
            [n] => {
                let data = TensorData::new(values, [n]);
                weights.insert_vector(name, Tensor::from_data(data, &device()));
            }
            [rows, cols] => {
                let data = TensorData::new(values, [rows, cols]);
                weights.insert_matrix(name, Tensor::from_data(data, &device()));
            }
            ref other => panic!("{other:?}"),
        }
    }
    build(config.clone(), &weights, &device()).unwrap()
}

fn stored(source: &dyn WeightSource, name: &str) -> (Vec<usize>, Vec<f32>) {
    let shape = source.shape(name).unwrap_or_else(|| panic!("{name}"));
    let values = read_values(source, name, &shape).unwrap();
    (shape, values)
}

#[test]
fn every_setting_gives_the_loss_and_the_gradients_of_pytorch() {
    for name in MODELS {
        let folder = fixture("models").join(name);
        let (golden, expected) = (
            golden(name, "golden.safetensors"),
            golden(name, "variants.safetensors"),
        );
        let header = read_json(&folder.join("variants.json")).unwrap();
        let cases = header["cases"].as_object().unwrap();
        assert!(cases.len() >= 7, "{name}");
        let source = SafetensorsSource::open(&folder).unwrap();
        for (case, changes) in cases {
            let mut raw = read_json(&folder.join("config.json")).unwrap();
            raw.as_object_mut()
                .unwrap()
                .extend(changes.as_object().unwrap().clone());
            let config = ModelConfig::from_json(raw, case).unwrap();
            let backbone = build_from(&config, |weight| {
                let own = expected.floats.get(&format!("{case}.weight.{weight}"));
                own.cloned().unwrap_or_else(|| stored(&source, weight))
            });
            let what = format!("{name}, {case}");
            let prefix = format!("{case}.");
            compare(&what, backbone.as_ref(), &golden, &expected, &prefix);
        }
    }
}

fn config(more: Value) -> ModelConfig {
    let mut raw = json!({
        "hidden_size": 32, "intermediate_size": 24, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2,
        "vocab_size": 64, "max_position_embeddings": 64, "tie_word_embeddings": true, "initializer_range": 0.2, "rms_norm_eps": 1e-5,
        "num_local_experts": 4, "moe_router_rnn_hidden_size": 12,
    });
    raw.as_object_mut()
        .unwrap()
        .extend(more.as_object().unwrap().clone());
    ModelConfig::from_json(raw, "test").unwrap()
}

fn parameters(more: Value, part: &str) -> usize {
    let sites = config(more).sites();
    let own = sites.iter().filter(|(_, site)| site.path.contains(part));
    own.map(|(_, site)| site.num_parameters()).sum()
}

/// Table 1 of the paper has "0.04M" and "0.47M" for the small models, and "about 3.5M" more for the
/// large one.
#[test]
fn routers_are_as_large_as_the_paper_says() {
    let size = |router: &str, [layers, hidden, heads]: [usize; 3]| {
        let more = json!({"model_type": "rmoe", "moe_router_type": router, "num_hidden_layers": layers, "hidden_size": hidden,
            "num_attention_heads": heads, "num_key_value_heads": heads, "num_local_experts": 16, "moe_router_rnn_hidden_size": 128});
        parameters(more.clone(), "gate") + parameters(more, "router")
    };
    let (small, large) = ([8, 352, 8], [24, 1280, 20]);
    assert_eq!(size("linear", small), 45_056);
    assert_eq!(size("gru", small), 475_904);
    assert_eq!(size("gru", large) - size("linear", large), 3_588_864);
}

#[test]
fn a_wide_net_grows_by_two_norms_with_each_block() {
    let size = |layers: usize, more: Value| {
        let mut all = json!({"model_type": "widenet", "num_hidden_layers": layers});
        all.as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        parameters(all, "")
    };
    assert_eq!(size(9, json!({})) - size(3, json!({})), 6 * 2 * 32);
    let shared = json!({"share_norms": true});
    assert_eq!(size(9, shared.clone()), size(3, shared));
    // A router of each block has a weight for each expert.
    let own = json!({"share_router": false});
    assert_eq!(size(9, own.clone()) - size(3, own), 6 * (2 * 32 + 4 * 32));
}

fn hidden(backbone: &dyn Backbone, pass: &mut dyn Pass) -> Vec<f32> {
    let ids = [3, 7, 1, 12, 30, 5, 9, 2, 60, 11];
    let states = backbone.forward(&Input::new(&ids, &[6, 4]), pass, None);
    to_vec(states.unwrap())
}

/// With experts that are all the same, whatever a router decides is that layer, and Llama's blocks
/// have one.
#[test]
fn alike_experts_are_one_feed_forward_layer() {
    let llama = config(json!({"model_type": "llama"}));
    let weights = random_weights(&llama, 5, &device());
    let plain = build(llama, &weights, &device()).unwrap();
    let expected = hidden(plain.as_ref(), &mut NoAdapter);
    let router = random_weights(&config(json!({"model_type": "rmoe"})), 6, &device());
    let unshared = json!({"model_type": "widenet", "share_attention": false, "share_experts": false, "norm_topk_prob": true});
    let all = json!({"model_type": "widenet", "share_attention": false, "share_experts": false, "num_experts_per_tok": 4});
    let one = json!({"model_type": "widenet", "share_attention": false, "share_experts": false, "num_local_experts": 1,
        "num_experts_per_tok": 1});
    let gru = json!({"model_type": "rmoe"});
    let no_recurrence = json!({"model_type": "rmoe", "moe_router_recurrent": false});
    for kind in [unshared, all, one, gru, no_recurrence] {
        let config = config(kind.clone());
        let own = random_weights(&config, 7, &device());
        let routed = build_from(&config, |name| {
            let of_expert = name.split_once(".block_sparse_moe.experts.");
            let name = of_expert.map_or(name.to_owned(), |(block, rest)| {
                let map = match rest.split_once('.').unwrap().1 {
                    "w1.weight" => "gate_proj",
                    "w3.weight" => "up_proj",
                    _ => "down_proj",
                };
                format!("{block}.mlp.{map}.weight")
            });
            match weights.shape(&name) {
                Some(_) => stored(&weights, &name),
                None if own.shape(&name).is_some() => stored(&own, &name),
                None => stored(&router, &name),
            }
        });
        let worst = max_difference(&hidden(routed.as_ref(), &mut NoAdapter), &expected);
        assert!(worst < 2e-5, "{kind}: {worst:e}");
    }
}

/// One block has nothing in front of it.
#[test]
fn with_one_block_there_is_no_recurrence() {
    for (layers, same) in [(1, true), (3, false)] {
        let one = |recurrent: bool| {
            config(
                json!({"model_type": "rmoe", "num_hidden_layers": layers, "moe_router_recurrent": recurrent}),
            )
        };
        assert_eq!(
            one(true).sites().num_parameters(),
            one(false).sites().num_parameters()
        );
        let weights = random_weights(&one(true), 3, &device());
        let [with, without] = [true, false].map(|recurrent| {
            let backbone = build(one(recurrent), &weights, &device()).unwrap();
            hidden(backbone.as_ref(), &mut NoAdapter)
        });
        assert_eq!(with == without, same, "{layers} blocks");
    }
}

/// The gradient of a shared weight is the sum of those of copies that no block shares.
#[test]
fn the_gradient_of_a_shared_weight_is_the_sum_over_its_blocks() {
    let name = "widenet";
    let (shared, golden) = (
        model(name, "config.json"),
        golden(name, "golden.safetensors"),
    );
    let mut raw = shared.info().raw.clone();
    for key in ["share_attention", "share_experts", "share_router"] {
        raw[key] = json!(false);
    }
    let config = ModelConfig::from_json(raw, "copies").unwrap();
    let source = SafetensorsSource::open(&fixture("models").join(name)).unwrap();
    let of_all = |name: &str| {
        let rest = name.split_once(".layers.")?.1.split_once('.')?.1;
        (!rest.contains("norm")).then(|| format!("model.shared.{rest}"))
    };
    let copies = build_from(&config, |weight| {
        let name = of_all(weight).unwrap_or(weight.to_owned());
        stored(&source, &name)
    });
    let gradients = |backbone: &dyn Backbone| {
        let full = adapter("full", json!({}), backbone);
        let mut gradients = loss(backbone, full.as_ref(), &golden).0.backward();
        let all = full.parameters().into_iter().map(|p| {
            let gradient = p.take_gradient(&mut gradients);
            let values = gradient.map_or_else(|| vec![0.0; p.len()], to_vec);
            (p.name().to_owned(), values)
        });
        all.collect::<Vec<_>>()
    };
    let mut sums: std::collections::BTreeMap<String, Vec<f32>> = Default::default();
    for (name, values) in gradients(copies.as_ref()) {
        let sum = sums
            .entry(of_all(&name).unwrap_or(name))
            .or_insert_with(|| vec![0.0; values.len()]);
        sum.iter_mut().zip(values).for_each(|(s, v)| *s += v);
    }
    let found = gradients(shared.as_ref());
    assert_eq!(found.len(), sums.len());
    for (name, values) in found {
        let size = values.iter().fold(1e-4f32, |m, g| m.max(g.abs()));
        let worst = max_difference(&values, &sums[&name]);
        assert!(worst < 1e-4 * size, "{name}: {worst:e} of {size:e}");
    }
}

/// The worked example: probabilities (.9 .1), (.8 .2), (.6 .4), (.3 .7), one expert each, give shares
/// .75 and .25, means .65 and .35, and 2 (.75 · .65 + .25 · .35) = 1.15.
#[test]
fn the_load_loss_is_that_of_the_papers() {
    let backbone = model("widenet", "config.json");
    let full = adapter("full", json!({}), backbone.as_ref());
    let mut pass = full.pass(Mode::Train { seed: 0 });
    let rows = [0.9f32, 0.1, 0.8, 0.2, 0.6, 0.4, 0.3, 0.7];
    let probabilities = Tensor::from_data(TensorData::new(rows.to_vec(), [4, 2]), &device());
    pass.router(0, &probabilities, &[0, 0, 0, 1], 0.5);
    let loss = to_vec(pass.auxiliary_loss().unwrap())[0];
    assert!((loss - 0.5 * 1.15).abs() < 1e-6, "{loss}");
}

#[test]
fn noise_is_of_training_alone_and_follows_its_seed() {
    let config = config(json!({"model_type": "widenet", "router_noise": 1.0}));
    let weights = random_weights(&config, 8, &device());
    let backbone = build(config, &weights, &device()).unwrap();
    let full = adapter("full", json!({}), backbone.as_ref());
    let run = |mode: Mode| hidden(backbone.as_ref(), full.pass(mode).as_mut());
    let plain = hidden(backbone.as_ref(), &mut NoAdapter);
    assert_eq!(run(Mode::Eval), run(Mode::Eval));
    assert!(max_difference(&run(Mode::Eval), &plain) < 1e-5);
    let [one, again, other] = [1, 1, 2].map(|seed| run(Mode::Train { seed }));
    assert_eq!(one, again);
    assert!(max_difference(&one, &other) > 1e-3 && max_difference(&one, &plain) > 1e-3);
}

#[test]
fn what_is_written_is_what_was_read_and_gguf_is_refused_by_name() {
    for name in MODELS {
        let backbone = model(name, "config.json");
        let original = SafetensorsSource::open(&fixture("models").join(name)).unwrap();
        let weights = merge::weights(backbone.as_ref(), None).unwrap();
        let folder = tempfile::tempdir().unwrap();
        write_model(
            folder.path(),
            &weights.config,
            &weights.tensors,
            Default::default(),
        )
        .unwrap();
        let written = SafetensorsSource::open(folder.path()).unwrap();
        let [mut names, mut found] = [original.names(), written.names()];
        names.sort();
        found.sort();
        assert_eq!(found, names);
        for tensor in &names {
            assert_eq!(stored(&written, tensor), stored(&original, tensor));
        }
        let error = gguf_metadata(&backbone.info().raw, "tiny", GgmlType::F32)
            .unwrap_err()
            .to_string();
        assert!(error.contains(name), "{error}");
    }
}

/// Adapters on routers and shared layers act in every block, and merging keeps that.
#[test]
fn adapters_act_wherever_a_layer_is_used_and_are_merged() {
    let everything = json!({"target_modules": "all-linear", "r": 2});
    let of_router = json!({"target_modules": ["gate", "hh", "ih", "router_proj"], "r": 2});
    for (name, method, settings) in [
        ("rmoe", "lora", everything.clone()),
        ("rmoe", "lora", of_router),
        ("widenet", "lora", everything),
        ("widenet", "ia3", json!({})),
    ] {
        let backbone = model(name, "config.json");
        let mut own = adapter(method, settings, backbone.as_ref());
        for parameter in own.parameters_mut() {
            let wave = |(i, v): (usize, f32)| v + 0.05 * (1.0 + (i as f32).sin());
            let moved = parameter.to_vec().into_iter().enumerate().map(wave);
            parameter.set(moved.collect());
        }
        let found = hidden(backbone.as_ref(), own.pass(Mode::Eval).as_mut());
        let plain = hidden(backbone.as_ref(), &mut NoAdapter);
        assert!(max_difference(&found, &plain) > 0.01, "{name} {method}");
        let merged = merge::weights(backbone.as_ref(), Some(own.as_ref())).unwrap();
        let merged = merged.build(&device()).unwrap();
        let worst = max_difference(&hidden(merged.as_ref(), &mut NoAdapter), &found);
        assert!(worst < 1e-4, "{name} {method}: {worst:e}");
    }
}

#[test]
fn settings_that_do_not_fit_are_refused_by_name() {
    let refused = |more: Value, key: &str| {
        let mut raw = json!({"hidden_size": 32, "intermediate_size": 24, "num_hidden_layers": 3, "num_attention_heads": 4,
            "vocab_size": 64});
        raw.as_object_mut()
            .unwrap()
            .extend(more.as_object().cloned().unwrap_or_else(Map::new));
        let error = ModelConfig::from_json(raw, "test").unwrap_err().to_string();
        assert!(error.contains(&format!("`{key}`")), "{more}: {error}");
    };
    for (key, value) in [
        ("moe_router_type", json!("transformer")),
        ("moe_router_rnn_hidden_size", json!(0)),
        ("moe_router_rnn_hidden_size", json!(1 << 30)),
        ("moe_num_layers", json!(2)),
        ("add_moe_share_expert", json!(true)),
        ("add_moe_bias", json!(true)),
        ("num_experts_per_tok", json!(9)),
        ("num_local_experts", json!(1 << 30)),
        ("moe_router_detach", json!("yes")),
    ] {
        refused(json!({"model_type": "rmoe", key: value}), key);
    }
    refused(
        json!({"model_type": "rmoe", "moe_router_type": "linear", "moe_router_detach": true}),
        "moe_router_detach",
    );
    for (key, value) in [
        ("num_experts_per_tok", json!(5)),
        ("num_local_experts", json!(1 << 30)),
        ("router_noise", json!(-0.5)),
        ("expert_capacity_factor", json!(-1.0)),
        ("share_norms", json!(1)),
    ] {
        refused(json!({"model_type": "widenet", key: value}), key);
    }
}
