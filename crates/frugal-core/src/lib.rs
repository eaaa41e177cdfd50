//! What every part of Frugal stands on and needs no tensors: configuration, data, tokenizers,
//! templates, metrics, events.
//!
//! It builds and tests in seconds; everything that links Burn lives in the crates above.
#![forbid(unsafe_code)]

pub mod caught;
pub mod config;
pub mod data;
pub mod encode;
pub mod events;
pub mod fs;
pub mod human;
pub mod json;
pub mod label_names;
pub mod lock;
pub mod metrics;
pub mod pretext;
mod same_file;
pub mod stage;
pub mod suggest;
pub mod table;
pub mod template;
pub mod tokenizer;
mod tokenizer_settings;

#[cfg(test)]
mod test_limits;
