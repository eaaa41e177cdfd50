//! The part of Frugal that needs no tensors: data, tokenizers, templates, file formats, metrics,
//! records and reports.
//!
//! It builds and tests in seconds; everything that links Burn lives in the crates above.

pub mod config;
pub mod data;
pub mod encode;
pub mod events;
pub mod fetch;
pub mod fs;
pub mod gguf;
pub mod human;
pub mod measure;
pub mod metrics;
pub mod report;
pub mod safetensors;
pub mod suggest;
pub mod suite;
pub mod table;
pub mod template;
pub mod tokenizer;
