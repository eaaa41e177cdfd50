//! Signals, limits of files, and what stands in the place of files.
#![cfg(unix)]

use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::support::{fixture, folder, frugal_in};

const LLAMA: &str = "harness/llama";

fn started(folder: &Path, shell: &str) -> Child {
    let program = env!("CARGO_BIN_EXE_frugal");
    Command::new("sh")
        .args(["-c", &shell.replace("frugal", program)])
        .current_dir(folder)
        .env("FRUGAL_CACHE", folder.join("cache"))
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

fn signal(child: &Child, name: &str) {
    let id = child.id().to_string();
    let sent = Command::new("kill").args(["-s", name, &id]).status();
    assert!(sent.unwrap().success());
}

/// Waits until there is such a file, at most some seconds.
fn wait_for(path: &Path) {
    for _ in 0..400 {
        if path.exists() {
            return;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    panic!("{}: never came", path.display());
}

fn rows(folder: &Path) {
    let row = |i| format!("{{\"prompt\": \"number {i}\", \"completion\": \" is {i}\"}}\n");
    std::fs::write(folder.join("d.jsonl"), (0..64).map(row).collect::<String>()).unwrap();
}

#[test]
fn a_run_that_waits_for_its_data_ends_at_the_first_signal_and_leaves_no_folder() {
    let folder = folder();
    let folder = folder.path();
    let made = Command::new("mkfifo").arg(folder.join("d.jsonl")).status();
    assert!(made.unwrap().success());
    let model = fixture(LLAMA);
    let words = format!(
        "exec frugal tune -m {} --task causal-lm --data d.jsonl --out run",
        model.display()
    );
    for name in ["TERM", "INT", "USR1"] {
        let mut child = started(folder, &words);
        wait_for(&folder.join("run"));
        std::thread::sleep(Duration::from_millis(300));
        signal(&child, name);
        assert_eq!(child.wait().unwrap().code(), Some(130), "{name}");
        assert!(!folder.join("run").exists(), "{name}");
    }
}

#[test]
fn a_scheduler_that_tells_of_the_end_gets_a_checkpoint() {
    let folder = folder();
    let folder = folder.path();
    rows(folder);
    let model = fixture(LLAMA);
    for name in ["USR1", "USR2", "XCPU"] {
        let words = format!(
            "exec frugal tune -m {} --task causal-lm --data d.jsonl --out {name} --epochs 5000 --set train.logging_steps=1",
            model.display()
        );
        let mut child = started(folder, &words);
        let log = folder.join(name).join("log.jsonl");
        wait_for(&log);
        for _ in 0..400 {
            if std::fs::metadata(&log).unwrap().len() > 0 {
                break;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        signal(&child, name);
        assert_eq!(child.wait().unwrap().code(), Some(130), "{name}");
        let checkpoints = std::fs::read_dir(folder.join(name).join("checkpoints"));
        assert!(checkpoints.unwrap().count() > 0, "{name}");
    }
}

#[test]
fn a_file_that_may_grow_no_further_is_told_and_not_a_silent_end() {
    let folder = folder();
    let folder = folder.path();
    rows(folder);
    let words = format!(
        "ulimit -f 20; exec frugal tune -m {} --task causal-lm --data d.jsonl --out run",
        fixture(LLAMA).display()
    );
    let ended = started(folder, &words).wait_with_output().unwrap();
    let told = String::from_utf8(ended.stderr).unwrap();
    assert_eq!(ended.status.code(), Some(2), "{told}");
    assert!(
        told.contains("error: ") && told.contains("cannot write"),
        "{told}"
    );
}

#[test]
fn weights_can_be_read_by_whom_the_umask_lets() {
    let folder = folder();
    let folder = folder.path();
    rows(folder);
    std::fs::write(folder.join("usual"), "").unwrap();
    let model = fixture(LLAMA).display().to_string();
    let words = [
        "tune",
        "-m",
        &model,
        "--task",
        "causal-lm",
        "--data",
        "d.jsonl",
        "--out",
        "run",
    ];
    frugal_in(folder, &words).ok();
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    let usual = mode(&folder.join("usual"));
    let mut folders = vec![folder.join("run")];
    let mut weights = 0;
    while let Some(next) = folders.pop() {
        for entry in std::fs::read_dir(next).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            weights += usize::from(path.extension().is_some_and(|e| e == "safetensors"));
            assert_eq!(mode(&path), usual, "{}", path.display());
        }
    }
    assert!(weights > 1);
}

#[test]
fn devices_in_place_of_the_files_of_a_model_are_named() {
    let folder = folder();
    let folder = folder.path();
    let model = folder.join("model");
    for name in ["config.json", "tokenizer.json", "generation_config.json"] {
        let _ = std::fs::remove_dir_all(&model);
        std::fs::create_dir(&model).unwrap();
        for entry in std::fs::read_dir(fixture(LLAMA)).unwrap() {
            let entry = entry.unwrap();
            std::fs::copy(entry.path(), model.join(entry.file_name())).unwrap();
        }
        let _ = std::fs::remove_file(model.join(name));
        symlink("/dev/zero", model.join(name)).unwrap();
        frugal_in(folder, &["generate", "-m", "model", "-p", "hello"])
            .fails(&[name, "not a regular file"]);
    }
}
