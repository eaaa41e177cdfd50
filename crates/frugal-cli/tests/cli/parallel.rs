//! `frugal plan parallel`, and training by several real processes.

use std::fs;
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::support::{Run, command, folder, frugal, frugal_in};

fn write_text(folder: &Path) {
    let words = ["house", "boat", "tree", "road", "bird", "coat", "lamp"];
    let line = |i: usize| {
        let more = "and then it goes on ".repeat(i % 4);
        format!(
            "the {} by the {} has a {} {more}\n",
            words[i % 7],
            words[i * i % 5],
            words[(i + i / 7) % 6]
        )
    };
    fs::write(
        folder.join("text.txt"),
        (0..240).map(line).collect::<String>(),
    )
    .unwrap();
}

/// A tiny model, trained in single precision and written as such.
fn args(out: &str, more: &str) -> Vec<String> {
    let args = format!(
        "pretrain --data text.txt --out {out} --vocab-size 300 --max-length 32 --batch-tokens 256 --lr 0.01 \
         --set dtype=f32 --set shape.hidden_size=16 --set shape.intermediate_size=24 --set shape.num_hidden_layers=2 \
         --set shape.num_attention_heads=2 --set shape.max_position_embeddings=32 --set train.logging_steps=1 \
         --set train.load_best_model_at_end=false {more}"
    );
    args.split_whitespace().map(str::to_owned).collect()
}

fn run(folder: &Path, out: &str, more: &str) -> Run {
    let args = args(out, more);
    frugal_in(folder, &args.iter().map(String::as_str).collect::<Vec<_>>())
}

/// The losses of a run's log by step.
fn losses(folder: &Path, out: &str) -> Vec<(u64, f64)> {
    let text = fs::read_to_string(folder.join(out).join("log.jsonl")).unwrap();
    let lines = text.lines().map(|l| serde_json::from_str(l).unwrap());
    lines
        .filter_map(|line: Value| Some((line["step"].as_u64()?, line["loss"].as_f64()?)))
        .collect()
}

fn weights(folder: &Path, out: &str) -> Vec<f32> {
    let bytes = fs::read(folder.join(out).join("model.safetensors")).unwrap();
    let header = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let (values, _) = bytes[8 + header..].as_chunks::<4>();
    values.iter().map(|v| f32::from_le_bytes(*v)).collect()
}

fn close(name: &str, one: &[(u64, f64)], other: &[(u64, f64)]) {
    assert_eq!(one.len(), other.len(), "{name}");
    for ((step, a), (other_step, b)) in one.iter().zip(other) {
        assert_eq!(step, other_step);
        assert!(
            (a - b).abs() < 1e-5 * a.abs().max(1.0),
            "{name}: step {step}: {a} and {b}"
        );
    }
}

#[test]
fn several_processes_train_what_one_does() {
    let workshop = folder();
    let folder = workshop.path();
    write_text(folder);
    let more =
        "--max-steps 12 --set train.gradient_accumulation_steps=2 --set train.eval_steps=4 --json";
    run(folder, "one", more).ok();
    let one = losses(folder, "one");
    assert!(one.len() >= 12, "{one:?}");
    let wanted = [
        ("two", "data=2"),
        ("three", "data=3"),
        ("zero", "data=2,zero=1"),
    ];
    for (out, parallel) in wanted {
        let made = run(folder, out, &format!("{more} --parallel {parallel}"))
            .ok()
            .json();
        close(out, &one, &losses(folder, out));
        let (expected, found) = (weights(folder, "one"), weights(folder, out));
        // Adam's first steps turn the sign of a gradient that is all but zero into a whole step, so
        // that the mean is bounded and not the worst.
        let off = expected.iter().zip(&found).map(|(a, b)| (a - b).abs());
        let mean = off.sum::<f32>() / expected.len() as f32;
        assert!(mean < 1e-5, "{out}: {mean}");
        let report = &made["parallel"];
        let states = made["memory"]["states"].as_u64().unwrap();
        let bytes: Vec<u64> = report["optimizer_bytes"]
            .as_array()
            .unwrap()
            .iter()
            .map(|n| n.as_u64().unwrap())
            .collect();
        if out == "zero" {
            assert_eq!(bytes.iter().sum::<u64>(), states);
            let half = states / 2;
            assert!(
                bytes.iter().all(|n| n.abs_diff(half) < half / 10),
                "{bytes:?}"
            );
        } else {
            assert!(bytes.iter().all(|n| *n == states), "{bytes:?}");
        }
        assert!(report["bytes_sent"].as_u64().unwrap() > 0);
    }
    // ZeRO changes who updates, not what: the same bits.
    assert_eq!(weights(folder, "two"), weights(folder, "zero"));
}

/// The bytes of each rank under this name.
fn of_ranks(made: &Value, name: &str) -> Vec<u64> {
    let all = made["parallel"][name].as_array().unwrap().iter();
    all.map(|n| n.as_u64().unwrap()).collect()
}

#[test]
fn processes_that_keep_parts_train_what_one_does() {
    let workshop = folder();
    let folder = workshop.path();
    write_text(folder);
    let more = "--max-steps 6 --set train.eval_steps=3 --set train.max_grad_norm=0.1 --json";
    run(folder, "one", more).ok();
    run(folder, "two", &format!("{more} --parallel data=2,zero=1")).ok();
    let one = losses(folder, "one");
    for (out, parallel) in [
        ("gradients", "data=2,zero=2"),
        ("weights", "data=2,zero=3"),
        ("stages", "pipeline=2"),
        ("replicas", "data=2,pipeline=2,micro=3,zero=1"),
    ] {
        let made = run(folder, out, &format!("{more} --parallel {parallel}"))
            .ok()
            .json();
        close(out, &one, &losses(folder, out));
        let (expected, found) = (weights(folder, "one"), weights(folder, out));
        let off = expected.iter().zip(&found).map(|(a, b)| (a - b).abs());
        let mean = off.sum::<f32>() / expected.len() as f32;
        assert!(mean < 1e-5, "{out}: {mean}");
        let all = 4 * made["parameters"].as_u64().unwrap();
        let [kept, gradients] =
            ["parameter_bytes", "gradient_bytes"].map(|name| of_ranks(&made, name));
        let [kept_by_all, gradients_of_all]: [u64; 2] =
            [&kept, &gradients].map(|bytes| bytes.iter().sum());
        match out {
            "gradients" => assert_eq!((kept_by_all, gradients_of_all), (2 * all, all)),
            "weights" => assert_eq!((kept_by_all, gradients_of_all), (all, all)),
            _ => assert!(kept.iter().all(|bytes| *bytes < all), "{kept:?}"),
        }
        let resident = of_ranks(&made, "resident_bytes");
        assert!(
            resident.iter().all(|bytes| *bytes > 1 << 20),
            "{resident:?}"
        );
    }
    assert_eq!(weights(folder, "two"), weights(folder, "gradients"));
}

#[test]
fn another_number_of_processes_goes_on() {
    let workshop = folder();
    let folder = workshop.path();
    write_text(folder);
    for (out, first, second) in [
        ("shrinks", "--parallel data=3,zero=1", ""),
        ("grows", "", "--parallel data=2,zero=1"),
        (
            "shares",
            "--parallel pipeline=2",
            "--parallel data=3,zero=3",
        ),
    ] {
        let steps = "--set train.lr_scheduler_type=constant --set train.warmup_steps=1";
        run(folder, out, &format!("--max-steps 4 {steps} {first}")).ok();
        run(
            folder,
            out,
            &format!("--max-steps 10 {steps} {second} --resume"),
        )
        .ok();
        let reference = format!("{out}-reference");
        run(folder, &reference, &format!("--max-steps 10 {steps}")).ok();
        close(out, &losses(folder, &reference), &losses(folder, out));
    }
}

fn free_address() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().to_string()
}

fn start(folder: &Path, out: &str, more: &str) -> Child {
    let mut command: Command = command(folder);
    command
        .args(args(out, more))
        .env("FRUGAL_PARALLEL_SECRET", "only these know it")
        .env("RAYON_NUM_THREADS", "1")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

fn checkpoints(folder: &Path, out: &str) -> Vec<u64> {
    let entries = fs::read_dir(folder.join(out).join("checkpoints"));
    let names = entries.into_iter().flatten().flatten();
    let mut steps: Vec<u64> = names
        .filter_map(|e| e.file_name().to_str()?.strip_prefix("step-")?.parse().ok())
        .collect();
    steps.sort_unstable();
    steps
}

/// Kills rank 2 of three processes that are divided so, and goes on with two that are.
fn killed(out: &str, [three, two]: [&str; 2], save_steps: u64) {
    let workshop = folder();
    let folder = workshop.path();
    write_text(folder);
    let address = free_address();
    let endless = format!(
        "--max-steps 1000000 --set shape.num_hidden_layers=3 --set train.save_steps={save_steps} --set train.eval_steps=1000000 \
         --parallel {three} --master {address}"
    );
    let first = start(folder, out, &format!("{endless} --rank 0"));
    let second = start(folder, "nowhere", &format!("{endless} --rank 1"));
    let mut third = start(folder, "nowhere", &format!("{endless} --rank 2"));
    let log = folder.join(out).join("log.jsonl");
    let until = Instant::now() + Duration::from_secs(60);
    while fs::read_to_string(&log).map_or(0, |text| text.lines().count()) < 12 {
        assert!(Instant::now() < until, "the run does not begin");
        std::thread::sleep(Duration::from_millis(20));
    }
    third.kill().unwrap();
    third.wait().unwrap();
    let said = Run::from(first.wait_with_output().unwrap()).fails(&["rank 2", "checkpoint"]);
    let other = Run::from(second.wait_with_output().unwrap()).fails(&["rank 2"]);
    assert!(
        !other.stderr.contains("rank 1 was lost"),
        "{}",
        other.stderr
    );
    let saved = checkpoints(folder, out);
    let newest = *saved.last().expect("a checkpoint is left");
    assert!(newest >= 5, "{saved:?}");
    assert!(
        said.stderr.contains(&format!("step-{newest}")),
        "{}",
        said.stderr
    );
    if out == "plain" {
        // It is of the last step that all took.
        assert_eq!(losses(folder, out).last().unwrap().0, newest);
    }
    assert!(!folder.join("nowhere").exists(), "others write nothing");
    let more = format!(
        "--max-steps {} --set shape.num_hidden_layers=3 --set train.save_steps={save_steps} --set train.eval_steps=1000000 --resume",
        newest + 3
    );
    run(folder, out, &format!("{more} --parallel {two}")).ok();
    assert_eq!(losses(folder, out).last().unwrap().0, newest + 3);
}

#[test]
fn a_killed_process_ends_the_run_and_fewer_go_on() {
    killed("plain", ["data=3", "data=2"], 1_000_000);
    killed("sharded", ["data=3,zero=1", "data=2,zero=1"], 5);
}

#[test]
fn a_killed_process_that_had_a_part_of_the_model_ends_the_run_and_fewer_go_on() {
    killed("weights", ["data=3,zero=3", "data=2,zero=2"], 5);
    killed("stages", ["pipeline=3", "pipeline=2"], 5);
}

#[test]
fn processes_that_do_not_belong_together_say_so() {
    let workshop = folder();
    let folder = workshop.path();
    write_text(folder);
    let address = free_address();
    let common = format!("--max-steps 4 --parallel data=2 --master {address}");
    let first = start(folder, "out", &format!("{common} --rank 0"));
    let second = start(folder, "nowhere", &format!("{common} --rank 1 --seed 9"));
    Run::from(second.wait_with_output().unwrap()).fails(&["settings are not those of rank 0"]);
    Run::from(first.wait_with_output().unwrap()).fails(&["rank 1", "settings"]);
    assert!(
        !folder.join("out").exists(),
        "a run that did not begin leaves nothing"
    );
    let refused = |more: &str, words: &[&str]| {
        let run = run(folder, "out", more);
        assert_eq!(run.code, 2, "{}", run.stderr);
        for word in words {
            assert!(run.stderr.contains(word), "{word}: {}", run.stderr);
        }
    };
    refused(
        "--parallel data=2,tensor=2",
        &["`tensor=2`", "plan parallel"],
    );
    refused("--parallel pipeline=3", &["P ≤ layers"]);
    refused(
        "--parallel pipeline=2,zero=3",
        &["`zero=3` with `pipeline=2`"],
    );
    let said = |more: &str, word: &str| {
        let run = run(folder, "out", more);
        assert!(run.code != 0 && run.stderr.contains(word), "{}", run.stderr);
        assert!(!folder.join("out").exists());
    };
    said(
        "--parallel data=2,zero=2 --reparam low_rank --set reparam.rank=4",
        "`zero=2`: the weights of a model themselves",
    );
    said(
        "--parallel pipeline=2,micro=3 --set train.packing=false --set train.batch_size=4",
        "N·m | train.batch_size",
    );
    refused("--parallel data=2 --rank 1", &["--master"]);
    refused(
        "--parallel data=2 --rank 1 --master 127.0.0.1:1",
        &["FRUGAL_PARALLEL_SECRET"],
    );
}

/// Ctrl-C was looked at once training had begun; until then only a second one ended the process.
#[test]
fn a_request_to_stop_was_not_heard_before_all_processes_had_come() {
    let workshop = folder();
    let folder = workshop.path();
    write_text(folder);
    let address = free_address();
    let common = format!("--max-steps 4 --parallel data=3 --master {address}");
    let until = Instant::now() + Duration::from_secs(60);
    let first = start(folder, "out", &format!("{common} --rank 0"));
    while TcpStream::connect(&address).is_err() {
        assert!(Instant::now() < until, "rank 0 does not wait");
        std::thread::sleep(Duration::from_millis(20));
    }
    // Rank 0 is there and rank 2 never comes.
    let second = start(folder, "nowhere", &format!("{common} --rank 1"));
    std::thread::sleep(Duration::from_secs(1));
    for child in [&second, &first] {
        let kill = Command::new("kill")
            .args(["-INT", &child.id().to_string()])
            .status();
        assert!(kill.unwrap().success());
    }
    for child in [second, first] {
        let ended = Run::from(child.wait_with_output().unwrap());
        assert_eq!(ended.code, 130, "{}", ended.stderr);
        assert!(
            ended.stderr.contains("before the run began"),
            "{}",
            ended.stderr
        );
    }
    assert!(!folder.join("out").exists());
}

/// Rank 0 listened to one connection at a time, for as long as it liked to be silent.
#[test]
fn strangers_that_say_nothing_kept_a_process_from_coming() {
    let workshop = folder();
    let folder = workshop.path();
    write_text(folder);
    let address = free_address();
    let common = format!("--max-steps 2 --parallel data=2 --master {address}");
    let first = start(folder, "out", &format!("{common} --rank 0"));
    let until = Instant::now() + Duration::from_secs(60);
    let idle = || loop {
        match TcpStream::connect(&address) {
            Ok(stream) => break stream,
            Err(_) if Instant::now() < until => std::thread::sleep(Duration::from_millis(20)),
            Err(error) => panic!("{error}"),
        }
    };
    let strangers: Vec<TcpStream> = (0..2).map(|_| idle()).collect();
    let second = start(folder, "nowhere", &format!("{common} --rank 1"));
    Run::from(second.wait_with_output().unwrap()).ok();
    Run::from(first.wait_with_output().unwrap()).ok();
    drop(strangers);
}

/// Dense models were told from models with experts by a number that is one for them.
#[test]
fn models_of_files_were_no_models_that_can_be_planned() {
    let plan = |more: &str| {
        let words = format!("plan parallel --model builtin --gpus 2 --json {more}");
        frugal(&words.split_whitespace().collect::<Vec<_>>())
    };
    let found = plan("--batch 8").ok().json();
    assert_eq!(found["estimate"]["gpus"], 2);
    // What a flag fixes is not searched.
    let words = "plan parallel --model 22b --gpus 128 --batch 640 --tune 12 --chunks 3 --json";
    let tuned = frugal(&words.split_whitespace().collect::<Vec<_>>())
        .ok()
        .json();
    let trials = tuned["tuned"]["trials"].as_array().unwrap();
    assert!(
        trials.iter().all(|t| t["plan"]["chunks"] == 3),
        "{trials:?}"
    );
    let twice = run(folder().path(), "out", "--parallel data=2,data=3");
    twice.fails(&["`data` is given twice"]);
}

/// A batch of 0 followed from a plan for more devices than there are, and was what the error named.
#[test]
fn too_few_devices_were_blamed_on_the_batch() {
    for (more, word) in [
        ("--gpus 3", "3 devices"),
        ("--gpus 63", "63 devices"),
        ("--gpus 3 --batch 12", "3 devices"),
        ("--gpus 16777216", "give `--batch`"),
        ("--gpus 0", "--gpus is 0"),
        ("--tensor 0", "--tensor is 0"),
    ] {
        let words = format!("plan parallel --model 175b {more}");
        let run = frugal(&words.split_whitespace().collect::<Vec<_>>());
        assert_eq!(run.code, 2, "{more}: {}", run.stderr);
        assert!(run.stderr.contains(word), "{more}: {}", run.stderr);
        assert!(!run.stderr.contains("--batch is"), "{more}: {}", run.stderr);
    }
}

#[test]
fn the_published_plans_are_planned() {
    for (model, gpus, utilization) in [
        ("22b", 128, 0.3838),
        ("175b", 1024, 0.3614),
        ("1t", 3072, 0.3196),
    ] {
        let found = frugal(&["plan", "parallel", "--model", model, "--json"])
            .ok()
            .json();
        let estimate = &found["estimate"];
        assert_eq!(estimate["gpus"], gpus);
        let share = estimate["utilization"].as_f64().unwrap();
        assert!((share / utilization - 1.0).abs() < 0.05, "{model}: {share}");
    }
    let workshop = folder();
    let shown = frugal_in(
        workshop.path(),
        &[
            "plan",
            "parallel",
            "--model",
            "175b",
            "--scaling",
            "strong",
            "--batch",
            "8000",
            "--plot",
            "scaling.svg",
            "--timeline",
        ],
    )
    .ok()
    .stdout;
    assert!(
        shown.contains("1,024") && shown.contains("utilisation"),
        "{shown}"
    );
    let svg = fs::read_to_string(workshop.path().join("scaling.svg")).unwrap();
    assert!(svg.contains("Devices"), "{svg}");
    let tuned = frugal(&[
        "plan", "parallel", "--model", "22b", "--gpus", "128", "--batch", "640", "--tune", "15",
        "--json",
    ])
    .ok()
    .json();
    assert_eq!(tuned["tuned"]["trials"].as_array().unwrap().len(), 15);
}

#[test]
fn plans_that_cannot_be_name_the_constraint() {
    let refused = |more: &[&str], words: &[&str]| {
        frugal(&[&["plan", "parallel"], more].concat()).fails(words);
    };
    refused(
        &["--tensor", "5", "--gpus", "80", "--batch", "640"],
        &["T | heads"],
    );
    refused(
        &["--pipeline", "128", "--gpus", "512", "--batch", "64"],
        &["P·v ≤ layers"],
    );
    refused(&["--gpus", "1000"], &["W = T·P·N"]);
    refused(&["--gpus", "1024", "--batch", "641"], &["GBS = b·m·N"]);
    refused(
        &[
            "--gpus",
            "8",
            "--tensor",
            "4",
            "--pipeline",
            "2",
            "--batch",
            "8",
        ],
        &["(memory)"],
    );
    refused(&["--gpus", "0"], &["--gpus is 0"]);
    refused(&["--machine", "nowhere.toml"], &["nowhere.toml"]);
    refused(
        &["--model", "nothing-of-this-name", "--gpus", "8"],
        &["nothing-of-this-name"],
    );
}
