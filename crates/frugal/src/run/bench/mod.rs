//! Suites of runs under one budget, compared: what `frugal bench` does, for programs.
//!
//! A [`BenchRequest`] names a suite and the part of it that is wanted; [`BenchRequest::plan`] checks
//! every run's settings. [`adapt`], [`efficiency`] and [`pretrain_grid`] do the runs that are not
//! done, each in a folder of its own below the output folder, and write the comparison of all that
//! are there beside them. How one run is done is a [`Runner`]'s business: [`InProcess`] does it here,
//! the program starts a process for each.
//!
//! [`sweep_adapt`] gives every run of a comparison the same number of trials of the swept settings
//! before it compares them.

mod adapt;
mod builtin;
mod efficiency;
mod error;
mod groups;
mod kind;
mod output;
mod planned;
mod pretrain;
mod queue;
mod request;
mod runner;
mod score;
mod sweep;

pub use adapt::{AdaptResults, adapt};
pub use builtin::{BuiltinSuite, open_suite, suite_title};
pub use efficiency::{EfficiencyResults, efficiency};
pub use error::BenchError;
pub use kind::BenchKind;
pub use planned::{BenchSettings, PlannedRun};
pub use pretrain::{GridResults, pretrain_grid};
pub use queue::{BenchEvent, Queue};
pub use request::BenchRequest;
pub use runner::{Assignment, InProcess, RunEnd, Runner};
pub use score::{ScoreConfig, score_record};
pub use sweep::{SweepPlan, SweepRequest, SweepResults, plan_sweep, sweep_adapt};
