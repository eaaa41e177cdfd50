//! What a person said and the program would not have done, and results that would have been lost.

use std::fmt::Write as _;
use std::path::Path;

use crate::support::{Run, fixture, folder, frugal_in};

fn run(folder: &Path, words: &str) -> Run {
    frugal_in(folder, &words.split_whitespace().collect::<Vec<_>>())
}

/// A data set of two classes.
fn spam(rows: usize) -> String {
    let mut text = String::from("text,label\n");
    for i in 0..rows {
        let (what, label) = [("buy now", "spam"), ("see you", "ham")][i % 2];
        writeln!(text, "{what} {i},{label}").unwrap();
    }
    text
}

#[test]
fn numbers_spelled_twice_and_missing_labels_are_no_classes() {
    let folder = folder();
    let folder = folder.path();
    let refused = |name: &str, text: &str, words: &[&str]| {
        std::fs::write(folder.join(name), text).unwrap();
        run(
            folder,
            &format!("tune --data {name} --set data.validation_share=0"),
        )
        .fails(words);
    };
    refused(
        "a.csv",
        "text,label\na,1\nb,1.0\nc,2\n",
        &["same number", "\"1.0\""],
    );
    refused("b.csv", "text,label\na,0\nb,1\nc,NaN\n", &["NaN", "b.csv"]);
    refused("c.csv", "text,label\na,0\nb,1\nc,None\n", &["None"]);
    refused(
        "d.jsonl",
        "{\"text\":\"a\",\"label\":1}\n{\"text\":\"b\",\"label\":1.0}\n{\"text\":\"c\",\"label\":0}\n",
        &["same number"],
    );
    // A class may be called so among names.
    std::fs::write(folder.join("e.csv"), "text,label\na,none\nb,some\n").unwrap();
    run(
        folder,
        "validate --data e.csv --set data.validation_share=0",
    )
    .ok();
    // Of several files, each by itself in order.
    std::fs::write(folder.join("f.csv"), "text,label\na,1\nb,2\n").unwrap();
    std::fs::write(folder.join("g.csv"), "text,label\na,1.0\nb,2.0\n").unwrap();
    run(
        folder,
        "tune --data f.csv --data g.csv --set data.validation_share=0",
    )
    .fails(&["same number"]);
}

#[test]
fn a_table_without_labels_is_told_how_to_name_them() {
    let folder = folder();
    let folder = folder.path();
    std::fs::write(folder.join("a.csv"), "text,score\na,1\nb,2\n").unwrap();
    run(folder, "tune --data a.csv --set data.validation_share=0").fails(&["--column label=NAME"]);
}

#[test]
fn files_that_are_packed_or_coded_otherwise_are_named() {
    let folder = folder();
    let folder = folder.path();
    for (name, bytes, word) in [
        ("a.jsonl.bz2", &b"BZh91AY&SY"[..], "bzip2"),
        ("a.jsonl.xz", b"\xfd7zXZ\0\0", "xz"),
        ("a.xlsx", b"PK\x03\x04", "spreadsheet"),
        ("a.csv", b"\xff\xfet\0e\0x\0t\0", "UTF-16"),
    ] {
        std::fs::write(folder.join(name), bytes).unwrap();
        run(folder, &format!("tune --data {name}")).fails(&[name, word]);
    }
}

#[test]
fn a_classifier_says_what_it_does_not_heed() {
    let folder = folder();
    let folder = folder.path();
    std::fs::write(folder.join("train.csv"), spam(24)).unwrap();
    std::fs::write(folder.join("other.csv"), "text,stars,label\na,1,x\n").unwrap();
    let tuned = run(
        folder,
        "tune --data train.csv --max-steps 1 --chat-template chatml --activations int8 --out r",
    )
    .ok();
    for word in [
        "`--chat-template` has no effect",
        "`--activations int8` has no effect",
    ] {
        assert!(tuned.stderr.contains(word), "{}", tuned.stderr);
    }
    let found = run(folder, "eval --adapter r --data train.csv --whole-text").ok();
    assert!(
        found.stderr.contains("`--whole-text` has no effect"),
        "{}",
        found.stderr
    );
    // A label column that is not there is not another one.
    run(
        folder,
        "predict --adapter r --data other.csv --column label=rating",
    )
    .fails(&["rating"]);
    let found = run(
        folder,
        "predict --adapter r --data other.csv --column label=stars",
    )
    .ok();
    assert!(found.stdout.contains("\"gold\":\"1\""), "{}", found.stdout);
    run(folder, "predict --adapter r --text a --column text=b").fails(&["--column"]);
}

/// `eval`, `generate` and `merge` said so, `predict` did not.
#[test]
fn predict_says_that_the_base_is_another() {
    let folder = folder();
    let folder = folder.path();
    run(
        folder,
        "export --model builtin --to hf --type f32 --out base",
    )
    .ok();
    std::fs::write(folder.join("train.csv"), spam(24)).unwrap();
    run(
        folder,
        "tune --model base --data train.csv --max-steps 1 --out r",
    )
    .ok();
    let found = run(folder, "predict --adapter r --text a").ok();
    assert!(!found.stderr.contains("other weights"), "{}", found.stderr);
    let weights = folder.join("base/model.safetensors");
    let mut bytes = std::fs::read(&weights).unwrap();
    // The lowest bit of one number in the middle.
    let middle = bytes.len() / 2 / 4 * 4;
    bytes[middle] ^= 1;
    std::fs::write(&weights, bytes).unwrap();
    let found = run(folder, "predict --adapter r --text a").ok();
    assert!(
        found.stderr.contains("trained on other weights"),
        "{}",
        found.stderr
    );
}

#[test]
fn a_length_beyond_the_positions_is_not_measured() {
    let folder = folder();
    let folder = folder.path();
    std::fs::write(folder.join("a.txt"), "some words to read, ".repeat(40)).unwrap();
    for command in ["capacity", "spectrum"] {
        run(
            folder,
            &format!("measure {command} --texts a.txt --length 100000"),
        )
        .fails(&["100000", "1024 positions"]);
        run(
            folder,
            &format!("measure {command} --texts a.txt --length 1"),
        )
        .fails(&["at least 2"]);
    }
    run(folder, "measure capacity --texts a.txt --bias nan").fails(&["finite"]);
    // Operations are those of the text that is there.
    let of = |length: usize| {
        let words = format!("measure capacity --texts a.txt --length {length} --samples 1 --json");
        run(folder, &words).ok().json()[0].clone()
    };
    let all = of(1000);
    let tokens = all["length"].as_u64().unwrap() as usize;
    assert!(tokens < 1000, "{all}");
    assert_eq!(all["flops_per_token"], of(tokens)["flops_per_token"]);
}

#[test]
fn models_that_cannot_be_measured_are_named_before_any_is() {
    let folder = folder();
    let folder = folder.path();
    std::fs::write(folder.join("a.txt"), "some words to read").unwrap();
    let encoder = fixture("models/bert");
    let found = run(
        folder,
        &format!(
            "measure capacity --models builtin,{} --texts a.txt --length 8",
            encoder.display()
        ),
    )
    .fails(&["no language-model head", "bert"]);
    assert!(!found.stderr.contains("measuring"), "{}", found.stderr);
}

#[cfg(target_os = "linux")]
#[test]
fn a_record_that_the_command_did_not_write_is_not_its_result() {
    let folder = folder();
    let folder = folder.path();
    std::fs::write(folder.join("train.csv"), spam(24)).unwrap();
    run(folder, "tune --data train.csv --max-steps 1 --out r").ok();
    let found = run(folder, "measure efficiency --run r -- sleep 0.3").ok();
    assert!(
        found.stderr.contains("did not write it") && !found.stdout.contains("latency"),
        "{}\n{}",
        found.stdout,
        found.stderr
    );
    assert!(!folder.join("r/efficiency.json").exists());
    let found = run(folder, "measure efficiency --run none -- sleep 0.3").ok();
    assert!(found.stderr.contains("none"), "{}", found.stderr);
    let words = [
        "measure",
        "efficiency",
        "--",
        "sh",
        "-c",
        "sleep 0.3; exit 3",
    ];
    let found = frugal_in(folder, &words);
    assert!(found.stdout.contains("ended with"), "{}", found.stdout);
}

#[cfg(target_os = "linux")]
#[test]
fn a_folder_that_cannot_be_written_is_refused_before_anything_is_measured() {
    let folder = folder();
    let folder = folder.path();
    std::fs::write(folder.join("train.csv"), spam(24)).unwrap();
    std::fs::write(folder.join("a.txt"), "some words to read").unwrap();
    std::fs::write(folder.join("s.csv"), "label,score\n1,2\n0,1\n").unwrap();
    for command in [
        "eval --data train.csv --column text=text --out /proc/nowhere/out",
        "measure capacity --texts a.txt --length 8 --out /proc/nowhere/out",
        "measure runtime --prompts 1 --outputs 1,2 --held-out 3 --out /proc/nowhere/out",
        "measure runtime --prompts 1 --outputs 1,2 --held-out 3 --save /proc/nowhere/f.json",
        "select --calibration s.csv --test s.csv --label label --scores score --out /proc/nowhere/out",
    ] {
        let found = run(folder, command).fails(&["/proc/nowhere/"]);
        assert!(!found.stderr.contains("evaluating"), "{}", found.stderr);
    }
}

#[test]
fn flags_of_another_mode_are_refused() {
    let folder = folder();
    let folder = folder.path();
    std::fs::write(folder.join("s.csv"), "label,score\n1,2\n0,1\n").unwrap();
    for (command, word) in [
        (
            "eval --model builtin --tasks sst2 --served-model x",
            "--served-model",
        ),
        ("eval --tasks sst2 --served-model x", "--endpoint"),
        (
            "eval --model builtin --tasks sst2 --api-key-env X",
            "--api-key-env",
        ),
        ("eval --tasks sst2 --batch-tokens 0", "--batch-tokens"),
        ("measure runtime --fit f.json --trials 5", "--trials"),
        (
            "measure runtime --model builtin --served-model x",
            "--served-model",
        ),
        (
            "select --calibration s.csv --test s.csv --label label --scores score --learner kernel",
            "--learner",
        ),
        (
            "select --calibration s.csv --test s.csv --label label --scores score --per-item",
            "--per-item",
        ),
    ] {
        run(folder, command).fails(&[word]);
    }
}

/// 200 MB in one line took all memory to be counted, though the first megabyte was too long.
#[test]
fn a_huge_line_is_refused_by_its_beginning() {
    let folder = folder();
    let folder = folder.path();
    let line = format!(
        "{{\"text\":\"{}\",\"label\":1}}\n{{\"text\":\"b\",\"label\":0}}\n",
        "abc def ".repeat(8 << 20)
    );
    std::fs::write(folder.join("a.jsonl"), line).unwrap();
    let start = std::time::Instant::now();
    run(folder, "tune --data a.jsonl --set data.validation_share=0").fails(&[
        "a.jsonl:1",
        "or more",
        "at most",
    ]);
    // Some seconds of reading; counting took minutes.
    assert!(start.elapsed().as_secs() < 60, "{:?}", start.elapsed());
}

/// Which examples were taken for what could only be counted.
#[test]
fn an_evaluation_keeps_what_was_said_of_each_example() {
    let folder = folder();
    let folder = folder.path();
    std::fs::write(folder.join("train.csv"), spam(24)).unwrap();
    run(folder, "tune --data train.csv --max-steps 2 --out r").ok();
    let found = run(
        folder,
        "eval --adapter r --data train.csv --max-rows 9 --out e --json",
    )
    .ok()
    .json();
    let kept = std::fs::read_to_string(folder.join("e/predictions.jsonl")).unwrap();
    let kept: Vec<serde_json::Value> = kept
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(kept.len(), 9);
    let right = kept.iter().filter(|p| p["gold"] == p["label"]).count();
    assert_eq!(
        right as f64 / 9.0,
        found["metrics"]["accuracy"].as_f64().unwrap()
    );
    assert_eq!(kept[1]["text"], "see you 1");
    assert_eq!(kept[1]["line"], 3);
    // The same as `predict` says.
    let said = run(folder, "predict --adapter r --data train.csv").ok();
    for (kept, said) in kept.iter().zip(said.stdout.lines()) {
        let said: serde_json::Value = serde_json::from_str(said).unwrap();
        for key in ["text", "label", "gold"] {
            assert_eq!(kept[key], said[key]);
        }
        let p = |of: &serde_json::Value| of["score"].as_f64().unwrap();
        assert!((p(kept) - p(&said)).abs() < 1e-5, "{kept} {said}");
    }
    let page = std::fs::read_to_string(folder.join("e/report.html")).unwrap();
    assert!(page.contains("Majority class") && page.contains("as spam"));
    // The folder is this command's own still.
    run(
        folder,
        "eval --adapter r --data train.csv --max-rows 9 --out e",
    )
    .ok();
}

/// A scheduler signals the program alone, and the run below it went on to its end.
#[cfg(unix)]
#[test]
fn a_comparison_that_is_asked_to_stop_stops_its_run() {
    let folder = folder();
    let folder = folder.path();
    std::fs::write(folder.join("train.csv"), spam(400)).unwrap();
    let suite = "description = 'd'\n[tune]\ndata = { train = 'train.csv' }\ntrain = { max_steps = 100000 }\n[[runs]]\nname = 'lora'\nmethod = { name = 'lora' }\n";
    std::fs::write(folder.join("s.toml"), suite).unwrap();
    let mut running = crate::support::command(folder)
        .args([
            "bench", "adapt", "--suite", "s.toml", "--out", "b", "--quiet",
        ])
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let log = folder.join("b/lora-seed0/log.jsonl");
    let start = std::time::Instant::now();
    let steps = || {
        let text = std::fs::read_to_string(&log).unwrap_or_default();
        text.lines().count() > 2
    };
    while !steps() && start.elapsed().as_secs() < 120 {
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    let status = std::process::Command::new("kill")
        .args(["-TERM", &running.id().to_string()])
        .status()
        .unwrap();
    assert!(status.success());
    let start = std::time::Instant::now();
    let ended = running.wait().unwrap();
    assert_eq!(ended.code(), Some(130));
    assert!(start.elapsed().as_secs() < 60, "{:?}", start.elapsed());
    let checkpoints = folder.join("b/lora-seed0/checkpoints");
    assert!(std::fs::read_dir(checkpoints).unwrap().count() > 0);
    assert!(
        !folder
            .join("b/lora-seed0/adapter_model.safetensors")
            .exists()
    );
}
