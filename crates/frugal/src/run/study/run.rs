//! One study, from its folder to its files.

use frugal_core::fs::write_atomic;
use serde_json::json;

use super::request::WORK;
use super::{Outcome, StudyError, StudyEvent, StudyRequest};
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

/// Runs a study and writes `results.json` and `results.md` into its folder.
///
/// # Errors
/// What the study meets, a folder that another process has, or files that cannot be written.
pub fn run(
    study: &Study,
    request: &StudyRequest<'_>,
    observe: &mut dyn FnMut(StudyEvent),
) -> Result<Outcome, StudyError> {
    let _lock = claim_results(&request.out, "study", |name| name == WORK)?;
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
