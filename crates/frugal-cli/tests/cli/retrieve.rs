//! Vectors of texts, and candidates in the order of their answer.

use std::path::PathBuf;

use crate::support::{folder, frugal, frugal_in};

fn fixture(path: &str) -> String {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../fixtures");
    root.join(path).display().to_string()
}

#[test]
fn each_text_gives_one_line_with_its_vector_in_the_order_of_the_data() {
    let model = fixture("encoders/cross");
    let folder = folder();
    std::fs::write(
        folder.path().join("t.jsonl"),
        "{\"title\": \"the flow over a body\"}\n{\"title\": \"heat\"}\n",
    )
    .unwrap();
    let run = frugal_in(
        folder.path(),
        &[
            "embed",
            "--model",
            &model,
            "--data",
            "t.jsonl",
            "--column",
            "text=title",
        ],
    )
    .ok();
    let lines: Vec<serde_json::Value> = run
        .stdout
        .lines()
        .map(|l| serde_json::from_str(l).unwrap())
        .collect();
    assert_eq!(lines.len(), 2);
    assert_eq!(lines[0]["text"], "the flow over a body");
    assert_eq!(lines[1]["embedding"].as_array().unwrap().len(), 32);
    // The folder does not say how its tokens are pooled.
    assert!(run.stderr.contains("modules.json"), "{}", run.stderr);
}

#[test]
fn vectors_go_to_files_that_are_new_and_whole() {
    let model = fixture("encoders/cross");
    let folder = folder();
    let embed = |more: &[&str]| {
        let all = [
            &[
                "embed", "--model", &model, "--text", "heat", "--text", "body",
            ],
            more,
        ];
        frugal_in(folder.path(), &all.concat())
    };
    let run = embed(&["--out", "v.npy", "--quantize", "int8", "--json"]).ok();
    assert_eq!(
        (
            run.json()["texts"].as_u64(),
            run.json()["dimension"].as_u64()
        ),
        (Some(2), Some(32))
    );
    let bytes = std::fs::read(folder.path().join("v.npy")).unwrap();
    assert!(
        String::from_utf8_lossy(&bytes).contains("'|i1'")
            || String::from_utf8_lossy(&bytes).contains("i1")
    );
    embed(&["--out", "v.npy"]).fails(&["v.npy", "exists already"]);
    embed(&["--out", "v.bin"]).fails(&["v.bin", ".safetensors"]);
    embed(&["--quantize", "binary"]).fails(&["--quantize", "--out"]);
    embed(&["--prompt-name", "query"]).fails(&["query", "--prompt"]);
    embed(&["--truncate-dim", "33"]).fails(&["32 dimensions"]);
    embed(&[
        "--out",
        "v.safetensors",
        "--truncate-dim",
        "8",
        "--normalize",
    ])
    .ok();
    let left: Vec<_> = std::fs::read_dir(folder.path())
        .unwrap()
        .flatten()
        .map(|e| e.file_name())
        .collect();
    assert_eq!(
        left.iter()
            .filter(|name| name.to_string_lossy().starts_with('v'))
            .count(),
        2,
        "{left:?}"
    );
}

#[test]
fn candidates_come_in_the_order_of_sentence_transformers() {
    let model = fixture("encoders/cross");
    let expected: serde_json::Value = serde_json::from_str(
        &std::fs::read_to_string(PathBuf::from(&model).join("expected.json")).unwrap(),
    )
    .unwrap();
    let texts = expected["texts"].as_array().unwrap();
    let mut args = vec!["rerank", "--model", &model, "--json", "--query"];
    args.push(expected["query"].as_str().unwrap());
    for text in texts {
        args.extend(["--text", text.as_str().unwrap()]);
    }
    let found = frugal(&args).ok().json();
    let order: Vec<u64> = found["results"]
        .as_array()
        .unwrap()
        .iter()
        .map(|hit| hit["line"].as_u64().unwrap() - 1)
        .collect();
    let right: Vec<u64> = serde_json::from_value(expected["order"].clone()).unwrap();
    assert_eq!(order, right);
    args.extend(["--top-k", "1"]);
    let best = frugal(&args).ok().json();
    assert_eq!(best["results"].as_array().unwrap().len(), 1);
}

#[test]
fn a_model_without_a_head_or_with_several_outputs_ranks_nothing() {
    let model = fixture("encoders/base");
    frugal(&["rerank", "--model", &model, "--query", "a", "--text", "b"])
        .fails(&["no classification head"]);
}
