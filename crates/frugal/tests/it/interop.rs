//! The edges of the exchange with Python: heads and files beside a model, adapter files that hold
//! more than their method, hostile numbers.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use frugal::adapt::Rows;
use frugal::adapt::{LoadedAdapter, Mode, NoAdapter, merge, peft, registry, to_vec};
use frugal::model::load::{Lookup, ModelFiles, SafetensorsFile, read_json};
use frugal::model::save::{Stored, StoredType, write_safetensors};
use frugal::model::{Backbone, Input, SequenceLayout};
use frugal::run::merge_to_folder;
use serde_json::{Value, json};

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

fn copy(from: &Path, to: &Path) {
    for entry in std::fs::read_dir(from).unwrap().flatten() {
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            std::fs::create_dir_all(&target).unwrap();
            copy(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
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

/// A copy of an adapter with other settings and, where given, other tensors.
pub fn changed(folder: &Path, settings: &[(&str, Value)]) -> tempfile::TempDir {
    let out = tempfile::tempdir().unwrap();
    copy(folder, out.path());
    let path = out.path().join(peft::CONFIG_FILE);
    let mut config = read_json(&path).unwrap();
    for (key, value) in settings {
        config[*key] = value.clone();
    }
    std::fs::write(path, config.to_string()).unwrap();
    out
}

fn refusal(folder: &Path, base: &str) -> String {
    let backbone = model(base, "config.json");
    let found = peft::load(folder, &context(backbone.as_ref(), 0), false);
    found.err().unwrap().to_string()
}

fn with_tensors(
    folder: &Path,
    change: impl Fn(&str, &mut Vec<f32>),
    stored: StoredType,
) -> tempfile::TempDir {
    let out = changed(folder, &[]);
    let path = out.path().join(peft::WEIGHTS_FILE);
    let file = SafetensorsFile::open(&path).unwrap();
    let all = file.names().into_iter().map(|name| {
        let shape = file.shape(&name).unwrap();
        let mut values: Vec<f32> = file.tensor(&name).unwrap().iter::<f32>().collect();
        change(&name, &mut values);
        let tensor = if name.ends_with("_indices") {
            Stored::whole_numbers(&shape, values.iter().map(|v| *v as i32).collect())
        } else {
            Stored::new(&shape, stored, move || values.clone())
        };
        (name, tensor)
    });
    write_safetensors(&path, all.collect()).unwrap();
    out
}

#[test]
fn copies_of_the_base_may_be_rounded_but_not_others() {
    let folder = interop("adapters/llama-saved-embeddings");
    let rounded = with_tensors(&folder, |_, _| {}, StoredType::Bf16);
    let backbone = model("llama", "config.json");
    let (_, report) = peft::load(rounded.path(), &context(backbone.as_ref(), 0), false).unwrap();
    assert_eq!(
        report.rounded,
        [
            "base_model.model.lm_head.weight",
            "base_model.model.model.embed_tokens.weight"
        ]
    );
    let other = |name: &str, values: &mut Vec<f32>| {
        if name.ends_with("embed_tokens.weight") {
            values[5] += 0.5;
        }
    };
    let differs = with_tensors(&folder, other, StoredType::F32);
    let message = refusal(differs.path(), "llama");
    assert!(
        message.contains("`base_model.model.model.embed_tokens.weight` is a copy of the model's own weight, but differs"),
        "{message}"
    );
}

#[test]
fn an_index_outside_its_map_is_refused_not_clamped() {
    let outside = |name: &str, values: &mut Vec<f32>| {
        if name.ends_with("layers.0.self_attn.q_proj.shira_indices") {
            values[0] = 70.0;
        }
    };
    let folder = with_tensors(&fixture("adapters/llama-shira"), outside, StoredType::F32);
    let message = refusal(folder.path(), "llama");
    assert!(
        message.contains("holds the index 70, which is not a whole number from 0 to 31"),
        "{message}"
    );
}

#[test]
fn weights_in_double_precision_and_long_indices_are_read() {
    for name in ["llama-lora-qv", "llama-shira"] {
        let source = fixture("adapters").join(name);
        let out = changed(&source, &[]);
        let path = out.path().join(peft::WEIGHTS_FILE);
        let file = SafetensorsFile::open(&path).unwrap();
        let bytes: Vec<(String, safetensors::Dtype, Vec<usize>, Vec<u8>)> = file
            .names()
            .into_iter()
            .map(|name| {
                let shape = file.shape(&name).unwrap();
                let values: Vec<f32> = file.tensor(&name).unwrap().iter::<f32>().collect();
                let is_index = name.ends_with("_indices");
                let bytes = values.iter().flat_map(|v| {
                    if is_index {
                        (*v as i64).to_le_bytes()
                    } else {
                        f64::from(*v).to_le_bytes()
                    }
                });
                let dtype = if is_index {
                    safetensors::Dtype::I64
                } else {
                    safetensors::Dtype::F64
                };
                (name, dtype, shape, bytes.collect())
            })
            .collect();
        let views = bytes.iter().map(|(name, dtype, shape, bytes)| {
            let view = safetensors::tensor::TensorView::new(*dtype, shape.clone(), bytes);
            (name.clone(), view.unwrap())
        });
        let written = safetensors::serialize(views.collect::<Vec<_>>(), None).unwrap();
        std::fs::write(&path, written).unwrap();
        let backbone = model("llama", "config.json");
        let context = context(backbone.as_ref(), 0);
        let read = |folder: &Path| peft::load(folder, &context, false).unwrap().0;
        let (expected, found) = (read(&source), read(out.path()));
        let values = |entry: &LoadedAdapter| -> Vec<Vec<f32>> {
            entry
                .adapter
                .parameters()
                .iter()
                .map(|p| p.to_vec())
                .collect()
        };
        assert_eq!(values(&found), values(&expected), "{name}");
    }
}

#[test]
fn settings_that_peft_allows_are_allowed() {
    for settings in [
        ("lora_dropout", json!(1.0)),
        ("layers_pattern", json!([])),
        ("layers_pattern", json!("")),
        ("layers_to_transform", json!([])),
        ("base_model_name_or_path", json!("")),
    ] {
        let folder = changed(
            &fixture("adapters/llama-lora-qv"),
            std::slice::from_ref(&settings),
        );
        let backbone = model("llama", "config.json");
        let found = peft::load(folder.path(), &context(backbone.as_ref(), 0), false);
        assert!(found.is_ok(), "{settings:?}: {:?}", found.err());
    }
    // What peft has before training.
    let adalora = changed(
        &fixture("adapters/llama-adalora"),
        &[("rank_pattern", json!({}))],
    );
    let message = refusal(adalora.path(), "llama");
    assert!(message.contains("lora_"), "{message}");
}

#[test]
fn a_scale_beyond_single_precision_is_refused() {
    for (name, key) in [("llama-lora-qv", "lora_alpha"), ("llama-loha", "alpha")] {
        let folder = changed(&fixture("adapters").join(name), &[(key, json!(1e300))]);
        let message = refusal(folder.path(), "llama");
        assert!(
            message.contains(&format!(
                "`{key}`: 1e300 is beyond the numbers of single precision"
            )),
            "{message}"
        );
    }
}

#[test]
fn a_missing_tensor_is_named_by_its_own_name() {
    let folder = changed(&fixture("adapters/llama-lora-qv"), &[]);
    let path = folder.path().join(peft::WEIGHTS_FILE);
    let file = SafetensorsFile::open(&path).unwrap();
    let first = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight";
    let rest = file.names().into_iter().filter(|name| name != first);
    let all = rest.map(|name| {
        let values: Vec<f32> = file.tensor(&name).unwrap().iter::<f32>().collect();
        let shape = file.shape(&name).unwrap();
        (
            name,
            Stored::new(&shape, StoredType::F32, move || values.clone()),
        )
    });
    write_safetensors(&path, all.collect()).unwrap();
    let message = refusal(folder.path(), "llama");
    assert!(
        message.contains(&format!(": 8 expected, 1 missing\n  {first}: missing")),
        "{message}"
    );
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
