//! Decoders whose files have no output head, or one that their class does not announce.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::Arc;

use frugal::adapt::{NoAdapter, Rows};
use frugal::decode::{Session, StateOptions};
use frugal::model::load::{Lookup, ModelFiles, read_json};
use frugal::model::{Backbone, Input};
use safetensors::SafeTensors;
use safetensors::tensor::TensorView;
use serde_json::json;

use crate::support::{Golden, assert_close, device, fixture};

/// A fixture as `save_pretrained` of a bare model writes it, but for what is asked for.
fn folder(model: &str, class: &str, with_head: bool) -> tempfile::TempDir {
    let (from, to) = (fixture("models").join(model), tempfile::tempdir().unwrap());
    let mut config = read_json(&from.join("config.json")).unwrap();
    config["architectures"] = json!([class]);
    fs::write(to.path().join("config.json"), config.to_string()).unwrap();
    let files: Vec<Vec<u8>> = fs::read_dir(&from)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| {
            path.file_name()
                .is_some_and(|name| is_model(Path::new(name)))
        })
        .map(|path| fs::read(path).unwrap())
        .collect();
    let shards: Vec<SafeTensors<'_>> = files
        .iter()
        .map(|bytes| SafeTensors::deserialize(bytes).unwrap())
        .collect();
    let tensors: BTreeMap<String, TensorView<'_>> = shards
        .iter()
        .flat_map(SafeTensors::tensors)
        .filter(|(name, _)| with_head || name != "lm_head.weight")
        .map(|(name, view)| {
            (
                name.strip_prefix("model.").unwrap_or(&name).to_owned(),
                view,
            )
        })
        .collect();
    let bytes = safetensors::serialize(tensors, None).unwrap();
    fs::write(to.path().join("model.safetensors"), bytes).unwrap();
    to
}

fn is_model(name: &Path) -> bool {
    let name = name.to_string_lossy();
    name.starts_with("model") && name.ends_with(".safetensors")
}

fn open(folder: &Path) -> Arc<dyn Backbone> {
    let lookup = Lookup {
        cache: folder.into(),
        offline: true,
    };
    let files = ModelFiles::open(&folder.display().to_string(), &lookup).unwrap();
    files.load(&device()).unwrap()
}

/// The hidden states, and where there is a head the logits, are those of `transformers`.
fn check(model: &str, backbone: &dyn Backbone, has_head: bool) {
    let golden = Golden::read(&fixture("models").join(model).join("golden.safetensors"));
    let ids = golden.input_ids(0);
    let hidden = backbone
        .forward(&Input::new(ids, &[ids.len()]), &mut NoAdapter, None)
        .unwrap();
    let expected = golden.float("seq0.last_hidden_state").unwrap();
    assert_close(model, hidden.clone(), expected, 1e-4);
    let logits = backbone.logits(hidden, Rows::Tokens, &mut NoAdapter);
    assert_eq!(logits.is_some(), has_head, "{model}");
    if let Some(logits) = logits {
        assert_close(model, logits, golden.float("seq0.logits").unwrap(), 1e-4);
    }
}

#[test]
fn a_bare_decoder_with_a_head_of_its_own_embeds_and_does_not_generate() {
    let classes = [
        "MistralModel",
        // As a file looks whose configuration was kept from the whole model.
        "MistralForCausalLM",
        // The random head that `transformers` would make is no answer either.
        "MistralForSequenceClassification",
        "MistralForTokenClassification",
    ];
    for class in classes {
        let folder = folder("mistral", class, false);
        let backbone = open(folder.path());
        check("mistral", backbone.as_ref(), false);
        let options = StateOptions::default();
        let text = Session::new(backbone, Arc::default(), options)
            .err()
            .expect(class)
            .to_string();
        for word in ["lm_head.weight", "config.json", "AutoModelForCausalLM"] {
            assert!(text.contains(word), "{class}: {text}");
        }
    }
}

#[test]
fn a_bare_decoder_that_shares_the_token_table_has_its_head() {
    let folder = folder("llama", "LlamaModel", false);
    check("llama", open(folder.path()).as_ref(), true);
}

#[test]
fn a_head_that_is_in_the_file_is_used_whatever_the_class_is_called() {
    let folder = folder("mistral", "MistralModel", true);
    check("mistral", open(folder.path()).as_ref(), true);
}
