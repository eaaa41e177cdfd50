//! Documents in the weights: trained, translated, asked, and what is refused.

use std::path::Path;

use crate::support::{fixture, folder, frugal_in};

fn write(folder: &Path, name: &str, text: &str) {
    std::fs::write(folder.join(name), text).unwrap();
}

#[test]
fn documents_are_trained_once_and_answer_from_the_weights() {
    let folder = folder();
    let model = fixture("harness/llama").display().to_string();
    let corpus = |second: &str| {
        let lines = [
            r#"{"id": "orla", "text": "Orla Venn was born in Trask."}"#.to_owned(),
            format!(r#"{{"id": "lake", "text": "{second}"}}"#),
            r#"{"id": "none", "text": "A lake without a question."}"#.to_owned(),
        ];
        write(folder.path(), "c.jsonl", &(lines.join("\n") + "\n"));
        frugal_in(
            folder.path(),
            &["index", "--data", "c.jsonl", "--out", "idx"],
        )
        .ok();
    };
    corpus("Lake Quor is in Mirland.");
    write(
        folder.path(),
        "items.jsonl",
        "{\"document\": \"orla\", \"question\": \"Where was Orla Venn born?\", \"answer\": \"Trask\"}\n\
         {\"document\": \"lake\", \"question\": \"Where is Lake Quor?\", \"answer\": \"Mirland\"}\n",
    );
    let train = |more: &[&str]| {
        let all = [
            &[
                "parametrize",
                "--index",
                "idx",
                "--model",
                &model,
                "--items",
                "items.jsonl",
                "--out",
                "p",
                "--json",
                "--lr",
                "1e-2",
            ],
            more,
        ]
        .concat();
        frugal_in(folder.path(), &all)
    };
    let ask = |more: &[&str]| {
        let all = [
            &[
                "ask",
                "--index",
                "idx",
                "--model",
                &model,
                "--json",
                "--max-tokens",
                "4",
                "Where was Orla Venn born?",
            ],
            more,
        ]
        .concat();
        frugal_in(folder.path(), &all)
    };
    let made = train(&[]).ok().json();
    assert_eq!(
        (&made["documents"], &made["trained"]),
        (&2.into(), &2.into())
    );
    assert_eq!(made["without_items"], serde_json::json!(["none"]));
    // 2 documents of 3 * 2 layers * rank 2 * (16 + 32) numbers of two bytes, and their headers.
    let bytes = made["bytes"].as_u64().unwrap();
    assert!((2 * 1152..2 * 1152 + 6000).contains(&bytes), "{bytes}");
    assert_eq!(train(&[]).ok().json()["trained"], 0);

    let found = ask(&["--mode", "prag", "--parameters", "p", "--top-k", "1"])
        .ok()
        .json();
    assert_eq!(found["passages"][0]["id"], "orla");
    let alone = found["prompt_tokens"].as_u64().unwrap();
    let both = ask(&[
        "--mode",
        "prag",
        "--parameters",
        "p",
        "--top-k",
        "1",
        "--combine",
    ]);
    assert!(both.ok().json()["prompt_tokens"].as_u64().unwrap() > alone);

    ask(&["--mode", "dyprag", "--parameters", "p"]).fails(&["no translator", "--translator"]);
    let made = train(&["--translator", "--translator-epochs", "2"])
        .ok()
        .json();
    assert_eq!(made["trained"], 0);
    assert!(made["translator"]["mse"].as_f64().unwrap() > 0.0);
    for merge in ["sum", "mean_delta", "mean_factors"] {
        let args = ["--mode", "dyprag", "--parameters", "p", "--merge", merge];
        assert_eq!(ask(&args).ok().json()["mode"], "dyprag");
    }

    // A text that changes has no parameters until it is trained again; what is gone can be removed.
    corpus("Lake Quor is in Novland.");
    let lake = ["--mode", "prag", "--parameters", "p", "--top-k", "1"];
    let asked = [
        "ask",
        "--index",
        "idx",
        "--model",
        &model,
        "Where is Lake Quor in?",
    ];
    frugal_in(folder.path(), &[&asked[..], &lake].concat())
        .fails(&["no parameters were trained for lake", "frugal parametrize"]);
    let made = train(&[]).ok().json();
    assert_eq!((&made["trained"], &made["others"]), (&1.into(), &1.into()));
    let made = train(&["--prune"]).ok().json();
    assert_eq!((&made["trained"], &made["removed"]), (&0.into(), &1.into()));
    frugal_in(folder.path(), &[&asked[..], &lake].concat()).ok();
}

#[test]
fn parameters_that_cannot_be_made_or_used_are_refused_in_a_sentence() {
    let folder = folder();
    let model = fixture("harness/llama").display().to_string();
    write(
        folder.path(),
        "c.jsonl",
        "{\"id\": \"a\", \"text\": \"Orla Venn was born in Trask.\"}\n",
    );
    frugal_in(
        folder.path(),
        &["index", "--data", "c.jsonl", "--out", "idx"],
    )
    .ok();
    let item = r#"{"document": "a", "question": "Where was Orla Venn born?", "answer": "Trask"}"#;
    write(folder.path(), "items.jsonl", &format!("{item}\n"));
    write(
        folder.path(),
        "unknown.jsonl",
        &format!("{}\n", item.replace("\"a\"", "\"b\"")),
    );
    let train = |model: &str, items: &str, more: &[&str]| {
        let all = [
            &[
                "parametrize",
                "--index",
                "idx",
                "--model",
                model,
                "--items",
                items,
                "--out",
                "p",
            ],
            more,
        ]
        .concat();
        frugal_in(folder.path(), &all)
    };
    train(&model, "unknown.jsonl", &[]).fails(&["document `b`", "not in the index"]);
    train(&model, "items.jsonl", &["--rank", "17"]).fails(&["`r`", "a side of 16"]);
    train(&model, "items.jsonl", &["--rank", "0"]).fails(&["`r`"]);
    train(&model, "items.jsonl", &["--lr", "-1"]).fails(&["`lr`"]);
    let gpt2 = fixture("models/gpt2").display().to_string();
    train(&gpt2, "items.jsonl", &[]).fails(&["gpt2"]);
    train(&model, "items.jsonl", &[]).ok();
    train(&model, "items.jsonl", &["--lr", "1e-3"]).fails(&["other settings"]);
    let ask = |more: &[&str]| {
        let all = [
            &[
                "ask",
                "--index",
                "idx",
                "--model",
                &model,
                "Where was Orla Venn born?",
            ],
            more,
        ]
        .concat();
        frugal_in(folder.path(), &all)
    };
    ask(&["--mode", "prag"]).fails(&["--parameters", "frugal parametrize"]);
    ask(&["--mode", "prag", "--parameters", "idx"]).fails(&["parametric.json"]);
    ask(&["--combine"]).fails(&["--mode prag"]);
    // A model that writes no questions leaves its documents without parameters, which is said.
    let args = [
        "parametrize",
        "--index",
        "idx",
        "--model",
        &model,
        "--out",
        "w",
    ];
    let written = frugal_in(folder.path(), &[&args[..], &["--json"]].concat());
    assert_eq!(written.code, 1, "{}", written.stderr);
    let report = written.json();
    assert_eq!(report["documents"], 0);
    assert_eq!(report["without_items"], serde_json::json!(["a"]));
    // A damaged file is named.
    let documents = folder.path().join("p/documents");
    let file = std::fs::read_dir(&documents)
        .unwrap()
        .next()
        .unwrap()
        .unwrap();
    let bytes = std::fs::read(file.path()).unwrap();
    std::fs::write(file.path(), &bytes[..bytes.len() / 2]).unwrap();
    let name = file.file_name().to_string_lossy().into_owned();
    ask(&["--mode", "prag", "--parameters", "p"]).fails(&[&name]);
}
