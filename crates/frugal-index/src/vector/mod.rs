//! Search over vectors in a file that is mapped into memory.
//!
//! A [`VectorBuilder`] writes the file, a [`VectorIndex`] searches it. Every vector is looked at, so
//! the answer is the true one for what is stored; a [`VectorGraph`] beside it answers faster and nearly
//! as well. The file is laid out so that opening reads its
//! header only; each block of vectors is checked against its checksum when it is first searched.

mod builder;
mod error;
mod exact;
mod graph;
mod kind;
mod layout;
mod neighbor;
mod open;
mod scan;
mod simd;

pub use builder::VectorBuilder;
pub use error::VectorError;
pub use graph::{HnswOptions, VectorGraph};
pub use kind::{Encoding, Metric};
pub(crate) use kind::{check_kind, check_vector};
pub use neighbor::Neighbor;
pub use open::VectorIndex;

#[cfg(test)]
mod tests;
