//! Experiments on published systems: what `frugal bench retrieve` and `frugal bench rag` run.
//!
//! A study is one file and one line in [`registry`]. It measures each of its arms on the same data
//! with every seed and says of each claim whether it holds.

mod error;
mod outcome;
mod registry;
mod request;
mod run;

pub use error::StudyError;
pub use outcome::{Claim, Measured, Outcome};
pub use registry::{STUDIES, find};
pub use request::{StudyEvent, StudyRequest};
pub use run::{Study, StudyKind, run};
