//! Training by several processes at once.
//!
//! # What it does
//! Every process runs the same program on the same settings and files (SPMD). Each computes the
//! gradients of its share of a step's rows; the sums are formed in a ring, in an order that does not
//! depend on what arrives first, and every process takes the same step. With ZeRO stage 1 a process
//! keeps the optimizer state of its own parameters only, updates these and hands them to the others.
//!
//! # Update rule
//! `g = Σ_r g_r`, where `g_r` is the gradient of the rows of rank `r` of the loss that is divided by
//! the targets of *all* rows: the mean over targets, whatever their split. Clipping, schedules and
//! checkpoints are those of one process, and a checkpoint is resumed by any number of processes.
//!
//! # When to use, when not
//! Where a step takes much longer than the exchange of its gradients. Losses that compare the rows of
//! a micro-batch are refused, since a process sees only its share.
//!
//! # Cost
//! Each rank sends `2(N−1)/N` of the gradient's bytes in a step, with ZeRO stage 1 `(N−1)` times its
//! own parameters beside it.
//!
//! # Departures
//! The ring sums all gradients with ZeRO stage 1 as well, which the clipping by the global norm and
//! methods that look at gradients need. What processes say is authenticated when they meet, but
//! neither encrypted nor signed: a network that others can write to is no place for it.
//!
//! # References
//! Rajbhandari et al.: ZeRO: Memory Optimizations Toward Training Trillion Parameter Models, 2019,
//! arXiv 1910.02054. Dash et al., 2023, arXiv 2312.12705. Patarasuk, Yuan: Bandwidth Optimal
//! All-reduce Algorithms for Clusters of Workstations, 2009.

mod codec;
mod collective;
mod error;
mod frame;
mod group;
mod hello;
mod tcp;

#[cfg(test)]
mod tests;

pub use collective::Collective;
pub use error::ParallelError;
pub use group::{Group, ParallelReport};
pub use hello::{RunIdentity, random_bytes};
pub use tcp::{MAX_WORLD, Patience, TcpGroup, listen};

pub(crate) use group::{StartOf, joined, owned, state_bytes};
