//! Model folders that are written again, of every architecture: what is read of them is what
//! `transformers` computes of the originals.

use std::fs;
use std::path::Path;

use frugal::adapt::{LoadedAdapter, Mode, NoAdapter, Parameter, Pass, Rows, registry, to_vec};
use frugal::model::load::{Lookup, ModelFiles};
use frugal::model::save::StoredType;
use frugal::model::{Backbone, Input};
use frugal::run::merge_to_folder;
use serde_json::{Value, json};

use crate::support::{Golden, assert_close, context, device, fixture, max_difference};

fn open(folder: &Path) -> ModelFiles {
    ModelFiles::open(folder.to_str().unwrap(), &Lookup::default()).unwrap()
}

/// The folders of `fixtures/models`.
fn models() -> Vec<String> {
    let entries = fs::read_dir(fixture("models")).unwrap();
    let mut names: Vec<String> = entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

fn exported(model: &str, entry: Option<&LoadedAdapter>) -> tempfile::TempDir {
    let files = open(&fixture("models").join(model));
    let backbone = files.load(&device()).unwrap();
    let out = tempfile::tempdir().unwrap();
    let stored = StoredType::F32;
    merge_to_folder(&files, backbone.as_ref(), entry, out.path(), stored)
        .unwrap_or_else(|e| panic!("{model}: {e}"));
    out
}

#[test]
fn parameters_of_no_layer_were_written_twice_and_exports_panicked() {
    let names = models();
    assert!(names.iter().any(|name| name == "mamba2"), "{names:?}");
    for name in names {
        let folder = exported(&name, None);
        let files = open(folder.path());
        let backbone = files.load(&device()).unwrap();
        let golden = Golden::read(&fixture("models").join(&name).join("golden.safetensors"));
        for s in golden.sequences() {
            let ids = golden.input_ids(s);
            let types = golden.ids.get(&format!("seq{s}.token_type_ids"));
            let input = Input {
                token_type_ids: types.map_or(&[], Vec::as_slice),
                ..Input::new(ids, &[ids.len()])
            };
            let hidden = backbone.forward(&input, &mut NoAdapter, None).unwrap();
            if let Some(expected) = golden.float(&format!("seq{s}.last_hidden_state")) {
                assert_close(&name, hidden.clone(), expected, 1e-4);
            }
            let expected = golden.float(&format!("seq{s}.logits"));
            if let Some(expected) = expected.filter(|_| backbone.lm_head().is_some()) {
                let logits = backbone.logits(hidden, Rows::Tokens, &mut NoAdapter);
                assert_close(&name, logits.expect(&name), expected, 1e-4);
            }
        }
    }
}

fn add(parameter: &mut Parameter, by: f32) {
    let wave = |(i, v): (usize, f32)| v + by * (0.5 + (i as f32).sin());
    let moved = parameter.to_vec().into_iter().enumerate().map(wave);
    let moved = moved.collect();
    parameter.set(moved);
}

fn run(backbone: &dyn Backbone, mut pass: Box<dyn Pass + '_>) -> Vec<f32> {
    let ids = [3, 7, 1, 12, 30, 5, 9, 2, 60];
    let states = backbone.forward(&Input::new(&ids, &[4, 5]), pass.as_mut(), None);
    to_vec(states.unwrap())
}

#[test]
fn adapters_of_models_with_parameters_of_no_layer_could_not_be_merged_into_folders() {
    for name in ["mamba", "mamba2"] {
        let files = open(&fixture("models").join(name));
        let backbone = files.load(&device()).unwrap();
        let backbone = backbone.as_ref();
        for (method, settings) in [
            ("lora", json!({"target_modules": ["in_proj", "out_proj"]})),
            ("full", json!({})),
        ] {
            let Value::Object(settings) = settings else {
                unreachable!()
            };
            let build = registry::find(method).unwrap().build;
            let mut adapter = build(&settings, &context(backbone, 1)).unwrap();
            for parameter in adapter.parameters_mut() {
                add(parameter, 0.1);
            }
            let found = run(backbone, adapter.pass(Mode::Eval));
            let plain = run(backbone, Box::new(NoAdapter));
            assert!(max_difference(&found, &plain) > 0.01, "{name}: {method}");
            let head = None;
            let folder = exported(name, Some(&LoadedAdapter { adapter, head }));
            let merged = open(folder.path()).load(&device()).unwrap();
            let worst = max_difference(&run(merged.as_ref(), Box::new(NoAdapter)), &found);
            assert!(worst < 1e-4, "{name}: {method}: {worst:e}");
        }
    }
}
