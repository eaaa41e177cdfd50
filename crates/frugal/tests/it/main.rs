//! Integration tests: reference outputs of PyTorch, `transformers` and `peft` (see `scripts/golden`).

mod adapters;
mod backbones;
mod combine;
mod conformance;
mod families;
mod linear_algebra;
mod lora_step;
mod real;
mod steps;
mod support;
