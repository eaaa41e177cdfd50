//! Contexts written into an adapter: learning to, and asking.

use std::path::{Path, PathBuf};

use frugal_core::lock::FolderLock;

use crate::support::{Run, change_weights, folder, frugal_in, model_copy};

#[test]
fn what_was_learnt_answers_from_an_index_without_passages_in_the_prompt() {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../fixtures");
    let model = root.join("harness/llama").display().to_string();
    let folder = folder();
    let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
    write(
        "docs.jsonl",
        "{\"id\": \"a\", \"text\": \"the boat is red and old\"}\n{\"id\": \"b\", \"text\": \"the road is long\"}\n",
    );
    write(
        "tasks.jsonl",
        concat!(
            "{\"context\": [\"the boat is red\", \"the road is long\"], \"question\": \"the boat?\", \"answer\": \"red\"}\n",
            "{\"context\": [\"the boat is old\"], \"question\": \"the boat?\", \"answer\": \"old\", \"support\": [\"the boat is old\"]}\n"
        ),
    );
    frugal_in(
        folder.path(),
        &["index", "--data", "docs.jsonl", "--out", "idx"],
    )
    .ok();
    let learn = |more: &[&str]| {
        let all = [
            &[
                "meta-train",
                "--model",
                &model,
                "--data",
                "tasks.jsonl",
                "--out",
                "memory",
                "--rank",
                "2",
                "--lora-alpha",
                "1.5",
                "--max-steps",
                "3",
            ],
            more,
        ];
        frugal_in(folder.path(), &all.concat())
    };
    learn(&["--retained-steps", "5"]).fails(&["retained_steps", "4 inner steps"]);
    learn(&["--rank", "0"]).fails(&["--rank"]);
    let learned = learn(&["--json"]).ok().json();
    assert_eq!(learned["steps"], 3);
    assert_eq!(learned["tasks"], 2);
    learn(&[]).fails(&["memory", "not an empty folder"]);

    let ask = |more: &[&str]| {
        let all = [
            &["ask", "--index", "idx", "--model", &model, "--mode"][..],
            more,
            &["which boat?"],
        ];
        frugal_in(folder.path(), &all.concat())
    };
    let found = ask(&[
        "perk",
        "--perk-state",
        "memory",
        "--segment-tokens",
        "4",
        "--accumulation",
        "2",
        "--max-tokens",
        "5",
        "--json",
    ])
    .ok()
    .json();
    assert_eq!(found["mode"], "perk");
    assert_eq!(found["passages"][0]["id"], "a");
    let stages = found["stages"].to_string();
    assert!(
        stages.contains("write") && stages.contains("generate"),
        "{stages}"
    );
    ask(&["perk"]).fails(&["--perk-state", "meta-train"]);
    ask(&["rag", "--perk-state", "memory"]).fails(&["--mode perk"]);
    ask(&["perk", "--perk-state", "idx"]).fails(&["perk.json"]);
}

const TASKS: &str = concat!(
    "{\"context\": [\"the boat is red\", \"the road is long\"], \"question\": \"the boat?\", \"answer\": \"red\"}\n",
    "{\"context\": [\"the boat is old\"], \"question\": \"the boat?\", \"answer\": \"old\"}\n"
);

/// A folder with a model `m`, an index `idx` and tasks.
fn prepared() -> tempfile::TempDir {
    let folder = folder();
    model_copy("harness/llama", &folder.path().join("m"));
    let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
    write(
        "docs.jsonl",
        "{\"id\": \"a\", \"text\": \"the boat is red\"}\n",
    );
    write("tasks.jsonl", TASKS);
    let index = ["index", "--data", "docs.jsonl", "--out", "idx"];
    frugal_in(folder.path(), &index).ok();
    folder
}

fn learn(folder: &Path, out: &str, more: &[&str]) -> Run {
    let args = [
        "meta-train",
        "--model",
        "m",
        "--out",
        out,
        "--rank",
        "2",
        "--lora-alpha",
        "1.5",
    ];
    let data: &[&str] = match more.contains(&"--data") {
        true => &[],
        false => &["--data", "tasks.jsonl"],
    };
    frugal_in(folder, &[&args[..], data, more].concat())
}

#[test]
fn a_state_of_other_weights_was_asked_without_a_word() {
    let folder = prepared();
    let folder = folder.path();
    learn(folder, "memory", &["--max-steps", "2"]).ok();
    let ask = || {
        let args = ["ask", "--index", "idx", "-m", "m", "--mode", "perk"];
        let more = ["--perk-state", "memory", "--max-tokens", "3", "which boat?"];
        frugal_in(folder, &[&args[..], &more].concat()).ok().stderr
    };
    let told = ask();
    assert!(!told.contains("warning"), "{told}");
    change_weights(&folder.join("m"));
    let told = ask();
    assert!(
        told.contains("warning: memory: trained on other weights than those of `m`"),
        "{told}"
    );
}

#[test]
fn a_folder_that_cannot_be_made_was_noticed_after_learning() {
    let folder = prepared();
    let folder = folder.path();
    std::fs::write(folder.join("file"), "text").unwrap();
    // Of two mistakes the one that costs a whole run is told before the data are read.
    let missing = ["--data", "none.jsonl"];
    learn(folder, "file/x", &missing).fails(&["file/x"]);
    learn(folder, "file", &missing).fails(&["file: exists already"]);
    learn(folder, "memory", &missing).fails(&["none.jsonl"]);
    assert!(!folder.join("memory").exists());
}

#[test]
fn two_runs_into_one_folder_both_succeeded() {
    let folder = prepared();
    let folder = folder.path();
    let held = FolderLock::acquire(&folder.join("memory")).unwrap();
    learn(folder, "memory", &["--data", "none.jsonl"]).fails(&["is writing to this folder"]);
    drop(held);
    learn(folder, "memory", &["--max-steps", "1"]).ok();
}

#[test]
fn a_text_that_is_too_long_was_told_without_its_line() {
    let folder = prepared();
    let folder = folder.path();
    let long = "boat ".repeat(5000);
    let task =
        format!("{{\"context\": [\"a\", \"{long}\"], \"question\": \"q\", \"answer\": \"x\"}}\n");
    std::fs::write(folder.join("long.jsonl"), format!("{TASKS}{task}")).unwrap();
    let data = ["--data", "long.jsonl"];
    learn(folder, "memory", &data).fails(&["long.jsonl:3: segment 2 has", "4096"]);
}

#[test]
fn a_loss_that_is_not_finite_lost_all_earlier_steps() {
    let folder = prepared();
    let folder = folder.path();
    // Each step multiplies the weights by one minus rate times decay, until nothing is finite.
    let more = ["--no-learned-rates", "--lr", "3000", "--max-steps", "400"];
    learn(folder, "memory", &more).fails(&[
        "lower the learning rate (`lr`)",
        "the state of the",
        "is in memory",
    ]);
    let text = std::fs::read_to_string(folder.join("memory/meta_train.json")).unwrap();
    let record: serde_json::Value = serde_json::from_str(&text).unwrap();
    let losses = record["losses"].as_array().unwrap();
    assert!(losses.iter().all(serde_json::Value::is_number), "{text}");
    // The last update was taken back.
    let steps = record["result"]["steps"].as_u64().unwrap();
    assert!(steps >= 1 && losses.len() as u64 == steps + 1, "{text}");
    assert!(record["result"]["failed"].is_string(), "{text}");
    for name in ["perk.json", "perk.safetensors", "adapter_model.safetensors"] {
        assert!(folder.join("memory").join(name).is_file(), "{name}");
    }
}
