//! Vectors of texts, and candidates in the order of their answer.

use std::path::{Path, PathBuf};

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

/// An encoder as sentence-transformers keeps it.
fn encoder(folder: &Path) -> String {
    let to = folder.join("encoder");
    for from in ["encoders/base", "encoders/variants/mean"] {
        copy(Path::new(&fixture(from)), &to);
    }
    to.display().to_string()
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let target = to.join(path.file_name().unwrap());
        match path.is_dir() {
            true => copy(&path, &target),
            false => drop(std::fs::copy(&path, &target).unwrap()),
        }
    }
}

fn ids(found: &serde_json::Value) -> Vec<&str> {
    let results = found["results"].as_array().unwrap().iter();
    results.map(|hit| hit["id"].as_str().unwrap()).collect()
}

#[test]
fn notes_are_indexed_searched_changed_and_searched_again() {
    let folder = folder();
    let notes = folder.path().join("notes");
    std::fs::create_dir(&notes).unwrap();
    let write = |name: &str, text: &str| std::fs::write(notes.join(name), text).unwrap();
    write(
        "wing.md",
        "# Wing\n\nThe flutter of the wing at supersonic speed.",
    );
    write("heat.md", "# Heat\n\nHeat transfer of a body.");
    write("empty.md", "");
    let index = |more: &[&str]| {
        let all = [
            &["index", "--data", "notes", "--out", "idx", "--json"],
            more,
        ]
        .concat();
        frugal_in(folder.path(), &all)
    };
    let search = |query: &str, more: &[&str]| {
        let all = [&["search", "--index", "idx", "--json", query], more].concat();
        frugal_in(folder.path(), &all).ok().json()
    };
    let made = index(&[]).ok().json();
    assert_eq!(
        (made["documents"].as_u64(), made["report"]["added"].as_u64()),
        (Some(2), Some(2))
    );
    assert_eq!(made["report"]["empty"], serde_json::json!(["empty.md"]));
    assert_eq!(ids(&search("wings that flutter", &[])), ["wing.md"]);
    // Nothing has changed, then one document is new and one another.
    assert_eq!(index(&[]).ok().json()["report"]["unchanged"], 2);
    write("heat.md", "# Heat\n\nThe flow over a body.");
    write("flow.md", "# Flow\n\nFlow over a wing.");
    let report = index(&[]).ok().json()["report"].clone();
    assert_eq!(
        (&report["added"], &report["updated"]),
        (&1.into(), &1.into())
    );
    assert_eq!(ids(&search("flow", &["--top-k", "5"])).len(), 2);
    assert!(ids(&search("transfer", &[])).is_empty());
    // What is gone stays until it is asked for.
    std::fs::remove_file(notes.join("flow.md")).unwrap();
    assert_eq!(index(&[]).ok().json()["report"]["deleted"], 0);
    assert_eq!(index(&["--prune"]).ok().json()["report"]["deleted"], 1);
    frugal_in(
        folder.path(),
        &["index", "--out", "idx", "--delete", "flow.md"],
    )
    .fails(&["flow.md", "no such document"]);
    frugal_in(folder.path(), &["search", "--index", "notes", "wing"]).fails(&["not an index"]);
    frugal_in(
        folder.path(),
        &["search", "--index", "idx", "--mode", "dense", "wing"],
    )
    .fails(&["no vectors", "--mode bm25"]);
}

#[test]
fn words_and_vectors_are_searched_by_the_encoder_of_the_index() {
    let folder = folder();
    let model = encoder(folder.path());
    std::fs::write(
        folder.path().join("c.jsonl"),
        "{\"id\": \"a\", \"text\": \"heat transfer\", \"year\": 1950}\n{\"id\": \"b\", \"text\": \"wing flutter\", \"year\": 1970}\n",
    )
    .unwrap();
    let run = |args: &[&str]| frugal_in(folder.path(), args);
    let made = run(&[
        "index", "--data", "c.jsonl", "--out", "idx", "--model", &model, "--json",
    ]);
    assert_eq!(made.ok().json()["documents"], 2);
    for mode in ["dense", "hybrid", "bm25"] {
        let found = run(&[
            "search",
            "--index",
            "idx",
            "--mode",
            mode,
            "--json",
            "wing flutter",
        ]);
        assert_eq!(ids(&found.ok().json())[0], "b", "{mode}");
    }
    let filtered = [
        "search",
        "--index",
        "idx",
        "--filter",
        "year<1960",
        "--json",
        "wing flutter",
    ];
    assert_eq!(ids(&run(&filtered).ok().json()), ["a"]);
    // The vectors of another model cannot be compared with those that are there.
    let other = folder.path().join("other");
    for from in ["encoders/base", "encoders/variants/cls"] {
        copy(Path::new(&fixture(from)), &other);
    }
    run(&[
        "index", "--data", "c.jsonl", "--out", "idx", "--model", "other",
    ])
    .fails(&["other"]);
}

#[test]
fn rankings_are_measured_as_trec_eval_measures_them() {
    let folder = folder();
    let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
    write(
        "qrels",
        "q1 0 d1 2\nq1 0 d2 0\nq1 0 d3 1\nq1 0 d9 1\nq2 0 d2 1\nq3 0 d5 1\n",
    );
    write(
        "run",
        "q1 Q0 d2 1 3.0 x\nq1 Q0 d1 2 2.0 x\nq1 Q0 d4 3 2.0 x\nq1 Q0 d3 4 1.0 x\nq2 Q0 d1 1 1.0 x\nq2 Q0 d3 2 0.5 x\n",
    );
    let args = [
        "eval",
        "--task",
        "retrieval",
        "--run",
        "run",
        "--qrels",
        "qrels",
        "--measure",
        "ndcg@10",
        "--json",
    ];
    // The values of pytrec_eval, over all queries and over those of the run.
    let mean = |args: &[&str]| {
        let found = frugal_in(folder.path(), args).ok().json();
        found["runs"][0]["means"]["ndcg@10"].as_f64().unwrap()
    };
    assert!((mean(&args) - 0.152_316).abs() < 1e-6);
    let answered = [&args[..], &["--answered-only"]].concat();
    assert!((mean(&answered) - 0.228_475).abs() < 1e-6);
    frugal_in(
        folder.path(),
        &["eval", "--task", "retrieval", "--run", "run"],
    )
    .fails(&["--qrels"]);
    frugal_in(
        folder.path(),
        &["eval", "--task", "retrieval", "--data", "x"],
    )
    .fails(&["--index"]);
}

#[test]
fn a_study_runs_under_the_command_of_its_own_kind_only() {
    let folder = crate::support::folder();
    for (kind, name, other) in [
        ("retrieve", "perk", "rag"),
        ("rag", "anncur", "retrieve"),
        ("retrieve", "rmoe", "pretrain"),
    ] {
        let words = ["bench", kind, "--suite", name, "--smoke"];
        let own = format!("frugal bench {other}");
        let run = crate::support::frugal_in(folder.path(), &words);
        run.fails(&[&format!("`{name}`"), &own]);
    }
    let words = ["bench", "rag", "--suite", "anncru"];
    let run = crate::support::frugal_in(folder.path(), &words);
    assert!(!run.stderr.contains("anncur"), "{}", run.stderr);
    run.fails(&["`anncru`", "perk"]);
    // One that fails leaves nothing.
    let words = ["bench", "pretrain", "--suite", "rmoe", "--smoke"];
    crate::support::frugal_in(folder.path(), &words).fails(&["tinyshakespeare"]);
    let left = std::fs::read_dir(folder.path()).unwrap().flatten();
    let left: Vec<_> = left.map(|entry| entry.file_name()).collect();
    assert!(left.iter().all(|name| name == "cache"), "{left:?}");
}
