//! What a way to answer is.

use super::answer::AskAnswer;
use super::session::Ask;
use crate::run::RunError;

/// A way to answer a question from an index.
pub struct AskMode {
    /// Its name, as `--mode` takes it.
    pub name: &'static str,
    /// What it does, in a sentence.
    pub about: &'static str,
    /// Answers. The caller of the mode adds the stages.
    pub answer: fn(&mut Ask<'_>, &str) -> Result<AskAnswer, RunError>,
}
