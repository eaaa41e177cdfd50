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
pub const SMALL: &str =
    "--max-train-rows 32 --max-eval-rows 4 --batch-size 8 --pooling mean --set evaluate_base=false";
/// So long that it is always ended from outside.
const ENDLESS: &str = "--epochs 4000 --logging-steps 1 --save-steps 20";

pub fn run(folder: &Path, words: &str) -> Run {
    frugal_in(folder, &words.split_whitespace().collect::<Vec<_>>())
}

pub fn start(folder: &Path, words: &str) -> Child {
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

pub fn checkpoints(out: &Path) -> Vec<String> {
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
