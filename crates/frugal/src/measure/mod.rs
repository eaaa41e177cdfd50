//! Measuring the machine and what runs on it.

pub mod language_model;
pub mod machine;
pub mod runtime;
