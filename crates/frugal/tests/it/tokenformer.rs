//! TokenFormer beyond what all backbones are tested for: gradients of every weight, files, other settings,
//! numbers of parameters, and what growth gives to training.

use frugal::adapt::{Adapter, Mode, NoAdapter, Rows, merge, registry, to_vec};
use frugal::model::grow::{Growth, NewKeys, Scale, grow};
use frugal::model::load::{SafetensorsSource, read_json};
use frugal::model::save::write_model;
use frugal::model::{Backbone, Input, ModelConfig, build};
use frugal_formats::gguf::gguf_metadata;
use serde_json::{Map, Value, json};

use crate::mamba::{compare_files, compare_gradients, transposed};
use crate::support::{Golden, assert_close, context, device, fixture, max_difference, model};

const NAME: &str = "tokenformer";

#[test]
fn the_loss_and_the_gradient_of_every_weight_match_the_formulas() {
    compare_gradients(NAME);
}

#[test]
fn what_is_written_has_the_names_and_shapes_that_were_read() {
    compare_files(NAME);
}

fn config(changes: &Value) -> Value {
    let mut raw = read_json(&fixture("models").join(NAME).join("config.json")).unwrap();
    let changes = changes.as_object().unwrap().clone();
    raw.as_object_mut().unwrap().extend(changes);
    raw
}

fn with(changes: &Value) -> Result<std::sync::Arc<dyn Backbone>, String> {
    let config = ModelConfig::from_json(config(changes), "config.json");
    let config = config.map_err(|error| error.to_string())?;
    let source = SafetensorsSource::open(&fixture("models").join(NAME)).unwrap();
    build(config, &source, &device()).map_err(|error| error.to_string())
}

fn logits(backbone: &dyn Backbone, ids: &[u32]) -> burn::tensor::Tensor<2> {
    let hidden = backbone
        .forward(&Input::new(ids, &[ids.len()]), &mut NoAdapter, None)
        .unwrap();
    backbone
        .logits(hidden, Rows::Tokens, &mut NoAdapter)
        .unwrap()
}

#[test]
fn other_settings_give_the_logits_of_the_formulas() {
    let folder = fixture("models").join(NAME);
    let golden = Golden::read(&folder.join("golden.safetensors"));
    let expected = Golden::read(&folder.join("variants.safetensors"));
    let changes = read_json(&folder.join("variants.json")).unwrap()["changes"].clone();
    let changes = changes.as_object().unwrap();
    assert!(changes.len() >= 10 && changes.len() == expected.floats.len());
    for (name, change) in changes {
        // The norm's weights are not read where it has none.
        let plain = change.get("final_norm").is_some();
        let backbone = match with(change) {
            Ok(backbone) => backbone,
            Err(error) => {
                assert!(plain && error.contains("model.norm"), "{name}: {error}");
                continue;
            }
        };
        assert_close(
            name,
            logits(backbone.as_ref(), golden.input_ids(0)),
            expected.float(name).unwrap(),
            1e-4,
        );
    }
}

/// Layer norm with gains of 1 and biases of 0 is the one without.
#[test]
fn norms_with_parameters_begin_as_those_without() {
    let raw = config(&json!({"norm": "layernorm"}));
    let with_norms = ModelConfig::from_json(raw, "config.json").unwrap();
    let plain = model(NAME, "config.json");
    let mut weights = merge::weights(plain.as_ref(), None).unwrap();
    let fresh = frugal::model::random_weights(&with_norms, 0, &device());
    let mut norms = 0;
    for (name, shape, values) in fresh.iter() {
        if name.contains("layernorm") {
            let data = burn::tensor::TensorData::new(values(), [shape[0]]);
            let vector = burn::tensor::Tensor::from_data(data, &device());
            weights.tensors.insert_vector(name, vector);
            norms += 1;
        }
    }
    assert_eq!(norms, 8);
    let other = build(with_norms, &weights.tensors, &device()).unwrap();
    let ids = [3, 7, 1, 12, 30, 5];
    let found = to_vec(logits(other.as_ref(), &ids));
    assert!(max_difference(&found, &to_vec(logits(plain.as_ref(), &ids))) < 1e-6);
}

#[test]
fn settings_that_are_not_supported_are_refused_by_name() {
    for (changes, said) in [
        (json!({"norm": "rmsnorm"}), "`norm`"),
        (json!({"final_norm": "rmsnorm"}), "`final_norm`"),
        (json!({"norm": "scalenorm"}), "`norm`"),
        (
            json!({"norm_activation_type": "relu"}),
            "`norm_activation_type`",
        ),
        (json!({"pattention_eps": -1.0}), "`pattention_eps`"),
        (
            json!({"partial_rotary_factor": 0.0}),
            "`partial_rotary_factor`",
        ),
        (
            json!({"partial_rotary_factor": 0.4}),
            "`partial_rotary_factor`",
        ),
        (json!({"num_key_value_heads": 2}), "`num_key_value_heads`"),
        (json!({"num_attention_heads": 5}), "`num_attention_heads`"),
        (json!({"qkv_slot_num": 0}), "`qkv_slot_num`"),
        (json!({"ffn_zoom_dim": 0}), "`ffn_zoom_dim`"),
        (json!({"proj_slot_num": null}), "`proj_slot_num`"),
        (json!({"mlp_bias": true}), "mlp.key_param_tokens.bias"),
        (json!({"qkv_slot_num": 17}), "query.key_param_tokens"),
    ] {
        let error = with(&changes).err().expect(said);
        assert!(error.contains(said), "{changes}: {error}");
    }
    let raw = config(&json!({}));
    let error = gguf_metadata(&raw, "tiny", frugal_formats::gguf::GgmlType::F32);
    let error = error.unwrap_err().to_string();
    assert!(error.contains(NAME) && error.contains("GGUF"), "{error}");
}

/// The numbers of the paper's table 7 and of the official configurations: the embedding once, no norm.
#[test]
fn parameters_are_those_of_the_published_models() {
    for (layers, width, heads, [qkv, ffn], of_tokens, all) in [
        (12, 768, 12, [768, 3072], 113_246_208, 151_879_680),
        (24, 1024, 16, [1024, 4096], 402_653_184, 454_164_480),
        (12, 768, 12, [576, 2304], 84_934_656, 123_568_128),
        (12, 768, 12, [2140, 8560], 315_555_840, 354_189_312),
        (12, 768, 12, [4850, 19_400], 715_161_600, 753_795_072),
        (12, 768, 12, [8620, 34_480], 1_271_070_720, 1_309_704_192),
    ] {
        let raw = json!({"model_type": NAME, "vocab_size": 50_304, "hidden_size": width,
            "num_hidden_layers": layers, "num_attention_heads": heads, "qkv_slot_num": qkv,
            "proj_slot_num": qkv, "ffn_slot_num": ffn});
        let sites = ModelConfig::from_json(raw, "config.json").unwrap().sites();
        let tokens = sites
            .iter()
            .filter(|(_, site)| site.path.ends_with("_param_tokens"));
        let tokens: usize = tokens.map(|(_, site)| site.num_parameters()).sum();
        assert_eq!((tokens, sites.num_parameters()), (of_tokens, all));
    }
}

fn spread(values: &[f32]) -> f32 {
    (values.iter().map(|v| v * v).sum::<f32>() / values.len() as f32).sqrt()
}

/// `init_method: normal` and `output_layer_init_method: wang_init` of the official configurations.
#[test]
fn fresh_tokens_are_drawn_as_in_the_official_code() {
    let raw = json!({"model_type": NAME, "vocab_size": 64, "hidden_size": 64, "num_hidden_layers": 4,
        "num_attention_heads": 4, "qkv_slot_num": 96, "proj_slot_num": 96, "ffn_slot_num": 256});
    let config = ModelConfig::from_json(raw, "config.json").unwrap();
    let source = frugal::model::random_weights(&config, 3, &device());
    for (name, shape, values) in source.iter() {
        // 2 / 4 / 8.
        let expected = if name.contains("value_param") {
            0.0625
        } else {
            0.02
        };
        let found = spread(&values());
        assert!(
            (found / expected - 1.0).abs() < 0.05,
            "{name} {shape:?}: {found}"
        );
    }
}

fn full(backbone: &dyn Backbone) -> Box<dyn Adapter> {
    let method = registry::find("full").unwrap();
    (method.build)(&Map::new(), &context(backbone, 1)).unwrap()
}

#[test]
fn new_keys_get_gradients_at_once_and_new_values_do_not() {
    let small = model(NAME, "config.json");
    let weights = merge::weights(small.as_ref(), None).unwrap();
    let growth = Growth::new("2x".parse().unwrap());
    let grown = grow(&weights, &growth, &device()).unwrap();
    let large = grown.build(&device()).unwrap();
    let adapter = full(large.as_ref());
    let ids = [3, 7, 1, 12, 30, 5, 9];
    let mut pass = adapter.pass(Mode::Train { seed: 0 });
    let hidden = large
        .forward(&Input::new(&ids, &[ids.len()]), pass.as_mut(), None)
        .unwrap();
    // Weighted, so that what the norm takes out of a plain sum stays.
    let wave: Vec<f32> = (0..ids.len() * 32).map(|i| (i as f32).sin()).collect();
    let wave = burn::tensor::TensorData::new(wave, [ids.len(), 32]);
    let loss = (hidden * burn::tensor::Tensor::from_data(wave, &device())).sum();
    let mut gradients = loss.backward();
    drop(pass);
    let mut seen = 0;
    for parameter in adapter.parameters() {
        let name = parameter.name().to_owned();
        if !name.contains("param_tokens") {
            continue;
        }
        let mut gradient = to_vec(parameter.take_gradient(&mut gradients).expect(&name));
        // Tokens are rows of keys and columns of values.
        if name.contains("value_param") {
            gradient = transposed(&gradient, parameter.shape()[1]);
        }
        let (old, new) = gradient.split_at(gradient.len() / 2);
        let moves = |part: &[f32]| part.iter().any(|g| *g != 0.0);
        assert!(moves(old), "{name}");
        assert_eq!(moves(new), name.contains("key_param"), "{name}");
        seen += 1;
    }
    assert_eq!(seen, 20);
}

#[test]
fn a_grown_folder_gives_the_same_logits() {
    let small = model(NAME, "config.json");
    let weights = merge::weights(small.as_ref(), None).unwrap();
    let ids = [3, 7, 1, 12, 30, 5, 9, 2, 60];
    let before = to_vec(logits(small.as_ref(), &ids));
    for (keys, scale) in [
        (NewKeys::Zero, Scale::Keep),
        (NewKeys::Zero, Scale::Renew),
        (NewKeys::Normal, Scale::Keep),
    ] {
        let growth = Growth {
            keys,
            scale,
            ..Growth::new("48".parse().unwrap())
        };
        let grown = grow(&weights, &growth, &device()).unwrap();
        let folder = tempfile::tempdir().unwrap();
        write_model(
            folder.path(),
            &grown.config,
            &grown.tensors,
            Default::default(),
        )
        .unwrap();
        let raw = read_json(&folder.path().join("config.json")).unwrap();
        let kept = scale == Scale::Keep;
        assert_eq!(raw["ffn_slot_num"], 120);
        assert_eq!(raw["ffn_zoom_dim"], if kept { 40 } else { 120 });
        let config = ModelConfig::from_json(raw, "config.json").unwrap();
        let source = SafetensorsSource::open(folder.path()).unwrap();
        let read = build(config, &source, &device()).unwrap();
        let worst = max_difference(&to_vec(logits(read.as_ref(), &ids)), &before);
        let same = growth.keeps_outputs();
        assert!(
            if same { worst < 2e-5 } else { worst > 1e-2 },
            "{growth:?}: {worst:e}"
        );
    }
}
