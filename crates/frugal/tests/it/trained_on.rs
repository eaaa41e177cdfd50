//! Adapters that `peft` wrote, read strictly and trained on.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::AtomicBool;

use frugal::adapt::{Adapter, LoadedAdapter, peft, registry};
use frugal::model::load::{SafetensorsFile, read_json};
use frugal::model::save::{Stored, StoredType, write_safetensors};
use frugal::train::{Event, Scheduler, Target, Tokenized, TrainConfig, TrainRun, train};
use serde_json::{Value, json};

use crate::changed_adapters::changed;
use crate::support::{context, fixture, max_difference, model};

fn load(folder: &Path) -> Result<LoadedAdapter, String> {
    let backbone = model("llama", "config.json");
    let context = context(backbone.as_ref(), 0);
    let loaded = peft::load(folder, &context, false);
    loaded.map(|(entry, _)| entry).map_err(|e| e.to_string())
}

fn prompt(adapter: &dyn Adapter) -> Vec<f32> {
    let all = adapter.parameters();
    assert_eq!(all.len(), 1);
    all[0].to_vec()
}

/// Trains on from a folder, with weight decay, at a rate that moves everything far.
fn trained_on(folder: &Path, weight_decay: f64) -> [Vec<f32>; 2] {
    let backbone = model("llama", "config.json");
    let mut entry = load(folder).unwrap();
    let before = prompt(entry.adapter.as_ref());
    let ids: Vec<u32> = (0..12).map(|i| (i * 29 + 3) % 64).collect();
    let labels = ids[1..].iter().map(|id| *id as i32).chain([-100]).collect();
    let examples = [Tokenized {
        input_ids: ids,
        token_type_ids: Vec::new(),
        labels: Target::Tokens(labels),
    }];
    let config = TrainConfig {
        lr: 0.5,
        max_steps: 5,
        batch_size: 1,
        weight_decay,
        lr_scheduler_type: Scheduler::Constant,
        warmup_ratio: 0.0,
        load_best_model_at_end: false,
        ..TrainConfig::default()
    };
    train(TrainRun {
        backbone: backbone.as_ref(),
        adapter: entry.adapter.as_mut(),
        head: None,
        train: &examples,
        validation: None,
        config: &config,
        folder: None,
        resume: false,
        stop: &AtomicBool::new(false),
        observer: &mut |_: &Event| {},
    })
    .unwrap();
    [before, prompt(entry.adapter.as_ref())]
}

/// Of `CPTEmbedding`: a row may be `epsilon * sqrt(token_dim / 2048)` from where it began, with the
/// epsilon of its type, and a row of a label (type 4) does not move.
#[test]
fn a_context_from_a_file_left_its_bounds_when_it_was_trained_on() {
    let types = [1, 2, 2, 4, 0];
    let settings = [("cpt_tokens_type_mask", json!(types))];
    let folder = changed(&fixture("adapters/llama-cpt"), &settings);
    let [before, after] = trained_on(folder.path(), 0.1);
    let scale = (32.0f64 / 2048.0).sqrt() as f32;
    let bounds = [2.4 * scale, 0.8 * scale, 0.8 * scale, 0.0, 0.0];
    for (row, bound) in bounds.into_iter().enumerate() {
        let part = row * 32..(row + 1) * 32;
        let moved = before[part.clone()].iter().zip(&after[part]);
        let length = moved.map(|(b, a)| (a - b) * (a - b)).sum::<f32>().sqrt();
        assert!(length <= bound * 1.0001, "{row}: {length} of {bound}");
        // At this rate each row reaches its bound.
        assert!(length >= bound * 0.9, "{row}: {length} of {bound}");
    }
}

#[test]
fn the_frozen_positions_of_a_cartridge_decayed_when_it_was_trained_on() {
    let settings = [("num_frozen_tokens", json!(2))];
    let folder = changed(&fixture("adapters/llama-cartridge"), &settings);
    let [before, after] = trained_on(folder.path(), 0.1);
    let frozen = before.len() / 5 * 2;
    assert_eq!(before[..frozen], after[..frozen]);
    assert!(max_difference(&before[frozen..], &after[frozen..]) > 0.1);
}

#[test]
fn a_context_with_labels_is_not_trained_on() {
    let rule = &registry::find("cpt").unwrap().file_rule;
    let why = |types: Value| {
        let Value::Object(settings) = json!({ "cpt_tokens_type_mask": types }) else {
            unreachable!()
        };
        (rule.not_trained_on)(&settings)
    };
    assert!(why(json!([1, 2, 3, 4])).is_some_and(|why| why.contains("cpt_tokens_type_mask")));
    assert_eq!(why(json!([1, 2, 3, 0])), None);
    assert_eq!((rule.not_trained_on)(&Default::default()), None);
}

#[test]
fn sizes_that_contradict_the_model_were_passed_over_in_prompts() {
    let mut methods = 0;
    for entry in std::fs::read_dir(fixture("adapters")).unwrap() {
        let folder = entry.unwrap().path();
        let golden = read_json(&folder.join("golden.json")).unwrap();
        let config = read_json(&folder.join(peft::CONFIG_FILE)).unwrap();
        if config.get("token_dim").is_none() || golden["model"] != "fixtures/models/llama" {
            continue;
        }
        methods += 1;
        load(&folder).unwrap();
        for (key, value) in [
            ("token_dim", json!(33)),
            ("num_layers", json!(3)),
            ("num_attention_heads", json!(0)),
            ("num_attention_heads", json!("2")),
            ("num_transformer_submodules", json!(-1)),
            ("num_transformer_submodules", json!(2)),
            ("num_transformer_submodules", json!("1")),
        ] {
            let out = changed(&folder, &[(key, value.clone())]);
            let error = load(out.path()).err();
            let error = error.unwrap_or_else(|| panic!("{folder:?}: {key} = {value}"));
            assert!(error.contains(key), "{error}");
        }
        // What is not said contradicts nothing.
        load(changed(&folder, &[("token_dim", Value::Null)]).path()).unwrap();
    }
    assert!(methods >= 7, "{methods}");
}

#[test]
fn sizes_of_the_sparse_part_of_frod_were_passed_over() {
    let folder = fixture("adapters/llama-frod");
    load(&folder).unwrap();
    for (at, factor) in [(0, 1000), (1, 1000), (0, 0)] {
        let out = changed(&folder, &[]);
        let path = out.path().join(peft::WEIGHTS_FILE);
        let file = SafetensorsFile::open(&path).unwrap();
        let all = file.names().into_iter().map(|name| {
            let shape = file.shape(&name).unwrap();
            let values: Vec<f32> = file.tensor(&name).unwrap().iter::<f32>().collect();
            let whole = |values: Vec<f32>| values.into_iter().map(|v| v as i32).collect::<Vec<_>>();
            let stored = if name.contains("frod_s_size") {
                let mut sizes = whole(values);
                sizes[at] *= factor;
                Stored::whole_numbers(&shape, sizes)
            } else if name.contains("frod_s_indices") {
                Stored::whole_numbers(&shape, whole(values))
            } else {
                Stored::new(&shape, StoredType::F32, move || values.clone())
            };
            (name, stored)
        });
        write_safetensors(&path, all.collect()).unwrap();
        let error = load(out.path()).err().unwrap();
        assert!(error.contains("frod_s_size"), "{error}");
    }
}

/// Files replace all that a new adapter forms of the weights, so a file reads the same without
/// them.
#[test]
fn weights_were_decomposed_for_adapters_whose_files_hold_what_comes_of_it() {
    let backbone = model("llama", "config.json");
    let with = context(backbone.as_ref(), 0);
    let without = frugal::adapt::BuildContext {
        backbone: None,
        ..context(backbone.as_ref(), 1)
    };
    let methods = registry::METHODS.iter();
    let held = methods.filter(|m| m.file_rule.hold_what_follows_from_weights);
    let mut names = Vec::new();
    for method in held {
        let own = |key: &str| (method.defaults)().contains_key(key);
        let rank = own("r").then(|| ("r".to_owned(), json!(2)));
        let targets = ("target_modules".to_owned(), json!(["q_proj", "up_proj"]));
        let settings = rank.into_iter().chain([targets]).collect();
        let adapter = method.make(&settings, &with).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let entry = LoadedAdapter {
            adapter,
            head: None,
        };
        peft::save(folder.path(), &entry, backbone.info(), "llama").unwrap();
        let saved = |adapter: &dyn Adapter| -> BTreeMap<String, Vec<f32>> {
            let all = adapter.parameters().into_iter();
            all.map(|p| (p.name().to_owned(), p.to_vec())).collect()
        };
        let (read, report) = peft::load(folder.path(), &without, false).unwrap();
        assert!(report.is_exact(), "{}", method.name);
        assert_eq!(
            saved(read.adapter.as_ref()),
            saved(entry.adapter.as_ref()),
            "{}",
            method.name
        );
        names.push(method.name);
    }
    assert!(names.contains(&"frod") && names.len() >= 6, "{names:?}");
}
