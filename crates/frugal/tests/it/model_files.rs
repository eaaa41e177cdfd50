//! Model files as they come: other spellings, tensors too many or too few, other byte orders.

use std::collections::BTreeMap;
use std::sync::Arc;

use burn::prelude::*;
use frugal::adapt::{NoAdapter, to_vec};
use frugal::model::load::check_gguf;
use frugal::model::load::{GgufSource, SafetensorsFile, SafetensorsSource, read_json};
use frugal::model::{
    Backbone, Input, LoadError, Loaded, ModelConfig, ModelError, WeightSource, build,
};
use frugal_formats::gguf::{self, GgmlType, TensorSpec};
use serde_json::{Value, json};

use crate::support::{Golden, assert_close, device, fixture};

/// The tensors of a fixture under other names, and more of them.
struct Files {
    base: SafetensorsSource,
    names: BTreeMap<String, String>,
    more: BTreeMap<String, (Vec<usize>, f32)>,
}

impl Files {
    fn of(model: &str, rename: impl Fn(&str) -> Option<String>) -> Self {
        let base = SafetensorsSource::open(&fixture("models").join(model)).unwrap();
        let names = base.names().into_iter();
        Self {
            names: names.filter_map(|old| Some((rename(&old)?, old))).collect(),
            more: BTreeMap::new(),
            base,
        }
    }

    fn with(mut self, name: &str, shape: &[usize], value: f32) -> Self {
        self.more.insert(name.into(), (shape.to_vec(), value));
        self
    }
}

impl WeightSource for Files {
    fn describe(&self) -> String {
        "files".into()
    }

    fn shape(&self, name: &str) -> Option<Vec<usize>> {
        match self.more.get(name) {
            Some((shape, _)) => Some(shape.clone()),
            None => self.base.shape(self.names.get(name)?),
        }
    }

    fn names(&self) -> Vec<String> {
        self.names.keys().chain(self.more.keys()).cloned().collect()
    }

    fn load(&self, name: &str) -> Result<Loaded, ModelError> {
        match self.more.get(name) {
            Some((shape, value)) => {
                let values = vec![*value; shape.iter().product()];
                Ok(Loaded::Data(TensorData::new(values, shape.clone())))
            }
            None => self.base.load(&self.names[name]),
        }
    }
}

fn raw(model: &str) -> Value {
    read_json(&fixture("models").join(model).join("config.json")).unwrap()
}

fn built(raw: Value, files: &Files) -> Result<std::sync::Arc<dyn Backbone>, ModelError> {
    build(
        ModelConfig::from_json(raw, "config.json")?,
        files,
        &device(),
    )
}

/// The hidden states are those of the reference.
fn check(model: &str, backbone: &dyn Backbone) {
    let golden = Golden::read(&fixture("models").join(model).join("golden.safetensors"));
    let ids = golden.input_ids(0);
    let input = Input::new(ids, &[ids.len()]);
    let hidden = backbone.forward(&input, &mut NoAdapter, None).unwrap();
    let expected = golden.float("seq0.last_hidden_state").unwrap();
    assert_close(model, hidden, expected, 1e-4);
}

fn refusal(raw: Value, files: &Files) -> String {
    built(raw, files).err().expect("refused").to_string()
}

#[test]
fn layer_norms_of_tensorflow_checkpoints_are_gamma_and_beta() {
    let files = Files::of("bert", |name| {
        let name = name.replace("LayerNorm.weight", "LayerNorm.gamma");
        Some(name.replace("LayerNorm.bias", "LayerNorm.beta"))
    });
    check("bert", built(raw("bert"), &files).unwrap().as_ref());
}

#[test]
fn a_prefix_of_all_names_is_named_and_not_taken_for_a_missing_head() {
    let files = Files::of("mistral", |name| Some(format!("module.{name}")));
    let message = refusal(raw("mistral"), &files);
    assert!(message.contains("`module.`"), "{message}");
    assert!(!message.contains("tie_word_embeddings"), "{message}");
}

#[test]
fn an_embedding_model_of_decoder_type_needs_no_head() {
    let files = Files::of("mistral", |name| {
        name.strip_prefix("model.").map(str::to_owned)
    });
    let mut config = raw("mistral");
    config["architectures"] = json!(["MistralModel"]);
    let backbone = built(config, &files).unwrap();
    assert!(backbone.lm_head().is_none());
    check("mistral", backbone.as_ref());
    // Where the file does not say so, the message does not leave the reader alone.
    let text = refusal(raw("mistral"), &files);
    assert!(
        text.contains("lm_head.weight") && text.contains("tie_word_embeddings"),
        "{text}"
    );
}

#[test]
fn a_tied_model_whose_file_holds_only_the_head_loads() {
    let files = Files::of("llama", |name| match name {
        "model.embed_tokens.weight" => Some("lm_head.weight".into()),
        _ => Some(name.into()),
    });
    check("llama", built(raw("llama"), &files).unwrap().as_ref());
}

#[test]
fn a_tied_head_that_differs_from_the_table_is_refused() {
    let files = Files::of("llama", |name| Some(name.into())).with("lm_head.weight", &[64, 32], 1.0);
    let text = refusal(raw("llama"), &files);
    assert!(text.contains("tie_word_embeddings"), "{text}");
}

#[test]
fn tensors_that_belong_to_a_block_and_have_no_place_are_refused_by_name() {
    let same = |name: &str| Some(name.to_owned());
    let cases = [
        ("model.layers.0.self_attn.q_proj.bias", "attention_bias"),
        ("model.layers.2.input_layernorm.weight", "num_hidden_layers"),
        ("model.layers.0.self_attn.q_norm.weight", "q_norm"),
    ];
    for (name, hint) in cases {
        let text = refusal(
            raw("llama"),
            &Files::of("llama", same).with(name, &[32], 0.1),
        );
        assert!(text.contains(name) && text.contains(hint), "{text}");
    }
    // Buffers follow from the configuration, and what is beside the blocks is left out.
    let files = Files::of("llama", same)
        .with("model.layers.0.self_attn.rotary_emb.inv_freq", &[4], 0.1)
        .with("score.weight", &[2, 32], 0.1);
    check("llama", built(raw("llama"), &files).unwrap().as_ref());
}

#[test]
fn a_git_lfs_pointer_is_called_one() {
    let folder = tempfile::tempdir().unwrap();
    let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 12\n";
    for name in ["model.safetensors", "model.gguf"] {
        let path = folder.path().join(name);
        std::fs::write(&path, pointer).unwrap();
        let error: LoadError = if name.ends_with("gguf") {
            GgufSource::open(&path).err().unwrap()
        } else {
            SafetensorsFile::open(&path).err().unwrap()
        };
        assert!(error.to_string().contains("git lfs pull"), "{error}");
    }
}

/// Metadata of a GGUF file of this model, with `more`.
fn gguf_file(config: &Value, more: &[(&str, gguf::Value)], tensor: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let mut metadata = gguf::gguf_metadata(config, "tiny", GgmlType::F32).unwrap();
    metadata.extend(more.iter().map(|(k, v)| ((*k).to_owned(), v.clone())));
    let specs = ["token_embd.weight", "blk.1.attn_norm.weight", tensor].map(|name| TensorSpec {
        name: name.into(),
        shape: vec![64, 32],
        ggml_type: GgmlType::F32,
    });
    let path = folder.path().join("tiny.gguf");
    gguf::write(&path, &metadata, &specs, |_| Ok(vec![0.5; 64 * 32])).unwrap();
    folder
}

#[test]
fn a_part_of_a_split_gguf_model_is_called_one() {
    let more = [("split.count", 2u32.into()), ("split.no", 0u32.into())];
    let folder = gguf_file(&raw("llama"), &more, "output.weight");
    let error = GgufSource::open(&folder.path().join("tiny.gguf"))
        .err()
        .unwrap();
    let text = error.to_string();
    assert!(
        text.contains("one of 2 parts") && text.contains("-00001-of-00002.gguf"),
        "{text}"
    );
}

#[test]
fn a_gguf_tensor_without_a_place_is_refused_by_name() {
    let folder = gguf_file(&raw("llama"), &[], "blk.0.attn_q_norm.weight");
    let source = GgufSource::open(&folder.path().join("tiny.gguf")).unwrap();
    let config = ModelConfig::from_json(source.config().clone(), "tiny.gguf").unwrap();
    let text = build(config, &source, &device()).err().unwrap().to_string();
    assert!(
        text.contains("unexpected") && text.contains("model.layers.0.self_attn.q_norm.weight"),
        "{text}"
    );
}

#[test]
fn a_big_endian_gguf_file_is_called_one() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    let mut bytes = b"GGUF".to_vec();
    bytes.extend(3u32.to_be_bytes());
    bytes.extend([0; 16]);
    std::fs::write(&path, bytes).unwrap();
    let text = GgufSource::open(&path).err().unwrap().to_string();
    assert!(text.contains("big-endian"), "{text}");
}

/// What a GGUF export of the model with these changes would lose.
fn lost(model: &str, changes: &Value) -> Option<String> {
    let mut config = raw(model);
    config
        .as_object_mut()
        .unwrap()
        .extend(changes.as_object().unwrap().clone());
    let metadata = gguf::gguf_metadata(&config, "tiny", GgmlType::F32).ok()?;
    let frequencies = gguf::rope_freqs(&config).unwrap().map(|(_, values)| values);
    let config = ModelConfig::from_json(config, "config.json").unwrap();
    let last = config.num_hidden_layers - 1;
    let spec = |name: String, shape: Vec<usize>| TensorSpec {
        name,
        shape,
        ggml_type: GgmlType::F32,
    };
    let size = vec![config.vocab_size, config.hidden_size];
    let mut specs = vec![
        spec("token_embd.weight".into(), size.clone()),
        spec(format!("blk.{last}.attn_norm.weight"), vec![32]),
    ];
    if !config.tie_word_embeddings {
        specs.push(spec("output.weight".into(), size));
    }
    if config
        .sites()
        .iter()
        .any(|(_, s)| s.path.ends_with("q_proj") && s.has_bias)
    {
        specs.push(spec("blk.0.attn_q.bias".into(), vec![32]));
    }
    if config
        .sites()
        .iter()
        .any(|(_, s)| s.path.ends_with("up_proj") && s.has_bias)
    {
        specs.push(spec("blk.0.ffn_up.bias".into(), vec![48]));
    }
    if let Some(values) = &frequencies {
        specs.push(spec("rope_freqs.weight".into(), vec![values.len()]));
    }
    let result = check_gguf(&config, &metadata, &specs, &frequencies.unwrap_or_default());
    result.err().map(|error| error.to_string())
}

#[test]
fn what_a_gguf_file_cannot_say_is_refused_at_export() {
    for model in [
        "llama",
        "llama-rope-llama3",
        "llama-rope-linear",
        "mistral",
        "qwen2",
        "qwen3",
        "gpt2",
    ] {
        assert_eq!(lost(model, &json!({})), None, "{model}");
    }
    let yarn = json!({"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 16});
    assert_eq!(lost("llama", &json!({"rope_parameters": yarn})), None);
    let mut warm = yarn;
    warm["attention_factor"] = json!(1.3);
    let window = json!({"use_sliding_window": true, "sliding_window": 4, "layer_types": ["sliding_attention", "sliding_attention"]});
    let cases = [
        ("qwen2", window, "sliding_window"),
        (
            "mistral",
            json!({"layer_types": ["full_attention", "sliding_attention"]}),
            "layer_types",
        ),
        ("qwen3", json!({"attention_bias": true}), "attention_bias"),
        ("llama", json!({"rope_parameters": warm}), "rope_parameters"),
        ("llama", json!({"hidden_act": "gelu"}), "hidden_act"),
        (
            "gpt2",
            json!({"scale_attn_weights": false}),
            "scale_attn_weights",
        ),
    ];
    for (model, changes, key) in cases {
        let text = lost(model, &changes).unwrap_or_else(|| panic!("{model}: {changes}"));
        assert!(text.contains(key) && text.contains("GGUF"), "{text}");
    }
}

#[test]
fn outputs_that_are_not_numbers_are_an_error_that_names_the_model() {
    let files = Files::of("llama", |name| {
        (name != "model.norm.weight").then(|| name.to_owned())
    });
    let files = files.with("model.norm.weight", &[32], f32::NAN);
    let backbone = built(raw("llama"), &files).unwrap();
    let options = frugal::decode::StateOptions::default();
    let mut session =
        frugal::decode::Session::new(backbone.clone(), Arc::default(), options).unwrap();
    let sequence = session.add(frugal::adapt::ActiveAdapters::Base).unwrap();
    let text = session
        .append_to(sequence, &[1, 2, 3])
        .unwrap_err()
        .to_string();
    assert_eq!(
        (session.bytes(), session.tokens(sequence).unwrap()),
        (0, [].as_slice())
    );
    assert!(
        text.contains("config.json") && text.contains("llama") && text.contains("NaN"),
        "{text}"
    );
    let input = Input::new(&[1, 2], &[2]);
    let hidden = backbone.forward(&input, &mut NoAdapter, None).unwrap();
    assert!(to_vec(hidden).iter().all(|v| v.is_nan()));
}

#[test]
fn positions_reach_as_far_as_their_scaling() {
    let with = |rope: Value| {
        let mut config = raw("llama");
        config["rope_parameters"] = rope;
        ModelConfig::from_json(config, "config.json")
            .unwrap()
            .max_sequence()
    };
    assert_eq!(with(json!({"rope_type": "default", "rope_theta": 1e4})), 64);
    assert_eq!(
        with(json!({"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0})),
        256
    );
    let yarn = json!({"rope_type": "yarn", "rope_theta": 1e4, "factor": 8.0, "original_max_position_embeddings": 32});
    assert_eq!(with(yarn), 256);
}
