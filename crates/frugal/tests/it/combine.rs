//! Combining adapters and turning others into LoRA: against `peft`, and by what must hold.

use std::path::Path;

use frugal::adapt::Rows;
use frugal::adapt::combine::{CombinationType, CombineOptions, Rank, combine, to_lora};
use frugal::adapt::{Adapter, LoadedAdapter, Mode, merge, peft, to_vec};
use frugal::model::{Backbone, Input};

use crate::support::{Golden, context, fixture, max_difference, model};

fn logits(backbone: &dyn Backbone, adapter: &dyn Adapter, ids: &[u32]) -> Vec<f32> {
    let mut pass = adapter.pass(Mode::Eval);
    let hidden = backbone
        .forward(&Input::new(ids, &[ids.len()]), pass.as_mut(), None)
        .unwrap();
    to_vec(
        backbone
            .logits(hidden, Rows::Tokens, pass.as_mut())
            .unwrap(),
    )
}

fn load(folder: &Path, backbone: &dyn Backbone) -> LoadedAdapter {
    peft::load(folder, &context(backbone, 0), false).unwrap().0
}

#[test]
fn combinations_are_those_of_peft() {
    let folder = fixture("combine");
    let backbone = model("llama", "config.json");
    let golden = Golden::read(&folder.join("golden.safetensors"));
    let head: serde_json::Value =
        serde_json::from_slice(&std::fs::read(folder.join("golden.json")).unwrap()).unwrap();
    let (one, two) = (
        load(&folder.join("one"), backbone.as_ref()),
        load(&folder.join("two"), backbone.as_ref()),
    );
    let ids = golden.ids["input_ids"].clone();
    let cases = head["cases"].as_object().unwrap();
    assert_eq!(cases.len(), 7);
    for (name, case) in cases {
        let weight = |i: usize| case["weights"][i].as_f64().unwrap() as f32;
        let options = CombineOptions {
            combination_type: serde_json::from_value::<CombinationType>(
                case["combination_type"].clone(),
            )
            .unwrap(),
            density: case["density"].as_f64().unwrap_or(1.0),
            rank: Rank::Fixed(case["svd_rank"].as_u64().unwrap_or(8) as usize),
            seed: 0,
        };
        let parts = [
            (one.adapter.as_ref(), weight(0)),
            (two.adapter.as_ref(), weight(1)),
        ];
        let combined = combine(
            &parts,
            &options,
            backbone.as_ref(),
            &context(backbone.as_ref(), 0),
        )
        .unwrap();
        let found = logits(backbone.as_ref(), &combined.adapter, &ids);
        let worst = max_difference(&found, golden.float(&format!("{name}.logits")).unwrap());
        assert!(worst < 1e-4, "{name}: {worst:e}");
    }
}

#[test]
fn a_change_of_weights_becomes_a_lora_that_does_the_same() {
    let backbone = model("llama", "config.json");
    let entry = load(
        &fixture("adapters/llama-lora-all-rslora"),
        backbone.as_ref(),
    );
    let ids: Vec<u32> = (3..20).collect();
    let expected = logits(backbone.as_ref(), entry.adapter.as_ref(), &ids);
    let exact = to_lora(
        entry.adapter.as_ref(),
        Rank::Energy(1.0),
        backbone.as_ref(),
        &context(backbone.as_ref(), 0),
    )
    .unwrap();
    assert!(max_difference(&logits(backbone.as_ref(), &exact.adapter, &ids), &expected) < 1e-4);
    // The ranks that the adapter was made with, at most; factors may be of lower rank by chance,
    // not of higher.
    assert!(
        exact.ranks.values().all(|&rank| rank <= 6),
        "{:?}",
        exact.ranks
    );
    let cut = to_lora(
        entry.adapter.as_ref(),
        Rank::Fixed(1),
        backbone.as_ref(),
        &context(backbone.as_ref(), 0),
    )
    .unwrap();
    assert!(
        exact.relative_error < 1e-3 && cut.relative_error > 0.1,
        "{} {}",
        exact.relative_error,
        cut.relative_error
    );

    // The result is a LoRA like any other: it is saved, read and merged.
    let dir = tempfile::tempdir().unwrap();
    let entry = LoadedAdapter {
        adapter: Box::new(exact.adapter),
        head: None,
    };
    peft::save(dir.path(), &entry, backbone.info(), "base").unwrap();
    let read = load(dir.path(), backbone.as_ref());
    assert!(
        max_difference(
            &logits(backbone.as_ref(), read.adapter.as_ref(), &ids),
            &expected
        ) < 1e-4
    );
    assert!(merge::weights(backbone.as_ref(), Some(read.adapter.as_ref())).is_ok());
}

#[test]
fn what_does_not_go_together_says_what_would() {
    let backbone = model("llama", "config.json");
    let message = |names: [&str; 2], combination_type, density| {
        let entries = names.map(|name| load(&fixture("adapters").join(name), backbone.as_ref()));
        let parts = [
            (entries[0].adapter.as_ref(), 1.0),
            (entries[1].adapter.as_ref(), 1.0),
        ];
        let options = CombineOptions {
            combination_type,
            density,
            rank: Rank::Fixed(4),
            seed: 0,
        };
        combine(
            &parts,
            &options,
            backbone.as_ref(),
            &context(backbone.as_ref(), 0),
        )
        .err()
        .map(|e| e.to_string())
        .unwrap_or_default()
    };
    let (qv, rs, bias, prompt) = (
        "llama-lora-qv",
        "llama-lora-all-rslora",
        "llama-lora-bias-b",
        "llama-prompt",
    );
    assert!(message([qv, rs], CombinationType::Linear, 1.0).contains("use `cat` or `svd`"));
    assert!(message([qv, bias], CombinationType::Svd, 1.0).contains("changes biases"));
    assert!(message([qv, bias], CombinationType::Linear, 1.0).contains("end in `svd`"));
    assert!(message([qv, prompt], CombinationType::Svd, 1.0).contains("prompt-tuning"));
    assert!(message([qv, prompt], CombinationType::Linear, 1.0).contains("no change of weights"));
    assert!(message([qv, rs], CombinationType::Ties, 0.0).contains("`density`"));
    assert_eq!(message([qv, rs], CombinationType::Cat, 1.0), "");
}
