//! Mamba and Mamba-2 beyond what all backbones are tested for: gradients of every weight, files, fresh weights,
//! and changes of its convolutions and bare parameters.

use burn::prelude::*;
use burn::tensor::activation::log_softmax;
use frugal::adapt::{
    ActiveAdapters, Adapter, AdapterSet, LoadedAdapter, Mode, NoAdapter, Parameter, Pass, Rows,
    merge, registry, to_vec,
};
use frugal::model::load::SafetensorsSource;
use frugal::model::save::write_model;
use frugal::model::{
    Backbone, Input, ModelConfig, SequenceLayout, SiteKind, WeightSource, build, random_weights,
};
use frugal_formats::gguf::gguf_metadata;
use serde_json::{Map, Value, json};

use crate::support::{Golden, context, device, fixture, max_difference, model};

const MODELS: [&str; 2] = ["mamba", "mamba2"];

fn adapter(method: &str, settings: Value, backbone: &dyn Backbone) -> Box<dyn Adapter> {
    let Value::Object(settings) = settings else {
        panic!("{settings}")
    };
    (registry::find(method).unwrap().build)(&settings, &context(backbone, 1)).unwrap()
}

/// The loss of `gradients.safetensors`: the mean over the next tokens of the sequences.
fn loss(backbone: &dyn Backbone, adapter: &dyn Adapter, sequences: &[&[u32]]) -> Tensor<1> {
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
    for ids in sequences {
        let next: Vec<i64> = ids[1..].iter().map(|&id| i64::from(id)).collect();
        let count = next.len();
        let index = Tensor::<2, Int>::from_data(TensorData::new(next, [count, 1]), &device());
        let own = logits.clone().narrow(0, start, count);
        total = total - log_softmax(own, 1).gather(1, index).sum();
        start += ids.len();
    }
    total / (ids.len() - sequences.len()) as f32
}

#[test]
fn the_loss_and_the_gradient_of_every_weight_match_transformers() {
    for name in MODELS {
        compare_gradients(name);
    }
}

pub fn compare_gradients(model_name: &str) {
    let backbone = model(model_name, "config.json");
    let folder = fixture("models").join(model_name);
    let golden = Golden::read(&folder.join("golden.safetensors"));
    let expected = Golden::read(&folder.join("gradients.safetensors"));
    let sequences = golden.sequences().into_iter();
    let sequences: Vec<&[u32]> = sequences.map(|s| golden.input_ids(s)).collect();
    compare_gradients_of(model_name, backbone.as_ref(), &sequences, &expected);
}

pub fn compare_gradients_of(
    model_name: &str,
    backbone: &dyn Backbone,
    sequences: &[&[u32]],
    expected: &Golden,
) {
    let full = adapter("full", json!({}), backbone);
    let loss = loss(backbone, full.as_ref(), sequences);
    let (found, wanted): (f32, f32) = (
        loss.clone().into_scalar(),
        expected.float("loss").unwrap()[0],
    );
    assert!(
        (found - wanted).abs() < 1e-4 * wanted,
        "{found}, not {wanted}"
    );
    let mut gradients = loss.backward();
    let parameters = full.parameters();
    assert_eq!(parameters.len(), expected.floats.len() - 1, "weights");
    for parameter in parameters {
        let name = parameter.name();
        let (shape, wanted) = &expected.floats[&format!("grad.{name}")];
        let mut found = to_vec(parameter.take_gradient(&mut gradients).expect(name));
        // What files have transposed is trained as every other layer.
        let mut kinds = backbone
            .sites()
            .iter()
            .map(|(_, site)| (site.weight_name() == name).then_some(site.kind));
        match (
            kinds.any(|kind| kind == Some(SiteKind::Conv1d)),
            parameter.shape(),
        ) {
            (true, [rows, cols]) => {
                assert_eq!([*cols, *rows], shape[..], "{name}");
                found = transposed(&found, *cols);
            }
            // Files have some matrices in blocks of rows.
            (_, [rows, cols]) if shape.len() == 3 => {
                assert_eq!([*rows, *cols], [shape[0] * shape[1], shape[2]], "{name}");
            }
            (_, of_file) => assert_eq!(of_file, shape, "{name}"),
        }
        let size = wanted.iter().fold(0.0f32, |m, g| m.max(g.abs()));
        let worst = max_difference(&found, wanted);
        assert!(
            worst <= 2e-4 * size,
            "{model_name}: {name}: {worst:e} of {size:e}"
        );
    }
}

/// Of rows of this many columns.
pub fn transposed(values: &[f32], cols: usize) -> Vec<f32> {
    let column = |j: usize| values.iter().skip(j).step_by(cols);
    (0..cols).flat_map(column).copied().collect()
}

#[test]
fn what_is_written_has_the_names_and_shapes_of_the_reference() {
    for name in MODELS {
        compare_files(name);
    }
}

pub fn compare_files(name: &str) {
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
    let mut names = original.names();
    let mut found = written.names();
    names.sort();
    found.sort();
    assert_eq!(found, names);
    for name in &names {
        assert_eq!(written.shape(name), original.shape(name), "{name}");
        let values = |source: &SafetensorsSource| {
            let shape = source.shape(name).unwrap();
            frugal::model::read_values(source, name, &shape).unwrap()
        };
        // Norms that add one to their weight give it back without its last bit.
        let bound = if name.contains("norm") { 2.4e-7 } else { 0.0 };
        let worst = max_difference(&values(&written), &values(&original));
        assert!(worst <= bound, "{name}: {worst:e}");
    }
}

fn config(more: Value) -> ModelConfig {
    let mut raw =
        json!({"model_type": "mamba", "vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 4});
    let (Some(raw_map), Value::Object(more)) = (raw.as_object_mut(), more) else {
        unreachable!()
    };
    raw_map.extend(more);
    ModelConfig::from_json(raw, "test").unwrap()
}

fn fresh(config: &ModelConfig, name: &str) -> Vec<f32> {
    let source = random_weights(config, 3, &device());
    let shape = source.shape(name).unwrap_or_else(|| panic!("{name}"));
    frugal::model::read_values(&source, name, &shape).unwrap()
}

fn spread(values: &[f32]) -> (f32, f32) {
    let largest = values.iter().fold(0.0f32, |m, v| m.max(v.abs()));
    let square = values.iter().map(|v| v * v).sum::<f32>() / values.len() as f32;
    (largest, square.sqrt())
}

/// `MambaPreTrainedModel._init_weights` and `MambaMixer.init_mamba_weights`.
#[test]
fn fresh_weights_are_those_of_the_reference() {
    let plain = config(json!({}));
    let mixer = |name: &str| format!("backbone.layers.1.mixer.{name}");
    let a_log = fresh(&plain, &mixer("A_log"));
    assert_eq!(a_log.len(), 64 * 16);
    for (i, found) in a_log.iter().enumerate() {
        assert!(
            (found.exp() - (i % 16 + 1) as f32).abs() < 1e-4,
            "{i}: {found}"
        );
    }
    assert_eq!(fresh(&plain, &mixer("D")), vec![1.0; 64]);
    let steps: Vec<f32> = fresh(&plain, &mixer("dt_proj.bias"))
        .iter()
        .map(|bias| bias.exp().ln_1p())
        .collect();
    let inside = |step: &f32| (0.999e-3..=0.1001).contains(step);
    assert!(steps.iter().all(inside), "{steps:?}");
    // Half of them below the geometric mean, 0.01.
    let below = steps.iter().filter(|step| **step < 0.01).count();
    assert!((16..48).contains(&below), "{below} of 64");
    // Uniform within a bound, whose spread is the bound by the root of three.
    for (name, bound) in [
        ("conv1d.weight", 0.5),
        ("out_proj.weight", 64f32.sqrt().recip()),
        ("dt_proj.weight", 2f32.sqrt().recip()),
    ] {
        let (largest, deviation) = spread(&fresh(&plain, &mixer(name)));
        assert!(
            largest <= bound && largest > 0.9 * bound,
            "{name}: {largest}"
        );
        assert!(
            (deviation * 3f32.sqrt() / bound - 1.0).abs() < 0.12,
            "{name}"
        );
    }
    for name in [mixer("in_proj.weight"), "backbone.embeddings.weight".into()] {
        let (_, deviation) = spread(&fresh(&plain, &name));
        assert!((deviation / 0.1 - 1.0).abs() < 0.06, "{name}: {deviation}");
    }
    assert!(
        fresh(&plain, &mixer("conv1d.bias"))
            .iter()
            .all(|b| *b == 0.0)
    );

    let other = config(
        json!({"rescale_prenorm_residual": true, "time_step_init_scheme": "constant",
        "time_step_scale": 0.5, "time_step_floor": 0.05, "initializer_range": 0.3}),
    );
    let (largest, _) = spread(&fresh(&other, &mixer("out_proj.weight")));
    // Four blocks.
    assert!(largest <= 0.5 / 8.0 && largest > 0.45 / 8.0, "{largest}");
    let constant = fresh(&other, &mixer("dt_proj.weight"));
    assert!(
        constant
            .iter()
            .all(|v| (v - 0.5 / 2f32.sqrt()).abs() < 1e-6)
    );
    let least = fresh(&other, &mixer("dt_proj.bias"));
    let least = least.iter().fold(f32::MAX, |m, b| m.min(b.exp().ln_1p()));
    assert!((least - 0.05).abs() < 1e-4, "{least}");
    let (_, deviation) = spread(&fresh(&other, "backbone.embeddings.weight"));
    assert!((deviation / 0.3 - 1.0).abs() < 0.06, "{deviation}");
    build(other, &random_weights(&plain, 3, &device()), &device()).unwrap();
}

const IDS: [u32; 9] = [3, 7, 1, 12, 30, 5, 9, 2, 60];
const LENGTHS: [usize; 2] = [4, 5];

fn hidden(backbone: &dyn Backbone, set: &AdapterSet, choice: &ActiveAdapters) -> Vec<f32> {
    let layout = SequenceLayout::new(&LENGTHS);
    let mut pass = set.pass(choice, &layout, Mode::Eval).unwrap();
    let states = backbone.forward(&Input::new(&IDS, &LENGTHS), pass.as_mut(), None);
    to_vec(states.unwrap())
}

/// Full adapters whose convolution, decays and passed input differ, each in its own way.
fn moved(backbone: &dyn Backbone, by: f32) -> LoadedAdapter {
    let mut full = adapter("full", json!({}), backbone);
    for parameter in full.parameters_mut() {
        let name = parameter.name().to_owned();
        if ["conv1d.weight", "conv1d.bias", "A_log", ".D", "dt_bias"]
            .iter()
            .any(|end| name.ends_with(end))
        {
            add(parameter, by);
        }
    }
    LoadedAdapter {
        adapter: full,
        head: None,
    }
}

fn add(parameter: &mut Parameter, by: f32) {
    let values = parameter.to_vec();
    let wave = |(i, v): (usize, f32)| v + by * (1.0 + (i as f32).sin());
    let moved = values.into_iter().enumerate().map(wave).collect();
    parameter.set(moved);
}

#[test]
fn sequences_of_a_batch_have_convolutions_and_decays_of_their_own_adapters() {
    for name in MODELS {
        compare_mixed_batch(name);
    }
}

fn compare_mixed_batch(name: &str) {
    let backbone = model(name, "config.json");
    let backbone = backbone.as_ref();
    let mut set = AdapterSet::default();
    set.insert("a", moved(backbone, 0.2));
    set.insert("b", moved(backbone, -0.3));
    let one = |name: &str| hidden(backbone, &set, &ActiveAdapters::One(name.into()));
    let (a, b) = (one("a"), one("b"));
    let plain = hidden(backbone, &set, &ActiveAdapters::Base);
    let split = LENGTHS[0] * backbone.info().hidden_size;
    assert!(max_difference(&a, &plain) > 0.05 && max_difference(&a, &b) > 0.05);
    let choices = |first: Option<&str>, second: Option<&str>| {
        let names = [first, second].map(|name| name.map(str::to_owned));
        hidden(backbone, &set, &ActiveAdapters::PerSequence(names.to_vec()))
    };
    for (found, [first, second]) in [
        (choices(Some("a"), Some("b")), [&a, &b]),
        (choices(Some("b"), None), [&b, &plain]),
        (choices(None, Some("a")), [&plain, &a]),
    ] {
        let worst = max_difference(&found[..split], &first[..split])
            .max(max_difference(&found[split..], &second[split..]));
        assert!(worst < 1e-5, "{worst:e}");
    }
    // Alone with weight 1, and with weight 0.
    let weighted = |weight: f32| {
        let parts = vec![("a".to_owned(), weight)];
        hidden(backbone, &set, &ActiveAdapters::Combined(parts))
    };
    assert!(max_difference(&weighted(1.0), &a) < 1e-4);
    assert!(max_difference(&weighted(0.0), &plain) < 1e-5);
}

fn run(backbone: &dyn Backbone, mut pass: Box<dyn Pass + '_>) -> Vec<f32> {
    let states = backbone.forward(&Input::new(&IDS, &LENGTHS), pass.as_mut(), None);
    to_vec(states.unwrap())
}

#[test]
fn trained_biases_of_convolutions_act_and_are_merged() {
    let backbone = model("mamba", "config.json");
    let backbone = backbone.as_ref();
    let lora = json!({"bias": "all", "target_modules": ["in_proj"]});
    for (method, settings) in [("bitfit", json!({})), ("lora", lora)] {
        let mut own = adapter(method, settings, backbone);
        let mut moved = 0;
        for parameter in own.parameters_mut() {
            if parameter.name().ends_with("conv1d.bias") {
                add(parameter, 0.3);
                moved += 1;
            }
        }
        assert_eq!(moved, 2, "{method}: one for each block");
        let found = run(backbone, own.pass(Mode::Eval));
        assert!(
            max_difference(&found, &run(backbone, Box::new(NoAdapter))) > 0.05,
            "{method}"
        );
        let merged = merge::weights(backbone, Some(own.as_ref())).unwrap();
        let merged = merged.build(&device()).unwrap();
        let worst = max_difference(&run(merged.as_ref(), Box::new(NoAdapter)), &found);
        assert!(worst < 1e-5, "{method}: {worst:e}");
    }
}

#[test]
fn what_the_mixer_has_no_place_for_is_refused_by_name() {
    let backbone = model("mamba", "config.json");
    let context = context(backbone.as_ref(), 1);
    let refused = |method: &str, settings: Value| {
        let Value::Object(settings) = settings else {
            panic!("{settings}")
        };
        let built = (registry::find(method).unwrap().build)(&settings, &context);
        built.err().map(|e| e.to_string()).unwrap_or_default()
    };
    let plain = Map::new();
    for (method, words) in [
        ("prefix-tuning", ["mamba", "attention"]),
        ("pfeiffer", ["mamba", "feed-forward"]),
        ("houlsby", ["mamba", "feed-forward"]),
    ] {
        let error = refused(method, Value::Object(plain.clone()));
        assert!(words.iter().all(|word| error.contains(word)), "{error}");
    }
    for (name, what) in [
        ("conv1d", "convolution"),
        ("A_log", "parameter"),
        ("D", "parameter"),
    ] {
        let error = refused("lora", json!({"target_modules": ["in_proj", name]}));
        assert!(error.contains(name) && error.contains(what), "{error}");
    }
    // llama.cpp's files have other names and sizes for it.
    let error = gguf_metadata(
        &backbone.info().raw,
        "tiny",
        frugal_formats::gguf::GgmlType::F32,
    )
    .unwrap_err()
    .to_string();
    assert!(error.contains("mamba"), "{error}");
}

/// What follows does not depend on how a text is cut, and not on what else is in the batch.
#[test]
fn a_text_in_pieces_beside_others_gives_what_it_gives_alone() {
    for name in MODELS {
        compare_pieces(name);
    }
}

fn compare_pieces(name: &str) {
    let backbone = model(name, "config.json");
    let ids: Vec<u32> = (0..90).map(|i| (i * 37 + 5) % 64).collect();
    let whole = backbone
        .forward(&Input::new(&ids, &[90]), &mut NoAdapter, None)
        .unwrap();
    let mut state = backbone.new_state(2, Default::default()).unwrap();
    let mut found = Vec::new();
    for (start, end) in [(0, 40), (40, 41), (41, 75), (75, 90)] {
        // The other sequence is longer, and of other tokens.
        let other: Vec<u32> = (0..(end - start) as u32 + 3)
            .map(|i| (i * 11 + 2) % 64)
            .collect();
        let layout = SequenceLayout::with_past(&[other.len(), end - start], &state.past());
        let input = [other.as_slice(), &ids[start..end]].concat();
        let hidden = backbone
            .forward(
                &Input::tokens(&input, layout),
                &mut NoAdapter,
                Some(&mut state),
            )
            .unwrap();
        let rows = hidden.dims()[0];
        found.extend(to_vec(hidden.narrow(0, other.len(), rows - other.len())));
    }
    let worst = max_difference(&found, &to_vec(whole));
    assert!(worst < 1e-5, "{worst:e}");
}
