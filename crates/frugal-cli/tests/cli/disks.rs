//! What runs find and leave in folders: changed inputs, full and read-only disks, files of killed
//! processes; and whether they fit the memory.

use std::fs;
use std::path::Path;
#[cfg(unix)]
use std::process::Command;
#[cfg(unix)]
use std::thread::sleep;
#[cfg(unix)]
use std::time::Instant;

use serde_json::Value;

use crate::runs::{SMALL, checkpoints, run, start};
use crate::support::folder;

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
        &format!("tune --data sms-spam {SMALL} --max-steps 3 --quiet --out a"),
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
                // Results are complete before the lock is given back.
                .filter(|e| e.file_name() != ".frugal.lock")
                .map(|e| {
                    (
                        e.file_name().to_string_lossy().into_owned(),
                        // A folder in which something is being written has no bytes.
                        fs::read(e.path()).unwrap_or_default(),
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
            // It may have been killed after all was written.
            let is_whole = at(out).exists() && read(&at(out)) == whole;
            if !done && !is_whole {
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
