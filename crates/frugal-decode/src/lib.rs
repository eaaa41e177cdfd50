//! Generation: sampling, sessions that sequences join and leave, and many prompts at once within a
//! token budget.
#![forbid(unsafe_code)]

mod batch;
mod config;
mod error;
mod generate;
mod generator;
mod id;
mod sample;
mod session;

pub use config::{FinishReason, GenerateConfig};
pub use error::DecodeError;
pub use generate::{Generation, Next, generate, generate_until};
pub use generator::{Generator, GeneratorOptions, Produced, SequenceOptions};
pub use id::SequenceId;
pub use sample::{Sampler, SamplerConfig};
pub use session::{Session, Snapshot};

pub use frugal_kernels::CacheType;
pub use frugal_nn::StateOptions;
