//! The folder of a run: whose it is, and the configuration in it.

use std::path::{Path, PathBuf};
use std::sync::Mutex;

use frugal_adapt::peft;
use frugal_core::events::LOG_FILE;
use frugal_core::fs::{FileError, is_temporary, write_atomic};
use frugal_core::lock::{FolderLock, LOCK_FILE, LockError};
use frugal_eval::report::{RECORD_FILE, RunRecord};
use frugal_models::load::MODEL_FOLDER;
use frugal_train::{self, CHECKPOINTS, Event};
use serde::Serialize;
use serde_json::Value;

use super::RunError;
use super::base::BASE_FILE;

/// How the names of TensorBoard's files begin.
const EVENTS: &str = "events.out.tfevents.";

/// The sole right to the folder of a run, and how it was before.
#[derive(Debug)]
pub(super) struct Claim {
    /// Released before the folder is removed.
    lock: Option<FolderLock>,
    out: PathBuf,
    config_file: &'static str,
    /// Folders that were made for it, the innermost first.
    made: Vec<PathBuf>,
    /// Whether something was in it.
    used: bool,
}

/// Takes a folder that is new or empty, or with `resume` that of a run, for this process alone.
pub(super) fn claim(
    out: &Path,
    config_file: &'static str,
    resume: bool,
) -> Result<Claim, RunError> {
    if resume && !is_used(out) {
        return Err(RunError::NoRun {
            path: out.into(),
            file: config_file,
        });
    }
    if !resume && out.exists() && !out.is_dir() {
        return Err(RunError::OutputIsFile { path: out.into() });
    }
    // Said before anything is written: a folder of other things is not to be touched.
    if !resume && is_used(out) && !out.join(LOCK_FILE).exists() {
        return Err(RunError::OutputExists { path: out.into() });
    }
    let mut claim = Claim {
        made: missing(out),
        lock: None,
        out: out.into(),
        config_file,
        used: false,
    };
    match FolderLock::acquire(out) {
        Ok(lock) => claim.lock = Some(lock),
        Err(error) => {
            // What is in the folder is the other process's.
            claim.remove_made();
            return Err(error.into());
        }
    }
    // Only now nobody else changes it.
    claim.used = is_used(out);
    if resume {
        check_resumable(out, config_file)?;
        remove_unfinished(out);
    } else if claim.used {
        return Err(RunError::OutputExists { path: out.into() });
    }
    Ok(claim)
}

/// Takes the first folder that is free of `name`, `name-2`, `name-3` and so on. Processes that do
/// so at the same time get different ones.
pub(super) fn claim_free(name: &Path, config_file: &'static str) -> Result<Claim, RunError> {
    let numbered = (2..).map(|n| {
        let mut path = name.as_os_str().to_owned();
        path.push(format!("-{n}"));
        PathBuf::from(path)
    });
    for out in std::iter::once(name.to_owned()).chain(numbered) {
        match claim(&out, config_file, false) {
            Err(
                RunError::OutputExists { .. }
                | RunError::OutputIsFile { .. }
                | RunError::Lock(LockError::Held { .. }),
            ) => {}
            Ok(mut claim) => {
                // The name is ours: an empty folder of it is that of another who was too late.
                if !claim.made.contains(&out) {
                    claim.made.insert(0, out);
                }
                return Ok(claim);
            }
            Err(error) => return Err(error),
        }
    }
    unreachable!("there is always a next number")
}

/// Whether there is something in a folder, or it is none; locks and files that were being written
/// when their process was killed do not count.
fn is_used(out: &Path) -> bool {
    if out.exists() && !out.is_dir() {
        return true;
    }
    let entries = std::fs::read_dir(out).into_iter().flatten().flatten();
    entries
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .any(|name| name != LOCK_FILE && !is_temporary(&name))
}

/// The folder and those above it that are not there, the innermost first.
pub(super) fn missing(out: &Path) -> Vec<PathBuf> {
    out.ancestors()
        .take_while(|dir| !dir.as_os_str().is_empty() && !dir.exists())
        .map(Path::to_owned)
        .collect()
}

/// Refuses a folder in which there is nothing to continue from, and says what there is instead.
/// Nothing is lost only by a run that was stopped before it wrote its first checkpoint: that one
/// may begin again.
fn check_resumable(out: &Path, config_file: &'static str) -> Result<(), RunError> {
    let (newest, damaged) = frugal_train::latest(out);
    if newest.is_some() {
        return Ok(());
    }
    let no_checkpoint = |found: Vec<String>| RunError::NoCheckpoint {
        path: out.into(),
        found: found.join("; "),
    };
    if !damaged.is_empty() {
        return Err(no_checkpoint(
            damaged.iter().map(ToString::to_string).collect(),
        ));
    }
    if !out.join(config_file).exists() {
        return Err(RunError::NoRun {
            path: out.into(),
            file: config_file,
        });
    }
    let results = [
        peft::CONFIG_FILE,
        peft::WEIGHTS_FILE,
        MODEL_FOLDER,
        "model.safetensors",
    ];
    let finished: Vec<String> = results
        .into_iter()
        .filter(|name| out.join(name).exists())
        .map(|name| format!("`{name}` of a finished run, which would be replaced"))
        .collect();
    if !finished.is_empty() {
        return Err(no_checkpoint(finished));
    }
    match RunRecord::read(&out.join(RECORD_FILE)) {
        Ok(record) if record.train_info.train_tokens > 0 => Err(no_checkpoint(vec![format!(
            "`{RECORD_FILE}` says that {} tokens were trained on, and the checkpoint of that is gone",
            frugal_core::human::count(record.train_info.train_tokens)
        )])),
        _ => Ok(()),
    }
}

/// Removes checkpoints that a killed process was writing.
fn remove_unfinished(out: &Path) {
    let folder = out.join(CHECKPOINTS);
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        if is_temporary(&entry.file_name().to_string_lossy()) {
            // They count for nothing, so one that stays does no harm.
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
}

impl Claim {
    /// The folder.
    pub(super) fn out(&self) -> &Path {
        &self.out
    }

    /// After a run that failed: takes away what it began with, so that the next one can have the
    /// folder. One that was in use before, or holds a checkpoint or a logged step, stays as it is;
    /// so does every file that is not of a run.
    pub(super) fn give_back(mut self) {
        if self.clear() {
            self.lock = None;
            self.remove_made();
        }
    }

    /// Lists what is to be given back if the program ends at once; until what is returned is dropped.
    pub(super) fn register(&self) -> Registered {
        let claim = Self {
            lock: None,
            out: self.out.clone(),
            config_file: self.config_file,
            made: self.made.clone(),
            used: self.used,
        };
        if let Ok(mut all) = CLAIMS.lock() {
            all.push(claim);
        }
        Registered(self.out.clone())
    }

    /// Whether the folder was one that can be given back, of which the files of a run are removed.
    fn clear(&self) -> bool {
        let logged = std::fs::metadata(self.out.join(LOG_FILE)).is_ok_and(|log| log.len() > 0);
        if self.used || logged || !frugal_train::list(&self.out).is_empty() {
            return false;
        }
        for path in std::fs::read_dir(&self.out)
            .into_iter()
            .flatten()
            .flatten()
            .map(|entry| entry.path())
        {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            // What cannot be removed only stands in the way of the next run; the failure of this
            // one is what has to be told.
            let _ = if name == CHECKPOINTS {
                std::fs::remove_dir_all(&path)
            } else if [self.config_file, LOG_FILE, BASE_FILE].contains(&&*name)
                || name.starts_with(EVENTS)
            {
                std::fs::remove_file(&path)
            } else {
                Ok(())
            };
        }
        true
    }

    /// Takes away the folders that were made for the claim, as far as nothing is in them.
    fn remove_made(&self) {
        for folder in &self.made {
            // Fails if somebody else's file is there, as it should.
            let _ = std::fs::remove_dir(folder);
        }
    }
}

/// Claims of runs that go on in this process.
static CLAIMS: Mutex<Vec<Claim>> = Mutex::new(Vec::new());

/// A claim is listed while this lives.
pub(super) struct Registered(PathBuf);

impl Drop for Registered {
    fn drop(&mut self) {
        if let Ok(mut all) = CLAIMS.lock() {
            all.retain(|claim| claim.out != self.0);
        }
    }
}

/// For a program that ends at once: gives back the folders of runs that took no step, as after a
/// failure. Folders with something of an earlier run stay as they are.
pub fn abandon() {
    // Not waited for: the program ends.
    let Ok(all) = CLAIMS.try_lock() else { return };
    for claim in all.iter().filter(|claim| claim.clear()) {
        // The lock ends with the process; its file must not keep the folder.
        let _ = std::fs::remove_file(claim.out.join(LOCK_FILE));
        claim.remove_made();
    }
}

/// A resumed run must be the one that began: compares these keys, dotted where they are in a table.
pub(super) fn check_same_run(
    path: &Path,
    before: &impl Serialize,
    now: &impl Serialize,
    keys: &[&str],
) -> Result<(), RunError> {
    let (before, now) = (
        serde_json::to_value(before).unwrap_or_default(),
        serde_json::to_value(now).unwrap_or_default(),
    );
    for key in keys {
        let of = |config: &Value| {
            key.split('.')
                .fold(config.clone(), |value, part| value[part].clone())
        };
        let (before, now) = (of(&before), of(&now));
        if before != now {
            return Err(RunError::OtherRun {
                path: path.into(),
                key: (*key).into(),
                before: before.to_string(),
                now: now.to_string(),
            });
        }
    }
    Ok(())
}

/// The configuration file of a run; that of a resumed run is replaced once the trainer has accepted
/// the checkpoint.
pub(super) struct ConfigFile {
    path: PathBuf,
    text: String,
    waiting: bool,
    error: Option<FileError>,
}

impl ConfigFile {
    pub(super) fn new(
        path: PathBuf,
        config: &impl Serialize,
        resume: bool,
    ) -> Result<Self, RunError> {
        let text = frugal_core::config::to_toml(config)
            .map_err(|e| RunError::Invalid(format!("the configuration cannot be written: {e}")))?;
        let waiting = resume && path.exists();
        if !waiting {
            write_atomic(&path, text.as_bytes())?;
        }
        Ok(Self {
            path,
            text,
            waiting,
            error: None,
        })
    }

    pub(super) fn on(&mut self, event: &Event) {
        if self.waiting && matches!(event, Event::Started { .. }) {
            self.waiting = false;
            self.error = write_atomic(&self.path, self.text.as_bytes()).err();
        }
    }

    pub(super) fn finish(self) -> Result<(), RunError> {
        self.error.map_or(Ok(()), |error| Err(error.into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run::PretrainConfig;

    #[test]
    fn only_the_folder_of_a_run_is_resumed() {
        let folder = tempfile::tempdir().unwrap();
        let claimed = |resume| claim(folder.path(), "config.toml", resume);
        assert!(claimed(false).is_ok());
        assert!(matches!(claimed(true), Err(RunError::NoRun { .. })));
        std::fs::write(folder.path().join("letter.txt"), "dear").unwrap();
        let file = claim(&folder.path().join("letter.txt"), "config.toml", false);
        assert!(matches!(file, Err(RunError::OutputIsFile { .. })));
        #[cfg(unix)]
        {
            let [zero, link] = ["zero", "link"].map(|name| folder.path().join(name));
            std::os::unix::fs::symlink("/dev/zero", &zero).unwrap();
            let device = claim(&zero, "config.toml", false);
            assert!(matches!(device, Err(RunError::OutputIsFile { .. })));
            std::os::unix::fs::symlink("nowhere", &link).unwrap();
            let told = claim(&link, "config.toml", false).unwrap_err().to_string();
            assert!(told.contains("a link to what is not there"), "{told}");
            std::fs::remove_file(zero).unwrap();
            std::fs::remove_file(link).unwrap();
        }
        assert!(matches!(claimed(false), Err(RunError::OutputExists { .. })));
        assert!(matches!(claimed(true), Err(RunError::NoRun { .. })));
        std::fs::create_dir(folder.path().join(CHECKPOINTS)).unwrap();
        assert!(matches!(claimed(true), Err(RunError::NoRun { .. })));
        // Stopped before its first checkpoint.
        std::fs::write(folder.path().join("config.toml"), "seed = 0").unwrap();
        assert!(claimed(true).is_ok());
        assert!(matches!(claimed(false), Err(RunError::OutputExists { .. })));
    }

    #[test]
    fn a_run_that_is_ended_while_it_reads_leaves_no_folder_in_the_way() {
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join("runs/first");
        let claimed = claim(&out, "config.toml", false).unwrap();
        let registered = claimed.register();
        std::fs::write(out.join("config.toml"), "seed = 0").unwrap();
        abandon();
        assert!(!folder.path().join("runs").exists());
        drop(registered);
        drop(claimed);
        // One with a step of its own stays.
        let claimed = claim(&out, "config.toml", false).unwrap();
        let registered = claimed.register();
        std::fs::write(out.join(LOG_FILE), "{\"step\":1}\n").unwrap();
        abandon();
        assert!(out.join(LOG_FILE).exists());
        drop((registered, claimed));
    }

    #[test]
    fn a_run_without_a_usable_checkpoint_is_not_begun_again_over_what_it_made() {
        let folder = tempfile::tempdir().unwrap();
        let refused = || {
            claim(folder.path(), "config.toml", true)
                .unwrap_err()
                .to_string()
        };
        let file = |name: &str, text: &str| {
            write_atomic(&folder.path().join(name), text.as_bytes()).unwrap();
        };
        file("config.toml", "seed = 0");
        file("adapter_model.safetensors", "weights");
        assert!(
            refused().contains("`adapter_model.safetensors` of a finished run"),
            "{}",
            refused()
        );
        file(
            "checkpoints/step-4/manifest.json",
            r#"{"version": 2, "files": {}}"#,
        );
        file("checkpoints/step-8/manifest.json", "{");
        let said = refused();
        for found in ["step-4", "layout version 2", "step-8", "EOF"] {
            assert!(said.contains(found), "{found}: {said}");
        }
    }

    #[test]
    fn a_folder_that_another_process_writes_to_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let first = claim(folder.path(), "config.toml", false).unwrap();
        let error = claim(folder.path(), "config.toml", false)
            .unwrap_err()
            .to_string();
        assert!(error.contains("is writing to this folder"), "{error}");
        write_atomic(&folder.path().join("config.toml"), b"").unwrap();
        for resume in [false, true] {
            let error = claim(folder.path(), "config.toml", resume)
                .unwrap_err()
                .to_string();
            assert!(error.contains("is writing to this folder"), "{error}");
        }
        drop(first);
        assert!(claim(folder.path(), "config.toml", true).is_ok());
    }

    #[test]
    fn folders_without_a_name_of_their_own_are_numbered_apart() {
        let folder = tempfile::tempdir().unwrap();
        let name = folder.path().join("runs/sms-spam-lora");
        let claims: Vec<Claim> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..8)
                .map(|_| scope.spawn(|| claim_free(&name, "config.toml").unwrap()))
                .collect();
            threads.into_iter().map(|t| t.join().unwrap()).collect()
        });
        let mut outs: Vec<&Path> = claims.iter().map(Claim::out).collect();
        outs.sort();
        outs.dedup();
        assert_eq!(outs.len(), 8);
        claims.into_iter().for_each(Claim::give_back);
        // The folder above is left to others that start at the same time, but nothing in it.
        let left = std::fs::read_dir(folder.path().join("runs"));
        assert_eq!(left.map_or(0, |entries| entries.count()), 0);
    }

    #[test]
    fn a_run_that_failed_takes_back_what_it_began_with_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join("run");
        let write =
            |name: &str, text: &str| write_atomic(&out.join(name), text.as_bytes()).unwrap();
        let left = || {
            let entries = std::fs::read_dir(&out).unwrap().flatten();
            let mut names: Vec<String> = entries
                .map(|e| e.file_name().to_string_lossy().into_owned())
                .collect();
            names.sort();
            names
        };
        // A run that fails in a folder after it wrote these files beside what every run begins
        // with.
        let failed = |resume, files: &[(&str, &str)]| {
            let claimed = claim(&out, "config.toml", resume).unwrap();
            let begun = [
                ("config.toml", "seed = 0"),
                ("log.jsonl", ""),
                ("events.out.tfevents.1.host", "x"),
            ];
            begun
                .iter()
                .chain(files)
                .for_each(|(name, text)| write(name, text));
            claimed.give_back();
        };
        let emptied = || {
            std::fs::remove_dir_all(&out).unwrap();
            std::fs::create_dir(&out).unwrap();
        };
        failed(false, &[("checkpoints/.step-1.tmp/cost.json", "{}")]);
        assert!(!out.exists());
        failed(false, &[("letter.txt", "dear")]);
        assert_eq!(left(), ["letter.txt"]);
        emptied();
        failed(false, &[]);
        assert!(left().is_empty(), "the folder was there before");
        failed(false, &[("log.jsonl", "{\"step\": 10}\n")]);
        assert_eq!(
            left().len(),
            3,
            "steps that were logged are worth something"
        );
        failed(true, &[]);
        assert_eq!(left().len(), 3, "it was another run's");
        emptied();
        failed(false, &[("checkpoints/step-1/manifest.json", "{}")]);
        assert_eq!(left().len(), 4, "a checkpoint is worth something");
    }

    #[test]
    fn a_difference_is_told_with_both_values() {
        let before = PretrainConfig::default();
        let mut now = before.clone();
        now.shape.hidden_size = 384;
        let check = |keys: &[&str]| check_same_run(Path::new("pretrain.toml"), &before, &now, keys);
        assert!(check(&["seed", "shape.vocab_size"]).is_ok());
        let error = check(&["seed", "shape.hidden_size"])
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("`shape.hidden_size` was 192") && error.contains("is 384"),
            "{error}"
        );
    }

    #[test]
    fn the_configuration_waits_for_the_checkpoint() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config.toml");
        let text = || std::fs::read_to_string(&path).unwrap();
        ConfigFile::new(path.clone(), &PretrainConfig::default(), false).unwrap();
        let first = text();
        let other = PretrainConfig {
            seed: 7,
            ..PretrainConfig::default()
        };
        let mut file = ConfigFile::new(path.clone(), &other, true).unwrap();
        assert_eq!(text(), first);
        file.on(&Event::Started {
            total_steps: 1,
            examples: 1,
            skipped: 0,
            trainable_parameters: 1,
        });
        file.finish().unwrap();
        assert!(text().contains("seed = 7"));
    }
}
