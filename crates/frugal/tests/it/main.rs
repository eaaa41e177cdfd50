//! Integration tests: reference outputs of PyTorch, `transformers` and `peft` (see
//! `scripts/golden`).

mod adapters;
mod backbones;
mod combine;
mod conformance;
mod families;
mod harness;
mod harness_tasks;
mod linear_algebra;
mod lora_step;
mod packed;
mod real;
mod reparameterize;
mod steps;
mod support;
mod variants;
