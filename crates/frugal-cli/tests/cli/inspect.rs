//! Looking inside models and adapters.

use std::fs;

use crate::support::{fixture, frugal};

fn inspect(path: &str) -> serde_json::Value {
    let path = fixture(path);
    frugal(&["models", "inspect", path.to_str().unwrap(), "--json"])
        .ok()
        .json()
}

/// Elements of all tensors of an f32 safetensors file, from its length and header length alone.
fn f32_elements(path: &str) -> u64 {
    let bytes = fs::read(fixture(path)).unwrap();
    let header = u64::from_le_bytes(bytes[..8].try_into().unwrap());
    (bytes.len() as u64 - 8 - header) / 4
}

#[test]
fn a_model_folder() {
    let model = inspect("models/llama");
    assert_eq!(model["model_type"], "llama");
    assert_eq!(
        model["parameters"],
        f32_elements("models/llama/model.safetensors")
    );
    assert_eq!(model["chat_template"], false);
    assert!(
        model["files"]
            .as_array()
            .unwrap()
            .iter()
            .any(|f| f["path"].as_str().unwrap().ends_with("config.json"))
    );
}

#[test]
fn shards_count_together() {
    let model = inspect("models/mistral");
    let shard = |n| {
        f32_elements(&format!(
            "models/mistral/model-0000{n}-of-00002.safetensors"
        ))
    };
    assert_eq!(model["parameters"], shard(1) + shard(2));
}

#[test]
fn an_adapter_folder() {
    let adapter = inspect("adapters/llama-lora-qv");
    assert_eq!(adapter["adapter_config"]["peft_type"], "LORA");
    assert_eq!(
        adapter["elements"],
        f32_elements("adapters/llama-lora-qv/adapter_model.safetensors")
    );
    assert_eq!(adapter["tensors"].as_array().unwrap().len(), 8);
}

#[test]
fn people_read_the_same() {
    let path = fixture("models/llama");
    let page = frugal(&["models", "inspect", path.to_str().unwrap()])
        .ok()
        .stdout;
    assert!(
        page.contains("llama") && page.contains("model.safetensors") && page.contains("F32"),
        "{page}"
    );
}
