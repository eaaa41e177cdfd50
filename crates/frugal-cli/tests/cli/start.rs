//! Training on from an adapter, and settings under one name.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use crate::support::{Run, folder, frugal_in};

const SMALL: &str = "--max-train-rows 32 --max-eval-rows 8 --batch-size 8 --quiet";

fn run(folder: &Path, words: &str) -> Run {
    frugal_in(folder, &words.split_whitespace().collect::<Vec<_>>())
}

/// Loss before and after, of the validation part.
fn losses(run: &Run) -> [f64; 2] {
    let parts = &run.json()["parts"][0];
    ["base", "adapted"].map(|who| parts[who]["loss"].as_f64().unwrap())
}

#[test]
fn a_run_goes_on_from_an_adapter_where_that_ended() {
    let folder = folder();
    let words = format!("{SMALL} --data sms-spam --json");
    let first = run(
        folder.path(),
        &format!("tune {words} --r 4 --lr 1e-3 --pooling mean --max-steps 6 --out first"),
    )
    .ok();
    let second = run(
        folder.path(),
        &format!("tune {words} --adapter first --max-steps 4 --logging-steps 1 --out second"),
    )
    .ok();
    // It starts where the first one ended: method, rank, pooling, labels and weights.
    assert_eq!(losses(&second)[0], losses(&first)[1]);
    assert_ne!(losses(&second)[0], losses(&first)[0]);
    let config = |name: &str| -> Value {
        serde_json::from_slice(
            &fs::read(folder.path().join(name).join("adapter_config.json")).unwrap(),
        )
        .unwrap()
    };
    assert_eq!(config("second")["r"], 4);
    assert_eq!(
        config("first")["target_modules"],
        config("second")["target_modules"]
    );
    // The schedule is that of a new run: its first step warms up, and it has four.
    let log = fs::read_to_string(folder.path().join("second/log.jsonl")).unwrap();
    let steps: Vec<u64> = log
        .lines()
        .map(|l| serde_json::from_str::<Value>(l).unwrap())
        .filter(|l| l.get("loss").is_some())
        .map(|l| l["step"].as_u64().unwrap())
        .collect();
    assert_eq!(steps, [1, 2, 3, 4]);
    // The new run can be resumed by itself.
    run(folder.path(), "tune --resume second --max-steps 5 --quiet").ok();
    // With nothing to learn it stays the adapter that it was.
    run(
        folder.path(),
        &format!("tune {words} --adapter first --max-steps 1 --lr 1e-30 --out same"),
    )
    .ok();
    let weights =
        |name: &str| fs::read(folder.path().join(name).join("adapter_model.safetensors")).unwrap();
    assert!(weights("same") == weights("first"));
}

#[test]
fn an_adapter_that_does_not_fit_the_run_is_refused_with_the_reason() {
    let folder = folder();
    let rows = "ham\tsee you soon\nfraud\twin a prize now\n".repeat(20);
    fs::write(
        folder.path().join("other.tsv"),
        format!("label\ttext\n{rows}"),
    )
    .unwrap();
    run(
        folder.path(),
        &format!("tune {SMALL} --data sms-spam --r 4 --target-modules q_proj,v_proj --max-steps 1 --out a"),
    )
    .ok();
    let words = format!("tune {SMALL} --adapter a --max-steps 1 --out b");
    let refused = |more: &str, words_: &[&str]| {
        let data = if more.contains("--data") {
            ""
        } else {
            "--data sms-spam"
        };
        run(folder.path(), &format!("{words} {data} {more}")).fails(words_);
        assert!(!folder.path().join("b").exists(), "{more}");
    };
    refused(
        "--method dora",
        &[
            "a: the run cannot start",
            "of method `lora`, the run of `dora`",
        ],
    );
    refused("--r 8", &["`r` is 4 in the adapter and 8 in the run"]);
    refused(
        "--target-modules q_proj,k_proj",
        &["other layers", "also k_proj", "not v_proj"],
    );
    refused("--target-modules all-linear", &["other layers"]);
    refused(
        "--task causal-lm",
        &["is a classifier", "`--task classification`"],
    );
    refused("--pooling mean", &["`last`, not `mean`"]);
    refused("--data other.tsv", &["labels fraud", "it has ham, spam"]);
    refused("--qlora", &["`r` is 4 in the adapter and 64 in the run"]);
    run(
        folder.path(),
        &format!("tune {SMALL} --adapter nowhere --data sms-spam"),
    )
    .fails(&["nowhere", "not an adapter folder"]);
    // The same said in another way is the same.
    run(
        folder.path(),
        &format!("{words} --data sms-spam --method lora --r 4 --target-modules v_proj,q_proj"),
    )
    .ok();
}

#[test]
fn presets_are_settings_that_flags_win_over() {
    let folder = folder();
    let config = |words: &str| -> Value {
        let out = "run";
        let words = format!(
            "tune {SMALL} --data sms-spam {words} --max-steps 1 --set evaluate_base=false --out {out}"
        );
        run(folder.path(), &words).ok();
        let text = fs::read_to_string(folder.path().join("run/record.json")).unwrap();
        fs::remove_dir_all(folder.path().join("run")).unwrap();
        serde_json::from_str::<Value>(&text).unwrap()["run_info"]["train_config"].clone()
    };
    // The settings of the QLoRA paper.
    let qlora = config("--qlora --r 8");
    assert_eq!(qlora["quantize"], "nf4_double");
    assert_eq!(
        qlora["method"],
        json!({ "name": "lora", "target_modules": "all-linear", "r": 8, "lora_alpha": 16.0, "lora_dropout": 0.1 })
    );
    assert_eq!(qlora["train"]["lr_scheduler_type"], "constant");
    assert_eq!(qlora["train"]["max_grad_norm"], 0.3);
    for (name, method) in [
        ("qdora", "dora"),
        ("lora-all", "lora"),
        ("lora-attention", "lora"),
        ("dora", "dora"),
        ("rslora", "rslora"),
    ] {
        assert_eq!(
            config(&format!("--preset {name}"))["method"]["name"],
            method,
            "{name}"
        );
    }
    run(folder.path(), "tune --preset qlroa").fails(&["qlroa", "qlora"]);
}

#[test]
fn noise_on_the_embeddings_is_for_training_only() {
    let folder = folder();
    let trained = |words: &str, out: &str| {
        let words =
            format!("tune {SMALL} --data sms-spam {words} --max-steps 3 --json --out {out}");
        let run = run(folder.path(), &words).ok();
        let weights = fs::read(folder.path().join(out).join("adapter_model.safetensors")).unwrap();
        (losses(&run)[0], weights)
    };
    let plain = trained("", "plain");
    let noisy = trained("--neftune-noise-alpha 5", "noisy");
    let again = trained("--set train.neftune_noise_alpha=5", "again");
    assert_eq!(plain.0, noisy.0, "the model is measured without noise");
    assert!(plain.1 != noisy.1);
    assert!(noisy.1 == again.1, "the same seed gives the same noise");
    run(
        folder.path(),
        "tune --data sms-spam --neftune-noise-alpha -1",
    )
    .fails(&["`train.neftune_noise_alpha`", "-1"]);
}
