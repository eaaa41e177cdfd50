//! One study, from its folder to its files.

use frugal_core::fs::write_atomic;
use serde_json::json;

use super::request::WORK;
use super::{Outcome, StudyError, StudyEvent, StudyRequest};
use crate::run::folder::missing;
use crate::run::{RESULTS_FILE, claim_results};

/// What a study is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StudyKind {
    /// Finding and ranking.
    Retrieve,
    /// Answering from what was found.
    Rag,
    /// New models from text.
    Pretrain,
}

/// One experiment.
pub struct Study {
    /// Its name, that of the published system.
    pub name: &'static str,
    /// Under which command it stands.
    pub kind: StudyKind,
    /// What is compared on which data, in a sentence.
    pub about: &'static str,
    /// Paper, and official repository where behavior follows its code.
    pub source: &'static str,
    /// Measures all arms.
    pub run: fn(&StudyRequest<'_>, &mut dyn FnMut(StudyEvent)) -> Result<Outcome, StudyError>,
}

impl StudyKind {
    /// Its name under `frugal bench`.
    #[must_use]
    pub fn command(self) -> &'static str {
        match self {
            Self::Retrieve => "retrieve",
            Self::Rag => "rag",
            Self::Pretrain => "pretrain",
        }
    }
}

/// Runs a study and writes `results.json` and `results.md` into its folder. One that fails before
/// anything is kept leaves no empty folder.
///
/// # Errors
/// What the study meets, a folder that another process has, or files that cannot be written.
pub fn run(
    study: &Study,
    request: &StudyRequest<'_>,
    observe: &mut dyn FnMut(StudyEvent),
) -> Result<Outcome, StudyError> {
    let made = missing(&request.out);
    let lock = claim_results(&request.out, "study", |name| name == WORK)?;
    let found = run_in_folder(study, request, observe);
    // Removing fails where something is in a folder, as it should.
    if found.is_err() {
        let _ = std::fs::remove_dir(request.work());
        drop(lock);
        for folder in made {
            let _ = std::fs::remove_dir(folder);
        }
    }
    found
}

fn run_in_folder(
    study: &Study,
    request: &StudyRequest<'_>,
    observe: &mut dyn FnMut(StudyEvent),
) -> Result<Outcome, StudyError> {
    let mut outcome = (study.run)(request, observe)?;
    if request.smoke {
        outcome.claims.clear();
        outcome
            .notes
            .insert(0, "Smallest size, to see that every arm runs.".to_owned());
    }
    let results = json!({
        "study": study.name,
        "about": study.about,
        "source": study.source,
        "seeds": request.seeds,
        "smoke": request.smoke,
        "outcome": outcome,
    });
    let text = format!("{results:#}\n");
    write_atomic(&request.out.join(RESULTS_FILE), text.as_bytes())?;
    let markdown = outcome.markdown(&format!("{}: {}", study.name, study.about));
    write_atomic(&request.out.join("results.md"), markdown.as_bytes())?;
    Ok(outcome)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicBool;

    use super::*;

    fn failing(request: &StudyRequest<'_>) -> Result<Outcome, StudyError> {
        std::fs::create_dir_all(request.work()).unwrap();
        Err(StudyError::Stopped)
    }

    #[test]
    fn a_study_that_fails_leaves_no_empty_folder_and_takes_no_work_away() {
        let folder = tempfile::tempdir().unwrap();
        let stop = AtomicBool::new(false);
        let request = StudyRequest {
            data_dir: folder.path().into(),
            out: folder.path().join("runs/bench-x"),
            seeds: vec![0],
            smoke: true,
            stop: &stop,
        };
        let study = |run| Study {
            name: "x",
            kind: StudyKind::Rag,
            about: "",
            source: "",
            run,
        };
        let fails = study(|request, _| failing(request));
        assert!(run(&fails, &request, &mut |_| {}).is_err());
        assert!(!folder.path().join("runs").exists());
        let works = study(|request, _| {
            std::fs::create_dir_all(request.work()).unwrap();
            std::fs::write(request.work().join("kept"), "1").unwrap();
            failing(request)
        });
        assert!(run(&works, &request, &mut |_| {}).is_err());
        assert!(request.work().join("kept").exists());
        std::fs::create_dir_all(folder.path().join("mine")).unwrap();
        let own = StudyRequest {
            out: folder.path().join("mine"),
            ..request
        };
        assert!(run(&fails, &own, &mut |_| {}).is_err());
        assert!(own.out.exists() && !own.work().exists());
    }
}
