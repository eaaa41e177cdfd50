//! The ways to answer there are.

use super::answer::AskAnswer;
use super::mode::AskMode;
use super::parametric::{DYPRAG, PRAG};
use super::perk::PERK;
use super::rag::{CRAG, RAG};
use super::session::Ask;
use crate::run::RunError;

/// All modes, one line each, the default first.
pub static MODES: &[AskMode] = &[RAG, CRAG, PRAG, DYPRAG, PERK];

/// The mode of a name.
///
/// # Errors
/// A name that no mode has.
pub fn find(name: &str) -> Result<&'static AskMode, RunError> {
    MODES.iter().find(|mode| mode.name == name).ok_or_else(|| {
        let known: Vec<&str> = MODES.iter().map(|mode| mode.name).collect();
        RunError::Invalid(format!(
            "there is no mode `{name}` to answer by; there are: {}",
            known.join(", ")
        ))
    })
}

/// Answers a question by a mode, with the time and memory of each stage.
///
/// # Errors
/// An empty question, and whatever goes wrong while searching and generating.
pub fn answer(mode: &AskMode, ask: &mut Ask<'_>, question: &str) -> Result<AskAnswer, RunError> {
    if question.trim().is_empty() {
        return Err(RunError::Invalid("the question is empty".into()));
    }
    let mut answer = (mode.answer)(ask, question)?;
    answer.stages = ask.take_stages();
    Ok(answer)
}
