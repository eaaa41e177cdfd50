//! Answers from passages that were found: cutting documents, building prompts within a budget of
//! tokens, citing, correcting what was found, and what each stage costs.

mod chunker;
mod citation;
mod corrective;
mod feedback;
mod grade;
mod markdown;
mod passage;
mod prompt;
mod semantic;
mod stages;
mod units;

pub use chunker::{ChunkError, Chunker, Splitter};
pub use citation::{Citation, CitedBy, cite};
pub use corrective::{Corrected, Corrective, CorrectiveOptions, correct};
pub use feedback::expand_query;
pub use grade::question_coverage;
pub use markdown::sections;
pub use passage::Passage;
pub(crate) use prompt::render;
pub use prompt::{BuiltPrompt, PromptError, PromptOptions, UsedPassage, build_prompt};
pub use semantic::{Breakpoint, SemanticOptions, semantic_chunks};
pub use stages::{Stage, Stages};
pub use units::Units;
