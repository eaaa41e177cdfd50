//! Measuring without tensors: tasks and their scores, the sandbox for generated code, statistics,
//! suites of runs, records, reports and plots. One file or folder for each measure.
#![forbid(unsafe_code)]

pub mod baselines;
pub mod capacity;
pub mod efficiency;
pub mod enamel;
pub mod endpoint;
pub mod endpoint_model;
pub mod linear_algebra;
pub mod measurement;
pub mod optcs;
pub mod parallel;
pub mod programs;
pub mod rag;
pub mod report;
pub mod retrieval;
pub mod runtime;
pub mod sandbox;
pub mod scaling_law;
pub mod spectrum;
pub mod statistics;
pub mod step_law;
pub mod suite;
pub mod tasks;
