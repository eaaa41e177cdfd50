//! Answering questions from an index: what `frugal ask` does, for programs.
//!
//! A mode is one file and one line in the registry. It gets an [`Ask`], which finds, reranks, builds
//! prompts and generates, and counts what each stage takes.

mod answer;
mod grade;
mod grader;
mod mode;
mod parametric;
mod perk;
mod perk_options;
mod rag;
mod registry;
mod session;

pub use answer::AskAnswer;
pub use grader::Grader;
pub use mode::AskMode;
pub use perk_options::PerkAsk;
pub use registry::{MODES, answer, find};
pub use session::{Ask, AskOptions, ParametricSettings};
