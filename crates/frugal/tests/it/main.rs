//! Integration tests: reference outputs of PyTorch, `transformers` and `peft` (see
//! `scripts/golden`).

#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "tests say what they skip and found"
)]

mod adapters;
mod backbones;
mod combine;
mod conformance;
mod families;
mod harness;
mod harness_tasks;
mod linear_algebra;
mod lora_step;
mod measure;
mod packed;
mod pairs;
mod real;
mod reparameterize;
mod steps;
mod support;
mod variants;
