//! Contexts written into an adapter: learning to, and asking.

use std::path::PathBuf;

use crate::support::{folder, frugal_in};

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
    learn(&[]).fails(&["memory", "not empty"]);

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
