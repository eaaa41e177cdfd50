//! Heads that label tokens: those of transformers, adapters of peft, both ways.

use std::path::Path;

use frugal::adapt::{Head, LoadedAdapter, Mode, NoAdapter, Pass, Pooling, peft, to_vec};
use frugal::model::load::{Lookup, ModelFiles, read_json};
use frugal::model::save::StoredType;
use frugal::model::{Backbone, Input};
use frugal::run::merge_to_folder;
use frugal::train::objective::for_model;
use frugal::train::{ModelParts, Target, Tokenized, TrainConfig, evaluate};
use std::sync::atomic::AtomicBool;

use crate::support::{Golden, context, device, fixture, max_difference, model};

const TOLERANCE: f32 = 1e-4;

fn open(folder: &Path) -> ModelFiles {
    ModelFiles::open(folder.to_str().unwrap(), &Lookup::default()).unwrap()
}

/// The logits of each sequence are the reference's, and the loss of both together.
fn check(
    name: &str,
    golden: &Golden,
    backbone: &dyn Backbone,
    head: &Head,
    entry: Option<&LoadedAdapter>,
) {
    assert_eq!(head.config().pooling, Pooling::Tokens, "{name}");
    let mut examples = Vec::new();
    for s in golden.sequences() {
        let ids = golden.input_ids(s);
        let mut pass: Box<dyn Pass> = match entry {
            Some(entry) => entry.adapter.pass(Mode::Eval),
            None => Box::new(NoAdapter),
        };
        let input = Input::new(ids, &[ids.len()]);
        let found = head.classify(&input, backbone, pass.as_mut(), Mode::Eval);
        let expected = golden.float(&format!("seq{s}.logits")).unwrap();
        let worst = max_difference(&to_vec(found.unwrap()), expected);
        assert!(worst < TOLERANCE, "{name}: {worst:e}");
        let labels = &golden.ids[&format!("seq{s}.labels")];
        examples.push(Tokenized {
            input_ids: ids.to_vec(),
            token_type_ids: Vec::new(),
            labels: Target::Tags {
                classes: labels.iter().map(|label| *label as i32).collect(),
                words: (0..ids.len() as u32).map(Some).collect(),
            },
        });
    }
    let parts = ModelParts::new(backbone, Some(head));
    let objective = for_model(&TrainConfig::default(), parts).unwrap();
    assert_eq!(objective.name(), "token_classification");
    let adapter = entry.map(|entry| entry.adapter.as_ref());
    let stop = AtomicBool::new(false);
    let found = evaluate(parts, adapter, objective.as_ref(), &examples, 512, &stop);
    let loss = found.unwrap().unwrap().metrics["loss"];
    let expected = f64::from(golden.float("loss").unwrap()[0]);
    assert!((loss - expected).abs() < 1e-4, "{name}: {loss} {expected}");
}

#[test]
fn models_that_label_tokens_compute_what_transformers_computes_and_are_written_back() {
    for name in ["bert", "roberta", "gpt2", "llama"] {
        let folder = fixture("token_classification/models").join(name);
        let golden = Golden::read(&folder.join("golden.safetensors"));
        let files = open(&folder);
        let backbone = files.load(&device()).unwrap();
        let head = files.head(&device()).unwrap().unwrap();
        let labels = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"];
        assert_eq!(head.config().labels, labels, "{name}");
        check(name, &golden, backbone.as_ref(), &head, None);
        let out = tempfile::tempdir().unwrap();
        merge_to_folder(&files, backbone.as_ref(), None, out.path(), StoredType::F32).unwrap();
        let config = |folder: &Path| read_json(&folder.join("config.json")).unwrap();
        for key in ["architectures", "id2label", "label2id"] {
            assert_eq!(
                config(out.path())[key],
                config(&folder)[key],
                "{name}: {key}"
            );
        }
        let again = open(out.path());
        let (backbone, head) = (
            again.load(&device()).unwrap(),
            again.head(&device()).unwrap(),
        );
        check(name, &golden, backbone.as_ref(), &head.unwrap(), None);
    }
}

#[test]
fn adapters_that_label_tokens_are_those_of_peft_in_both_directions() {
    // `dense` of the first is also the name of a pooler, which the class lacks and its base has.
    for name in ["bert", "llama"] {
        let folder = fixture("token_classification/adapters").join(name);
        let golden = Golden::read(&folder.join("golden.safetensors"));
        let backbone = model(name, "config.json");
        let context = context(backbone.as_ref(), 0);
        let read = |folder: &Path| {
            let (entry, report) =
                peft::load(folder, &context, false).unwrap_or_else(|e| panic!("{name}: {e}"));
            assert!(report.is_exact(), "{name}");
            entry
        };
        let entry = read(&folder);
        let head = entry.head.as_ref().unwrap();
        check(name, &golden, backbone.as_ref(), head, Some(&entry));
        let saved = tempfile::tempdir().unwrap();
        peft::save(saved.path(), &entry, backbone.info(), "base").unwrap();
        let config = |folder: &Path| read_json(&folder.join(peft::CONFIG_FILE)).unwrap();
        for key in ["task_type", "modules_to_save", "r"] {
            assert_eq!(
                config(saved.path())[key],
                config(&folder)[key],
                "{name}: {key}"
            );
        }
        let names = |folder: &Path| {
            let path = folder.join(peft::WEIGHTS_FILE);
            let mut names = frugal::model::load::SafetensorsFile::open(&path)
                .unwrap()
                .names();
            names.sort();
            names
        };
        assert_eq!(names(saved.path()), names(&folder), "{name}");
        let again = read(saved.path());
        let head = again.head.as_ref().unwrap();
        check(name, &golden, backbone.as_ref(), head, Some(&again));

        // Merged, it is a model that labels tokens.
        let files = open(&fixture("models").join(name));
        let out = tempfile::tempdir().unwrap();
        let backbone = files.load(&device()).unwrap();
        let fits = merge_to_folder(
            &files,
            backbone.as_ref(),
            Some(&entry),
            out.path(),
            StoredType::F32,
        );
        assert!(fits.unwrap(), "{name}");
        let merged = open(out.path());
        let class = read_json(&out.path().join("config.json")).unwrap()["architectures"].clone();
        assert!(
            class[0]
                .as_str()
                .unwrap()
                .ends_with("ForTokenClassification")
        );
        let head = merged.head(&device()).unwrap().unwrap();
        let backbone = merged.load(&device()).unwrap();
        check(name, &golden, backbone.as_ref(), &head, None);
    }
}
