//! Runs that are started beside each other, killed, hung up on, and taken up again: real processes
//! with the built-in model.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::support::{Run, command, folder, frugal_in};

/// The built-in model on a few messages, without the time that measuring it takes.
const SMALL: &str =
    "--max-train-rows 32 --max-eval-rows 4 --batch-size 8 --pooling mean --set evaluate_base=false";
/// So long that it is always ended from outside.
const ENDLESS: &str = "--epochs 4000 --logging-steps 1 --save-steps 20";

fn run(folder: &Path, words: &str) -> Run {
    frugal_in(folder, &words.split_whitespace().collect::<Vec<_>>())
}

fn start(folder: &Path, words: &str) -> Child {
    command(folder)
        .args(words.split_whitespace())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

fn end(child: Child) -> Run {
    child.wait_with_output().unwrap().into()
}

/// Waits until `is_so`.
fn wait_for(what: &str, is_so: impl Fn() -> bool) {
    let start = Instant::now();
    while !is_so() {
        assert!(start.elapsed() < Duration::from_secs(90), "{what}");
        sleep(Duration::from_millis(5));
    }
}

/// Waits until a run has logged this step.
fn wait_for_step(out: &Path, step: u64) {
    wait_for(&format!("step {step} of {}", out.display()), || {
        steps_done(out) >= step
    });
}

fn steps_done(out: &Path) -> u64 {
    let text = fs::read_to_string(out.join("log.jsonl")).unwrap_or_default();
    text.lines()
        .filter_map(|l| serde_json::from_str::<Value>(l).ok()?["step"].as_u64())
        .max()
        .unwrap_or(0)
}

fn checkpoints(out: &Path) -> Vec<String> {
    let entries = fs::read_dir(out.join("checkpoints")).into_iter().flatten();
    entries
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .filter(|name| name.starts_with("step-"))
        .collect()
}

fn signal(child: &Child, name: &str) {
    let sent = Command::new("kill")
        .args([name, &child.id().to_string()])
        .status()
        .unwrap();
    assert!(sent.success());
}

fn seed_in(file: &Path) -> String {
    let text = fs::read_to_string(file).unwrap();
    let line = text.lines().find(|l| l.starts_with("seed = ")).unwrap();
    line.to_owned()
}

#[test]
fn runs_that_start_at_the_same_time_get_folders_of_their_own() {
    let folder = folder();
    let words = format!("tune --data sms-spam {SMALL} --max-steps 1 --quiet");
    // What each seed gives when it runs alone.
    let alone: Vec<Vec<u8>> = (0..3)
        .map(|seed| {
            run(
                folder.path(),
                &format!("{words} --seed {seed} --out alone-{seed}"),
            )
            .ok();
            let out = folder.path().join(format!("alone-{seed}"));
            fs::read(out.join("adapter_model.safetensors")).unwrap()
        })
        .collect();
    for round in 0..6 {
        let here = folder.path().join(format!("round-{round}"));
        fs::create_dir(&here).unwrap();
        let children: Vec<Child> = (0..3)
            .map(|seed| start(&here, &format!("{words} --seed {seed} --json")))
            .collect();
        let mut outs: Vec<String> = Vec::new();
        for (seed, child) in children.into_iter().enumerate() {
            let out = end(child).ok().json()["out"].as_str().unwrap().to_owned();
            let path = here.join(&out);
            assert_eq!(seed_in(&path.join("config.toml")), format!("seed = {seed}"));
            assert!(
                fs::read(path.join("adapter_model.safetensors")).unwrap() == alone[seed],
                "round {round}: {out} has the adapter of another seed"
            );
            assert!(!path.join(".frugal.lock").exists());
            outs.push(out);
        }
        outs.sort();
        assert_eq!(
            outs,
            [
                "runs/sms-spam-lora",
                "runs/sms-spam-lora-2",
                "runs/sms-spam-lora-3"
            ]
        );
    }
}

#[test]
fn one_folder_is_taken_by_one_of_two_runs() {
    let folder = folder();
    let words = format!("tune --data sms-spam {SMALL} --max-steps 2 --quiet");
    for round in 0..8 {
        let words = format!("{words} --out runs/{round}");
        let [a, b] = [0, 1].map(|_| start(folder.path(), &words)).map(end);
        let (done, refused) = if a.code == 0 { (a, b) } else { (b, a) };
        done.ok();
        assert_eq!(refused.code, 2, "{}", refused.stderr);
        assert!(
            refused.stderr.contains("is writing to this folder")
                || refused.stderr.contains("is not empty"),
            "{}",
            refused.stderr
        );
        assert_eq!(refused.stderr.lines().count(), 1, "{}", refused.stderr);
    }
}

#[cfg(unix)]
#[test]
fn two_resumes_at_once_are_one_run_and_one_clear_error() {
    let folder = folder();
    let out = folder.path().join("runs/r");
    let words = format!("tune --data sms-spam {SMALL} {ENDLESS} --quiet --out runs/r");
    let mut first = start(folder.path(), &words);
    wait_for("a checkpoint", || !checkpoints(&out).is_empty());
    first.kill().unwrap();
    first.wait().unwrap();
    for round in 0..6 {
        let before = steps_done(&out);
        let mut children: Vec<Child> = (0..2)
            .map(|_| start(folder.path(), "tune --resume runs/r --quiet"))
            .collect();
        // One of them is refused, and the other goes on.
        let begun = Instant::now();
        let refused = loop {
            let ended = children
                .iter_mut()
                .position(|child| child.try_wait().unwrap().is_some());
            if let Some(ended) = ended {
                break children.remove(ended);
            }
            assert!(begun.elapsed() < Duration::from_secs(90), "both go on");
            sleep(Duration::from_millis(5));
        };
        end(refused).fails(&["runs/r", "is writing to this folder"]);
        wait_for_step(&out, before + 5);
        let child = children.remove(0);
        if round % 2 == 0 {
            signal(&child, "-INT");
            assert_eq!(end(child).code, 130);
            assert!(!out.join(".frugal.lock").exists());
        } else {
            // Its lock dies with it.
            let mut child = child;
            child.kill().unwrap();
            child.wait().unwrap();
            assert!(out.join(".frugal.lock").exists());
        }
    }
    // Every step was logged once, in order.
    let text = fs::read_to_string(out.join("log.jsonl")).unwrap();
    let steps: Vec<u64> = text
        .lines()
        .filter_map(|l| serde_json::from_str::<Value>(l).ok())
        .filter(|l| l.get("loss").is_some())
        .map(|l| l["step"].as_u64().unwrap())
        .collect();
    assert_eq!(steps, (1..=steps.len() as u64).collect::<Vec<_>>());
}

/// Each reads some lines of both streams and goes away.
#[test]
fn a_reader_of_both_streams_that_goes_away_ends_a_run_with_a_checkpoint() {
    let folder = folder();
    for round in 0..8_u64 {
        let name = format!("runs/{round}");
        let words = format!("tune --data sms-spam {SMALL} {ENDLESS} --out {name}");
        let (reader, writer) = std::io::pipe().unwrap();
        let mut child = command(folder.path())
            .args(words.split_whitespace())
            .stdout(writer.try_clone().unwrap())
            .stderr(writer)
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(reader).lines();
        // Sometimes before the first step, sometimes later.
        let wanted = format!("step {}/", 1 + 3 * round);
        let seen = lines.find(|line| line.as_ref().is_ok_and(|l| l.starts_with(&wanted)));
        assert!(seen.is_some(), "no step in round {round}");
        drop(lines);
        let status = child.wait().unwrap();
        assert_eq!(status.code(), Some(130), "round {round}");
        let out = folder.path().join(&name);
        assert!(!checkpoints(&out).is_empty(), "round {round}");
        assert!(!out.join("adapter_model.safetensors").exists());
    }
    let more = run(
        folder.path(),
        "tune --resume runs/0 --max-steps 40 --quiet --json",
    );
    assert_eq!(more.ok().json()["interrupted"], false);
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_standard_error_ends_a_run_as_an_interrupt_does() {
    let folder = folder();
    let full = || {
        fs::OpenOptions::new()
            .write(true)
            .open("/dev/full")
            .unwrap()
    };
    let words = format!("tune --data sms-spam {SMALL} --max-steps 500 --out runs/full");
    let status = command(folder.path())
        .args(words.split_whitespace())
        .stdout(Stdio::null())
        .stderr(full())
        .status()
        .unwrap();
    assert_eq!(status.code(), Some(130));
    // Other commands have nothing to save: their results count.
    let methods = command(folder.path())
        .args(["methods"])
        .stderr(full())
        .output()
        .unwrap();
    assert!(methods.status.success() && !methods.stdout.is_empty());
    let unread = command(folder.path())
        .args(["methods"])
        .stdout(full())
        .output()
        .unwrap();
    assert_eq!(unread.status.code(), Some(2));
    let said = String::from_utf8(unread.stderr).unwrap();
    assert!(said.contains("cannot write to standard output"), "{said}");
    let neither = command(folder.path())
        .args(["tune", "--data", "nowhere.tsv"])
        .stdout(full())
        .stderr(full())
        .status()
        .unwrap();
    assert_eq!(neither.code(), Some(2));
}

/// A terminal that is closed while the program runs in it, by way of Python's `pty`; prints the
/// exit status.
#[cfg(unix)]
const CLOSED_TERMINAL: &str = r#"
import os, pty, sys, time
log, *words = sys.argv[1:]
pid, terminal = pty.fork()
if pid == 0:
    os.execv(words[0], words)
deadline = time.time() + 90
os.set_blocking(terminal, False)
while not (os.path.exists(log) and os.path.getsize(log) > 0):
    try:
        os.read(terminal, 65536)
    except (BlockingIOError, OSError):
        time.sleep(0.005)
    if time.time() > deadline:
        os.kill(pid, 9)
        sys.exit("training does not begin")
os.close(terminal)
_, status = os.waitpid(pid, 0)
print(os.waitstatus_to_exitcode(status))
"#;

#[cfg(unix)]
#[test]
fn a_closed_terminal_ends_a_run_with_a_checkpoint() {
    if Command::new("python3")
        .arg("-c")
        .arg("import pty")
        .output()
        .is_err()
    {
        eprintln!("skipped: no python3, which opens the terminal");
        return;
    }
    let folder = folder();
    for round in 0..6 {
        let out = folder.path().join(format!("runs/{round}"));
        let words = format!(
            "tune --data sms-spam {SMALL} {ENDLESS} --out {}",
            out.display()
        );
        let done = Command::new("python3")
            .args(["-c", CLOSED_TERMINAL])
            .arg(out.join("log.jsonl"))
            .arg(env!("CARGO_BIN_EXE_frugal"))
            .args(words.split_whitespace())
            .current_dir(folder.path())
            .env("FRUGAL_CACHE", folder.path().join("cache"))
            .env("TERM", "xterm")
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&done.stdout);
        assert_eq!(
            said.trim(),
            "130",
            "{}",
            String::from_utf8_lossy(&done.stderr)
        );
        assert!(!checkpoints(&out).is_empty(), "round {round}");
    }
}

#[cfg(unix)]
#[test]
fn a_hang_up_that_comes_twice_does_not_cost_the_checkpoint() {
    let folder = folder();
    for round in 0..4 {
        let out = folder.path().join(format!("runs/{round}"));
        let words = format!("tune --data sms-spam {SMALL} {ENDLESS} --quiet --out runs/{round}");
        let child = start(folder.path(), &words);
        wait_for_step(&out, 2);
        signal(&child, "-HUP");
        signal(&child, "-HUP");
        assert_eq!(end(child).code, 130);
        assert!(!checkpoints(&out).is_empty());
    }
}

#[test]
fn what_has_no_checkpoint_is_not_begun_again_by_resume() {
    let folder = folder();
    let at = |path: &str| folder.path().join(path);
    fs::create_dir(at("empty")).unwrap();
    run(folder.path(), "tune --resume empty --quiet").fails(&["empty", "no run to continue"]);
    assert_eq!(fs::read_dir(at("empty")).unwrap().count(), 0);
    run(
        folder.path(),
        &format!("tune --data sms-spam {SMALL} --max-steps 2 --quiet --out done"),
    )
    .ok();
    let files = || {
        [
            "adapter_model.safetensors",
            "record.json",
            "config.toml",
            "log.jsonl",
        ]
        .map(|name| fs::read(at("done").join(name)).unwrap())
    };
    let before = files();
    // Of another version, and damaged.
    for checkpoint in checkpoints(&at("done")) {
        let manifest = at("done/checkpoints")
            .join(&checkpoint)
            .join("manifest.json");
        let text = fs::read_to_string(&manifest).unwrap();
        fs::write(&manifest, text.replace("\"version\": 3", "\"version\": 99")).unwrap();
    }
    run(folder.path(), "tune --resume done --quiet").fails(&[
        "done",
        "no checkpoint to continue from",
        "step-2",
        "layout version 99",
        "--config",
    ]);
    fs::remove_dir_all(at("done/checkpoints")).unwrap();
    run(folder.path(), "tune --resume done --quiet --max-steps 9")
        .fails(&["`adapter_model.safetensors` of a finished run"]);
    assert!(files() == before);
    run(
        folder.path(),
        "pretrain --resume --data text.txt --out empty --quiet",
    )
    .fails(&["empty", "no run to continue"]);
}

#[test]
fn other_weights_under_the_same_name_are_noticed() {
    let folder = folder();
    let at = |path: &str| folder.path().join(path);
    run(
        folder.path(),
        "export --model builtin --to hf --type f32 --out base",
    )
    .ok();
    let words = format!("tune --model base --data sms-spam {SMALL} --max-steps 2 --quiet --out r");
    run(folder.path(), &words).ok();
    let eval = |words: &str| {
        let words = format!("eval --adapter r --data sms-spam --max-rows 8 {words}");
        run(folder.path(), &words).ok()
    };
    assert!(!eval("").stderr.contains("other weights"));
    assert_eq!(eval("--json").json()["base_changed"], false);
    let record: Value = serde_json::from_slice(&fs::read(at("r/record.json")).unwrap()).unwrap();
    assert_eq!(
        record["meta_info"]["model_info"]["sha256"]
            .as_str()
            .unwrap()
            .len(),
        64
    );
    let weights = at("base/model.safetensors");
    let mut bytes = fs::read(&weights).unwrap();
    // The lowest bit of one number in the middle.
    let middle = bytes.len() / 2 / 4 * 4;
    bytes[middle] ^= 1;
    fs::write(&weights, bytes).unwrap();
    run(folder.path(), "tune --resume r --max-steps 4 --quiet")
        .fails(&["r: the weights of `base` are not those that the run began with"]);
    assert!(
        eval("")
            .stderr
            .contains("r: trained on other weights than those of `base`")
    );
    assert_eq!(eval("--json").json()["base_changed"], true);
    let merged = run(folder.path(), "merge --adapter r --out merged").ok();
    assert!(
        merged.stderr.contains("trained on other weights"),
        "{}",
        merged.stderr
    );
}

#[test]
fn another_validation_set_is_no_measure_of_the_same_run() {
    let folder = folder();
    let rows = |words: &[&str]| {
        let line =
            |(i, word): (usize, &&str)| format!("{}\tthe {word} is here {i}\n", ["a", "b"][i % 2]);
        format!(
            "label\ttext\n{}",
            words.iter().enumerate().map(line).collect::<String>()
        )
    };
    let words = [
        "house", "boat", "tree", "road", "bird", "coat", "lamp", "door",
    ];
    fs::write(folder.path().join("train.tsv"), rows(&words)).unwrap();
    fs::write(folder.path().join("dev.tsv"), rows(&words[..4])).unwrap();
    let words_ = "tune --data train.tsv --eval-data dev.tsv --set evaluate_base=false --max-steps 2 --quiet --out r";
    run(folder.path(), words_).ok();
    fs::write(folder.path().join("dev.tsv"), rows(&words[2..6])).unwrap();
    run(folder.path(), "tune --resume r --max-steps 4 --quiet").fails(&[
        "r/checkpoints/step-2",
        "the validation data are not the same",
        "two sets",
    ]);
    fs::write(folder.path().join("dev.tsv"), rows(&words[..4])).unwrap();
    run(folder.path(), "tune --resume r --max-steps 4 --quiet").ok();
}

#[test]
fn a_folder_with_the_name_of_the_built_in_data_is_not_in_the_way() {
    let folder = folder();
    fs::create_dir(folder.path().join("sms-spam")).unwrap();
    let words = format!("tune {SMALL} --max-steps 1 --quiet --json");
    let out = run(folder.path(), &words).ok().json()["out"].clone();
    assert_eq!(out, "runs/sms-spam-lora");
    run(
        folder.path(),
        "eval --adapter runs/sms-spam-lora --data sms-spam --max-rows 4 --quiet",
    )
    .ok();
}

#[cfg(target_os = "linux")]
#[test]
fn a_folder_that_cannot_be_written_to_is_found_before_anything_is_read() {
    let folder = folder();
    // Nobody can create a folder there, whoever runs this.
    let refused = run(
        folder.path(),
        &format!("tune {SMALL} --out /proc/frugal/run"),
    );
    assert!(!refused.stderr.contains("tokenizing"), "{}", refused.stderr);
    refused.fails(&["/proc/frugal/run", "cannot create the folder"]);
}

/// Mounts a small file system in memory; `None` where that is not allowed.
#[cfg(target_os = "linux")]
struct Mounted(std::path::PathBuf);

#[cfg(target_os = "linux")]
impl Mounted {
    fn new(at: &Path, options: &str) -> Option<Self> {
        fs::create_dir_all(at).unwrap();
        let mount = Command::new("mount")
            .args(["-t", "tmpfs", "-o", options, "tmpfs"])
            .arg(at)
            .output();
        match mount {
            Ok(done) if done.status.success() => Some(Self(at.into())),
            Ok(done) => {
                let reason = String::from_utf8_lossy(&done.stderr).into_owned();
                eprintln!(
                    "skipped: no file system can be mounted here: {}",
                    reason.trim()
                );
                None
            }
            Err(error) => {
                eprintln!("skipped: no file system can be mounted here: {error}");
                None
            }
        }
    }
}

#[cfg(target_os = "linux")]
impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.0).status();
    }
}

#[cfg(target_os = "linux")]
#[test]
fn a_disk_that_fills_up_keeps_the_last_checkpoint() {
    let folder = folder();
    let small = folder.path().join("small");
    let Some(_mounted) = Mounted::new(&small, "size=9m") else {
        return;
    };
    let words = format!(
        "tune --data sms-spam {SMALL} --epochs 400 --logging-steps 1 --save-steps 2 --set train.save_total_limit=0 --quiet --out small/r"
    );
    run(folder.path(), &words).fails(&["No space left on device", "small/r/"]);
    let step = |name: &String| -> u64 { name.trim_start_matches("step-").parse().unwrap() };
    let mut kept = checkpoints(&small.join("r"));
    kept.sort_by_key(step);
    let newest = kept.pop().unwrap();
    // With room again it goes on from the last one.
    for name in kept {
        fs::remove_dir_all(small.join("r/checkpoints").join(name)).unwrap();
    }
    let words = format!(
        "tune --resume small/r --max-steps {} --json",
        step(&newest) + 2
    );
    let resumed = run(folder.path(), &words).ok();
    let continued = format!("continuing after step {} ", step(&newest));
    assert!(resumed.stderr.contains(&continued), "{}", resumed.stderr);
    assert_eq!(resumed.json()["interrupted"], false);
}

#[cfg(unix)]
#[test]
fn what_was_killed_while_it_wrote_does_not_block_the_next_try() {
    let folder = folder();
    let at = |path: &str| folder.path().join(path);
    run(
        folder.path(),
        &format!("tune --data sms-spam {SMALL} --max-steps 1 --quiet --out a"),
    )
    .ok();
    let commands = [
        ("merge --adapter a --out out", "out"),
        (
            "export --model builtin --to gguf --type f32 --out out.gguf",
            "out.gguf",
        ),
        ("adapters to-lora a --out lora", "lora"),
    ];
    for (words, out) in commands {
        let begun = Instant::now();
        let reference = run(folder.path(), words);
        let takes = begun.elapsed();
        reference.ok();
        let read = |path: &Path| -> Vec<(String, Vec<u8>)> {
            if path.is_file() {
                return vec![(out.into(), fs::read(path).unwrap())];
            }
            let mut files: Vec<_> = fs::read_dir(path)
                .unwrap()
                .flatten()
                .map(|e| {
                    (
                        e.file_name().to_string_lossy().into_owned(),
                        fs::read(e.path()).unwrap(),
                    )
                })
                .collect();
            files.sort();
            files
        };
        let remove = || {
            if at(out).is_dir() {
                fs::remove_dir_all(at(out)).unwrap();
            } else if at(out).exists() {
                fs::remove_file(at(out)).unwrap();
            }
        };
        let whole = read(&at(out));
        remove();
        for round in 1..=6_u32 {
            let mut child = start(folder.path(), words);
            sleep(takes * round / 6);
            let _ = child.kill();
            let done = child.wait().unwrap().success();
            if !done {
                run(folder.path(), words).ok();
            }
            assert!(read(&at(out)) == whole, "{words}, killed after {round}/6");
            remove();
        }
        let left: Vec<String> = fs::read_dir(folder.path())
            .unwrap()
            .flatten()
            .map(|e| e.file_name().to_string_lossy().into_owned())
            .filter(|name| name.ends_with(".tmp") || name.contains("partial"))
            .collect();
        assert!(left.is_empty(), "{left:?}");
    }
}

#[test]
fn a_run_that_needs_more_memory_than_there_is_is_refused_with_flags_that_fit() {
    let folder = folder();
    let text = "see you soon at the house by the road ".repeat(20);
    let line = |i: usize| format!("{}\t{i} {text}\n", ["ham", "spam"][i % 2]);
    let rows: String = (0..10_000).map(line).collect();
    fs::write(
        folder.path().join("long.tsv"),
        format!("label\ttext\n{rows}"),
    )
    .unwrap();
    fs::write(
        folder.path().join("dev.tsv"),
        "label\ttext\nham\tsee you soon\nspam\twin a prize\n",
    )
    .unwrap();
    let words = "--data long.tsv --eval-data dev.tsv --truncate --batch-size 10000 --set evaluate_base=false";
    let plan = run(folder.path(), &format!("plan {words} --json")).ok();
    let found = plan.json();
    let (needed, available) = (
        found["peak_memory_bytes"].as_u64().unwrap(),
        found["available_memory_bytes"].as_u64().unwrap(),
    );
    if needed <= available {
        eprintln!("skipped: this machine has more than {needed} bytes of memory");
        return;
    }
    let flags: Vec<&str> = found["fitting_flags"]
        .as_array()
        .unwrap()
        .iter()
        .map(|f| f.as_str().unwrap())
        .collect();
    assert!(
        flags.iter().any(|f| f.starts_with("--batch-size ")),
        "{flags:?}"
    );
    assert!(
        plan.stderr.contains("more memory than is available"),
        "{}",
        plan.stderr
    );
    // The flags do what is said of them.
    let fitting = format!(
        "plan {} {} --json",
        words.replace("--batch-size 10000 ", ""),
        flags.join(" ")
    );
    let fitted = run(folder.path(), &fitting).ok().json();
    assert!(
        fitted["peak_memory_bytes"].as_u64().unwrap()
            <= fitted["available_memory_bytes"].as_u64().unwrap()
    );
    run(folder.path(), &format!("tune {words} --quiet --out r")).fails(&[
        "the run needs about",
        "are available",
        "`--fit`",
        "--batch-size",
        "--no-memory-check",
    ]);
    assert!(!folder.path().join("r").exists());
}

/// A comparison that is killed, and its run with it.
#[cfg(unix)]
#[test]
fn the_runs_of_a_comparison_end_with_it() {
    let folder = folder();
    fs::write(
        folder.path().join("suite.toml"),
        r#"
description = "one long run"
seeds = [0]
[tune]
evaluate_base = false
data = { train = "sms-spam", max_train_rows = 32, max_eval_rows = 4 }
train = { epochs = 4000.0, logging_steps = 1, save_steps = 20 }
[[runs]]
name = "long"
method = { name = "lora" }
"#,
    )
    .unwrap();
    let out = folder.path().join("b");
    let log = out.join("long-seed0");
    let mut first = start(
        folder.path(),
        "bench adapt --suite suite.toml --out b --quiet",
    );
    let begun = Instant::now();
    while steps_done(&log) < 3 {
        if first.try_wait().unwrap().is_some() || begun.elapsed() > Duration::from_secs(90) {
            let run = end(first);
            panic!("no step: {} {}", run.stdout, run.stderr);
        }
        sleep(Duration::from_millis(5));
    }
    // Two at once.
    run(
        folder.path(),
        "bench adapt --suite suite.toml --out b --quiet",
    )
    .fails(&["b: process", "is writing to this folder"]);
    first.kill().unwrap();
    first.wait().unwrap();
    // The orphan saves and ends by itself.
    wait_for("the orphan's end", || !log.join(".frugal.lock").exists());
    assert!(!checkpoints(&log).is_empty());
    let steps = steps_done(&log);
    let second = start(
        folder.path(),
        "bench adapt --suite suite.toml --out b --quiet",
    );
    wait_for_step(&log, steps + 3);
    let mut second = second;
    second.kill().unwrap();
    second.wait().unwrap();
    wait_for("the second orphan's end", || {
        !log.join(".frugal.lock").exists()
    });
}
