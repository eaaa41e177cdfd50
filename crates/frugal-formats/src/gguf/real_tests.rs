//! Against llama.cpp and the `gguf` Python package on the fetched models
//! (`scripts/golden/gguf_llama_cpp.py`).

use serde_json::{Value as Json, json};
use sha2::{Digest, Sha256};

use super::{GgmlType, Gguf, Layout, NameMap, hf_config, tokenizer};
use crate::fetch;

struct Real {
    bytes: Vec<u8>,
    gguf: Gguf,
    golden: Json,
}

fn real(name: &str) -> Real {
    let path = fetch::resolve(name, &fetch::cache_dir())
        .unwrap_or_else(|| panic!("run scripts/fetch-models {name}"));
    let bytes = std::fs::read(&path).unwrap();
    let gguf = Gguf::parse(&bytes, name).unwrap();
    let golden = std::fs::read(format!(
        "{}/../../fixtures/gguf/{name}.json",
        env!("CARGO_MANIFEST_DIR")
    ))
    .unwrap();
    Real {
        bytes,
        gguf,
        golden: serde_json::from_slice(&golden).unwrap(),
    }
}

/// Ids, tensor values; every tensor has a Hugging Face name and plausible values. Returns the
/// number of parameters.
fn check(name: &str) -> usize {
    let Real {
        bytes,
        gguf,
        golden,
    } = real(name);
    let found = tokenizer(&gguf).unwrap();
    let ids: Vec<Vec<u32>> = serde_json::from_value(golden["ids"].clone()).unwrap();
    assert!(ids.len() > 200);
    for (text, expected) in golden["texts"].as_array().unwrap().iter().zip(ids) {
        let text = text.as_str().unwrap();
        assert_eq!(
            found.tokenizer.encode(text, false).unwrap().get_ids(),
            expected,
            "{name}: {text:?}"
        );
    }
    for (tensor, sha256) in golden["tensors"].as_object().unwrap() {
        let values = gguf.tensor_f32(&bytes, tensor).unwrap();
        let mut hash = Sha256::new();
        values
            .iter()
            .for_each(|value| hash.update(value.to_le_bytes()));
        let hash: String = hash
            .finalize()
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        assert_eq!(hash, sha256.as_str().unwrap(), "{name}: {tensor}");
    }
    let map = NameMap::from_config(&hf_config(&gguf, &bytes).unwrap()).unwrap();
    let mut parameters = 0;
    for info in gguf.tensors() {
        let hf = map
            .to_hf(&info.name)
            .unwrap_or_else(|| panic!("{name}: {}", info.name));
        assert_eq!(map.to_gguf(&hf.name).unwrap().name, info.name);
        let values = gguf.tensor_f32(&bytes, &info.name).unwrap();
        assert!(
            values.iter().all(|value| value.is_finite()),
            "{}",
            info.name
        );
        if info.shape().len() == 2 {
            let n = values.len() as f64;
            let mean = values.iter().map(|&v| f64::from(v)).sum::<f64>() / n;
            let deviation = (values
                .iter()
                .map(|&v| (f64::from(v) - mean).powi(2))
                .sum::<f64>()
                / n)
                .sqrt();
            assert!(
                mean.abs() < 0.01 && (0.005..0.5).contains(&deviation),
                "{}: {mean} {deviation}",
                info.name
            );
        }
        parameters += values.len();
    }
    parameters
}

#[test]
#[ignore = "needs the fetched models"]
fn smollm2_is_read_as_others_read_it() {
    assert_eq!(check("smollm2-135m"), 134_515_008);
    let Real { bytes, gguf, .. } = real("smollm2-135m");
    let config = hf_config(&gguf, &bytes).unwrap();
    let expected = json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "hidden_size": 576, "intermediate_size": 1536,
        "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3, "head_dim": 64, "max_position_embeddings": 8192,
        "rms_norm_eps": 1e-5, "rope_theta": 100_000.0, "rope_scaling": null, "attention_bias": false, "mlp_bias": false,
        "vocab_size": 49152, "tie_word_embeddings": true, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2,
        "torch_dtype": "float32",
    });
    assert_eq!(config, expected);
    let found = tokenizer(&gguf).unwrap();
    assert!(!found.add_bos_token && found.chat_template.unwrap().contains("<|im_start|>"));
    assert_eq!(found.eot_token_id, Some(2));
}

#[test]
#[ignore = "needs the fetched models"]
fn gemma3_is_read_as_others_read_it() {
    assert_eq!(check("gemma3-270m"), 268_098_176);
    let Real { bytes, gguf, .. } = real("gemma3-270m");
    let config = hf_config(&gguf, &bytes).unwrap();
    for (key, value) in [
        ("head_dim", 256),
        ("query_pre_attn_scalar", 256),
        ("sliding_window", 512),
        ("vocab_size", 262_144),
    ] {
        assert_eq!(config[key], value, "{key}");
    }
    assert_eq!(
        (&config["rope_theta"], &config["rope_local_base_freq"]),
        (&json!(1e6), &json!(1e4))
    );
    let full: Vec<usize> = (0..18)
        .filter(|&layer| config["layer_types"][layer] == "full_attention")
        .collect();
    assert_eq!(full, [5, 11, 17]);
    let found = tokenizer(&gguf).unwrap();
    assert_eq!(
        (
            found.bos_token_id,
            found.eos_token_id,
            found.eot_token_id,
            found.pad_token_id
        ),
        (Some(2), Some(1), Some(106), Some(0))
    );
    assert!(found.add_bos_token);

    // The weights were bfloat16 when one was added: only after taking it off again are they.
    let map = NameMap::from_config(&config).unwrap();
    for info in gguf
        .tensors()
        .iter()
        .filter(|info| map.to_hf(&info.name).unwrap().layout == Layout::PlusOne)
    {
        assert_eq!(info.ggml_type, GgmlType::F32);
        let values = gguf.tensor_f32(&bytes, &info.name).unwrap();
        let is_bf16 = |value: f32| value.to_bits() & 0xffff == 0;
        assert!(
            values.iter().all(|&value| is_bf16(value - 1.0)),
            "{}",
            info.name
        );
        assert!(!values.iter().all(|&value| is_bf16(value)), "{}", info.name);
    }
}
