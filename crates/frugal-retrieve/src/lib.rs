//! Texts to vectors, in the layout of sentence-transformers, and collections of documents that are
//! searched by their words and vectors.
#![forbid(unsafe_code)]
#![recursion_limit = "256"]

mod chunk;
mod collection;
mod encoder;
mod error;
mod modules;
mod pooling;
mod readout;
mod vectors;

pub use chunk::{ChunkOptions, chunks, document_of};
pub use collection::{
    BuildOptions, BuildReport, Collection, SearchMode, SearchOptions, StoredEncoder, build,
    stored_encoder,
};
pub use encoder::{EmbedOptions, Embeddings, Encoder, EncoderRequest, Prompt};
pub use error::RetrieveError;
pub use modules::{Activation, DenseModule, Modules};
pub use pooling::{PoolingMode, SentencePooling};
pub use vectors::{Elements, Precision, Vectors};
