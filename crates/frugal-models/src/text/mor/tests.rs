//! The architecture against PyTorch (`scripts/golden/mor.py`), in one go, in pieces, and through
//! passes that see every row.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use burn::prelude::*;
use frugal_nn::{
    Backbone, BlockAction, Input, LayerState, Linear, NoAdapter, Pass, Rows, SequenceLayout, to_vec,
};
use safetensors::SafeTensors;
use serde_json::{Value, json};

use crate::load::{SafetensorsSource, read_json};
use crate::{MemorySource, ModelConfig, build, random_weights};

const CASES: [&str; 7] = [
    "expert",
    "expert-tanh-mlp",
    "expert-kv",
    "token",
    "token-free-kv",
    "recursive",
    "recursive-kv",
];

fn folder(case: &str) -> PathBuf {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/mor");
    fixtures.join(case)
}

fn model(case: &str) -> Arc<dyn Backbone> {
    changed(case, json!({}))
}

/// A case with other keys.
fn changed(case: &str, more: Value) -> Arc<dyn Backbone> {
    let (folder, device) = (folder(case), Device::flex());
    let mut raw = read_json(&folder.join("config.json")).unwrap();
    raw.as_object_mut()
        .unwrap()
        .extend(more.as_object().unwrap().clone());
    let config = ModelConfig::from_json(raw, case).unwrap();
    build(config, &SafetensorsSource::open(&folder).unwrap(), &device).unwrap()
}

/// What PyTorch computed.
struct Golden {
    floats: BTreeMap<String, Vec<f32>>,
    whole: BTreeMap<String, Vec<i64>>,
}

impl Golden {
    fn read(case: &str) -> Self {
        let bytes = std::fs::read(folder(case).join("golden.safetensors")).unwrap();
        let (mut floats, mut whole) = (BTreeMap::new(), BTreeMap::new());
        for (name, view) in SafeTensors::deserialize(&bytes).unwrap().tensors() {
            let data = view.data();
            if view.dtype() == safetensors::Dtype::F32 {
                let values = data.as_chunks::<4>().0.iter();
                floats.insert(name, values.map(|b| f32::from_le_bytes(*b)).collect());
            } else {
                let values = data.as_chunks::<8>().0.iter();
                whole.insert(name, values.map(|b| i64::from_le_bytes(*b)).collect());
            }
        }
        Self { floats, whole }
    }

    fn ids(&self) -> [Vec<u32>; 2] {
        [0, 1].map(|s| {
            let ids = self.whole[&format!("seq{s}.input_ids")].iter();
            ids.map(|&id| id as u32).collect()
        })
    }

    /// Logits of both sequences, one behind the other.
    fn logits(&self, kind: &str) -> Vec<f32> {
        [0, 1]
            .map(|s| self.floats[&format!("seq{s}.{kind}")].clone())
            .concat()
    }

    /// Tokens that each step took, of both sequences together.
    fn counts(&self, kind: &str) -> Vec<usize> {
        let counts = self.whole.get(kind).map_or(&[][..], Vec::as_slice);
        let both = counts.chunks(2).map(|of| (of[0] + of[1]) as usize);
        both.filter(|count| *count > 0).collect()
    }
}

/// Sees what a pass computes, and says how it is to be computed.
#[derive(Default)]
struct Watch {
    trains: bool,
    all_rows: bool,
    rows_of_layers: Vec<(usize, usize)>,
    rows_of_maps: usize,
    terms: Vec<f32>,
    load: Vec<usize>,
}

impl Pass for Watch {
    fn linear(&mut self, base: &Linear, x: Tensor<2>) -> Tensor<2> {
        self.rows_of_maps += x.dims()[0];
        base.forward(x)
    }

    fn before_block(&mut self, layer: usize, hidden_states: &Tensor<2>) -> BlockAction {
        self.rows_of_layers.push((layer, hidden_states.dims()[0]));
        BlockAction::Run
    }

    fn trains_model(&self) -> bool {
        self.trains
    }

    fn model_loss(&mut self, term: Tensor<1>) {
        self.terms.extend(to_vec(term));
    }

    fn balance(&mut self, _: &frugal_nn::Param, load: &[usize], _: f64) {
        self.load = load.to_vec();
    }

    fn needs_token_rows(&self) -> bool {
        self.all_rows
    }
}

fn logits(backbone: &dyn Backbone, ids: &[&[u32]], pass: &mut dyn Pass) -> Vec<f32> {
    let lengths: Vec<usize> = ids.iter().map(|ids| ids.len()).collect();
    let ids = ids.concat();
    let hidden = backbone
        .forward(&Input::new(&ids, &lengths), pass, None)
        .unwrap();
    to_vec(backbone.logits(hidden, Rows::Tokens, pass).unwrap())
}

fn compare(what: &str, found: &[f32], expected: &[f32]) {
    assert_eq!(found.len(), expected.len(), "{what}");
    let pairs = found.iter().zip(expected);
    let worst = pairs.map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(worst < 1e-4, "{what}: {worst:e}");
}

#[test]
fn logits_match_pytorch_alone_and_beside_others() {
    for case in CASES {
        let (backbone, golden) = (model(case), Golden::read(case));
        let [one, two] = golden.ids();
        let both = logits(backbone.as_ref(), &[&one, &two], &mut NoAdapter);
        compare(case, &both, &golden.logits("logits"));
        let alone = logits(backbone.as_ref(), &[&two], &mut NoAdapter);
        compare(case, &alone, &golden.floats["seq1.logits"]);
        let mut training = Watch {
            trains: true,
            ..Watch::default()
        };
        let trained = logits(backbone.as_ref(), &[&one, &two], &mut training);
        compare(case, &trained, &golden.logits("training_logits"));
        if case.starts_with("expert") {
            let top_k = changed(case, json!({"inference_routing": "top_k"}));
            let measured = logits(top_k.as_ref(), &[&one, &two], &mut NoAdapter);
            compare(case, &measured, &golden.logits("training_logits"));
            let error = top_k
                .new_state(1, Default::default())
                .unwrap_err()
                .to_string();
            assert!(error.contains("inference_routing"), "{error}");
        }
    }
}

/// Every layer and every map of a step has the rows of its tokens, no others.
#[test]
fn what_is_not_taken_is_not_computed() {
    for case in CASES.iter().filter(|case| !case.starts_with("recursive")) {
        let (backbone, golden) = (model(case), Golden::read(case));
        let [one, two] = golden.ids();
        let all = one.len() + two.len();
        for (trains, kind) in [(false, "counts"), (true, "training_counts")] {
            let mut watch = Watch {
                trains,
                ..Watch::default()
            };
            logits(backbone.as_ref(), &[&one, &two], &mut watch);
            let counts = golden.counts(kind);
            let ends = if *case == "token-free-kv" { 0 } else { 2 };
            let layers = backbone.info().num_hidden_layers - ends;
            let steps = golden.whole[kind].len() / 2;
            let base = layers / steps;
            let inner = watch
                .rows_of_layers
                .iter()
                .filter(|(layer, _)| ends == 0 || (1..=layers).contains(layer));
            let found: Vec<usize> = inner.map(|(_, rows)| *rows).collect();
            let expected: Vec<usize> = counts.iter().flat_map(|&n| vec![n; base]).collect();
            assert_eq!(found, expected, "{case}: {kind}");
            // Seven maps of a layer, five where keys and values are the first step's; and the head.
            let shared = case.ends_with("kv");
            let maps = |step: usize| if shared && step > 0 { 5 } else { 7 };
            let of_steps = counts.iter().enumerate().map(|(i, n)| n * base * maps(i));
            let expected = of_steps.sum::<usize>() + ends * 7 * all + all;
            assert_eq!(watch.rows_of_maps, expected, "{case}: {kind}");
        }
    }
}

#[test]
fn passes_that_see_every_row_give_the_same() {
    for case in CASES {
        let (backbone, golden) = (model(case), Golden::read(case));
        let [one, two] = golden.ids();
        let mut watch = Watch {
            all_rows: true,
            ..Watch::default()
        };
        let found = logits(backbone.as_ref(), &[&one, &two], &mut watch);
        compare(case, &found, &golden.logits("logits"));
        let rows = one.len() + two.len();
        assert!(
            watch.rows_of_layers.iter().all(|(_, n)| *n == rows),
            "{case}"
        );
    }
}

/// Both sequences in pieces of several lengths, single tokens among them; then a part of each is taken
/// back and computed again.
#[test]
fn generation_gives_what_the_whole_text_gives() {
    for case in CASES {
        let (backbone, golden) = (model(case), Golden::read(case));
        let ids = golden.ids();
        let vocabulary = backbone.info().vocab_size;
        let mut state = backbone.new_state(2, Default::default()).unwrap();
        let mut found: [Vec<f32>; 2] = Default::default();
        let go =
            |until: [usize; 2], found: &mut [Vec<f32>; 2], state: &mut frugal_nn::DecodeState| {
                let past = state.past();
                let new = [0, 1].map(|s| ids[s][past[s]..until[s]].to_vec());
                let layout = SequenceLayout::with_past(&new.each_ref().map(Vec::len), &past);
                let input = new.concat();
                let input = Input::tokens(&input, layout);
                let hidden = backbone
                    .forward(&input, &mut NoAdapter, Some(state))
                    .unwrap();
                let rows = backbone.logits(hidden, Rows::Tokens, &mut NoAdapter);
                let rows = to_vec(rows.unwrap());
                let (one, two) = rows.split_at(new[0].len() * vocabulary);
                found[0].extend(one);
                found[1].extend(two);
            };
        for until in [[4, 3], [5, 4], [9, 5], [10, 7], [12, 8]] {
            go(until, &mut found, &mut state);
        }
        for (s, [length, cut]) in [[12, 7], [8, 3]].into_iter().enumerate() {
            assert_eq!(found[s].len(), length * vocabulary);
            state.crop(s, cut).unwrap();
            found[s].truncate(cut * vocabulary);
        }
        for until in [[11, 4], [13, 8]] {
            go(until, &mut found, &mut state);
        }
        compare(case, &found.concat(), &golden.logits("logits"));

        // A step holds the tokens that it took, and no more.
        let counts = golden.whole.get("counts");
        for (s, ids) in ids.iter().enumerate() {
            let held: Vec<usize> = state.sequences()[s]
                .layers()
                .iter()
                .map(|layer| layer.rows().len())
                .collect();
            let layers = backbone.info().num_hidden_layers;
            let ends = if ["token-free-kv", "recursive-kv"].contains(&case) {
                0
            } else {
                1
            };
            let steps = counts.map_or(3, |counts| counts.len() / 2);
            for (layer, held) in held.into_iter().enumerate() {
                let inside = (ends..layers - ends).contains(&layer);
                let step = (layer - ends.min(layer)) / ((layers - 2 * ends) / steps);
                let expected = match counts {
                    Some(counts) if inside && !(case.ends_with("kv") && step > 0) => {
                        counts[2 * step + s] as usize
                    }
                    Some(_) if inside => 0,
                    None if case == "recursive-kv" && layer >= layers / 2 => 0,
                    _ => ids.len(),
                };
                assert_eq!(held, expected, "{case}: layer {layer} of sequence {s}");
            }
            let routed = |layer: &LayerState| match layer {
                LayerState::Routed(routed) => routed.positions().len() == layer.rows().len(),
                _ => true,
            };
            assert!(state.sequences()[s].layers().iter().all(routed), "{case}");
        }
    }
}

#[test]
fn a_threshold_does_not_look_ahead_and_the_highest_scores_do() {
    let golden = Golden::read("expert");
    let [ids, _] = golden.ids();
    let (known, width) = (6, model("expert").info().vocab_size);
    let differs = |backbone: &dyn Backbone, next: u32| {
        let mut other = ids.clone();
        other[known..].fill(next);
        let [one, two] = [&ids, &other].map(|ids| logits(backbone, &[ids], &mut NoAdapter));
        let pairs = one.iter().zip(&two).take(known * width);
        pairs.map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
    };
    for case in [
        "expert",
        "expert-tanh-mlp",
        "expert-kv",
        "token",
        "token-free-kv",
    ] {
        let backbone = model(case);
        for next in [3, 17, 40] {
            let worst = differs(backbone.as_ref(), next);
            assert!(worst < 1e-5, "{case}: {worst:e}");
        }
    }
    let top_k = changed("expert", json!({"inference_routing": "top_k"}));
    let moved = (3..48).filter(|&next| differs(top_k.as_ref(), next) > 1e-3);
    assert!(moved.count() > 0);
}

/// Routers whose scores are far from 0 and equal leave all tokens in; the stack is then a Llama's
/// layers, whose output is added to what they read.
#[test]
fn steps_that_take_all_tokens_are_layers_of_a_llama() {
    let device = Device::flex();
    let sizes = json!({"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 6, "num_attention_heads": 2,
        "num_key_value_heads": 1, "vocab_size": 48, "tie_word_embeddings": true, "rms_norm_eps": 1e-5, "initializer_range": 0.3});
    let with = |more: Value| {
        let mut raw = sizes.as_object().unwrap().clone();
        raw.extend(more.as_object().unwrap().clone());
        ModelConfig::from_json(Value::Object(raw), "test").unwrap()
    };
    let recursive = with(json!({"model_type": "mor", "num_recursion": 2, "mor_type": "none"}));
    let routed = with(
        json!({"model_type": "mor", "num_recursion": 2, "capacity_factors": [1.0, 1.0],
        "inference_routing": "top_k"}),
    );
    let llama = with(json!({"model_type": "llama"}));
    let source = random_weights(&routed, 4, &device);
    let mut copied = MemorySource::default();
    let put =
        |copied: &mut MemorySource, name: String, shape: &[usize], values: Vec<f32>| match *shape {
            [n] => copied.insert_vector(
                name,
                Tensor::from_data(TensorData::new(values, [n]), &device),
            ),
            [rows, cols] => {
                let data = TensorData::new(values, [rows, cols]);
                copied.insert_matrix(name, Tensor::from_data(data, &device));
            }
            _ => panic!("{name}"),
        };
    let mut plain = MemorySource::default();
    for (name, shape, values) in source.iter().filter(|(name, ..)| !name.contains("router")) {
        put(&mut plain, name.clone(), &shape, values());
        put(&mut copied, name.clone(), &shape, values());
        for (first, second) in [("layers.1.", "layers.3."), ("layers.2.", "layers.4.")] {
            if name.contains(first) {
                put(&mut copied, name.replace(first, second), &shape, values());
            }
        }
    }
    let llama = build(llama, &copied, &device).unwrap();
    let recursive = build(recursive, &plain, &device).unwrap();
    let ids: Vec<u32> = (0..9).map(|i| (i * 7 + 3) % 48).collect();
    let expected = logits(llama.as_ref(), &[&ids], &mut NoAdapter);
    compare(
        "recursive",
        &logits(recursive.as_ref(), &[&ids], &mut NoAdapter),
        &expected,
    );

    let routed = build(routed, &source, &device).unwrap();
    let pass = &mut NoAdapter;
    let input = Input::new(&ids, &[9]);
    let mut state = llama.stem(&input, pass).unwrap();
    state = llama.blocks(0..1, state, pass, None).unwrap();
    for step in 0..2 {
        let before = state.hidden_states.clone();
        let name = format!("model.mor_router.{step}.router.weight");
        let theta = crate::read_values(&source, &name, &[1, 16]).unwrap();
        let theta = Tensor::<2>::from_data(TensorData::new(theta, [1, 16]), &device);
        let score = before.clone().matmul(theta.transpose());
        let gate = burn::tensor::activation::sigmoid(score) * 0.1;
        state = llama
            .blocks(1 + 2 * step..3 + 2 * step, state, pass, None)
            .unwrap();
        state.hidden_states = before + state.hidden_states * gate;
    }
    state = llama.blocks(5..6, state, pass, None).unwrap();
    let hidden = llama.readout(state, pass);
    let expected = to_vec(llama.logits(hidden, Rows::Tokens, pass).unwrap());
    compare("routed", &logits(routed.as_ref(), &[&ids], pass), &expected);
}

#[test]
fn losses_of_routers_are_asked_for_in_training_alone() {
    for (case, terms) in [
        ("expert", 6),
        ("expert-tanh-mlp", 2),
        ("expert-kv", 3),
        ("token", 1),
    ] {
        let (backbone, golden) = (model(case), Golden::read(case));
        let [one, two] = golden.ids();
        for (trains, expected) in [(false, 0), (true, terms)] {
            let mut watch = Watch {
                trains,
                ..Watch::default()
            };
            logits(backbone.as_ref(), &[&one, &two], &mut watch);
            assert_eq!(watch.terms.len(), expected, "{case}");
            assert!(watch.terms.iter().all(|term| *term > 0.0), "{case}");
        }
    }
    let (backbone, golden) = (model("token-free-kv"), Golden::read("token-free-kv"));
    let [one, two] = golden.ids();
    let mut watch = Watch {
        trains: true,
        ..Watch::default()
    };
    logits(backbone.as_ref(), &[&one, &two], &mut watch);
    // All tokens take two of three steps.
    assert_eq!(watch.load, [0, 21, 0]);
}

/// Parameters of SmolLM-135M and SmolLM-360M without embeddings, of the paper's table 3.
#[test]
fn shared_layers_count_once() {
    let count = |[d, ff, layers, heads, kv]: [usize; 5], steps: usize, rounding: &str| {
        let raw = json!({"model_type": "mor", "hidden_size": d, "intermediate_size": ff, "num_hidden_layers": layers,
            "num_attention_heads": heads, "num_key_value_heads": kv, "vocab_size": 49152, "mor_type": "none",
            "num_recursion": steps, "layer_rounding": rounding});
        let config = ModelConfig::from_json(raw, "test").unwrap();
        config.sites().num_parameters() - 49152 * d - d
    };
    let small = [576, 1536, 30, 9, 3];
    assert_eq!(count(small, 2, "ceil"), 56_641_536);
    assert_eq!(count(small, 3, "ceil"), 42_481_152);
    assert_eq!(count(small, 3, "floor"), 38_941_056);
    assert_eq!(count(small, 4, "ceil"), 31_860_864);
    let large = [960, 2560, 32, 15, 5];
    assert_eq!(count(large, 2, "ceil"), 167_149_440);
    assert_eq!(count(large, 3, "ceil"), 117_987_840);
    assert_eq!(count(large, 4, "ceil"), 98_323_200);
}

#[test]
fn what_does_not_fit_is_refused_by_name() {
    let error = |more: Value| {
        let mut raw = json!({"model_type": "mor", "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 8,
            "num_attention_heads": 2, "vocab_size": 9});
        raw.as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        match ModelConfig::from_json(raw, "config.json") {
            Ok(config) => config.family.model_type.to_owned(),
            Err(error) => error.to_string(),
        }
    };
    assert_eq!(error(json!({})), "mor");
    for (key, more) in [
        ("sharing", json!({"sharing": "middle_sequence"})),
        ("sharing", json!({"sharing": "spiral"})),
        ("num_hidden_layers", json!({"num_hidden_layers": 2})),
        ("num_recursion", json!({"num_recursion": 0})),
        ("num_recursion", json!({"num_recursion": 1_000_000})),
        ("capacity_factors", json!({"capacity_factors": [1.0, 0.5]})),
        (
            "capacity_factors",
            json!({"capacity_factors": [0.5, 1.0, 1.0]}),
        ),
        (
            "capacity_factors",
            json!({"capacity_factors": [0.5, 0.5, 0.0]}),
        ),
        (
            "capacity_factors",
            json!({"capacity_factors": [0.9, 0.5, 0.1], "kv_sharing": true}),
        ),
        (
            "capacity_factors",
            json!({"mor_type": "token_choice", "capacity_factors": [1.0, 1.0, 1.0]}),
        ),
        ("balancing", json!({"balancing": "loss"})),
        (
            "inference_routing",
            json!({"mor_type": "none", "inference_routing": "top_k"}),
        ),
        ("router_func", json!({"router_func": "softmax"})),
        (
            "router_func",
            json!({"router_func": "tanh", "mor_type": "token_choice"}),
        ),
        ("router_alpha", json!({"router_alpha": 0.0})),
        ("router_temperature", json!({"router_temperature": -1.0})),
        ("router_threshold", json!({"router_threshold": 1.0})),
        ("mor_aux_loss_coef", json!({"mor_aux_loss_coef": -0.1})),
        ("mor_aux_loss_coef", json!({"mor_aux_loss_coef": 1e300})),
    ] {
        let error = error(more);
        assert!(error.contains(&format!("`{key}`")), "{key}: {error}");
    }
    for (key, value, beside) in [
        ("router_type", json!("mlp"), json!({"mor_type": "none"})),
        ("router_alpha", json!(0.2), json!({"mor_type": "none"})),
        ("router_gating", json!("none"), json!({"mor_type": "none"})),
        ("router_alpha", json!(0.2), json!({"router_gating": "none"})),
        (
            "router_func",
            json!("tanh"),
            json!({"router_gating": "none"}),
        ),
        (
            "router_threshold",
            json!(0.4),
            json!({"inference_routing": "top_k"}),
        ),
        (
            "router_bias_update_rate",
            json!(0.1),
            json!({"mor_type": "token_choice"}),
        ),
        (
            "mor_aux_loss_coef",
            json!(0.1),
            json!({"mor_type": "token_choice", "balancing": "loss_free"}),
        ),
    ] {
        let mut more = beside.clone();
        more[key] = value;
        let error = error(more);
        let said = [format!("`{key}`"), "says nothing without".into()];
        assert!(said.iter().all(|part| error.contains(part)), "{error}");
    }
    let backbone = model("expert");
    let input = Input::new(&[3, 4, 5], &[3]);
    let state = backbone.stem(&input, &mut NoAdapter).unwrap();
    let error = backbone
        .blocks(0..3, state.clone(), &mut NoAdapter, None)
        .unwrap_err();
    let error = error.to_string();
    assert!(
        error.contains("blocks 1 to 6") && error.contains("mor"),
        "{error}"
    );
    // The layers around them, and all steps together.
    let state = backbone.blocks(0..1, state, &mut NoAdapter, None).unwrap();
    let state = backbone.blocks(1..7, state, &mut NoAdapter, None).unwrap();
    let state = backbone.blocks(7..8, state, &mut NoAdapter, None).unwrap();
    let parts = to_vec(backbone.readout(state, &mut NoAdapter));
    let whole = backbone.forward(&input, &mut NoAdapter, None).unwrap();
    compare("parts", &parts, &to_vec(whole));
}
