//! Integration tests: reference outputs of PyTorch, `transformers` and `peft` (see
//! `scripts/golden`).

#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "tests say what they skip and found"
)]

mod adapters;
mod backbones;
mod bare_models;
mod blocks;
mod combine;
mod config_keys;
mod conformance;
mod families;
mod harness;
mod harness_tasks;
mod interop;
mod linear_algebra;
mod lora_step;
mod measure;
mod model_files;
mod packed;
mod pairs;
mod real;
mod reparameterize;
mod split_gguf;
mod steps;
mod support;
mod variants;
