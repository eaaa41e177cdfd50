//! Flags of retrieval: each is honoured or refused.

use std::path::Path;

use crate::support::{Run, folder, frugal_in};

fn write(folder: &Path, name: &str, text: &str) {
    std::fs::write(folder.join(name), text).unwrap();
}

/// Words alone, of two documents.
fn indexed(folder: &Path) {
    write(
        folder,
        "c.jsonl",
        "{\"id\": \"a\", \"text\": \"heat\", \"year\": 1950, \"lang\": \"de\"}\n{\"id\": \"b\", \"text\": \"heat\", \"year\": 1970, \"lang\": \"en\"}\n",
    );
    index(folder, &[]).ok();
}

fn index(folder: &Path, more: &[&str]) -> Run {
    let base = ["index", "--data", "c.jsonl", "--out", "idx"];
    frugal_in(folder, &[&base[..], more].concat())
}

#[test]
fn flags_without_a_part_in_measuring_runs_were_passed_over() {
    let folder = folder();
    write(folder.path(), "qrels", "q1 0 d1 1\n");
    write(folder.path(), "run", "q1 Q0 d1 1 0.5 r\nq2 Q0 d1 1 0.5 r\n");
    let of_runs = [
        "eval",
        "--task",
        "retrieval",
        "--run",
        "run",
        "--qrels",
        "qrels",
    ];
    let run = |more: &[&str]| frugal_in(folder.path(), &[&of_runs[..], more].concat());
    // Queries that nobody judged are told.
    let shown = run(&[]).ok().stdout;
    assert!(
        shown.contains("1 query of run has no judgements"),
        "{shown}"
    );
    let flags: [&[&str]; 27] = [
        &["--filter", "year>1960"],
        &["--mode", "bm25"],
        &["--k1", "2"],
        &["--b", "1"],
        &["--exact"],
        &["--ef", "7"],
        &["--rerank", "m"],
        &["--queries", "q"],
        &["--split", "dev"],
        &["--data", "d"],
        &["--write-run", "r"],
        &["--model", "m"],
        &["--adapter", "a"],
        &["--max-rows", "3"],
        &["--max-length", "9"],
        &["--truncate"],
        &["--limit", "3"],
        &["--column", "text=x"],
        &["--template", "none"],
        &["--whole-text"],
        &["--batch-tokens", "7"],
        &["--dump-logits", "l"],
        &["--quantize", "int8"],
        &["--dtype", "bf16"],
        &["--num-fewshot", "2"],
        &["--seed", "3"],
        &["--out", "o"],
    ];
    for flag in flags {
        let run = run(flag);
        assert!(run.stderr.contains(flag[0]), "{flag:?}: {}", run.stderr);
        run.fails(&[]);
    }
    for flag in [&["--depth", "3"][..], &["--level", "1"], &["--per-query"]] {
        run(flag).ok();
    }
}

#[test]
fn flags_of_another_search_were_passed_over() {
    let folder = folder();
    indexed(folder.path());
    write(
        folder.path(),
        "q.jsonl",
        "{\"id\": \"q1\", \"text\": \"heat\"}\n",
    );
    write(folder.path(), "qrels", "q1 0 a 1\n");
    let base = [
        "eval",
        "--task",
        "retrieval",
        "--index",
        "idx",
        "--queries",
        "q.jsonl",
        "--qrels",
        "qrels",
        "--json",
    ];
    let run = |more: &[&str]| frugal_in(folder.path(), &[&base[..], more].concat());
    run(&["--mode", "bm25", "--exact"]).fails(&["--exact", "bm25"]);
    run(&["--mode", "dense", "--k1", "2"]).fails(&["--k1", "dense"]);
    run(&["--data", "."]).fails(&["--data"]);
    run(&["--limit", "2"]).fails(&["--limit"]);
    // A filter counts: without it `b` stands first, as trec_eval orders equals.
    let mean = |more: &[&str]| {
        let found = run(&[&["--measure", "P@1"], more].concat()).ok().json();
        found["runs"][0]["means"]["P@1"].as_f64().unwrap()
    };
    assert_eq!((mean(&[]), mean(&["--filter", "lang='de'"])), (0.0, 1.0));
    // And outside of retrieval.
    let tasks = ["eval", "--tasks", "list", "--filter", "year>1960"];
    frugal_in(folder.path(), &tasks).fails(&["--filter", "--task retrieval"]);
}

#[test]
fn syntax_of_other_filters_gave_wrong_answers() {
    let folder = folder();
    indexed(folder.path());
    let search = |filter: &str| {
        let args = [
            "search", "--index", "idx", "--json", "heat", "--filter", filter,
        ];
        frugal_in(folder.path(), &args)
    };
    for (filter, expected) in [
        ("year<>1950", &["b"][..]),
        ("lang='en'", &["b"]),
        ("year>'1960'", &["b"]),
        ("lang in ('de', \"x,y\")", &["a"]),
        ("lang not in (de)", &["b"]),
    ] {
        let found = search(filter).ok().json();
        let hits = found["results"].as_array().unwrap();
        let ids: Vec<&str> = hits.iter().map(|hit| hit["id"].as_str().unwrap()).collect();
        assert_eq!(ids, expected, "{filter}");
    }
    for filter in [
        "year>1960 and lang=en",
        "year>=1960,year<1965",
        "year>19 60",
        "lang>5",
    ] {
        search(filter).fails(&[filter]);
    }
}

#[test]
fn settings_of_an_index_that_is_there_were_passed_over() {
    let folder = folder();
    indexed(folder.path());
    index(folder.path(), &["--analyzer", "whitespace"]).fails(&["english", "whitespace"]);
    index(folder.path(), &["--ann", "hnsw"]).fails(&["--ann", "--model"]);
    index(folder.path(), &["--quantize", "int8"]).fails(&["--quantize", "--model"]);
    index(folder.path(), &["--analyzer", "english", "--ann", "exact"]).ok();
    index(folder.path(), &["--ann", "exact", "--hnsw-m", "8"]).fails(&["--hnsw-m"]);
    let delete = [
        "index",
        "--out",
        "idx",
        "--delete",
        "a",
        "--analyzer",
        "english",
    ];
    frugal_in(folder.path(), &delete).fails(&["--data"]);
}

#[test]
fn settings_of_vectors_that_are_there_were_passed_over() {
    let folder = folder();
    let model = folder.path().join("model");
    for from in ["encoders/base", "encoders/variants/mean-prompt"] {
        copy(&crate::support::fixture(from), &model);
    }
    write(
        folder.path(),
        "c.jsonl",
        "{\"id\": \"a\", \"text\": \"heat\"}\n",
    );
    index(folder.path(), &["--model", "model", "--truncate-dim", "8"]).ok();
    index(folder.path(), &["--quantize", "f32"]).ok();
    index(folder.path(), &["--model", "model"]).ok();
    for (flag, value, made) in [
        ("--quantize", "int8", "f32"),
        ("--ann", "hnsw", "exact"),
        ("--document-prompt", "the ", "\"\""),
        ("--query-prompt", "the ", "query : "),
        ("--truncate-dim", "4", "8"),
        ("--max-length", "9", "16"),
    ] {
        let args = &[flag, value][..];
        index(folder.path(), args).fails(&[value, made]);
        let named = [&["--model", "model"], args].concat();
        index(folder.path(), &named).fails(&[value, made]);
    }
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap().flatten() {
        let target = to.join(entry.file_name());
        match entry.path().is_dir() {
            true => copy(&entry.path(), &target),
            false => drop(std::fs::copy(entry.path(), target).unwrap()),
        }
    }
}

#[test]
fn a_first_index_that_failed_left_an_empty_one() {
    let folder = folder();
    write(
        folder.path(),
        "c.jsonl",
        "{\"id\": \"a\", \"text\": \"heat\"}\n{\"id\": 3\n",
    );
    index(folder.path(), &[]).fails(&["c.jsonl:2"]);
    assert!(!folder.path().join("idx").exists());
    // One of the user's stays, and is as empty as it was.
    std::fs::create_dir(folder.path().join("idx")).unwrap();
    index(folder.path(), &[]).fails(&["c.jsonl:2"]);
    let left = std::fs::read_dir(folder.path().join("idx")).unwrap();
    assert_eq!(left.count(), 0);
    write(folder.path(), "c.csv", "id;text\n1;wing\n");
    let semicolons = ["index", "--data", "c.csv", "--out", "idx"];
    frugal_in(folder.path(), &semicolons).fails(&["';'", "id=FIELD"]);
    let store = ["search", "--store", "ftp://host/x", "heat"];
    frugal_in(folder.path(), &store).fails(&["no store behind `ftp://`"]);
}

/// Documents from a pipe that nobody writes to: the first signal ends the program.
#[cfg(unix)]
#[test]
fn an_index_of_a_pipe_without_a_writer_was_not_ended_by_a_signal() {
    use std::time::{Duration, Instant};

    let folder = folder();
    let made = std::process::Command::new("mkfifo")
        .arg(folder.path().join("pipe.jsonl"))
        .status();
    assert!(made.unwrap().success());
    let mut child = crate::support::command(folder.path())
        .args(["index", "--data", "pipe.jsonl", "--out", "idx"])
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    std::thread::sleep(Duration::from_millis(800));
    let kill = std::process::Command::new("sh")
        .args(["-c", &format!("kill -TERM {}", child.id())])
        .status();
    assert!(kill.unwrap().success());
    let begin = Instant::now();
    let ended = loop {
        match child.try_wait().unwrap() {
            Some(status) => break Some(status),
            None if begin.elapsed() > Duration::from_secs(8) => break None,
            None => std::thread::sleep(Duration::from_millis(20)),
        }
    };
    if ended.is_none() {
        child.kill().unwrap();
    }
    assert_eq!(ended.and_then(|status| status.code()), Some(130));
    assert!(!folder.path().join("idx").exists());
}
