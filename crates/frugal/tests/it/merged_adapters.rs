//! Adapters in the weights of their models: what is computed, what comes out again, what cannot be.

use frugal::adapt::{LoadedAdapter, merge, registry, to_vec};
use frugal::model::load::{Lookup, ModelFiles, SafetensorsFile, read_json};
use frugal::model::save::StoredType;
use frugal::model::{Backbone, Frozen};
use frugal::run::merge_to_folder;
use serde_json::json;

use crate::adapters::{Case, TOLERANCE, adapters, case};
use crate::support::{context, device, fixture, max_difference, model};

#[test]
fn merged_weights_compute_what_the_adapter_computed() {
    for name in &adapters() {
        let case = case(name);
        let entry = case.load();
        let method = registry::find(entry.adapter.method()).unwrap();
        if !method.capabilities.merge {
            continue;
        }
        let merged = merge::weights(case.backbone.as_ref(), Some(entry.adapter.as_ref()))
            .unwrap()
            .build(&device())
            .unwrap();
        check_unmerged(&case, &entry, merged.as_ref());
        for s in case.golden.sequences() {
            let found = case.logits(&entry, merged.as_ref(), s, true);
            let worst = max_difference(&found, case.expected(s, found.len()));
            assert!(
                worst <= TOLERANCE,
                "{name} sequence {s}: largest difference {worst:e}"
            );
        }
    }
}

/// Every layer of a merged model, with the adapter taken out, is the base's again up to rounding.
fn check_unmerged(case: &Case, entry: &LoadedAdapter, merged: &dyn Backbone) {
    if case.folder.to_str().unwrap().contains("lora-bias-") {
        return;
    }
    let maps = |backbone: &dyn Backbone| {
        let mut maps = Vec::new();
        backbone.visit_weights(&mut |part| {
            if let Frozen::Linear(linear) = part {
                maps.push(linear.clone());
            }
        });
        maps
    };
    for (base, merged) in maps(case.backbone.as_ref()).iter().zip(maps(merged)) {
        let found = match merge::unmerge(&merged, entry.adapter.as_ref()) {
            Ok(found) => found,
            Err(error) => {
                let known = "bitfit deft dora frod peanut peqa trainable-tokens";
                let known = known.split(' ').any(|m| m == entry.adapter.method());
                let replaced = ["-saved", "-tokens", "-pooler"]
                    .iter()
                    .any(|part| case.folder.to_str().unwrap().contains(part));
                assert!(
                    (known || replaced) && error.to_string().contains("load the base model"),
                    "{error}"
                );
                continue;
            }
        };
        let worst = max_difference(&to_vec(found.weight.dense()), &to_vec(base.weight.dense()));
        // The inverse of a product magnifies rounding.
        let inverted = ["llama-miss-bat", "bert-oft-seqcls"]
            .iter()
            .any(|name| case.folder.ends_with(name))
            || ["glora", "hira"].contains(&entry.adapter.method());
        let tolerance = if inverted { 2e-5 } else { 1e-6 };
        assert!(worst < tolerance, "{}: {worst:e}", case.folder.display());
    }
}

#[test]
fn what_cannot_be_merged_says_why() {
    let case = case("llama-prompt");
    let message = merge::weights(case.backbone.as_ref(), Some(case.load().adapter.as_ref()))
        .err()
        .unwrap()
        .to_string();
    assert!(message.contains("adds positions"), "{message}");
    // Biases that the architecture has no setting for.
    let mixtral = model("mixtral", "config.json");
    let settings = json!({"target_modules": ["q_proj"], "lora_bias": true});
    let lora = (registry::find("lora").unwrap().build)(
        settings.as_object().unwrap(),
        &context(mixtral.as_ref(), 0),
    )
    .unwrap();
    let message = merge::weights(mixtral.as_ref(), Some(lora.as_ref()))
        .err()
        .unwrap()
        .to_string();
    assert!(
        message.contains("has no bias in this architecture"),
        "{message}"
    );
}

#[test]
fn a_merged_classifier_keeps_its_head() {
    for (name, class, key) in [
        (
            "llama-lora-seqcls",
            "LlamaForSequenceClassification",
            "score.weight",
        ),
        (
            "bert-lora-seqcls",
            "BertForSequenceClassification",
            "classifier.bias",
        ),
        (
            "roberta-lora-seqcls",
            "RobertaForSequenceClassification",
            "classifier.out_proj.weight",
        ),
    ] {
        let (case, dir) = (case(name), tempfile::tempdir().unwrap());
        let base = fixture("models").join(
            case.description["model"]
                .as_str()
                .unwrap()
                .strip_prefix("fixtures/models/")
                .unwrap(),
        );
        let files = ModelFiles::open(base.to_str().unwrap(), &Lookup::default()).unwrap();
        let entry = case.load();
        assert!(
            merge_to_folder(
                &files,
                case.backbone.as_ref(),
                Some(&entry),
                dir.path(),
                StoredType::F32
            )
            .unwrap()
        );
        let config = read_json(&dir.path().join("config.json")).unwrap();
        assert_eq!(config["architectures"][0], class);
        assert_eq!(config["id2label"].as_object().unwrap().len(), 3);
        let file = SafetensorsFile::open(&dir.path().join("model.safetensors")).unwrap();
        let parameters = entry.head.as_ref().unwrap().parameters();
        let parameter = parameters.iter().find(|p| p.name() == key).unwrap();
        assert_eq!(
            file.tensor(key).unwrap().iter::<f32>().collect::<Vec<_>>(),
            parameter.to_vec(),
            "{name}"
        );
        assert!(file.shape("lm_head.weight").is_none());
        // Read back, it is the same classifier.
        let merged = ModelFiles::open(dir.path().to_str().unwrap(), &Lookup::default()).unwrap();
        let (backbone, head) = (
            merged.load(&device()).unwrap(),
            merged.head(&device()).unwrap().unwrap(),
        );
        assert_eq!(
            head.config().labels,
            entry.head.as_ref().unwrap().config().labels
        );
        let plain = LoadedAdapter {
            head: Some(head),
            ..case.load()
        };
        for s in case.golden.sequences() {
            let found = case.logits(&plain, backbone.as_ref(), s, true);
            assert!(
                max_difference(&found, case.expected(s, found.len())) <= TOLERANCE,
                "{name} sequence {s}"
            );
        }
    }
}
