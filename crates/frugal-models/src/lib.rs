//! Backbones: frozen, shareable transformer models that adapters act on.
//!
//! All of them read ragged batches ([`SequenceLayout`](frugal_nn::SequenceLayout)): the tokens of
//! all sequences one after another, no padding, so packing several sequences into one call is
//! exact. Hidden states are `[tokens, d_model]`.

mod blocks;
mod build;
mod config;
mod info;
mod init;
pub mod load;
mod loftq;
pub mod merge;
mod rope;
pub mod save;
mod sites;
mod text;
mod weights;

pub use build::{build, build_with};
pub use config::{
    Activation, ExpertsConfig, LatentConfig, ModelConfig, ModelType, RopeConfig, RopeScaling,
    SparseConfig,
};
pub use frugal_kernels::ActivationQuant;
pub use init::random_weights;
pub use loftq::Loftq;
pub use rope::inverse_frequencies;
pub use text::decoder::Decoder;
pub use text::encoder::Encoder;
pub use text::gpt2::Gpt2;
pub use weights::{
    LoadOptions, Loaded, MemorySource, Quantize, WeightLoader, WeightSource, read_values,
};
