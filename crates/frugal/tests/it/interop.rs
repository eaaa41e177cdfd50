//! The edges of the exchange with Python: heads and files beside a model, adapter files that hold
//! more than their method, hostile numbers.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use frugal::adapt::Rows;
use frugal::adapt::{LoadedAdapter, Mode, NoAdapter, merge, peft, registry, to_vec};
use frugal::model::load::{Lookup, ModelFiles, SafetensorsFile, read_json};
use frugal::model::save::StoredType;
use frugal::model::{Backbone, Input, SequenceLayout};
use frugal::run::merge_to_folder;
use serde_json::{Value, json};

use crate::changed_adapters::{changed, copy, refusal};
use crate::support::{Golden, context, device, fixture, max_difference, model};

const TOLERANCE: f32 = 1e-4;

fn open(folder: &Path) -> ModelFiles {
    ModelFiles::open(folder.to_str().unwrap(), &Lookup::default()).unwrap()
}

fn interop(path: &str) -> PathBuf {
    fixture("interop").join(path)
}

/// Every tensor of a model folder's single file.
fn tensors(folder: &Path) -> BTreeMap<String, Vec<f32>> {
    let file = SafetensorsFile::open(&folder.join("model.safetensors")).unwrap();
    let names = file.names().into_iter();
    names
        .map(|name| {
            let values = file.tensor(&name).unwrap().iter::<f32>().collect();
            (name, values)
        })
        .collect()
}

/// The model, with the adapter if one is given, as a folder.
fn exported(files: &ModelFiles, adapter: Option<&Path>) -> tempfile::TempDir {
    let backbone = files.load(&device()).unwrap();
    let entry = adapter.map(|folder| {
        peft::load(folder, &context(backbone.as_ref(), 0), false)
            .unwrap()
            .0
    });
    let out = tempfile::tempdir().unwrap();
    merge_to_folder(
        files,
        backbone.as_ref(),
        entry.as_ref(),
        out.path(),
        StoredType::F32,
    )
    .unwrap();
    out
}

const MODELS: [&str; 4] = [
    "bert-classifier",
    "bert-masked-lm",
    "roberta-bare",
    "llama-classifier",
];

#[test]
fn the_heads_of_a_base_go_with_its_export() {
    for name in MODELS {
        let folder = interop("models").join(name);
        let files = open(&folder);
        let out = exported(&files, None);
        let (source, found) = (tensors(&folder), tensors(out.path()));
        let prefix = files.config().family.base_prefix;
        for (key, values) in &source {
            let full = format!("{prefix}{key}");
            let copy = found.get(key).or_else(|| found.get(&full));
            assert_eq!(copy, Some(values), "{name}: {key}");
        }
        assert_eq!(found.len(), source.len(), "{name}");
        let config = |folder: &Path| read_json(&folder.join("config.json")).unwrap();
        assert_eq!(
            config(out.path())["architectures"],
            config(&folder)["architectures"],
            "{name}"
        );
    }
}

#[test]
fn a_merged_classifier_keeps_its_head_when_it_is_exported_again() {
    let adapter = fixture("adapters/bert-lora-seqcls");
    let merged = exported(&open(&fixture("models/bert")), Some(&adapter));
    let again = exported(&open(merged.path()), None);
    let (first, second) = (tensors(merged.path()), tensors(again.path()));
    assert!(first.contains_key("classifier.weight"));
    assert_eq!(first, second);
}

#[test]
fn an_adapter_without_a_head_leaves_that_of_its_base() {
    for name in ["bert-headless", "llama-headless"] {
        let folder = interop("adapters").join(name);
        let described = read_json(&folder.join("golden.json")).unwrap();
        let base = described["model"].as_str().unwrap();
        let files = open(&fixture("..").join(base));
        let backbone = files.load(&device()).unwrap();
        let context = context(backbone.as_ref(), 0);
        let (entry, _) = peft::load(&folder, &context, false).unwrap();
        assert!(entry.head.is_none(), "{name}");
        let head = files.head(&device()).unwrap().unwrap();
        let golden = Golden::read(&folder.join("golden.safetensors"));
        // The same after merging: what Python would read of the folder.
        let out = exported(&files, Some(&folder));
        let merged = open(out.path());
        let merged_backbone = merged.load(&device()).unwrap();
        let merged_head = merged.head(&device()).unwrap().unwrap();
        for s in golden.sequences() {
            let ids = golden.input_ids(s);
            let layout = SequenceLayout::new(&[ids.len()]);
            let expected = golden.float(&format!("seq{s}.logits")).unwrap();
            let mut pass = entry.adapter.pass(Mode::Eval);
            let hidden = backbone
                .forward(&Input::new(ids, &[ids.len()]), pass.as_mut(), None)
                .unwrap();
            let found = head.forward(
                hidden,
                &layout,
                backbone.as_ref(),
                pass.as_mut(),
                Mode::Eval,
            );
            assert!(
                max_difference(&to_vec(found), expected) < TOLERANCE,
                "{name}"
            );
            let hidden = merged_backbone
                .forward(&Input::new(ids, &[ids.len()]), &mut NoAdapter, None)
                .unwrap();
            let found = merged_head.forward(
                hidden,
                &layout,
                merged_backbone.as_ref(),
                &mut NoAdapter,
                Mode::Eval,
            );
            assert!(
                max_difference(&to_vec(found), expected) < TOLERANCE,
                "{name} merged"
            );
        }
    }
}

#[test]
fn what_lies_beside_the_weights_goes_with_a_merge() {
    let folder = interop("models/bert-classifier");
    // Other forms of the weights would no longer be this model's.
    let source = tempfile::tempdir().unwrap();
    copy(&folder, source.path());
    std::fs::create_dir(source.path().join("onnx")).unwrap();
    std::fs::write(source.path().join("onnx/model.onnx"), "old").unwrap();
    std::fs::create_dir(source.path().join("2_Dense")).unwrap();
    std::fs::write(source.path().join("2_Dense/model.safetensors"), "dense").unwrap();
    std::fs::write(source.path().join("pytorch_model.bin"), "old").unwrap();
    let modules = json!([{"path": ""}, {"path": "1_Pooling"}, {"path": "2_Dense"}]);
    std::fs::write(source.path().join("modules.json"), modules.to_string()).unwrap();
    let out = exported(&open(source.path()), None);
    for name in [
        "generation_config.json",
        "modules.json",
        "1_Pooling/config.json",
        "2_Dense/model.safetensors",
        "special_tokens_map.json",
        "preprocessor_config.json",
        "chat_template.jinja",
    ] {
        let read = |folder: &Path| std::fs::read(folder.join(name)).ok();
        assert!(read(source.path()).is_some(), "{name}");
        assert_eq!(read(out.path()), read(source.path()), "{name}");
    }
    for name in ["onnx", "pytorch_model.bin"] {
        assert!(!out.path().join(name).exists(), "{name}");
    }
}

/// Adapters on the tiny models whose outputs are compared, with what of them is.
const READ: [(&str, &str); 23] = [
    ("bert-bare", "last_hidden_state"),
    ("bert-bias-all-seqcls", "logits"),
    ("roberta-bias-all-seqcls", "logits"),
    ("bert-hra-bias-all-seqcls", "logits"),
    ("bert-oft-bias-only", "last_hidden_state"),
    ("llama-bias-all", "logits"),
    ("llama-bias-only", "logits"),
    ("llama-layers-empty", "logits"),
    ("llama-whole-path", "logits"),
    ("llama-saved-embeddings", "logits"),
    ("llama-saved-mlp", "logits"),
    ("llama-tied-pair", "logits"),
    ("mixtral-all-linear", "logits"),
    ("mixtral-experts", "logits"),
    ("mixtral-parameters", "logits"),
    ("mixtral-saved-router", "logits"),
    ("deepseek-all-linear", "logits"),
    ("llama-vblora-topk", "logits"),
    ("llama-vblora-topk-1", "logits"),
    ("llama-tokens-tied-same", "logits"),
    ("llama-tokens-tied-others", "logits"),
    ("llama-tokens-tied-head", "logits"),
    ("gpt2-tokens-two-tables", "logits"),
];

fn base_of(folder: &Path) -> std::sync::Arc<dyn Backbone> {
    let described = read_json(&folder.join("golden.json")).unwrap();
    let base = described["model"].as_str().unwrap();
    model(
        base.strip_prefix("fixtures/models/").unwrap(),
        "config.json",
    )
}

fn outputs(entry: &LoadedAdapter, backbone: &dyn Backbone, ids: &[u32], what: &str) -> Vec<f32> {
    let mut pass = entry.adapter.pass(Mode::Eval);
    let input = Input::new(ids, &[ids.len()]);
    if let Some(head) = &entry.head {
        let logits = head.classify(&input, backbone, pass.as_mut(), Mode::Eval);
        return to_vec(logits.unwrap());
    }
    let hidden = backbone.forward(&input, pass.as_mut(), None).unwrap();
    match what {
        "logits" => to_vec(
            backbone
                .logits(hidden, Rows::Tokens, pass.as_mut())
                .unwrap(),
        ),
        _ => to_vec(hidden),
    }
}

/// What is read of an adapter, and of what is saved of it.
fn twice(name: &str) -> (Vec<LoadedAdapter>, std::sync::Arc<dyn Backbone>, Golden) {
    let folder = interop("adapters").join(name);
    let backbone = base_of(&folder);
    let context = context(backbone.as_ref(), 0);
    let read = |folder: &Path| {
        let (entry, report) =
            peft::load(folder, &context, false).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert!(report.is_exact(), "{name}");
        entry
    };
    let first = read(&folder);
    let saved = tempfile::tempdir().unwrap();
    peft::save(saved.path(), &first, backbone.info(), "base").unwrap();
    let again = read(saved.path());
    let golden = Golden::read(&folder.join("golden.safetensors"));
    (vec![first, again], backbone, golden)
}

#[test]
fn the_head_of_an_encoder_reads_the_first_position_of_a_prompt() {
    for name in ["bert-prompt-seqcls", "roberta-p-tuning-seqcls"] {
        let (entries, backbone, golden) = twice(name);
        for s in golden.sequences() {
            let expected = golden.float(&format!("seq{s}.logits")).unwrap();
            for entry in &entries {
                let found = outputs(entry, backbone.as_ref(), golden.input_ids(s), "logits");
                let worst = max_difference(&found, expected);
                assert!(worst < TOLERANCE, "{name}: {worst:e}");
            }
        }
    }
}

#[test]
fn prompts_with_a_head_that_is_saved_whole_compute_what_peft_computes() {
    for name in [
        "llama-prompt-saved-head",
        "llama-p-tuning-saved-norm",
        "llama-prefix-saved-head",
    ] {
        let (entries, backbone, golden) = twice(name);
        for s in golden.sequences() {
            // peft counts virtual tokens as rows too.
            let all = golden.float(&format!("seq{s}.logits")).unwrap();
            for entry in &entries {
                let found = outputs(entry, backbone.as_ref(), golden.input_ids(s), "logits");
                let worst = max_difference(&found, &all[all.len() - found.len()..]);
                assert!(worst < TOLERANCE, "{name}: {worst:e}");
            }
        }
    }
}

#[test]
fn rows_that_are_named_twice_or_against_their_tie_are_refused() {
    let folder = interop("adapters/llama-tokens-tied-others");
    let tied = changed(&folder, &[("ensure_weight_tying", json!(true))]);
    let message = refusal(tied.path(), "llama");
    assert!(
        message.contains("`lm_head`") && message.contains("ensure_weight_tying"),
        "{message}"
    );
    let saved = changed(&folder, &[("modules_to_save", json!(["lm_head"]))]);
    let message = refusal(saved.path(), "llama");
    assert!(
        message.contains("`lm_head` is trained whole by `modules_to_save`"),
        "{message}"
    );
}

#[test]
fn files_with_more_than_their_method_compute_what_peft_computes() {
    for (name, what) in READ {
        let folder = interop("adapters").join(name);
        let backbone = base_of(&folder);
        let context = context(backbone.as_ref(), 0);
        let (entry, report) =
            peft::load(&folder, &context, false).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert!(report.is_exact(), "{name}");
        let golden = Golden::read(&folder.join("golden.safetensors"));
        let merged = merge::weights(backbone.as_ref(), Some(entry.adapter.as_ref()))
            .unwrap_or_else(|e| panic!("{name}: {e}"));
        let merged = merged.build(&device()).unwrap();
        // Saved and read again, it is the same.
        let saved = tempfile::tempdir().unwrap();
        peft::save(saved.path(), &entry, backbone.info(), "base").unwrap();
        let (again, _) = peft::load(saved.path(), &context, false)
            .unwrap_or_else(|e| panic!("{name} again: {e}"));
        for s in golden.sequences() {
            let ids = golden.input_ids(s);
            let expected = golden.float(&format!("seq{s}.{what}")).unwrap();
            let check = |found: Vec<f32>, how: &str| {
                let worst = max_difference(&found, expected);
                assert!(worst < TOLERANCE, "{name} {how}: {worst:e}");
            };
            check(outputs(&entry, backbone.as_ref(), ids, what), "read");
            check(outputs(&again, backbone.as_ref(), ids, what), "read again");
            if entry.head.is_none() {
                let hidden = merged
                    .forward(&Input::new(ids, &[ids.len()]), &mut NoAdapter, None)
                    .unwrap();
                let found = match what {
                    "logits" => merged.logits(hidden, Rows::Tokens, &mut NoAdapter).unwrap(),
                    _ => hidden,
                };
                check(to_vec(found), "merged");
            }
        }
    }
}

#[test]
fn adapters_of_other_tasks_are_refused_by_name() {
    let folder = interop("adapters").join("bert-question-answering");
    let backbone = base_of(&folder);
    let found = peft::load(&folder, &context(backbone.as_ref(), 0), false);
    let found = peft::made_for(&folder, "another", found);
    let message = found.err().unwrap().to_string();
    assert!(
        message.contains("`task_type` is `QUESTION_ANS`"),
        "{message}"
    );
    assert!(message.contains("supported: CAUSAL_LM"), "{message}");
}

#[test]
fn a_prompt_made_of_a_text_is_saved_without_its_tokenizer() {
    let backbone = model("llama", "config.json");
    let tokenize = |_: &str| vec![5, 6, 7];
    let context = frugal::adapt::BuildContext {
        tokenize: Some(&tokenize),
        ..context(backbone.as_ref(), 0)
    };
    let settings = json!({"num_virtual_tokens": 3, "prompt_tuning_init": "TEXT", "prompt_tuning_init_text": "a b c"});
    let method = registry::find("prompt-tuning").unwrap();
    let entry = LoadedAdapter {
        adapter: method
            .make(settings.as_object().unwrap(), &context)
            .unwrap(),
        head: None,
    };
    let folder = tempfile::tempdir().unwrap();
    peft::save(folder.path(), &entry, backbone.info(), "base").unwrap();
    let config = read_json(&folder.path().join(peft::CONFIG_FILE)).unwrap();
    // peft wants a tokenizer wherever the init is `TEXT`, also for reading.
    assert_eq!(config["prompt_tuning_init"], json!("RANDOM"));
    assert_eq!(config["prompt_tuning_init_text"], Value::Null);
    let again = peft::load(folder.path(), &context, false).unwrap().0;
    assert_eq!(
        again.adapter.parameters()[0].to_vec(),
        entry.adapter.parameters()[0].to_vec()
    );
}
