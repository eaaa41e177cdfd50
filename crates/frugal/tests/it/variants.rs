//! Kinds of attention and feed-forward layers beyond those of public models: what they must equal,
//! and that they learn.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use burn::prelude::*;
use frugal::adapt::full::{Full, FullConfig};
use frugal::adapt::{
    ActiveAdapters, Adapter, AdapterSet, BuildContext, LoadedAdapter, Mode, NoAdapter, registry,
    to_vec,
};
use frugal::model::load::{Lookup, ModelFiles};
use frugal::model::{
    Backbone, Input, LoadOptions, Loaded, MemorySource, ModelConfig, Quantize, SequenceLayout,
    StateOptions, WeightSource, build, random_weights,
};
use frugal::train::{Event, Target, Tokenized, TrainConfig, TrainRun, train};
use serde_json::{Map, Value, json};

use crate::support::{context, device, max_difference, model};

const IDS: [u32; 24] = [
    3, 7, 1, 12, 30, 5, 9, 2, 60, 11, 4, 8, 33, 21, 6, 50, 17, 2, 9, 40, 13, 3, 7, 29,
];

fn config(more: Value) -> ModelConfig {
    let mut raw = json!({
        "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
        "vocab_size": 64, "max_position_embeddings": 64, "tie_word_embeddings": true, "initializer_range": 0.2,
    });
    raw.as_object_mut()
        .unwrap()
        .extend(more.as_object().unwrap().clone());
    ModelConfig::from_json(raw, "test").unwrap()
}

fn sparse(more: Value) -> ModelConfig {
    let mut raw = json!({ "model_type": "native_sparse", "compress_block": 4, "compress_stride": 2, "select_block": 4, "window": 6 });
    raw.as_object_mut()
        .unwrap()
        .extend(more.as_object().unwrap().clone());
    config(raw)
}

fn hidden(backbone: &dyn Backbone, ids: &[u32]) -> Vec<f32> {
    to_vec(
        backbone
            .forward(&Input::new(ids, &[ids.len()]), &mut NoAdapter, None)
            .unwrap(),
    )
}

fn matrix(source: &MemorySource, name: &str) -> Tensor<2> {
    match source.load(name).unwrap() {
        Loaded::Matrix(matrix) => matrix,
        _ => panic!("{name} is no matrix"),
    }
}

/// The sparse model with its gates held at (0, 1, 0) or (0, 0, 1), and the Llama model that it then
/// should equal.
fn gated(
    config: &ModelConfig,
    open: usize,
    branch: &str,
) -> (Arc<dyn Backbone>, Arc<dyn Backbone>) {
    let mut weights = random_weights(config, 1, &device());
    let llama = self::config(json!({ "model_type": "llama" }));
    let mut plain = MemorySource::default();
    for name in random_weights(&llama, 1, &device()).names() {
        let ours = ["k_proj", "v_proj"].iter().fold(name.clone(), |n, p| {
            n.replace(
                &format!("self_attn.{p}"),
                &format!("self_attn.{branch}.{p}"),
            )
        });
        match weights.load(&ours).unwrap() {
            Loaded::Matrix(m) => plain.insert_matrix(name, m),
            Loaded::Vector(v) => plain.insert_vector(name, v),
            Loaded::Data(_) => unreachable!("weights in memory are tensors"),
        }
    }
    for layer in 0..2 {
        let path = format!("model.layers.{layer}.self_attn.gate");
        let zero = matrix(&weights, &format!("{path}.weight")).zeros_like();
        weights.insert_matrix(format!("{path}.weight"), zero);
        // Far on either side of the sigmoid.
        let bias: Vec<f32> = (0..12)
            .map(|i| if i % 3 == open { 40.0 } else { -200.0 })
            .collect();
        weights.insert_vector(
            format!("{path}.bias"),
            Tensor::from_data(TensorData::from(bias.as_slice()), &device()),
        );
    }
    (
        build(config.clone(), &weights, &device()).unwrap(),
        build(llama, &plain, &device()).unwrap(),
    )
}

#[test]
fn sparse_attention_that_selects_everything_is_full_attention() {
    let (sparse_model, llama) = gated(&sparse(json!({ "select_count": 6 })), 1, "select");
    assert!(
        max_difference(
            &hidden(sparse_model.as_ref(), &IDS),
            &hidden(llama.as_ref(), &IDS)
        ) < 1e-4
    );
    // With fewer blocks than there are, it is not.
    let (fewer, llama) = gated(&sparse(json!({ "select_count": 3 })), 1, "select");
    assert!(max_difference(&hidden(fewer.as_ref(), &IDS), &hidden(llama.as_ref(), &IDS)) > 1e-3);
}

#[test]
fn sparse_attention_with_a_wide_window_is_full_attention() {
    let (sparse_model, llama) = gated(&sparse(json!({ "window": 24 })), 2, "window");
    assert!(
        max_difference(
            &hidden(sparse_model.as_ref(), &IDS),
            &hidden(llama.as_ref(), &IDS)
        ) < 1e-4
    );
}

#[test]
fn sparse_attention_sees_nothing_of_the_future_and_one_token_at_a_time_is_the_same() {
    let config = sparse(json!({}));
    let backbone = build(
        config.clone(),
        &random_weights(&config, 2, &device()),
        &device(),
    )
    .unwrap();
    let all = hidden(backbone.as_ref(), &IDS);
    let mut changed = IDS;
    changed[15..].fill(1);
    assert!(
        max_difference(
            &hidden(backbone.as_ref(), &changed)[..15 * 32],
            &all[..15 * 32]
        ) < 1e-5
    );
    let mut cache = backbone.new_state(1, StateOptions::default()).unwrap();
    let mut found = Vec::new();
    for (i, id) in IDS.iter().enumerate() {
        let layout = SequenceLayout::with_past(&[1], &[i]);
        let input = Input::tokens(std::slice::from_ref(id), layout);
        found.extend(to_vec(
            backbone
                .forward(&input, &mut NoAdapter, Some(&mut cache))
                .unwrap(),
        ));
    }
    assert!(max_difference(&found, &all) < 1e-4);
}

#[test]
fn what_is_remembered_of_a_token_is_as_wide_as_the_papers_say() {
    // SmolLM2's heads: multi-head, grouped by 3, one group, and latent with 256 + 32.
    let width = |more: Value| {
        let mut raw =
            json!({ "hidden_size": 576, "num_attention_heads": 9, "model_type": "llama" });
        raw.as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        config(raw).cache_width()
    };
    let latent = json!({ "model_type": "deepseek_v3", "q_lora_rank": null, "kv_lora_rank": 256, "qk_nope_head_dim": 64, "qk_rope_head_dim": 32,
        "v_head_dim": 64, "first_k_dense_replace": 2, "num_key_value_heads": 9 });
    let widths = [
        json!({ "num_key_value_heads": 9 }),
        json!({ "num_key_value_heads": 3 }),
        latent,
        json!({ "num_key_value_heads": 1 }),
    ];
    assert_eq!(widths.map(width), [1152, 384, 288, 128]);
}

#[test]
fn a_cache_holds_no_more_than_that() {
    let latent = json!({ "model_type": "deepseek_v3", "q_lora_rank": null, "kv_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 4, "v_head_dim": 8,
        "first_k_dense_replace": 2, "num_key_value_heads": 4 });
    // Numbers of each token and layer, with heads of 8: 2 · 4 · 8, 2 · 2 · 8, 2 · 8, 16 + 4, and
    // three branches of two heads.
    let kinds = [
        (
            json!({ "model_type": "llama", "num_key_value_heads": 4 }),
            64,
        ),
        (json!({ "model_type": "llama" }), 32),
        (
            json!({ "model_type": "llama", "num_key_value_heads": 1 }),
            16,
        ),
        (latent, 20),
        (json!({ "model_type": "native_sparse" }), 96),
    ];
    for (kind, width) in kinds {
        let config = config(kind);
        let name = config.model_type();
        let backbone = build(
            config.clone(),
            &random_weights(&config, 5, &device()),
            &device(),
        )
        .unwrap();
        let found = frugal::measure::runtime::footprint(backbone.as_ref()).unwrap();
        assert_eq!(
            (found.cache_bytes_per_token, config.cache_width()),
            (2 * 4 * width, width),
            "{name}"
        );
        // Tied embeddings are held once.
        assert_eq!(
            found.weight_bytes,
            4 * backbone.sites().num_parameters(),
            "{name}"
        );
    }
}

#[test]
fn experts_do_the_same_for_single_adapters_and_for_mixed_batches() {
    let backbone = model("mixtral", "config.json");
    let lora = |seed| {
        let mut adapter = (registry::find("lora").unwrap().build)(
            &Map::from_iter([("r".to_owned(), json!(4))]),
            &context(backbone.as_ref(), seed),
        )
        .unwrap();
        adapter
            .parameters_mut()
            .into_iter()
            .filter(|p| p.name().contains("lora_B"))
            .for_each(|p| p.set(vec![0.05; p.len()]));
        adapter
    };
    let (first, second) = (&IDS[..10], &IDS[10..]);
    let alone = |adapter: &dyn Adapter, ids: &[u32]| {
        to_vec(
            backbone
                .forward(
                    &Input::new(ids, &[ids.len()]),
                    adapter.pass(Mode::Eval).as_mut(),
                    None,
                )
                .unwrap(),
        )
    };
    let expected = [
        alone(lora(1).as_ref(), first),
        alone(lora(2).as_ref(), second),
    ]
    .concat();
    let mut set = AdapterSet::default();
    set.insert(
        "a",
        LoadedAdapter {
            adapter: lora(1),
            head: None,
        },
    );
    set.insert(
        "b",
        LoadedAdapter {
            adapter: lora(2),
            head: None,
        },
    );
    let layout = SequenceLayout::new(&[first.len(), second.len()]);
    let choice = ActiveAdapters::PerSequence(vec![Some("a".into()), Some("b".into())]);
    let mut pass = set.pass(&choice, &layout, Mode::Eval).unwrap();
    let input = Input::tokens(&IDS, layout);
    let found = to_vec(backbone.forward(&input, pass.as_mut(), None).unwrap());
    assert!(max_difference(&found, &expected) < 1e-4);
}

#[test]
fn an_even_load_of_experts_costs_one() {
    let config = config(
        json!({ "model_type": "mixtral", "num_local_experts": 4, "num_experts_per_tok": 4, "router_aux_loss_coef": 1.0 }),
    );
    let backbone = build(
        config.clone(),
        &random_weights(&config, 3, &device()),
        &device(),
    )
    .unwrap();
    let adapter = Full::new(FullConfig {}, &context(backbone.as_ref(), 0)).unwrap();
    let mut pass = adapter.pass(Mode::Train { seed: 0 });
    backbone
        .forward(&Input::new(&IDS, &[IDS.len()]), pass.as_mut(), None)
        .unwrap();
    // Every token goes to every expert, so the shares are even whatever the probabilities.
    let loss = to_vec(pass.auxiliary_loss().unwrap().inner())[0];
    assert!((loss - 1.0).abs() < 1e-5, "{loss}");
}

#[test]
fn full_training_does_not_start_from_weights_in_few_bits() {
    let files = ModelFiles::open("builtin", &Lookup::default()).unwrap();
    let options = LoadOptions {
        quantize: Quantize::Int8,
        ..LoadOptions::default()
    };
    let backbone = files.load_with(&device(), options).unwrap();
    let message = Full::new(FullConfig {}, &context(backbone.as_ref(), 0))
        .err()
        .unwrap()
        .to_string();
    assert!(
        message.contains("int8: full training needs `quantize = \"none\"`")
            && !message.contains("merge"),
        "{message}"
    );
}

#[test]
fn every_kind_learns_from_scratch() {
    let kinds = [
        json!({ "model_type": "mixtral", "num_local_experts": 4, "router_aux_loss_coef": 0.01 }),
        json!({ "model_type": "deepseek_v3", "q_lora_rank": null, "kv_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 4, "v_head_dim": 8,
            "first_k_dense_replace": 2, "num_key_value_heads": 4 }),
        json!({ "model_type": "native_sparse", "compress_block": 4, "compress_stride": 2, "select_block": 4, "window": 4 }),
        json!({ "model_type": "rmoe", "num_local_experts": 4, "moe_router_rnn_hidden_size": 16 }),
        json!({ "model_type": "widenet", "num_local_experts": 4, "router_noise": 0.25, "router_z_loss_coef": 0.001,
            "expert_capacity_factor": 1.2 }),
    ];
    for kind in kinds {
        let mut kind = kind;
        kind.as_object_mut()
            .unwrap()
            .insert("initializer_range".into(), json!(0.05));
        let config = config(kind);
        let name = config.model_type();
        let backbone = build(
            config.clone(),
            &random_weights(&config, 4, &device()),
            &device(),
        )
        .unwrap();
        let sites = backbone.sites().clone();
        let context = BuildContext {
            info: &config.info(),
            sites: &sites,
            backbone: Some(backbone.as_ref()),
            device: device(),
            seed: 0,
            tokenize: None,
        };
        let mut adapter = Full::new(FullConfig {}, &context).unwrap();
        let before: Vec<Vec<f32>> = adapter.parameters().iter().map(|p| p.to_vec()).collect();
        let data: Vec<Tokenized> = (0..8)
            .map(|i| {
                let input_ids: Vec<u32> = (0..20).map(|j| 5 + (i * 3 + j) % 40).collect();
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
            })
            .collect();
        let train_config = TrainConfig {
            lr: 1e-2,
            epochs: 20.0,
            batch_size: 8,
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
            adapter: &mut adapter,
            head: None,
            train: &data,
            validation: None,
            config: &train_config,
            folder: None,
            resume: false,
            stop: &AtomicBool::new(false),
            observer: &mut observer,
        })
        .unwrap();
        assert!(
            losses[losses.len() - 1] < 0.5 * losses[0],
            "{name}: {losses:?}"
        );
        for (parameter, before) in adapter.parameters().iter().zip(before) {
            assert_ne!(
                parameter.to_vec(),
                before,
                "{name}: {} was never trained",
                parameter.name()
            );
        }
    }
}
