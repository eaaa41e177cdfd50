//! Backbones: frozen, shareable transformer models that adapters act on.
//!
//! All of them read ragged batches ([`SequenceLayout`](frugal_nn::SequenceLayout)): the tokens of
//! all sequences one after another, no padding, so packing several sequences into one call is
//! exact. Hidden states are `[tokens, d_model]`.
#![forbid(unsafe_code)]

mod activation;
pub mod architecture;
mod blocks;
mod build;
pub mod fresh;
pub mod fresh_memory;
pub mod grow;
mod init;
mod keys;
pub mod load;
mod loftq;
pub mod merge;
mod names;
pub mod registry;
mod rope;
pub mod save;
mod source;
mod text;
pub mod upcycle;
mod vision;
mod weights;

pub use activation::Activation;
pub use architecture::ModelConfig;
pub use blocks::sub_grids::ScanPattern;
pub use build::{build, build_with};
pub use frugal_kernels::ActivationQuant;
pub use init::{hollow_weights, random_weights};
pub use keys::initializer_range;
pub use loftq::Loftq;
pub use names::factor_names;
pub use rope::{RopeConfig, RopeScaling, inverse_frequencies};
pub use source::{Loaded, MemorySource, WeightSource, read_values};
pub use text::mor::uptrain::{RecursiveInit, mor_from_llama};
pub use vision::pixels::PREPROCESSOR;
pub use weights::{LoadOptions, Quantize, WeightLoader};
