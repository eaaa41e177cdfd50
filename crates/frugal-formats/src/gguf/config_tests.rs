//! Configs from Hugging Face to GGUF and back, on the configs that transformers wrote for the tiny
//! models.

use serde_json::{Value as Json, json};

use super::{GgmlType, Gguf, TensorSpec, Value, gguf_metadata, hf_config, rope_freqs, write};

fn fixture(model: &str, file: &str) -> Json {
    let path = format!(
        "{}/../../fixtures/models/{model}/{file}",
        env!("CARGO_MANIFEST_DIR")
    );
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

/// Writes a file for `config` with the tensors that a config depends on, and reads the config back.
fn round_trip(config: &Json) -> Json {
    let size =
        |a: &str, b: &str| config.get(a).or(config.get(b)).unwrap().as_u64().unwrap() as usize;
    let shape = vec![
        size("vocab_size", "vocab_size"),
        size("hidden_size", "n_embd"),
    ];
    let mut tensors = vec![TensorSpec {
        name: "token_embd.weight".into(),
        shape: shape.clone(),
        ggml_type: GgmlType::F16,
    }];
    if config["tie_word_embeddings"] == false {
        tensors.push(TensorSpec {
            name: "output.weight".into(),
            shape,
            ggml_type: GgmlType::F16,
        });
    }
    for (key, name) in [
        ("attention_bias", "blk.0.attn_q.bias"),
        ("mlp_bias", "blk.0.ffn_up.bias"),
    ] {
        if config.get(key) == Some(&json!(true)) {
            tensors.push(TensorSpec {
                name: name.into(),
                shape: vec![32],
                ggml_type: GgmlType::F32,
            });
        }
    }
    let last = format!(
        "blk.{}.attn_norm.weight",
        size("num_hidden_layers", "n_layer") - 1
    );
    tensors.push(TensorSpec {
        name: last,
        shape: vec![32],
        ggml_type: GgmlType::F32,
    });
    let table = rope_freqs(config).unwrap();
    if let Some((name, table)) = &table {
        tensors.push(TensorSpec {
            name: (*name).into(),
            shape: vec![table.len()],
            ggml_type: GgmlType::F32,
        });
    }
    let mut metadata = gguf_metadata(config, "tiny", GgmlType::F16).unwrap();
    for (name, key) in [
        ("bos", "bos_token_id"),
        ("eos", "eos_token_id"),
        ("padding", "pad_token_id"),
    ] {
        metadata.push((
            format!("tokenizer.ggml.{name}_token_id"),
            Value::U32(config[key].as_u64().unwrap() as u32),
        ));
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("tiny.gguf");
    let fill = |index: usize| {
        let spec = &tensors[index];
        Ok(match &table {
            Some((name, table)) if spec.name == *name => table.clone(),
            _ => vec![0.0; spec.shape.iter().product()],
        })
    };
    write(&path, &metadata, &tensors, fill).unwrap();
    let bytes = std::fs::read(&path).unwrap();
    hf_config(&Gguf::parse(&bytes, "tiny.gguf").unwrap(), &bytes).unwrap()
}

#[test]
fn configs_come_back_as_transformers_spells_them() {
    // Not in a GGUF file: training-time settings, and what follows from the family.
    let absent = [
        "attention_dropout",
        "initializer_range",
        "pretraining_tp",
        "transformers_version",
        "use_cache",
        "torch_dtype",
        "max_window_layers",
        "use_bidirectional_attention",
        "add_cross_attention",
        "attn_pdrop",
        "embd_pdrop",
        "reorder_and_upcast_attn",
        "resid_pdrop",
        "scale_attn_by_inverse_layer_idx",
        "scale_attn_weights",
        "summary_activation",
        "summary_first_dropout",
        "summary_proj_to_labels",
        "summary_type",
        "summary_use_proj",
    ];
    for model in [
        "llama",
        "llama-rope-llama3",
        "llama-rope-linear",
        "mistral",
        "qwen2",
        "qwen3",
        "gpt2",
    ] {
        let legacy = fixture(model, "config_legacy.json");
        for config in [&legacy, &fixture(model, "config.json")] {
            let found = round_trip(config);
            assert_eq!(
                rope_freqs(&found).unwrap(),
                rope_freqs(config).unwrap(),
                "{model}"
            );
            for (key, expected) in legacy
                .as_object()
                .unwrap()
                .iter()
                .filter(|(key, _)| !absent.contains(&key.as_str()))
            {
                // Qwen3's config may set a bias, its family has none. The tiny table has no slope
                // to tell the length from.
                if matches!(
                    (model, key.as_str()),
                    ("qwen3", "attention_bias") | ("llama-rope-llama3", "rope_scaling")
                ) {
                    continue;
                }
                let expected = if *key == "rope_scaling" && expected.get("type").is_some() {
                    json!({"rope_type": expected["type"], "factor": expected["factor"]})
                } else {
                    expected.clone()
                };
                let same = match (found.get(key).and_then(Json::as_f64), expected.as_f64()) {
                    (Some(f), Some(e)) => (f - e).abs() <= 1e-6 * e.abs(),
                    _ => found.get(key).unwrap_or(&Json::Null) == &expected,
                };
                assert!(
                    same,
                    "{model}: {key}: {:?}, expected {expected}",
                    found.get(key)
                );
            }
        }
    }
}

#[test]
fn gemma_keeps_its_two_kinds_of_layers() {
    for file in ["config.json", "config_legacy.json"] {
        let mut config = fixture("gemma3_text", file);
        let error = gguf_metadata(&config, "", GgmlType::F16)
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("query_pre_attn_scalar") && error.contains("12"),
            "{error}"
        );
        config["query_pre_attn_scalar"] = 12.into();
        let found = round_trip(&config);
        assert_eq!(found["model_type"], "gemma3_text");
        assert_eq!(
            found["layer_types"],
            json!(["sliding_attention", "full_attention", "sliding_attention"])
        );
        assert_eq!(found["rope_local_base_freq"], 100.0);
        assert_eq!(found["rope_theta"], 10_000.0);
        assert_eq!(
            found["rope_scaling"],
            json!({"rope_type": "linear", "factor": 2.0})
        );
        for (key, value) in [
            ("sliding_window", 4),
            ("query_pre_attn_scalar", 12),
            ("head_dim", 12),
            ("num_key_value_heads", 2),
        ] {
            assert_eq!(found[key], value, "{key}");
        }
        config["layer_types"] = json!(["full_attention", "sliding_attention", "full_attention"]);
        assert!(
            gguf_metadata(&config, "", GgmlType::F16)
                .unwrap_err()
                .to_string()
                .contains("layer_types")
        );
    }
}

#[test]
fn gemma_has_defaults_of_its_own() {
    let mut config = fixture("gemma3_text", "config_legacy.json");
    for key in ["head_dim", "rope_theta", "query_pre_attn_scalar"] {
        config.as_object_mut().unwrap().remove(key).unwrap();
    }
    let found = round_trip(&config);
    assert_eq!(
        (found["head_dim"].as_u64(), found["rope_theta"].as_f64()),
        (Some(256), Some(1e6))
    );
}

#[test]
fn what_is_missing_is_named() {
    let mut config = fixture("llama", "config.json");
    config.as_object_mut().unwrap().remove("rms_norm_eps");
    assert!(
        gguf_metadata(&config, "", GgmlType::F16)
            .unwrap_err()
            .to_string()
            .contains("rms_norm_eps")
    );
    assert!(
        gguf_metadata(&json!({"model_type": "t5"}), "", GgmlType::F16)
            .unwrap_err()
            .to_string()
            .contains("\"t5\"")
    );
    assert!(
        gguf_metadata(&json!({}), "", GgmlType::F16)
            .unwrap_err()
            .to_string()
            .contains("model_type")
    );

    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.gguf");
    let read = |metadata: &[(&str, Value)]| {
        let metadata: Vec<_> = metadata
            .iter()
            .map(|(key, value)| ((*key).to_owned(), value.clone()))
            .collect();
        write(&path, &metadata, &[], |_| unreachable!()).unwrap();
        let bytes = std::fs::read(&path).unwrap();
        hf_config(&Gguf::parse(&bytes, "x.gguf").unwrap(), &bytes)
            .unwrap_err()
            .to_string()
    };
    assert_eq!(
        read(&[]),
        "x.gguf: metadata key general.architecture: missing or not text"
    );
    assert!(read(&[("general.architecture", "mamba".into())]).contains("\"mamba\""));
    assert!(
        read(&[("general.architecture", "llama".into())])
            .contains("llama.embedding_length: missing")
    );
    let llama = |key: &'static str, value: u32| (key, Value::U32(value));
    let layers = |count: u32| {
        let head = [
            ("general.architecture", "llama".into()),
            llama("llama.embedding_length", 32),
        ];
        read(
            &[
                &head[..],
                &[
                    llama("llama.attention.head_count", 4),
                    llama("llama.block_count", count),
                ],
            ]
            .concat(),
        )
    };
    assert!(layers(4096).contains("llama.block_count: 4096, but no tensor is named blk.4095.*"));
    assert!(
        layers(1_000_000_000)
            .contains("llama.block_count: 1000000000, but a model can have 4096 layers at most")
    );
    let moe = [
        ("general.architecture", "llama".into()),
        ("llama.expert_count", 8_u32.into()),
    ];
    assert!(read(&moe).contains("experts"));
}
