//! Data as users have it, and what is done with a trained classifier.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::Stdio;

use serde_json::Value;

use crate::support::{Run, command, folder, frugal_in};

fn run(folder: &Path, words: &str) -> Run {
    frugal_in(folder, &words.split_whitespace().collect::<Vec<_>>())
}

/// Runs with something on standard input.
fn piped(folder: &Path, words: &str, input: &str) -> Run {
    let mut child = command(folder)
        .args(words.split_whitespace())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child
        .stdin
        .take()
        .unwrap()
        .write_all(input.as_bytes())
        .unwrap();
    child.wait_with_output().unwrap().into()
}

const SMALL: &str = "--max-steps 2 --batch-size 4 --set evaluate_base=false --quiet";

fn spam(rows: usize) -> String {
    (0..rows)
        .map(|i| match i % 2 {
            0 => format!("{{\"text\": \"see you at {i}\", \"label\": \"ham\"}}\n"),
            _ => format!("{{\"text\": \"win {i} prizes\", \"label\": \"spam\"}}\n"),
        })
        .collect()
}

fn lines(text: &str) -> Vec<Value> {
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

#[test]
fn a_trained_classifier_labels_texts_as_eval_counts_them() {
    let folder = folder();
    let at = |name: &str| folder.path().join(name);
    fs::write(at("train.jsonl"), spam(40)).unwrap();
    run(folder.path(), "tune --data train.jsonl --lr 3e-3 --pooling mean --max-steps 20 --batch-size 8 --set evaluate_base=false --quiet --out run").ok();

    let found = lines(
        &run(folder.path(), "predict --adapter run --data train.jsonl")
            .ok()
            .stdout,
    );
    assert_eq!(found.len(), 40);
    let right = found
        .iter()
        .filter(|line| line["label"] == line["gold"])
        .count();
    let eval = run(
        folder.path(),
        "eval --adapter run --data train.jsonl --json",
    )
    .ok()
    .json();
    assert_eq!(
        right as f64 / 40.0,
        eval["metrics"]["accuracy"].as_f64().unwrap()
    );
    for line in &found {
        let all = line["probabilities"].as_object().unwrap();
        let sum: f64 = all.values().map(|p| p.as_f64().unwrap()).sum();
        assert!((sum - 1.0).abs() < 1e-5 && all.len() == 2, "{line}");
        let best = all
            .values()
            .map(|p| p.as_f64().unwrap())
            .fold(0.0, f64::max);
        assert_eq!(
            (
                line["score"].as_f64().unwrap(),
                all[line["label"].as_str().unwrap()].as_f64().unwrap()
            ),
            (best, best)
        );
    }

    // The same from standard input, without labels, one at a time, and as a table.
    let texts: String = (0..4)
        .map(|i| format!("{}\n", found[i]["text"].as_str().unwrap()))
        .collect();
    let streamed = lines(
        &piped(folder.path(), "predict --adapter run --data -", &texts)
            .ok()
            .stdout,
    );
    assert_eq!(streamed.len(), 4);
    for (one, other) in streamed.iter().zip(&found) {
        assert_eq!(
            (&one["text"], &one["label"], one.get("gold")),
            (&other["text"], &other["label"], None)
        );
        assert!((one["score"].as_f64().unwrap() - other["score"].as_f64().unwrap()).abs() < 1e-4);
    }
    run(
        folder.path(),
        "predict --adapter run --data train.jsonl --out labels.csv",
    )
    .ok();
    let table = fs::read_to_string(at("labels.csv")).unwrap();
    assert_eq!(
        table.lines().next(),
        Some("text,label,score,probability of ham,probability of spam")
    );
    assert_eq!(
        (table.lines().count(), at("labels.csv.partial").exists()),
        (41, false)
    );
    run(
        folder.path(),
        "predict --adapter run --data train.jsonl --out labels.csv",
    )
    .fails(&["labels.csv: exists already"]);

    // A classifier writes no text, and what writes text has no labels.
    run(folder.path(), "generate --adapter run --prompt x")
        .fails(&["classifier", "`frugal predict --adapter run`"]);
    run(folder.path(), "predict --text x").fails(&["no classification head", "`frugal generate`"]);
}

#[test]
fn column_names_of_a_run_hold_for_its_adapter() {
    let folder = folder();
    let rows: String = (0..20)
        .map(|i| format!("review {i},{}\n", ["good", "bad"][i % 2]))
        .collect();
    fs::write(folder.path().join("a.csv"), format!("review,stars\n{rows}")).unwrap();
    fs::write(folder.path().join("new.csv"), "id,review\n1,fine\n2,dull\n").unwrap();
    run(
        folder.path(),
        &format!("tune --data a.csv --column text=review --column label=stars {SMALL} --out run"),
    )
    .ok();
    run(folder.path(), "eval --adapter run --data a.csv --json").ok();
    let found = lines(
        &run(folder.path(), "predict --adapter run --data new.csv")
            .ok()
            .stdout,
    );
    assert_eq!(
        (&found[0]["text"], &found[1]["text"]),
        (&"fine".into(), &"dull".into())
    );
    run(
        folder.path(),
        "eval --adapter run --data a.csv --column text=reveiw",
    )
    .fails(&["no column \"reveiw\"", "did you mean \"review\""]);
}

#[test]
fn several_files_patterns_and_standard_input_train_the_same_adapter() {
    let folder = folder();
    let all = spam(24);
    let (first, second) = all.split_at(all.match_indices('\n').nth(11).unwrap().0 + 1);
    fs::write(folder.path().join("all.jsonl"), &all).unwrap();
    fs::write(folder.path().join("part-1.jsonl"), first).unwrap();
    fs::write(folder.path().join("part-2.jsonl"), second).unwrap();
    run(
        folder.path(),
        &format!("tune --data all.jsonl {SMALL} --out one"),
    )
    .ok();
    run(
        folder.path(),
        &format!("tune --data part-1.jsonl --data part-2.jsonl {SMALL} --out two"),
    )
    .ok();
    run(
        folder.path(),
        &format!("tune --data part-*.jsonl {SMALL} --out three"),
    )
    .ok();
    piped(
        folder.path(),
        &format!("tune --data - {SMALL} --out four"),
        &all,
    )
    .ok();
    let weights =
        |out: &str| fs::read(folder.path().join(out).join("adapter_model.safetensors")).unwrap();
    for out in ["two", "three", "four"] {
        assert!(weights(out) == weights("one"), "{out}");
    }
    let config = fs::read_to_string(folder.path().join("two/config.toml")).unwrap();
    assert!(
        config.contains("part-1.jsonl") && config.contains("part-2.jsonl"),
        "{config}"
    );
    run(folder.path(), "tune --data none-*.jsonl --out five")
        .fails(&["none-*.jsonl: no file matches"]);
    run(folder.path(), "tune --data some-org/some-set --out five")
        .fails(&["some-org/some-set", "not in the cache"]);
}

#[test]
fn a_chat_template_by_name_is_kept_with_the_adapter_and_ends_its_answers() {
    let folder = folder();
    let rows = "{\"instruction\": \"say yes\", \"output\": \"yes\"}\n".repeat(24);
    fs::write(folder.path().join("a.jsonl"), rows).unwrap();
    let tune = run(
        folder.path(),
        &format!("tune --task causal-lm --data a.jsonl --chat-template phi3 {SMALL} --out run"),
    );
    tune.ok();
    let template = fs::read_to_string(folder.path().join("run/chat_template.jinja")).unwrap();
    assert!(template.contains("<|end|>"), "{template}");
    // The base has no template; with the adapter there is one.
    run(folder.path(), "generate --chat --prompt x --max-tokens 1").fails(&["no chat template"]);
    run(
        folder.path(),
        "generate --chat --adapter run --prompt x --max-tokens 3 --json",
    )
    .ok();
    run(folder.path(), "merge --adapter run --out merged").ok();
    assert_eq!(
        fs::read_to_string(folder.path().join("merged/chat_template.jinja")).unwrap(),
        template
    );
    run(
        folder.path(),
        "tune --task causal-lm --data a.jsonl --chat-template phi4 --out b",
    )
    .fails(&["`phi4`", "phi3"]);
}

#[test]
fn an_answer_ends_before_a_stop_text() {
    let folder = folder();
    let generate = |more: &[&str]| {
        let words = [
            "generate",
            "--prompt",
            "The cat",
            "--max-tokens",
            "24",
            "--json",
        ];
        frugal_in(folder.path(), &[&words[..], more].concat())
            .ok()
            .json()
    };
    let whole = generate(&[]);
    let text = whole["text"].as_str().unwrap();
    let word = text.split_whitespace().nth(3).unwrap();
    let stopped = generate(&["--stop", word]);
    assert_eq!(
        stopped["text"].as_str().unwrap(),
        &text[..text.find(word).unwrap()]
    );
    assert_eq!(stopped["finish"], "stop");
    assert!(stopped["tokens"].as_u64() < whole["tokens"].as_u64());
}

#[test]
fn a_folder_that_is_no_text_is_refused_before_anything_is_written() {
    #[cfg(unix)]
    {
        use std::ffi::OsStr;
        use std::os::unix::ffi::OsStrExt;
        let folder = folder();
        for name in ["tune", "pretrain"] {
            let output = command(folder.path())
                .arg(name)
                .arg("--out")
                .arg(OsStr::from_bytes(b"run\xff"))
                .output()
                .unwrap();
            let text = String::from_utf8_lossy(&output.stderr).into_owned();
            assert_eq!(output.status.code(), Some(2), "{text}");
            assert!(
                text.contains("UTF-8") && !text.contains("internal error"),
                "{text}"
            );
        }
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}

#[test]
fn a_number_of_threads_that_no_machine_has_is_refused() {
    let folder = folder();
    for threads in ["100000", "99999999999999999999999"] {
        let run: Run = command(folder.path())
            .env("RAYON_NUM_THREADS", threads)
            .arg("methods")
            .output()
            .unwrap()
            .into();
        run.fails(&["RAYON_NUM_THREADS", threads, "cores"]);
    }
}

#[test]
fn control_characters_of_labels_do_not_reach_the_terminal() {
    let folder = folder();
    let row = |label: &str| format!("{{\"text\": \"a\", \"label\": \"{label}\"}}\n");
    fs::write(folder.path().join("a.jsonl"), row("x\\u001b[2J").repeat(20)).unwrap();
    let refused =
        run(folder.path(), "tune --data a.jsonl --out run").fails(&["at least two labels"]);
    assert!(!refused.stderr.contains('\u{1b}'), "{:?}", refused.stderr);
    let both = row("x\\u001b[2J").repeat(12) + &row("y").repeat(12);
    fs::write(folder.path().join("b.jsonl"), both).unwrap();
    let words =
        "tune --data b.jsonl --max-steps 1 --batch-size 4 --set evaluate_base=false --out run";
    let tuned = run(folder.path(), words).ok();
    assert!(
        !tuned.stderr.contains('\u{1b}') && !tuned.stdout.contains('\u{1b}'),
        "{:?}",
        tuned.stderr
    );
    let found = run(folder.path(), "eval --adapter run --data b.jsonl").ok();
    assert!(!found.stdout.contains('\u{1b}'), "{:?}", found.stdout);
}
