//! Integration tests: reference outputs of PyTorch, `transformers` and `peft` (see
//! `scripts/golden`).

#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "tests say what they skip and found"
)]

mod adapter_files;
mod adapters;
mod backbones;
mod bare_models;
mod bench;
mod blocks;
mod changed_adapters;
mod combine;
mod config_keys;
mod encoders;
mod families;
mod harness;
mod harness_tasks;
mod hostile;
mod interop;
mod linear_algebra;
mod long_generation;
mod lora_step;
mod mamba;
mod measure;
mod merged_adapters;
mod method_settings;
mod model_files;
mod packed;
mod pairs;
mod real;
mod reparameterize;
mod sessions;
mod split_gguf;
mod steps;
mod support;
mod texts;
mod token_classification;
mod unused_files;
mod variants;
