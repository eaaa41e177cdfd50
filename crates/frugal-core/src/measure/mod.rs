//! Measuring without tensors: the arithmetic of benchmarks and metrics, one file or folder for
//! each.

pub mod capacity;
pub mod efficiency;
pub mod enamel;
pub mod endpoint;
pub mod eval;
pub mod linear_algebra;
pub mod optcs;
pub mod runtime;
pub mod sandbox;
pub mod spectrum;
pub mod step_law;
