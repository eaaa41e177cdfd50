//! Texts to vectors: encoders with their pooling, prompts and adapters, in the layout of
//! sentence-transformers.
#![forbid(unsafe_code)]
#![recursion_limit = "256"]

mod encoder;
mod error;
mod modules;
mod pooling;
mod vectors;

pub use encoder::{EmbedOptions, Embeddings, Encoder, EncoderRequest, Prompt};
pub use error::RetrieveError;
pub use modules::{Activation, DenseModule, Modules};
pub use pooling::{PoolingMode, SentencePooling};
pub use vectors::{Elements, Precision, Vectors};
