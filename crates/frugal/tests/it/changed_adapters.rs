//! Adapter folders with other settings and tensors than `peft` wrote: what is read, what is refused.

use std::path::Path;

use frugal::adapt::{LoadedAdapter, peft};
use frugal::model::load::{SafetensorsFile, read_json};
use frugal::model::save::{Stored, StoredType, write_safetensors};
use serde_json::{Value, json};

use crate::support::{context, fixture, model};

/// A folder with all that is in it.
pub fn copy(from: &Path, to: &Path) {
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

pub fn refusal(folder: &Path, base: &str) -> String {
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
    let folder = fixture("interop/adapters/llama-saved-embeddings");
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
