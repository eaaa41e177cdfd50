//! The folder of a run: whose it is, and the configuration in it.

use std::path::{Path, PathBuf};

use frugal_core::events::LOG_FILE;
use frugal_core::fs::{FileError, write_atomic};
use frugal_train::{self, CHECKPOINTS, Event};
use serde::Serialize;
use serde_json::Value;

use super::RunError;

/// How the names of TensorBoard's files begin.
const EVENTS: &str = "events.out.tfevents.";

/// The folder of a run, as it was before.
pub(super) struct Claim {
    out: PathBuf,
    config_file: &'static str,
    /// Whether it was there.
    existed: bool,
    /// Whether something was in it.
    used: bool,
}

/// Checks that the folder is new, empty, or that of the run that is resumed, which has
/// `config_file` or checkpoints. It comes into being with the first file, so that a run that cannot
/// start leaves nothing behind.
pub(super) fn claim(
    out: &Path,
    config_file: &'static str,
    resume: bool,
) -> Result<Claim, RunError> {
    let used = std::fs::read_dir(out).is_ok_and(|mut entries| entries.next().is_some());
    if used && !resume {
        return Err(RunError::OutputExists { path: out.into() });
    }
    if used && !out.join(config_file).exists() && !out.join(CHECKPOINTS).exists() {
        return Err(RunError::NoRun {
            path: out.into(),
            file: config_file,
        });
    }
    Ok(Claim {
        out: out.into(),
        config_file,
        existed: out.exists(),
        used,
    })
}

impl Claim {
    /// After a run that failed: takes away what it began with, so that the next one can have the
    /// folder. One that was in use before, or holds a checkpoint or a logged step, stays as it is;
    /// so does every file that is not of a run.
    pub(super) fn give_back(&self) {
        let logged = std::fs::metadata(self.out.join(LOG_FILE)).is_ok_and(|log| log.len() > 0);
        if self.used || logged || !frugal_train::list(&self.out).is_empty() {
            return;
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
            } else if name == self.config_file || name == LOG_FILE || name.starts_with(EVENTS) {
                std::fs::remove_file(&path)
            } else {
                Ok(())
            };
        }
        if !self.existed {
            // Fails if somebody else's file is there, as it should.
            let _ = std::fs::remove_dir(&self.out);
        }
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
        assert!(claimed(false).is_ok() && claimed(true).is_ok());
        std::fs::write(folder.path().join("letter.txt"), "dear").unwrap();
        assert!(matches!(claimed(false), Err(RunError::OutputExists { .. })));
        assert!(matches!(claimed(true), Err(RunError::NoRun { .. })));
        std::fs::create_dir(folder.path().join(CHECKPOINTS)).unwrap();
        assert!(claimed(true).is_ok());
        assert!(matches!(claimed(false), Err(RunError::OutputExists { .. })));
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
