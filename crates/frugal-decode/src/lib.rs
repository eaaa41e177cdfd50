//! Generation: sampling, and decoding of one conversation or of many prompts at once.
#![forbid(unsafe_code)]

mod generate;
mod sample;
mod session;

pub use generate::{FinishReason, GenerateConfig, Generation, Next, generate, generate_until};
pub use sample::{Sampler, SamplerConfig};
pub use session::Session;

pub use frugal_kernels::CacheType;

use frugal_nn::{AdaptError, ModelError};
use thiserror::Error;

/// What can go wrong while generating.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum DecodeError {
    /// A sampling setting is out of range.
    #[error("`{field}`: {reason}")]
    Config {
        /// Field at fault.
        field: &'static str,
        /// What is wrong and what would work.
        reason: String,
    },
    /// The model has no output head.
    #[error("{why}: it cannot generate text or score it")]
    NoHead {
        /// What the model is, or what is missing.
        why: String,
    },
    /// Nothing to continue.
    #[error(
        "prompt {index} has no tokens: give a text, or a model whose tokenizer adds a start token"
    )]
    EmptyPrompt {
        /// Number of the prompt, from 0.
        index: usize,
    },
    /// Forward pass.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// Which adapters act.
    #[error(transparent)]
    Adapt(#[from] AdaptError),
}
