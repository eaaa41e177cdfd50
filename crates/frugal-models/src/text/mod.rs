//! Text models: one file for each family of architectures.

pub mod decoder;
pub mod encoder;
pub mod gpt2;
