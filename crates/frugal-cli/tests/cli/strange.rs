//! Inputs that are hardly meant: each is refused with its own reason, or named.

use std::fs;
use std::path::Path;

use serde_json::Value;

use crate::support::{Run, fixture, folder, frugal_in};

fn run(folder: &Path, words: &str) -> Run {
    frugal_in(folder, &words.split_whitespace().collect::<Vec<_>>())
}

const SMALL: &str = "tune --max-steps 1 --quiet";

fn rows(folder: &Path) {
    let row = |i: usize| format!("text number {i},{}\n", ["x", "y"][i % 2]);
    let rows: String = (0..20).map(row).collect();
    fs::write(folder.join("a.csv"), format!("text,label\n{rows}")).unwrap();
}

#[test]
fn a_role_that_is_given_twice_is_not_settled_by_the_last() {
    let folder = folder();
    rows(folder.path());
    let twice = "--column text=text --column text=label";
    run(
        folder.path(),
        &format!("{SMALL} --data a.csv {twice} --out o"),
    )
    .fails(&["--column text", "\"text\"", "\"label\""]);
    run(folder.path(), &format!("embed --data a.csv {twice}")).fails(&["--column text"]);
}

#[test]
fn data_that_count_twice_or_judge_themselves_are_named() {
    let folder = folder();
    rows(folder.path());
    let run = |words: &str| {
        run(folder.path(), &format!("tune --max-steps 1 {words}"))
            .ok()
            .stderr
    };
    let said = run("--data a.csv --test-data a.csv --out one");
    assert!(
        said.contains("a.csv: the test data are the training data"),
        "{said}"
    );
    let said = run("--data a.csv --data a.csv --out two");
    assert!(said.contains("a.csv: given twice"), "{said}");
    let said = run("--data a.csv --out three");
    assert!(!said.contains("warning"), "{said}");
}

#[test]
fn keys_of_an_adapter_that_nobody_reads_are_named() {
    let folder = folder();
    let adapter = folder.path().join("adapter");
    fs::create_dir(&adapter).unwrap();
    for name in ["adapter_config.json", "adapter_model.safetensors"] {
        let from = fixture("adapters/llama-lora-qv").join(name);
        fs::copy(from, adapter.join(name)).unwrap();
    }
    let path = adapter.join("adapter_config.json");
    let mut config: Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
    let model = fixture("models/llama");
    let merge = |out: &str| {
        let args = [
            "merge",
            "--model",
            model.to_str().unwrap(),
            "--adapter",
            "adapter",
            "--out",
            out,
        ];
        frugal_in(folder.path(), &args).ok().stderr
    };
    let said = merge("plain");
    assert!(!said.contains("not read"), "{said}");
    config["use_superlora"] = true.into();
    fs::write(&path, config.to_string()).unwrap();
    let said = merge("named");
    assert!(
        said.contains("not read") && said.contains("`use_superlora`"),
        "{said}"
    );
    fs::write(&path, format!("\u{feff}{config}")).unwrap();
    let args = [
        "merge",
        "--model",
        model.to_str().unwrap(),
        "--adapter",
        "adapter",
        "--out",
        "mark",
    ];
    frugal_in(folder.path(), &args).fails(&["byte order mark"]);
}

#[test]
fn parts_of_weights_without_their_list_are_not_called_missing() {
    let folder = folder();
    let model = folder.path().join("model");
    fs::create_dir(&model).unwrap();
    let from = fixture("models/llama");
    fs::copy(from.join("config.json"), model.join("config.json")).unwrap();
    fs::copy(
        from.join("model.safetensors"),
        model.join("model-00001-of-00002.safetensors"),
    )
    .unwrap();
    run(folder.path(), "export --model model --to hf --out m")
        .fails(&["model.safetensors.index.json", "model-00001-of-00002"]);
}

#[test]
fn a_file_in_the_place_of_a_run_is_called_a_file() {
    let folder = folder();
    rows(folder.path());
    run(folder.path(), &format!("{SMALL} --data a.csv --out a.csv"))
        .fails(&["there is a file of this name"]);
}

#[test]
fn nothing_to_predict_is_said() {
    let folder = folder();
    rows(folder.path());
    run(folder.path(), &format!("{SMALL} --data a.csv --out r")).ok();
    fs::write(folder.path().join("none.jsonl"), "").unwrap();
    run(folder.path(), "predict --adapter r --data none.jsonl").fails(&["none.jsonl: no texts"]);
    fs::write(folder.path().join("empty.jsonl"), "{\"text\": \"\"}\n").unwrap();
    let said = run(folder.path(), "predict --adapter r --data empty.jsonl")
        .fails(&["empty.jsonl:1: the text has no tokens"]);
    assert!(!said.stderr.contains("text:1"), "{}", said.stderr);
}

#[test]
fn a_setting_that_is_no_number_is_named() {
    let folder = folder();
    rows(folder.path());
    for words in ["--lora-alpha nan", "--set method.lora_alpha=inf"] {
        run(
            folder.path(),
            &format!("{SMALL} --data a.csv {words} --out o"),
        )
        .fails(&["`method.lora_alpha`", "a finite number"]);
    }
}
