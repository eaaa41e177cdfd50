//! Experiments on published systems: what `frugal bench retrieve` and `frugal bench rag` run, and
//! some of `frugal bench pretrain`.
//!
//! A study is one file and one line in the registry. It measures each of its arms on the same data
//! with every seed and says of each claim whether it holds.

mod anncur;
mod birdie;
mod blockrank;
mod cramf;
mod dyprag;
mod efficientvmamba;
mod error;
mod iaa;
mod low_memory;
mod minicpm;
mod mor;
mod outcome;
mod perk;
mod pretraining;
mod prp;
mod rag_hyperparameters;
mod registry;
mod request;
mod routed;
mod run;
mod scifact;
mod tokenformer;

pub use error::StudyError;
pub use outcome::{Claim, Measured, Outcome};
pub use registry::{STUDIES, find};
pub use request::{StudyEvent, StudyRequest};
pub use run::{Study, StudyKind, run};
