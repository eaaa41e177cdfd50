//! Texts to vectors, in the layout of sentence-transformers, and collections of documents that are
//! searched by their words and vectors.
#![forbid(unsafe_code)]
#![recursion_limit = "256"]

pub mod blockrank;
mod build;
mod chunk;
mod collection;
pub mod cramf;
mod encoder;
mod error;
pub mod mine;
mod modules;
pub mod parametric;
pub mod perk;
mod pooling;
mod prompt;
pub mod prp;
pub mod rag;
mod readout;
mod sparse;
mod stored;
mod vectors;

pub use build::build;
pub use chunk::{ChunkMethod, ChunkOptions, chunks, document_of};
pub use collection::{
    Ann, BuildOptions, BuildReport, Collection, SearchMode, SearchOptions, StoredEncoder,
    stored_encoder,
};
pub use encoder::{EmbedOptions, Embeddings, Encoder, EncoderRequest};
pub use error::RetrieveError;
pub use modules::{Activation, DenseModule, Modules};
pub use pooling::{PoolingMode, SentencePooling};
pub use prompt::Prompt;
pub use sparse::{SparseEmbeddings, SparseEncoder, SparsePooling};
pub use stored::{StoreCollection, build_store, encoder_of_store};
pub use vectors::{Elements, Precision, Vectors};
