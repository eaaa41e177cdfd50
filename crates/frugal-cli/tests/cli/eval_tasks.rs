//! `frugal eval --tasks`, on the built-in model.

use std::fs;

use serde_json::Value;

use crate::support::{folder, frugal, frugal_in};

const QUESTIONS: &str = r#"{"question": "What is a young dog called?", "choices": ["a puppy", "a kitten"], "answer": 0}
{"question": "What falls from clouds?", "choices": ["sand", "rain", "glass"], "answer": "B"}
{"question": "What is frozen water?", "choices": ["ice", "steam"], "answer": "ice"}
"#;

#[test]
fn tasks_give_results_samples_and_a_table() {
    let folder = folder();
    let folder = folder.path();
    fs::write(folder.join("questions.jsonl"), QUESTIONS).unwrap();
    fs::write(
        folder.join("text.txt"),
        "A short text about nothing in particular.\n",
    )
    .unwrap();
    let tasks = "multiple-choice:questions.jsonl,perplexity:text.txt";
    let words = [
        "eval",
        "--tasks",
        tasks,
        "--out",
        "runs/e",
        "--num-fewshot",
        "0",
        "--json",
    ];
    let first = frugal_in(folder, &words).ok();
    let results = first.json();
    assert_eq!(results["n-samples"]["multiple-choice"]["effective"], 3);
    let bits = results["results"]["perplexity"]["bits_per_byte,none"]
        .as_f64()
        .unwrap();
    assert!(bits > 0.0 && bits < 8.0, "{bits}");
    assert_eq!(
        results["configs"]["multiple-choice"]["example"],
        "Question: What is a young dog called?\nAnswer:"
    );
    assert_eq!(
        results["configs"]["multiple-choice"]["template_sha256"]
            .as_str()
            .unwrap()
            .len(),
        64
    );
    let samples = fs::read_to_string(folder.join("runs/e/samples_multiple-choice.jsonl")).unwrap();
    let samples: Vec<Value> = samples
        .lines()
        .map(|l| serde_json::from_str(l).unwrap())
        .collect();
    assert_eq!(samples.len(), 3);
    assert_eq!(samples[1]["resps"].as_array().unwrap().len(), 3);
    assert!(
        samples
            .iter()
            .all(|s| s["resps"][0][0][0].as_f64().unwrap() < 0.0)
    );
    let saved: Value =
        serde_json::from_slice(&fs::read(folder.join("runs/e/results.json")).unwrap()).unwrap();
    assert_eq!(saved["results"], results["results"]);

    // The same command asks nothing again, also when the last answer was torn off by a kill.
    let log = folder.join("runs/e/answers_multiple-choice.jsonl");
    let bytes = fs::read(&log).unwrap();
    fs::write(&log, &bytes[..bytes.len() - 9]).unwrap();
    let again = frugal_in(folder, &words).ok();
    assert!(
        again.stderr.contains("2 of 3 answers are there already"),
        "{}",
        again.stderr
    );
    assert_eq!(again.json()["results"], results["results"]);
    assert_eq!(again.json()["task_hashes"], results["task_hashes"]);

    let table = frugal_in(folder, &["eval", "--tasks", tasks, "--quiet"]).ok();
    assert!(
        table.stdout.starts_with("|     Tasks") || table.stdout.starts_with("|Tasks"),
        "{}",
        table.stdout
    );
    assert!(
        table.stdout.contains("|acc_norm") && table.stderr.is_empty(),
        "{}{}",
        table.stdout,
        table.stderr
    );
}

#[test]
fn a_task_of_ones_own_is_a_file() {
    let folder = folder();
    let folder = folder.path();
    fs::create_dir(folder.join("tasks")).unwrap();
    fs::write(
        folder.join("tasks/words.csv"),
        "given,wanted\nan animal,x\na plant,y\n",
    )
    .unwrap();
    let task = "name = 'words'\nversion = '1'\nkind = 'generate_until'\nsource = { test = 'words.csv' }\n\
                prompt = { text = '{{given|upper}} is', target = '{{wanted}}' }\ngeneration = { max_tokens = 3, until = [\"\\n\"] }\n\
                [[metrics]]\nname = 'exact_match'\n";
    fs::write(folder.join("tasks/words.toml"), task).unwrap();
    let results = frugal_in(
        folder,
        &["eval", "--tasks", "tasks/words.toml", "--json", "--quiet"],
    )
    .ok()
    .json();
    assert_eq!(results["results"]["words"]["exact_match,none"], 0.0);
    assert_eq!(results["configs"]["words"]["example"], "AN ANIMAL is");
    fs::write(
        folder.join("tasks/words.toml"),
        task.replace("given", "taken"),
    )
    .unwrap();
    frugal_in(folder, &["eval", "--tasks", "tasks/words.toml"]).fails(&[
        "words",
        "record 0",
        "given, wanted",
    ]);
}

#[test]
fn what_is_there_is_not_replaced() {
    let folder = folder();
    let folder = folder.path();
    fs::create_dir(folder.join("run")).unwrap();
    fs::write(folder.join("run/record.json"), "{}").unwrap();
    fs::write(folder.join("text.txt"), "A text.\n").unwrap();
    let words = ["eval", "--tasks", "perplexity:text.txt", "--out", "run"];
    frugal_in(folder, &words).fails(&["run holds a training run", "another `--out`"]);
    frugal_in(
        folder,
        &["eval", "--data", "text.txt", "--dump-logits", "text.txt"],
    )
    .fails(&["text.txt: exists already", "`--dump-logits`"]);
    assert_eq!(fs::read_dir(folder.join("run")).unwrap().count(), 1);
    assert_eq!(
        fs::read_to_string(folder.join("text.txt")).unwrap(),
        "A text.\n"
    );
}

#[test]
fn wrong_tasks_are_refused_before_a_model_is_read() {
    frugal(&["eval"]).fails(&["--data"]);
    frugal(&["eval", "--data", "x.tsv", "--tasks", "sst2"]).fails(&["--tasks"]);
    // A flag of the other mode would do nothing.
    frugal(&["eval", "--data", "x.tsv", "--limit", "5"]).fails(&["--data", "--limit"]);
    frugal(&["eval", "--tasks", "sst2", "--max-rows", "5"]).fails(&["--tasks", "--max-rows"]);
    frugal(&["eval", "--tasks", "sst3"]).fails(&["sst3", "did you mean `sst2`"]);
    frugal(&["eval", "--tasks", "perplexity:a.txt,perplexity:b.txt"])
        .fails(&["perplexity", "twice"]);
    frugal(&["eval", "--tasks", "perplexity:nowhere.txt"]).fails(&["nowhere.txt"]);
    frugal(&["eval", "--tasks", "sst2", "--apply-chat-template"])
        .fails(&["`builtin` has no chat template", "`--apply-chat-template`"]);
    let tasks = frugal(&["eval", "--tasks", "list", "--json"]).ok().json();
    assert!(
        tasks
            .as_array()
            .unwrap()
            .iter()
            .any(|t| t["name"] == "gsm8k")
    );
}
