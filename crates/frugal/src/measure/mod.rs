//! Measuring the machine and what runs on it.

pub mod machine;
