//! Adapters that take no part in some steps or examples, on a decoder of their own.

use std::fs;
use std::path::Path;

use crate::support::{Run, folder, frugal_in};

fn run(folder: &Path, words: &str) -> Run {
    frugal_in(folder, &words.split_whitespace().collect::<Vec<_>>())
}

/// A tiny decoder in `tiny`, and texts of which `with` of `of` hold "tree".
fn workshop(folder: &Path) {
    let line = |i: usize| {
        format!(
            "the {} and the {}\n",
            ["boat", "tree", "owl"][i % 3],
            i % 17
        )
    };
    fs::write(
        folder.join("text.txt"),
        (0..300).map(line).collect::<String>(),
    )
    .unwrap();
    let words = "pretrain --data text.txt --out tiny --vocab-size 300 --max-length 32 --max-steps 2 --batch-tokens 128 \
        --set shape.hidden_size=16 --set shape.intermediate_size=24 --set shape.num_hidden_layers=1 \
        --set shape.num_attention_heads=2 --set shape.max_position_embeddings=64 --quiet";
    run(folder, words).ok();
    let record = |i: usize| {
        let word = if i.is_multiple_of(4) { "tree" } else { "boat" };
        format!("{{\"text\": \"the {word} and the {i}\"}}\n")
    };
    fs::write(
        folder.join("data.jsonl"),
        (0..24).map(record).collect::<String>(),
    )
    .unwrap();
}

const TUNE: &str = "--model tiny --data data.jsonl --task causal-lm --max-length 32 --batch-size 4 \
    --set evaluate_base=false --max-steps 4";

#[test]
fn methods_that_start_from_inputs_learn_to_write_text() {
    let folder = folder();
    let folder = folder.path();
    workshop(folder);
    for method in ["eva", "corda"] {
        let words =
            format!("tune --method {method} {TUNE} --out {method} --set method.r=2 --quiet");
        run(folder, &words).ok();
        assert!(folder.join(method).join("adapter_config.json").is_file());
    }
}

#[test]
fn texts_without_the_invocation_are_counted_and_data_without_it_are_refused() {
    let folder = folder();
    let folder = folder.path();
    workshop(folder);
    // The start of an answer in ChatML stands in no text.
    let out = "--out runs/none --quiet";
    let said = ["`alora`", "all ", "`invocation_text`"];
    run(folder, &format!("tune --method alora {TUNE} {out}")).fails(&said);
    run(
        folder,
        &format!("tune --method alora {TUNE} {out} --dry-run"),
    )
    .fails(&said);
    assert!(!folder.join("runs").exists());
    let checked = run(folder, &format!("validate --method alora {TUNE} --json"));
    assert_eq!(
        (checked.code, checked.json()["valid"].as_bool()),
        (1, Some(false))
    );

    let invoked = [
        "--method",
        "alora",
        "--set",
        "method.invocation_text=\" tree\"",
        "--out",
        "some",
    ];
    let given: Vec<&str> = TUNE.split_whitespace().chain(invoked).collect();
    for more in [&["tune", "--dry-run"][..], &["tune"], &["validate"]] {
        let mut words = more.to_vec();
        let all = given.iter().copied();
        // A configuration is checked without a folder.
        words.extend(all.take(given.len() - if more[0] == "validate" { 2 } else { 0 }));
        let told = frugal_in(folder, &words).ok();
        let told = format!("{}{}", told.stdout, told.stderr);
        assert!(
            told.contains("training examples teach method `alora` nothing"),
            "{told}"
        );
    }
}
