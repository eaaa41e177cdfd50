//! What lies in a model's folder and is not used is named, whoever asks; and models without a head
//! are told what would help.

use std::path::Path;
use std::sync::atomic::AtomicBool;

use frugal::model::load::{Lookup, ModelFiles, SafetensorsFile};
use frugal::model::save::{Stored, StoredType, write_safetensors};
use frugal::run::{
    DataConfig, EvaluateRequest, PredictRequest, Predictor, Progress, RunError, evaluate,
    merge_to_folder,
};

use crate::support::{device, fixture};

/// The built-in model as a folder.
fn folder() -> tempfile::TempDir {
    let files = ModelFiles::open("builtin", &Lookup::default()).unwrap();
    let backbone = files.load(&device()).unwrap();
    let out = tempfile::tempdir().unwrap();
    merge_to_folder(&files, backbone.as_ref(), None, out.path(), StoredType::F32).unwrap();
    out
}

fn evaluated(model: &Path, record: &str) -> (Result<(), RunError>, Vec<String>) {
    let data = tempfile::tempdir().unwrap();
    let file = data.path().join("data.jsonl");
    std::fs::write(&file, record).unwrap();
    let request = EvaluateRequest {
        model: model.display().to_string(),
        adapter: None,
        data: DataConfig {
            train: file.display().to_string(),
            ..DataConfig::default()
        },
        device: "cpu".into(),
        max_tokens: 64,
        quantize: frugal::model::Quantize::None,
        dump_logits: None,
    };
    let mut warnings = Vec::new();
    let mut observe = |progress: &Progress| {
        if let Progress::Warning { text } = progress {
            warnings.push(text.clone());
        }
    };
    let stop = AtomicBool::new(false);
    let result = evaluate(&request, &Lookup::default(), &stop, &mut observe);
    (result.map(|_| ()), warnings)
}

#[test]
fn tensors_and_adapters_that_are_not_used_are_named_when_a_model_is_measured() {
    let folder = folder();
    let text = "{\"text\": \"ok see you then\"}\n";
    let (result, warnings) = evaluated(folder.path(), text);
    result.unwrap();
    assert!(warnings.is_empty(), "{warnings:?}");

    std::fs::write(folder.path().join("adapter_config.json"), "{}").unwrap();
    let (_, warnings) = evaluated(folder.path(), text);
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    assert!(warnings[0].contains("`--adapter "), "{warnings:?}");

    let path = folder.path().join("model.safetensors");
    let file = SafetensorsFile::open(&path).unwrap();
    let read = |name: String| {
        let values: Vec<f32> = file.tensor(&name).unwrap().iter().collect();
        let shape = file.shape(&name).unwrap();
        let stored = Stored::new(&shape, StoredType::F32, move || values.clone());
        (name, stored)
    };
    let mut tensors: Vec<_> = file.names().into_iter().map(read).collect();
    let more = Stored::new(&[2], StoredType::F32, || vec![1.0, 2.0]);
    tensors.push(("model.embed_norm.weight".into(), more));
    let other = folder.path().join("other.safetensors");
    write_safetensors(&other, tensors).unwrap();
    std::fs::rename(other, path).unwrap();
    let (_, warnings) = evaluated(folder.path(), text);
    assert_eq!(warnings.len(), 2, "{warnings:?}");
    assert!(
        warnings[0].contains("`model.embed_norm.weight`"),
        "{warnings:?}"
    );
}

/// A model of the fixtures with a tokenizer beside it.
fn with_tokenizer(model: &str) -> tempfile::TempDir {
    let out = tempfile::tempdir().unwrap();
    let tokenizer = fixture("tokenizers/word-piece");
    for (from, file) in [
        (fixture(model), "config.json"),
        (fixture(model), "model.safetensors"),
        (tokenizer.clone(), "tokenizer.json"),
        (tokenizer, "tokenizer_config.json"),
    ] {
        std::fs::copy(from.join(file), out.path().join(file)).unwrap();
    }
    out
}

fn predictor(model: &Path, adapter: Option<&str>) -> Result<Predictor, RunError> {
    let request = PredictRequest {
        model: model.display().to_string(),
        adapter: adapter.map(fixture),
        data: DataConfig::default(),
        device: "cpu".into(),
        quantize: frugal::model::Quantize::None,
    };
    Predictor::open(&request, &Lookup::default(), &mut |_| {})
}

#[test]
fn an_encoder_without_a_head_is_not_sent_to_write_text() {
    let folder = with_tokenizer("models/bert");
    let (result, _) = evaluated(folder.path(), "{\"text\": \"a\", \"label\": \"b\"}\n");
    let predicted = predictor(folder.path(), None).map(|_| ());
    for (what, result) in [("eval", result), ("predict", predicted)] {
        let error = result.unwrap_err().to_string();
        assert!(
            error.contains("`frugal tune`") && !error.contains("generate"),
            "{what}: {error}"
        );
    }
}

#[test]
fn labels_come_from_the_models_own_head_where_the_adapter_has_none() {
    let folder = with_tokenizer("interop/models/bert-classifier");
    let predictor = predictor(folder.path(), Some("interop/adapters/bert-headless")).unwrap();
    assert_eq!(predictor.labels(), ["LABEL_0", "LABEL_1", "LABEL_2"]);
}
