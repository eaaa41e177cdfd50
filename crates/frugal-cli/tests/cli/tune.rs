//! What `frugal tune` refuses, what it says then, and what it leaves behind.

use std::fs;
use std::path::Path;

use crate::support::{Run, folder, frugal_in};

/// The built-in model on a few messages, without the time that measuring it takes.
const SMALL: &str =
    "--max-train-rows 64 --max-eval-rows 8 --batch-size 8 --set evaluate_base=false --quiet";

fn run(folder: &Path, words: &str) -> Run {
    frugal_in(folder, &words.split_whitespace().collect::<Vec<_>>())
}

#[test]
fn a_learning_rate_of_0_is_not_taken_for_the_methods_own() {
    let folder = folder();
    fs::write(
        folder.path().join("zero.toml"),
        "[data]\ntrain = \"sms-spam\"\n[train]\nlr = 0\n",
    )
    .unwrap();
    let positive = "0 given, but it must be a positive number";
    for (words, place) in [
        ("--lr 0", "command line: `train.lr`"),
        ("--config zero.toml", "zero.toml:4: `train.lr`"),
        (
            "--set train.learning_rate=0.0",
            "override `train.learning_rate=0.0`",
        ),
    ] {
        run(folder.path(), &format!("tune {words} --out runs/zero")).fails(&[place, positive]);
        let checked = run(folder.path(), &format!("validate {words} --json"));
        assert_eq!(
            (checked.code, &checked.json()["valid"]),
            (1, &false.into()),
            "{words}"
        );
        assert!(
            checked.json()["problems"][0]["message"]
                .as_str()
                .unwrap()
                .contains(positive),
            "{}",
            checked.stdout
        );
    }
    assert!(!folder.path().join("runs").exists());
}

#[test]
fn a_run_that_is_refused_late_leaves_the_folder_to_the_next_try() {
    let folder = folder();
    let out = folder.path().join("runs/q");
    // Only weights that were read tell that they cannot take what was trained, and only the trainer
    // what it measures.
    run(
        folder.path(),
        &format!("tune {SMALL} --quantize int8 --method full --max-steps 1 --out runs/q"),
    )
    .fails(&["`full`", "packed"]);
    assert!(!out.exists());
    let unknown = "tune --set train.metric_for_best_model=elegance --max-steps 1 --out runs/q";
    run(folder.path(), &format!("{unknown} {SMALL}")).fails(&["`elegance`"]);
    assert!(!out.exists());
    run(
        folder.path(),
        &format!("tune {SMALL} --max-steps 1 --out runs/q"),
    )
    .ok();
    assert!(out.join("adapter_model.safetensors").is_file());
    let record: serde_json::Value =
        serde_json::from_str(&fs::read_to_string(out.join("record.json")).unwrap()).unwrap();
    let (card, trained) = (
        fs::read_to_string(out.join("README.md")).unwrap(),
        &record["train_info"]["num_trainable_params"],
    );
    assert!(
        card.contains(&format!(" {trained} trained parameters"))
            && card.contains("PeftModel.from_pretrained"),
        "{card}"
    );
}

#[test]
fn a_run_is_continued_in_its_folder_and_not_shortened() {
    let folder = folder();
    run(
        folder.path(),
        &format!("tune {SMALL} --max-steps 3 --out runs/r"),
    )
    .ok();
    let files = || {
        ["config.toml", "record.json"]
            .map(|name| fs::read_to_string(folder.path().join("runs/r").join(name)).unwrap())
    };
    let before = files();
    run(folder.path(), "tune --resume runs/r --max-steps 2 --quiet").fails(&[
        "runs/r",
        "`max_steps` can be raised",
        "the 3 steps done",
    ]);
    for elsewhere in ["--out runs/other", "--set out=runs/other"] {
        run(folder.path(), &format!("tune --resume runs/r {elsewhere}")).fails(&[
            "runs/r",
            "leave out `runs/other`",
            "--config runs/r/config.toml",
        ]);
        assert!(!folder.path().join("runs/other").exists());
    }
    assert_eq!(files(), before);
    // The same folder twice is no other one.
    run(
        folder.path(),
        "tune --resume runs/r --out runs/r/ --max-steps 4 --quiet",
    )
    .ok();
    assert_ne!(files(), before);
}

#[test]
fn the_folder_of_a_run_that_trained_everything_points_to_its_model() {
    let folder = folder();
    let model = folder.path().join("runs/all/model");
    fs::create_dir_all(&model).unwrap();
    fs::write(model.join("config.json"), "{}").unwrap();
    for words in [
        "generate --model runs/all --prompt x",
        "generate --adapter runs/all --prompt x",
        "eval --adapter runs/all --data sms-spam",
    ] {
        run(folder.path(), words).fails(&["runs/all: ", "give `--model runs/all/model`"]);
    }
}

#[test]
fn an_adapter_is_measured_on_weights_held_as_it_was_trained() {
    let folder = folder();
    run(
        folder.path(),
        &format!("tune --data sms-spam --quantize nf4 --max-steps 2 --out runs/n {SMALL}"),
    )
    .ok();
    let loss = |more: &str| {
        let measured = run(
            folder.path(),
            &format!("eval --adapter runs/n --data sms-spam --max-rows 64 --json {more}"),
        )
        .ok()
        .json();
        measured["metrics"]["loss"].as_f64().unwrap()
    };
    assert_eq!(loss(""), loss("--quantize nf4"));
    assert_ne!(loss(""), loss("--quantize none"));
}

#[test]
fn a_method_that_does_not_fit_the_model_is_found_without_training() {
    let folder = folder();
    fs::write(
        folder.path().join("run.toml"),
        "[data]\ntrain = \"sms-spam\"\n[method]\nname = \"lora\"\nr = 1000000\n",
    )
    .unwrap();
    for (words, told) in [
        ("--config run.toml", "`r`"),
        ("--data sms-spam --lr -1", "positive"),
        ("--data sms-spam", ""),
    ] {
        let checked = run(
            folder.path(),
            &format!("validate {words} --max-train-rows 64 --json"),
        );
        let problems = checked.json()["problems"].to_string();
        assert!(
            checked.code == i32::from(!told.is_empty()) && problems.contains(told),
            "{words}: {problems}"
        );
    }
}
