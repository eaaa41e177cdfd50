use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use burn::tensor::{Device, Tensor};
use frugal_nn::{
    AttentionControl, AttentionMask, Backbone, ControlledPass, Input, NoAdapter, Rows,
    SequenceLayout, StateOptions, to_vec,
};
use safetensors::SafeTensors;
use serde_json::{Value, json};

use crate::load::{SafetensorsSource, read_json};
use crate::{ModelConfig, build, random_weights};

const OWN: [&str; 2] = ["gated_ssm", "hawk"];
const GEN: u32 = 9;

fn folder(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("../../fixtures/models")
        .join(name)
}

fn device() -> Device {
    Device::flex()
}

/// Floats and ids of a golden file.
struct Golden {
    floats: BTreeMap<String, Vec<f32>>,
    ids: BTreeMap<String, Vec<u32>>,
}

fn golden(name: &str, file: &str) -> Golden {
    let bytes = std::fs::read(folder(name).join(file)).unwrap();
    let (mut floats, mut ids) = (BTreeMap::new(), BTreeMap::new());
    for (name, view) in SafeTensors::deserialize(&bytes).unwrap().tensors() {
        let data = view.data();
        if view.dtype() == safetensors::Dtype::F32 {
            let words = data.as_chunks::<4>().0.iter();
            floats.insert(name, words.map(|b| f32::from_le_bytes(*b)).collect());
        } else {
            let words = data.as_chunks::<8>().0.iter();
            ids.insert(name, words.map(|b| i64::from_le_bytes(*b) as u32).collect());
        }
    }
    Golden { floats, ids }
}

fn max_difference(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    let each = a.iter().zip(b).map(|(a, b)| (a - b).abs());
    each.fold(0.0, f32::max)
}

fn assert_close(what: &str, found: Tensor<2>, expected: &[f32]) {
    let worst = max_difference(&to_vec(found), expected);
    assert!(worst <= 1e-4, "{what}: largest difference {worst:e}");
}

fn config(name: &str, changes: &Value) -> Value {
    let mut raw = read_json(&folder(name).join("config.json")).unwrap();
    let changes = changes.as_object().unwrap().clone();
    raw.as_object_mut().unwrap().extend(changes);
    raw
}

fn with(name: &str, changes: &Value) -> Result<Arc<dyn Backbone>, String> {
    let config = ModelConfig::from_json(config(name, changes), "config.json");
    let config = config.map_err(|error| error.to_string())?;
    let source = SafetensorsSource::open(&folder(name)).unwrap();
    build(config, &source, &device()).map_err(|error| error.to_string())
}

fn model(name: &str, _config: &str) -> Arc<dyn Backbone> {
    with(name, &json!({})).unwrap()
}

/// Of the formulas, and of transformers for the last.
#[test]
fn logits_and_states_are_those_of_the_reference() {
    for name in ["gated_ssm", "hawk", "recurrent_gemma"] {
        let (expected, backbone) = (golden(name, "golden.safetensors"), model(name, ""));
        for s in 0..2 {
            let ids = &expected.ids[&format!("seq{s}.input_ids")];
            let last = hidden(backbone.as_ref(), ids, &[ids.len()]);
            let wanted = &expected.floats[&format!("seq{s}.last_hidden_state")];
            assert_close(&format!("{name}, state {s}"), last.clone(), wanted);
            let found = backbone.logits(last, Rows::Tokens, &mut NoAdapter).unwrap();
            let wanted = &expected.floats[&format!("seq{s}.logits")];
            assert_close(&format!("{name}, logits {s}"), found, wanted);
            let mut cache = backbone.new_state(1, StateOptions::default()).unwrap();
            let mut found = Vec::new();
            for range in std::iter::once(0..3).chain((3..ids.len()).map(|i| i..i + 1)) {
                let layout = SequenceLayout::with_past(&[range.len()], &cache.past());
                let input = Input::tokens(&ids[range], layout);
                let part = backbone.forward(&input, &mut NoAdapter, Some(&mut cache));
                found.extend(to_vec(part.unwrap()));
            }
            let wanted = &expected.floats[&format!("seq{s}.last_hidden_state")];
            let worst = max_difference(&found, wanted);
            assert!(worst < 1e-4, "{name}, one by one: {worst:e}");
        }
    }
}

fn hidden(backbone: &dyn Backbone, ids: &[u32], lengths: &[usize]) -> Tensor<2> {
    backbone
        .forward(&Input::new(ids, lengths), &mut NoAdapter, None)
        .unwrap()
}

fn logits(backbone: &dyn Backbone, ids: &[u32]) -> Tensor<2> {
    let hidden = hidden(backbone, ids, &[ids.len()]);
    backbone
        .logits(hidden, Rows::Tokens, &mut NoAdapter)
        .unwrap()
}

#[test]
fn other_settings_and_prefixes_give_the_logits_of_the_formulas() {
    for name in OWN {
        let expected = golden(name, "variants.safetensors");
        let changes = read_json(&folder(name).join("variants.json")).unwrap()["changes"].clone();
        let changes = changes.as_object().unwrap();
        assert_eq!(changes.len(), 5);
        for (variant, change) in changes {
            let backbone = with(name, change).unwrap();
            for s in 0..2 {
                let found = logits(backbone.as_ref(), &expected.ids[&format!("input_ids.{s}")]);
                let key = format!("{variant}.{s}");
                assert_close(&format!("{name}, {key}"), found, &expected.floats[&key]);
            }
        }
    }
}

/// Two-way models with prompts, GEN and labels.
fn two_ways(name: &str) -> Arc<dyn Backbone> {
    with(name, &json!({"reverse_size": 9, "gen_token_id": GEN})).unwrap()
}

const PROMPT: [u32; 5] = [12, 40, 33, 21, 17];
const LABELS: [u32; 4] = [30, 11, 50, 29];

fn row() -> Vec<u32> {
    [&PROMPT[..], &[GEN], &LABELS].concat()
}

#[test]
fn nothing_behind_gen_reaches_the_prompt_and_gen_does() {
    for name in OWN {
        let backbone = two_ways(name);
        let before = to_vec(hidden(backbone.as_ref(), &row(), &[10]));
        let width = before.len() / 10;
        for label in 6..10 {
            let mut changed = row();
            changed[label] = 45;
            let after = to_vec(hidden(backbone.as_ref(), &changed, &[10]));
            assert_eq!(after[..label * width], before[..label * width], "{name}");
            assert_ne!(after[label * width..], before[label * width..], "{name}");
        }
        // The last prompt token changes the first: that is what the other direction is for.
        let mut changed = row();
        changed[4] = 45;
        let after = to_vec(hidden(backbone.as_ref(), &changed, &[10]));
        assert_ne!(after[..width], before[..width], "{name}");
        // Another token in the place of GEN, told by a control where the prefix ends.
        let told = |ids: &[u32]| {
            let control = AttentionControl {
                mask: AttentionMask::Prefix(vec![5]),
                ..AttentionControl::default()
            };
            let mut none = NoAdapter;
            let mut pass = ControlledPass::new(&mut none, control);
            to_vec(
                backbone
                    .forward(&Input::new(ids, &[10]), &mut pass, None)
                    .unwrap(),
            )
        };
        assert_eq!(told(&row()), before, "{name}");
        let mut changed = row();
        changed[5] = 45;
        assert_ne!(told(&changed)[..width], before[..width], "{name}");
    }
}

#[test]
fn packed_samples_are_those_run_separately() {
    for name in OWN {
        let backbone = two_ways(name);
        let other = [20u32, 13, GEN, 44, 19, 60, 14];
        let plain = [15u32, 16, 18];
        let all = [&row()[..], &other, &plain].concat();
        let together = to_vec(hidden(backbone.as_ref(), &all, &[10, 7, 3]));
        let apart: Vec<f32> = [&row()[..], &other, &plain]
            .into_iter()
            .flat_map(|ids| to_vec(hidden(backbone.as_ref(), ids, &[ids.len()])))
            .collect();
        // Products of more rows may be summed in another order.
        let worst = max_difference(&together, &apart);
        assert!(worst < 1e-5, "{name}: {worst:e}");
    }
}

#[test]
fn labels_one_by_one_with_a_cache_are_those_of_the_whole_row() {
    for name in OWN {
        let backbone = two_ways(name);
        let whole = to_vec(hidden(backbone.as_ref(), &row(), &[10]));
        let mut cache = backbone.new_state(1, StateOptions::default()).unwrap();
        let mut found = Vec::new();
        for range in [0..6, 6..7, 7..8, 8..10] {
            let layout = SequenceLayout::with_past(&[range.len()], &cache.past());
            let input = row();
            let input = Input::tokens(&input[range], layout);
            let part = backbone.forward(&input, &mut NoAdapter, Some(&mut cache));
            found.extend(to_vec(part.unwrap()));
        }
        assert!(max_difference(&found, &whole) < 1e-5, "{name}");
    }
}

#[test]
fn without_reverse_channels_a_model_is_the_causal_one_and_sizes_stay() {
    for name in OWN {
        let causal = with(name, &json!({})).unwrap();
        let with_token = with(name, &json!({"reverse_size": 0, "gen_token_id": GEN})).unwrap();
        let parts = [causal.as_ref(), with_token.as_ref()];
        let [a, b] = parts.map(|backbone| to_vec(hidden(backbone, &row(), &[10])));
        assert_eq!(a, b, "{name}");
        let both = two_ways(name);
        let counts = [&causal, &both].map(|b| b.sites().num_parameters());
        assert_eq!(counts[0], counts[1], "{name}");
        assert_ne!(to_vec(hidden(both.as_ref(), &row(), &[10])), a, "{name}");
    }
}

/// 5 d N of a block and the gain of its norm, beside the table and the last norm: the paper's model.
#[test]
fn a_gated_ssm_has_the_parameters_of_the_paper() {
    let raw = json!({"model_type": "gated_ssm", "vocab_size": 32_000, "hidden_size": 2048,
        "state_size": 2560, "num_hidden_layers": 48});
    let sites = ModelConfig::from_json(raw, "config.json").unwrap().sites();
    let table = 32_000 * 2048;
    assert_eq!(
        sites.num_parameters(),
        table + 48 * (26_214_400 + 2048) + 2048
    );
}

#[test]
fn settings_that_do_not_fit_are_refused_by_name() {
    for (name, changes, said) in [
        ("gated_ssm", json!({"reverse_size": 24}), "`reverse_size`"),
        ("gated_ssm", json!({"gen_token_id": 64}), "`gen_token_id`"),
        ("gated_ssm", json!({"state_size": 25}), "f_proj"),
        ("gated_ssm", json!({"state_size": null}), "`state_size`"),
        ("hawk", json!({"reverse_size": 18}), "`reverse_size`"),
        ("hawk", json!({"num_gate_blocks": 4}), "`num_gate_blocks`"),
        (
            "hawk",
            json!({"w_init_variance_scale": -1.0}),
            "w_init_variance_scale",
        ),
        (
            "recurrent_gemma",
            json!({"block_types": []}),
            "`block_types`",
        ),
        (
            "recurrent_gemma",
            json!({"block_types": ["mlp"]}),
            "`block_types`",
        ),
        ("recurrent_gemma", json!({"lru_width": 42}), "`lru_width`"),
        (
            "recurrent_gemma",
            json!({"logits_soft_cap": 0.0}),
            "`logits_soft_cap`",
        ),
        (
            "recurrent_gemma",
            json!({"intermediate_size": 1}),
            "`intermediate_size`",
        ),
    ] {
        let error = with(name, &changes).err().expect(said);
        assert!(error.contains(said), "{changes}: {error}");
    }
    // A model that reads from left to right takes no prefix.
    for name in ["gated_ssm", "hawk", "recurrent_gemma", "mamba"] {
        let backbone = model(name, "config.json");
        let control = AttentionControl {
            mask: AttentionMask::Prefix(vec![2]),
            ..AttentionControl::default()
        };
        let mut none = NoAdapter;
        let mut pass = ControlledPass::new(&mut none, control);
        let found = backbone.forward(&Input::new(&[3, 4, 5], &[3]), &mut pass, None);
        let error = found.unwrap_err().to_string();
        assert!(
            error.contains("reverse_size") || error.contains(name),
            "{error}"
        );
    }
}

/// Λ is drawn so that decays at an open gate, to the power 1/8, lie between 0.9 and 0.999.
#[test]
fn fresh_decays_are_those_of_griffin() {
    let raw = config("hawk", &json!({}));
    let config = ModelConfig::from_json(raw, "config.json").unwrap();
    let source = random_weights(&config, 3, &device());
    let name = "model.layers.1.temporal_block.rg_lru.recurrent_param";
    let values = crate::read_values(&source, name, &[18]).unwrap();
    for value in values {
        let decay = 1.0 / (1.0 + value.exp());
        assert!((0.8999..=0.9991).contains(&decay), "{value}: {decay}");
    }
}

/// A Llama with a separator reads its prompt as the prefix mask has it, all at once or with a cache, whose
/// sequences may stand at different places.
#[test]
fn a_llama_with_a_separator_reads_prompts_in_both_directions() {
    let plain = model("llama", "config.json");
    let backbone = with("llama", &json!({"gen_token_id": GEN})).unwrap();
    let ids = row();
    let control = AttentionControl {
        mask: AttentionMask::Prefix(vec![5]),
        ..AttentionControl::default()
    };
    let mut none = NoAdapter;
    let mut pass = ControlledPass::new(&mut none, control);
    let expected = plain.forward(&Input::new(&ids, &[10]), &mut pass, None);
    let expected = to_vec(expected.unwrap());
    let whole = to_vec(hidden(backbone.as_ref(), &ids, &[10]));
    assert_eq!(whole, expected);
    assert_ne!(whole, to_vec(hidden(plain.as_ref(), &ids, &[10])));
    let mut cache = backbone.new_state(2, StateOptions::default()).unwrap();
    let other = [20u32, 13, GEN];
    let mut found = Vec::new();
    let width = whole.len() / 10;
    for (range, more) in [(0..6, &other[..]), (6..7, &[44]), (7..10, &[19])] {
        let lengths = [range.len(), more.len()];
        let layout = SequenceLayout::with_past(&lengths, &cache.past());
        let both = [&ids[range.clone()], more].concat();
        let part = backbone.forward(
            &Input::tokens(&both, layout),
            &mut NoAdapter,
            Some(&mut cache),
        );
        found.extend_from_slice(&to_vec(part.unwrap())[..range.len() * width]);
    }
    assert!(max_difference(&found, &whole) < 1e-5);
}
