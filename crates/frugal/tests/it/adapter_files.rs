//! What is said of adapter folders: who reads them, which model they are for, and what cannot be done
//! with them.

use std::collections::{BTreeMap, BTreeSet};

use frugal::adapt::Operation;
use frugal::adapt::combine::{CombinationType, Rank, combine_heads, to_lora};
use frugal::adapt::{Head, HeadConfig, LoadedAdapter, Pooling, merge, peft, registry};
use frugal::model::load::{Lookup, ModelFiles, SafetensorsFile, read_json};
use frugal::model::{LoadOptions, Quantize};
use serde_json::json;

use crate::adapters::{TOLERANCE, adapters, case};
use crate::support::{context, device, fixture, max_difference, model};

#[test]
fn peft_has_the_methods_whose_files_it_wrote() {
    let mut wrote = BTreeSet::new();
    for name in &adapters() {
        let field = |file: &str, field: &str| {
            let value = read_json(&fixture("adapters").join(name).join(file)).unwrap();
            value[field].as_str().unwrap().to_owned()
        };
        let peft_type = field(peft::CONFIG_FILE, "peft_type");
        // A formula that stands among the cases of peft, and files with signs that peft leaves out.
        let own = ["BITFIT", "PSOFT_WITH_SIGNS"].contains(&peft_type.as_str());
        if !field("golden.json", "generator").ends_with("adapters_own.py") && !own {
            wrote.insert(peft_type);
        }
    }
    let known: BTreeSet<String> = registry::METHODS
        .iter()
        .filter(|m| m.is_in_peft())
        .map(|m| m.peft_type.to_owned())
        .collect();
    assert_eq!(known, wrote);
}

#[test]
fn the_documentation_says_of_every_method_who_reads_its_files() {
    let text = std::fs::read_to_string(fixture("../docs/adapters.md")).unwrap();
    // Methods and type; or methods, what is kept, whether it loads, whether it merges.
    let rows: Vec<Vec<&str>> = text
        .lines()
        .filter(|line| line.starts_with("| `"))
        .map(|line| line.trim_matches('|').split('|').map(str::trim).collect())
        .filter(|row: &Vec<&str>| matches!(row.len(), 2 | 4))
        .collect();
    for method in registry::METHODS {
        let of_method: Vec<_> = rows
            .iter()
            .filter(|row| row[0].contains(&format!("`{}`", method.name)))
            .collect();
        assert_eq!(of_method.len(), 1, "{}", method.name);
        match of_method[0].as_slice() {
            [_, _, loads, merges] => {
                assert_eq!(
                    (*loads == "yes", *merges == "yes"),
                    (method.is_read_by_peft(), method.capabilities.merge),
                    "{}",
                    method.name
                );
            }
            row => assert!(
                method.is_read_by_peft() && row[1].contains(method.peft_type),
                "{}",
                method.name
            ),
        }
    }
}

#[test]
fn an_adapter_of_another_model_says_so_before_what_does_not_fit() {
    let (folder, backbone) = (
        fixture("adapters/gemma3-lora-all"),
        model("llama", "config.json"),
    );
    let read = |called: &str| {
        let found = peft::load(&folder, &context(backbone.as_ref(), 0), false);
        peft::made_for(&folder, called, found).err().unwrap()
    };
    let error = read("models/llama");
    assert_eq!(
        error.to_string(),
        "the adapter was made for `fixtures/models/gemma3_text`, not for `models/llama`"
    );
    // One block too many, of seven layers with two tensors each: the first five, and how many there
    // are.
    let cause = std::error::Error::source(&error).unwrap().to_string();
    assert!(
        cause.contains("14 unexpected")
            && cause.lines().count() == 7
            && cause.lines().last().unwrap().contains(" more"),
        "{cause}"
    );
    // The same model somewhere else: its file is at fault.
    assert!(
        read("elsewhere/gemma3_text")
            .to_string()
            .contains("adapter_model.safetensors: the tensors do not fit")
    );
}

#[test]
fn classification_heads_are_added_where_that_is_linear() {
    let (one, two) = (case("bert-lora-seqcls"), case("bert-dora-seqcls"));
    let heads = [&one, &two].map(|case| case.load().head.unwrap());
    let sum = combine_heads(
        &[(&heads[0], 0.3), (&heads[1], 0.7)],
        CombinationType::Linear,
    )
    .unwrap();
    let logits = |head: &Head| {
        one.logits(
            &LoadedAdapter {
                head: Some(head.clone()),
                ..one.load()
            },
            one.backbone.as_ref(),
            0,
            true,
        )
    };
    let (a, b) = (logits(&heads[0]), logits(&heads[1]));
    assert!(max_difference(&a, &b) > 1e-2);
    let expected: Vec<f32> = a.iter().zip(&b).map(|(a, b)| 0.3 * a + 0.7 * b).collect();
    assert!(max_difference(&logits(&sum), &expected) < TOLERANCE);

    let refused = |other: &Head, kind| {
        combine_heads(&[(&heads[0], 0.5), (other, 0.5)], kind)
            .err()
            .unwrap()
            .to_string()
    };
    assert!(
        refused(&heads[1], CombinationType::Ties)
            .contains("\"ties\" is no weighted sum: use `linear`")
    );
    let known = heads[0].config();
    let with = |config: HeadConfig| Head::new(config, one.backbone.info(), &device(), 0);
    let labels = vec!["no".to_owned(), "yes".to_owned()];
    let message = refused(
        &with(HeadConfig {
            labels,
            ..known.clone()
        }),
        CombinationType::Cat,
    );
    assert!(
        message.contains("no, yes") && message.contains(&known.labels.join(", ")),
        "{message}"
    );
    let message = refused(
        &with(HeadConfig {
            pooling: Pooling::Mean,
            ..known.clone()
        }),
        CombinationType::Svd,
    );
    assert!(
        message.contains("`pooling = \"cls\"`") && message.contains("`pooling = \"mean\"`"),
        "{message}"
    );
    let hidden = case("roberta-lora-seqcls").load().head.unwrap();
    let message = combine_heads(&[(&hidden, 0.5), (&hidden, 0.5)], CombinationType::Linear)
        .err()
        .unwrap()
        .to_string();
    assert!(message.contains("`classifier.dense`"), "{message}");
}

#[test]
fn what_goes_with_rounded_weights_is_neither_merged_nor_converted() {
    let files = ModelFiles::open("builtin", &Lookup::default()).unwrap();
    let method = registry::find("lora").unwrap();
    let settings = json!({"r": 2, "target_modules": ["q_proj"], "init_lora_weights": "loftq", "loftq_config": {"loftq_bits": 8}});
    let settings = settings.as_object().unwrap().clone();
    let options = method
        .load_options(
            &settings,
            &files.sites(),
            Some(Quantize::Int8),
            LoadOptions::default(),
        )
        .unwrap();
    let backbone = files.load_with(&device(), options).unwrap();
    let context = context(backbone.as_ref(), 0);
    let entry = LoadedAdapter {
        adapter: (method.build)(&settings, &context).unwrap(),
        head: None,
    };
    let folder = tempfile::tempdir().unwrap();
    peft::save(folder.path(), &entry, files.info(), "builtin").unwrap();
    let adapter = entry.adapter.as_ref();
    let refusals = [
        merge::weights(backbone.as_ref(), Some(adapter)).err(),
        to_lora(adapter, Rank::AtMost(8), backbone.as_ref(), &context).err(),
        peft::allow(folder.path(), Operation::Combine).err(),
    ];
    for refusal in refusals {
        let message = refusal.unwrap().to_string();
        assert!(
            message.contains("rounded in the same way") && !message.contains("quantize"),
            "{message}"
        );
    }
    assert!(peft::allow(&fixture("adapters/llama-lora-qv"), Operation::Combine).is_ok());
}

#[test]
fn vectors_and_weights_alone_are_saved_where_the_setting_says_so() {
    let backbone = model("llama", "config.json");
    let context = context(backbone.as_ref(), 3);
    let settings = json!({"save_only_topk_weights": true, "r": 2, "num_vectors": 12, "vector_length": 8, "topk": 3,
        "target_modules": ["q_proj", "v_proj"], "init_logits_std": 1.0, "init_vector_bank_bound": 0.9});
    let method = registry::find("vblora").unwrap();
    let adapter = method
        .make(settings.as_object().unwrap(), &context)
        .unwrap();
    assert!(adapter.num_trainable() > 0);
    let trained = LoadedAdapter {
        adapter,
        head: None,
    };
    let saved = tempfile::tempdir().unwrap();
    peft::save(saved.path(), &trained, backbone.info(), "base").unwrap();
    let file = SafetensorsFile::open(&saved.path().join(peft::WEIGHTS_FILE)).unwrap();
    let is_small = |name: &String| name.contains("_topk_") || name.contains("vector_bank");
    assert!(file.names().iter().all(is_small), "{:?}", file.names());
    let config = read_json(&saved.path().join(peft::CONFIG_FILE)).unwrap();
    assert_eq!(config["save_only_topk_weights"], true);
    assert_eq!(config.get("only_topk_weights"), None);
    let (read, _) = peft::load(saved.path(), &context, false).unwrap();
    assert_eq!(read.adapter.num_trainable(), 0);
    let values = |entry: Option<&LoadedAdapter>| -> Vec<f32> {
        let adapter = entry.map(|entry| entry.adapter.as_ref());
        let weights = merge::weights(backbone.as_ref(), adapter).unwrap();
        let all = weights.tensors.iter();
        let by_name: BTreeMap<String, Vec<f32>> =
            all.map(|(name, _, values)| (name, values())).collect();
        by_name.into_values().flatten().collect()
    };
    let (before, after) = (values(Some(&trained)), values(Some(&read)));
    assert!(max_difference(&before, &after) < 1e-5);
    let plain = values(None);
    assert!(max_difference(&before, &plain) > 1e-2);
}
