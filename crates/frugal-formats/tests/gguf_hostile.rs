//! Damaged and lying GGUF files: an error or a result, never a panic, and memory within a small
//! multiple of the file.
//!
//! One test in a binary of its own, since the allocator counts what the whole process holds.

mod damage;

use std::cell::Cell;

use frugal_formats::gguf::{
    Array, GgmlType, Gguf, NameMap, TensorSpec, Value, gguf_metadata, hf_config, rope_freqs,
    tokenizer, write,
};
use peak_alloc::PeakAlloc;
use proptest::prelude::*;
use proptest::sample::Index;
use proptest::test_runner::RngSeed;
use serde_json::json;

use damage::damage;

#[global_allocator]
static MEMORY: PeakAlloc = PeakAlloc;

/// Peak of parsing and of each dequantised tensor, per byte of the file; the factor covers 4-bit
/// blocks as `f32` (7.1).
const MULTIPLE: usize = 24;
/// For error texts and the like.
const SLACK: usize = 16 << 10;

/// A Gemma and a Llama file with a tensor of each kind, and the tokenizer fixtures.
fn seeds() -> Vec<Vec<u8>> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("seed.gguf");
    let mut seeds = Vec::new();
    for model in ["llama", "gemma3_text"] {
        let config = json!({
            "model_type": model, "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
            "num_key_value_heads": 1, "head_dim": 32, "vocab_size": 32, "max_position_embeddings": 64, "rms_norm_eps": 1e-5,
            "rope_theta": 500_000.0, "sliding_window": 8, "query_pre_attn_scalar": 32,
            "rope_scaling": (model == "llama").then(|| json!({
                "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192
            })),
        });
        let mut metadata = gguf_metadata(&config, "seed", GgmlType::Q8_0).unwrap();
        metadata.push((
            "general.tags".into(),
            Value::Array(Array::String(vec!["a".into(), "b".into()])),
        ));
        metadata.push((
            "general.nested".into(),
            Value::Array(Array::Array(vec![
                Array::F64(vec![1.0]),
                Array::Bool(vec![true]),
            ])),
        ));
        let mut tensors = vec![
            spec("token_embd.weight", &[32, 64], GgmlType::Q4_1),
            spec("blk.0.attn_q.weight", &[64, 64], GgmlType::Q8_0),
        ];
        tensors.push(spec("blk.1.attn_norm.weight", &[64], GgmlType::F32));
        tensors.extend(
            rope_freqs(&config)
                .unwrap()
                .map(|(name, table)| spec(name, &[table.len()], GgmlType::F32)),
        );
        let table = rope_freqs(&config)
            .unwrap()
            .map(|(_, table)| table)
            .unwrap_or_default();
        let values = |i: usize| {
            let shape: usize = tensors[i].shape.iter().product();
            Ok(if tensors[i].name == "rope_freqs.weight" {
                table.clone()
            } else {
                vec![0.25; shape]
            })
        };
        write(&path, &metadata, &tensors, values).unwrap();
        seeds.push(std::fs::read(&path).unwrap());
    }
    for name in ["blocks", "tokenizer-bpe", "tokenizer-spm"] {
        let fixture = format!(
            "{}/../../fixtures/gguf/{name}.gguf",
            env!("CARGO_MANIFEST_DIR")
        );
        // All of the header and the first tensors.
        let mut bytes = std::fs::read(fixture).unwrap();
        bytes.truncate(24 << 10);
        seeds.push(bytes);
    }
    seeds
}

fn spec(name: &str, shape: &[usize], ggml_type: GgmlType) -> TensorSpec {
    TensorSpec {
        name: name.into(),
        shape: shape.into(),
        ggml_type,
    }
}

/// Runs `work` and holds its peak against the limit.
fn measured<T>(file: usize, what: &str, work: impl FnOnce() -> T) -> T {
    let before = MEMORY.current_usage();
    MEMORY.reset_peak_usage();
    let result = work();
    let peak = MEMORY.peak_usage().saturating_sub(before);
    assert!(
        peak <= MULTIPLE * file + SLACK,
        "{what} of a file of {file} bytes took {peak}"
    );
    result
}

fn read_everything(bytes: &[u8]) -> bool {
    let parsed = measured(bytes.len(), "the header", || Gguf::parse(bytes, "damaged"));
    let Ok(gguf) = parsed else { return false };
    for info in gguf.tensors() {
        let values = measured(bytes.len(), "a tensor", || {
            gguf.tensor_f32(bytes, &info.name).unwrap()
        });
        assert_eq!(values.len(), info.len());
    }
    let config = measured(bytes.len(), "the config", || hf_config(&gguf, bytes));
    if let Ok(map) = config
        .map_err(|_| ())
        .and_then(|config| NameMap::from_config(&config).map_err(|_| ()))
    {
        gguf.tensors()
            .iter()
            .for_each(|info| drop(map.to_hf(&info.name)));
    }
    // Its size is the library's: a vocabulary in several maps.
    drop(tokenizer(&gguf));
    true
}

#[test]
fn damaged_files_neither_panic_nor_fill_the_memory() {
    let seeds = seeds();
    assert!(seeds.iter().filter(|seed| read_everything(seed)).count() >= 4);

    let accepted = Cell::new(0);
    let config = ProptestConfig {
        cases: 20_000,
        rng_seed: RngSeed::Fixed(0),
        failure_persistence: None,
        ..ProptestConfig::default()
    };
    let strategy = (
        any::<Index>(),
        any::<bool>(),
        proptest::collection::vec(damage(), 1..4),
    );
    proptest!(config, |((seed, header, damages) in strategy)| {
        let mut bytes = seed.get(&seeds).clone();
        let rest = if header && bytes.len() > 1024 { bytes.split_off(1024) } else { Vec::new() };
        damages.iter().for_each(|damage| damage.apply(&mut bytes));
        bytes.extend(rest);
        if read_everything(&bytes) { accepted.set(accepted.get() + 1) }
    });
    // Damage to values and data goes unnoticed by the container; without such cases nothing but the
    // header was tried.
    assert!(accepted.get() > 2000, "{accepted:?}");
}
