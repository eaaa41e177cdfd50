//! Heads that tell several labels or give numbers, from the data to the merged model.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use crate::support::{Run, folder, frugal_in};

const SMALL: &str = "--max-steps 12 --batch-size 8 --lr 3e-3 --quiet";

fn run(folder: &Path, words: &str) -> Run {
    frugal_in(folder, &words.split_whitespace().collect::<Vec<_>>())
}

fn lines(text: &str) -> Vec<Value> {
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

/// Whether a text tells of a prize and whether it shouts.
fn labeled(rows: usize) -> String {
    let row = |i: usize| {
        let (prize, loud) = (i % 2 == 1, i.is_multiple_of(3));
        let text = format!(
            "{} number {i}{}",
            if prize { "win a prize" } else { "see you" },
            if loud { " !!!" } else { "" }
        );
        let labels: Vec<&str> = [(prize, "prize"), (loud, "loud")]
            .iter()
            .filter(|(holds, _)| *holds)
            .map(|(_, label)| *label)
            .collect();
        format!("{text},{}\n", labels.join("|"))
    };
    (0..rows)
        .map(row)
        .fold("text,label\n".to_owned(), |t, r| t + &r)
}

#[test]
fn several_labels_are_learned_measured_predicted_and_merged() {
    let folder = folder();
    let at = |name: &str| folder.path().join(name);
    fs::write(at("train.csv"), labeled(48)).unwrap();
    let data = "--data train.csv --problem-type multi_label_classification";
    let tuned = run(
        folder.path(),
        &format!("tune {data} --class-weights balanced {SMALL} --json --out run"),
    )
    .ok()
    .json();
    let adapted = &tuned["parts"][0]["adapted"];
    for name in ["micro_f1", "macro_f1", "subset_accuracy", "loss"] {
        assert!(adapted[name].is_number(), "{adapted}");
    }
    assert!(
        fs::read_to_string(at("run/report.html"))
            .unwrap()
            .contains("Micro F1")
    );

    let found = lines(
        &run(folder.path(), "predict --adapter run --data train.csv")
            .ok()
            .stdout,
    );
    let measured = run(
        folder.path(),
        "eval --adapter run --data train.csv --json --out kept",
    )
    .ok()
    .json();
    let kept = lines(&fs::read_to_string(at("kept/predictions.jsonl")).unwrap());
    assert_eq!(kept.len(), found.len());
    for (one, other) in kept.iter().zip(&found) {
        assert_eq!(
            (&one["text"], &one["labels"]),
            (&other["text"], &other["labels"])
        );
        // An empty cell, which `predict` takes for no answer, is a text without labels.
        let gold = other.get("gold").cloned().unwrap_or(json!([]));
        assert_eq!(one["gold"], gold);
    }
    // 2 · right / (said + true), over all labels of all texts.
    let (mut right, mut both, mut exact) = (0, 0, 0);
    for line in &found {
        let names = |key: &str| -> Vec<&str> {
            let labels = line.get(key).and_then(Value::as_array);
            labels
                .into_iter()
                .flatten()
                .map(|l| l.as_str().unwrap())
                .collect()
        };
        let (mut said, mut gold) = (names("labels"), names("gold"));
        right += said.iter().filter(|label| gold.contains(label)).count();
        both += said.len() + gold.len();
        said.sort_unstable();
        gold.sort_unstable();
        exact += usize::from(said == gold);
        let of = |label: &str| line["probabilities"][label].as_f64().unwrap();
        assert_eq!(said.contains(&"prize"), of("prize") > 0.5, "{line}");
    }
    let close = |value: &Value, expected: f64| {
        assert!(
            (value.as_f64().unwrap() - expected).abs() < 1e-9,
            "{value} {expected}"
        );
    };
    close(
        &measured["metrics"]["micro_f1"],
        2.0 * right as f64 / both as f64,
    );
    close(
        &measured["metrics"]["subset_accuracy"],
        exact as f64 / found.len() as f64,
    );

    run(folder.path(), "merge --adapter run --out merged").ok();
    let config: Value =
        serde_json::from_str(&fs::read_to_string(at("merged/config.json")).unwrap()).unwrap();
    assert_eq!(config["problem_type"], "multi_label_classification");
    assert_eq!(config["id2label"], json!({"0": "loud", "1": "prize"}));
    let merged = lines(
        &run(folder.path(), "predict --model merged --data train.csv")
            .ok()
            .stdout,
    );
    for (one, other) in found.iter().zip(&merged) {
        let of = |line: &Value| line["probabilities"]["loud"].as_f64().unwrap();
        assert!((of(one) - of(other)).abs() < 1e-4, "{one} {other}");
    }
    // What was trained goes on, and only as what it is.
    run(
        folder.path(),
        &format!("tune --adapter run --data train.csv {SMALL} --out more"),
    )
    .ok();
    run(
        folder.path(),
        &format!("tune --adapter run --data train.csv --problem-type regression {SMALL} --out no"),
    )
    .fails(&["was trained for `multi_label_classification`, not `regression`"]);
}

#[test]
fn numbers_are_learned_measured_predicted_and_merged() {
    let folder = folder();
    let at = |name: &str| folder.path().join(name);
    let row = |i: usize| {
        format!(
            "{{\"text\": \"{} {i}\", \"label\": {}}}\n",
            "win ".repeat(i % 4),
            (i % 4) as f64 / 2.0
        )
    };
    fs::write(at("train.jsonl"), (0..48).map(row).collect::<String>()).unwrap();
    let data = "--data train.jsonl --problem-type regression";
    let words = "--set train.metric_for_best_model=pearson";
    let tuned = run(
        folder.path(),
        &format!("tune {data} {words} {SMALL} --json --out run"),
    )
    .ok()
    .json();
    assert_eq!(tuned["best"]["metric"], "pearson");
    let part = &tuned["parts"][0];
    assert!(
        part["baselines"]["training mean"]["mse"].is_number(),
        "{part}"
    );
    let found = lines(
        &run(folder.path(), "predict --adapter run --data train.jsonl")
            .ok()
            .stdout,
    );
    let measured = run(
        folder.path(),
        "eval --adapter run --data train.jsonl --json",
    )
    .ok()
    .json();
    let squares = found.iter().map(|line| {
        let score = line["scores"]["score"].as_f64().unwrap();
        (score - line["gold"].as_f64().unwrap()).powi(2)
    });
    let mse = squares.sum::<f64>() / found.len() as f64;
    let of = |name: &str| measured["metrics"][name].as_f64().unwrap();
    assert!(
        (of("mse") - mse).abs() < 1e-5 && (of("loss") - mse).abs() < 1e-5,
        "{measured}"
    );
    run(folder.path(), "merge --adapter run --out merged").ok();
    let config: Value =
        serde_json::from_str(&fs::read_to_string(at("merged/config.json")).unwrap()).unwrap();
    assert_eq!(config["problem_type"], "regression");
    let again = run(
        folder.path(),
        "eval --model merged --data train.jsonl --json",
    )
    .ok()
    .json();
    let mse = again["metrics"]["mse"].as_f64().unwrap();
    assert!((mse - of("mse")).abs() < 1e-4, "{mse}");
}

#[test]
fn what_does_not_fit_the_problem_says_what_to_give() {
    let folder = folder();
    let at = |name: &str| folder.path().join(name);
    fs::write(
        at("scores.csv"),
        (0..40).fold("text,label\n".to_owned(), |t, i| {
            t + &format!("a {i},{}.5\n", i)
        }),
    )
    .unwrap();
    fs::write(
        at("lists.jsonl"),
        "{\"text\": \"a\", \"label\": [\"x\", \"y\"]}\n".repeat(9),
    )
    .unwrap();
    fs::write(
        at("spam.csv"),
        "text,label\nwin,spam\nsee you,ham\n".to_owned()
            + &"win again,spam\nhello,ham\n".repeat(20),
    )
    .unwrap();
    for (words, said) in [
        ("--data scores.csv", "`--problem-type regression`"),
        (
            "--data lists.jsonl",
            "`--problem-type multi_label_classification`",
        ),
        (
            "--data spam.csv --problem-type regression",
            "must be a number for regression",
        ),
        (
            "--data spam.csv --class-weights eggs=2",
            "the labels are ham, spam",
        ),
        (
            "--data spam.csv --class-weights heavy",
            "\"heavy\" is no weight",
        ),
        (
            "--data scores.csv --problem-type regression --class-weights balanced",
            "class_weights",
        ),
        (
            "--data scores.csv --problem-type regression --set train.label_smoothing=0.1",
            "`label_smoothing` has a meaning only",
        ),
        (
            "--data spam.csv --task causal-lm --problem-type regression",
            "`--task classification`",
        ),
        (
            "--data sms-spam --problem-type regression",
            "has one label for each text",
        ),
        (
            "--data spam.csv --set train.objective=regression",
            "`problem_type`",
        ),
        (
            "--data spam.csv --set train.optim=adam",
            "\"adam\" is no optimizer",
        ),
    ] {
        run(folder.path(), &format!("tune {words} {SMALL} --out run")).fails(&[said]);
    }
}
