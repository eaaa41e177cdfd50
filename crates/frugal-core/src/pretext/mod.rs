//! Self-supervised objectives of language models: which input and which target are made of a stretch
//! of tokens.
//!
//! Seven classes, one file each, and one line each in [`CLASSES`]: infilling, next tokens, prefix
//! language modelling, selective copying, copying, deshuffling, autoencoding (Blouir et al., *Birdie*,
//! EMNLP 2024, arXiv 2411.01030, appendix A.1; Tay et al., *UL2*, arXiv 2205.05131). Each setting of a
//! class is an *arm*; the full grid has 96. All work on tokens.

mod autoencoding;
mod copying;
mod deshuffling;
mod infilling;
mod names;
mod next_token;
mod objective;
mod prefix_lm;
mod registry;
mod sample;
mod selective_copying;
mod spans;
mod special;

#[cfg(test)]
mod tests;

pub use names::{sentinel_name, special_names};
pub use objective::{Lengths, Objective, Pair};
pub use prefix_lm::PrefixLm;
pub use registry::{CLASSES, ObjectiveClass, find, grid};
pub use sample::{Fitted, fitted, prefix_length, sequence};
pub use special::Special;
