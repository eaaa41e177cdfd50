//! What a model is pre-trained as, where that is not its own weights: products of thin matrices,
//! sparse matrices beside them, changes that are merged every so often.
//!
//! Each acts on the linear layers of the blocks; all other weights are trained as they are. What is
//! saved is the dense weight. One file each, one line in the registry.

mod factors;
pub(crate) mod layer;
mod low_rank;
mod registry;
mod relora;
mod rule;
mod sltrain;
mod targets;
#[cfg(test)]
mod tests;

pub use registry::{REPARAMETERIZATIONS, Reparameterization, find};
