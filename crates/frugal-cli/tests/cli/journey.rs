//! From text to a model, an adapter, a merged model and a GGUF file, on a model so small that it
//! takes seconds.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::support::{Run, command, folder, frugal_in};

const COLOURS: [&str; 6] = ["red", "green", "blue", "black", "white", "grey"];
const THINGS: [&str; 7] = ["house", "boat", "tree", "road", "bird", "coat", "lamp"];

/// Sentences of two kinds.
fn sentences(count: usize) -> impl Iterator<Item = (bool, String)> {
    (0..count).map(|i| {
        let (colour, thing) = (COLOURS[i % 6], THINGS[i * 5 % 7]);
        let good = i % 2 == 0;
        (
            good,
            format!(
                "the {colour} {thing} is {}",
                if good {
                    "good and fine"
                } else {
                    "bad and poor"
                }
            ),
        )
    })
}

/// A folder with text, labelled data, prompts with completions, and a model that `pretrain` made.
pub fn workshop() -> tempfile::TempDir {
    let folder = folder();
    let at = |name: &str| folder.path().join(name);
    fs::write(
        at("text.txt"),
        sentences(240).map(|(_, s)| s + "\n").collect::<String>(),
    )
    .unwrap();
    let labelled = |from: usize, to: usize| -> String {
        let rows = sentences(to)
            .skip(from)
            .map(|(good, s)| format!("{}\t{s}\n", if good { "good" } else { "bad" }));
        std::iter::once("label\ttext\n".to_owned())
            .chain(rows)
            .collect()
    };
    fs::write(at("train.tsv"), labelled(0, 60)).unwrap();
    fs::write(at("dev.tsv"), labelled(60, 80)).unwrap();
    let prompts = sentences(40)
        .map(|(good, s)| format!("{{\"prompt\": \"{s} :\", \"completion\": \" {good}\"}}\n"));
    fs::write(at("prompts.jsonl"), prompts.collect::<String>()).unwrap();
    let shape = "--set shape.hidden_size=32 --set shape.intermediate_size=64 --set shape.num_hidden_layers=2 \
                 --set shape.num_attention_heads=4 --set shape.num_key_value_heads=2 --set shape.max_position_embeddings=64";
    let words = format!(
        "pretrain --data text.txt --out model --vocab-size 300 --max-length 32 --max-steps 6 --batch-tokens 256 {shape} --json"
    );
    let made = run(folder.path(), &words).ok().json();
    assert_eq!(made["interrupted"], false);
    folder
}

pub fn run(folder: &Path, words: &str) -> Run {
    frugal_in(folder, &words.split_whitespace().collect::<Vec<_>>())
}

#[test]
fn a_classifier_from_text_to_scores() {
    let workshop = workshop();
    let folder = workshop.path();
    let flags = "--model model --data train.tsv --eval-data dev.tsv --test-data dev.tsv --epochs 12 --batch-size 8 --lr 0.02";
    let plan = run(folder, &format!("plan {flags} --json")).ok().json();
    let tuned = run(folder, &format!("tune {flags} --out runs/c --json")).ok();
    assert!(
        tuned.stderr.contains("step ") && tuned.stderr.contains("loss "),
        "{}",
        tuned.stderr
    );
    let tuned = tuned.json();
    assert_eq!(
        tuned["costs"]["trainable_parameters"],
        plan["trainable_parameters"]
    );
    let test = tuned["parts"]
        .as_array()
        .unwrap()
        .iter()
        .find(|p| p["part"] == "test")
        .unwrap();
    assert!(
        test["base"]["accuracy"].is_number() && test["adapted"]["macro_f1"].is_number(),
        "{test}"
    );
    // One word decides the label, so this is learnt completely.
    assert_eq!(test["adapted"]["accuracy"], 1.0, "{test}");

    for file in [
        "adapter_config.json",
        "adapter_model.safetensors",
        "config.toml",
        "record.json",
        "report.html",
        "log.jsonl",
    ] {
        assert!(folder.join("runs/c").join(file).is_file(), "{file}");
    }
    let evaluated = run(folder, "eval --adapter runs/c --data dev.tsv --json")
        .ok()
        .json();
    assert_eq!(evaluated["metrics"], test["adapted"]);
    assert_eq!(evaluated["labels"], serde_json::json!(["bad", "good"]));
    let page = run(folder, "eval --adapter runs/c --data dev.tsv")
        .ok()
        .stdout;
    assert!(
        page.contains("accuracy") && page.contains("as good"),
        "{page}"
    );

    // A folder in use is left alone; the configuration in it repeats the run.
    run(folder, &format!("tune {flags} --out runs/c")).fails(&["runs/c", "--resume"]);
    let settings = || fs::read_to_string(folder.join("runs/c/config.toml")).unwrap();
    let before = settings();
    run(folder, "tune --resume runs/c --lr 0.5").fails(&["runs/c", "`lr` was"]);
    assert_eq!(settings(), before);
    let again = run(
        folder,
        "tune --config runs/c/config.toml --out runs/again --json --quiet",
    )
    .ok();
    assert!(again.stderr.is_empty(), "{}", again.stderr);
    assert_eq!(again.json()["parts"], tuned["parts"]);
    let weights = |run: &str| fs::read(folder.join(run).join("adapter_model.safetensors")).unwrap();
    assert_eq!(weights("runs/c"), weights("runs/again"));
}

#[test]
fn a_language_model_from_text_to_gguf() {
    let workshop = workshop();
    let folder = workshop.path();
    run(folder, "tune --model model --data prompts.jsonl --task causal-lm --epochs 2 --lr 0.02 --out runs/lm --quiet").ok();
    let text = |words: &str| {
        run(
            folder,
            &format!("{words} --prompt the --max-tokens 8 --json"),
        )
        .ok()
        .json()["token_ids"]
            .clone()
    };
    let adapted = text("generate --adapter runs/lm");
    run(folder, "merge --adapter runs/lm --out merged").ok();
    assert_eq!(text("generate --model merged"), adapted);
    run(
        folder,
        "export --model merged --to gguf --type f32 --out model.gguf",
    )
    .ok();
    assert_eq!(text("generate --model model.gguf"), adapted);
    let inspected = run(folder, "models inspect model.gguf --json").ok().json();
    assert_eq!(
        (&inspected["model_type"], &inspected["vocab_size"]),
        (&"llama".into(), &300.into())
    );
    run(
        folder,
        "export --adapter runs/lm --to gguf-lora --out lora.gguf",
    )
    .ok();
    assert_eq!(fs::read(folder.join("lora.gguf")).unwrap()[..4], *b"GGUF");
    run(folder, "export --model merged --to gguf --out model.gguf")
        .fails(&["model.gguf: exists already"]);
    run(folder, "merge --adapter runs/lm --out merged").fails(&["merged: exists already"]);
}

#[test]
fn prompts_of_one_batch_use_adapters_of_their_own() {
    let workshop = workshop();
    let folder = workshop.path();
    for (name, more) in [
        ("a", "--lr 0.02"),
        ("b", "--method dora --lr 0.05"),
        ("c", "--method prompt-tuning"),
    ] {
        run(folder, &format!("tune --model model --data prompts.jsonl --task causal-lm --epochs 1 {more} --out runs/{name} --quiet")).ok();
    }
    let alone = |adapter: &str| {
        let words = format!("generate --model model {adapter} --prompt the --max-tokens 8 --json");
        run(folder, &words).ok().json()["token_ids"].clone()
    };
    let batch = |adapters: &[&str]| {
        let records: String = adapters
            .iter()
            .map(|adapter| format!("{{\"prompt\": \"the\"{adapter}}}\n"))
            .collect();
        fs::write(folder.join("batch.jsonl"), records).unwrap();
        run(
            folder,
            "generate --adapter runs/a --prompts batch.jsonl --max-tokens 8 --json",
        )
    };
    let found = batch(&["", ", \"adapter\": \"runs/b\"", ", \"adapter\": null"])
        .ok()
        .json();
    let results = found["results"].as_array().unwrap();
    for (result, (name, words)) in results.iter().zip([
        ("runs/a".into(), "--adapter runs/a"),
        ("runs/b".into(), "--adapter runs/b"),
        (Value::Null, ""),
    ]) {
        assert_eq!(
            (&result["adapter"], &result["token_ids"]),
            (&name, &alone(words))
        );
    }
    assert!(
        results[0]["token_ids"] != results[2]["token_ids"]
            && results[1]["token_ids"] != results[2]["token_ids"],
        "{found}"
    );
    let none = batch(&[", \"adapter\": null"]).ok().json();
    assert_eq!(
        (&none["adapter"], &none["token_ids"]),
        (&Value::Null, &alone(""))
    );
    batch(&["", ", \"adapter\": \"runs/c\""]).fails(&["prompt-tuning", "batch of their own"]);
    batch(&["", ", \"adapter\": \"runs/missing\""]).fails(&["runs/missing", "no such folder"]);
    batch(&[", \"adapter\": 3"]).fails(&["batch.jsonl:1", "`adapter` is 3"]);
}

#[test]
fn data_that_cannot_be_learnt_from_is_refused() {
    let workshop = workshop();
    let folder = workshop.path();
    let refused = |name: &str, content: &[u8], words: &[&str]| {
        fs::write(folder.join(name), content).unwrap();
        run(
            folder,
            &format!("tune --model model --data {name} --out runs/bad"),
        )
        .fails(&[&[name], words].concat());
        assert!(!folder.join("runs").exists(), "{name} left a run folder");
    };
    refused("empty.jsonl", b"", &[]);
    refused(
        "broken.jsonl",
        b"{\"text\": \"a\", \"label\": 1}\n{\"text\": \n",
        &["2"],
    );
    refused("latin.tsv", b"label\ttext\n1\tcaf\xe9\n", &["UTF-8"]);
    refused(
        "one-label.tsv",
        format!("label\ttext\n{}", "x\ta word\n".repeat(20)).as_bytes(),
        &["two labels"],
    );
    refused("unknown.jsonl", b"{\"colour\": \"red\"}\n", &["colour"]);
    let long = format!(
        "label\ttext\n{}x\t{}\n",
        "x\ta\ny\tb\n".repeat(10),
        "house ".repeat(80)
    );
    refused("long.tsv", long.as_bytes(), &["64", "truncat"]);
    run(folder, "eval --model model --data nowhere.tsv").fails(&["nowhere.tsv"]);
}

#[cfg(unix)]
#[test]
fn an_interrupted_run_ends_with_130_and_can_be_continued() {
    let workshop = workshop();
    let folder = workshop.path();
    let words = "tune --model model --data train.tsv --eval-data dev.tsv --epochs 4000 --logging-steps 1 --out runs/i";
    let child = command(folder)
        .args(words.split(' '))
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // Its first log entry shows that training has begun.
    let log = folder.join("runs/i/log.jsonl");
    let start = Instant::now();
    while fs::metadata(&log).map_or(0, |m| m.len()) == 0 {
        assert!(
            start.elapsed() < Duration::from_secs(60),
            "training does not begin"
        );
        sleep(Duration::from_millis(20));
    }
    assert!(
        Command::new("kill")
            .args(["-INT", &child.id().to_string()])
            .status()
            .unwrap()
            .success()
    );
    let run_: Run = child.wait_with_output().unwrap().into();
    assert_eq!(run_.code, 130, "{}", run_.stderr);
    assert!(
        run_.stderr.contains("frugal tune --resume runs/i"),
        "{}",
        run_.stderr
    );
    assert!(!folder.join("runs/i/adapter_model.safetensors").exists());

    let steps = steps_done(&log);
    let resumed = run(
        folder,
        &format!("tune --resume runs/i --max-steps {} --json", steps + 3),
    )
    .ok();
    assert!(
        resumed.stderr.contains("continuing after step"),
        "{}",
        resumed.stderr
    );
    assert_eq!(resumed.json()["interrupted"], false);
}

#[cfg(unix)]
fn steps_done(log: &Path) -> u64 {
    let text = fs::read_to_string(log).unwrap();
    text.lines()
        .filter_map(|l| serde_json::from_str::<Value>(l).ok()?["step"].as_u64())
        .max()
        .unwrap_or(0)
}

/// Before the first checkpoint, between two, and late: the last one right after a checkpoint is
/// begun or done.
#[cfg(unix)]
#[test]
fn a_run_that_is_killed_three_times_ends_with_the_same_bits() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let words = "tune --max-train-rows 160 --max-eval-rows 16 --epochs 3 --batch-size 8 --save-steps 4 --logging-steps 1 \
                 --lora-dropout 0.1 --set evaluate_base=false --out";
    run(folder, &format!("{words} runs/whole")).ok();

    let log = folder.join("runs/killed/log.jsonl");
    for (kill_at, words) in [
        (2, format!("{words} runs/killed")),
        (14, "tune --resume runs/killed".into()),
        (40, "tune --resume runs/killed".into()),
    ] {
        let mut child = command(folder)
            .args(words.split_whitespace())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let start = Instant::now();
        while fs::metadata(&log).map_or(0, |m| m.len()) == 0 || steps_done(&log) < kill_at {
            assert!(
                start.elapsed() < Duration::from_secs(60),
                "step {kill_at} is not reached"
            );
            assert!(
                child.try_wait().unwrap().is_none(),
                "the run ended before step {kill_at}"
            );
            sleep(Duration::from_millis(1));
        }
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(
            !folder
                .join("runs/killed/adapter_model.safetensors")
                .exists()
        );
    }
    run(folder, "tune --resume runs/killed").ok();

    let adapter =
        |name: &str| fs::read(folder.join(name).join("adapter_model.safetensors")).unwrap();
    assert!(adapter("runs/whole") == adapter("runs/killed"));
    assert_eq!(steps_done(&log), 60);
    assert_eq!(logged(&log), logged(&folder.join("runs/whole/log.jsonl")));
}

/// Step, loss and validation loss of every line of a log.
#[cfg(unix)]
fn logged(log: &Path) -> Vec<[Value; 3]> {
    let text = fs::read_to_string(log).unwrap();
    let lines = text
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap());
    lines
        .map(|line| ["step", "loss", "eval_loss"].map(|name| line[name].clone()))
        .collect()
}
