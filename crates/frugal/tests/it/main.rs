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
mod birdie;
mod blocks;
mod changed_adapters;
mod combine;
mod config_keys;
mod data_starts;
mod encoders;
mod exports;
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
mod minicpm;
mod model_files;
mod mor;
mod packed;
mod pairs;
mod real;
mod reparameterize;
mod routed;
mod sessions;
mod split_gguf;
mod steps;
mod support;
mod texts;
mod token_classification;
mod tokenformer;
mod trained_on;
mod unused_files;
mod variants;
