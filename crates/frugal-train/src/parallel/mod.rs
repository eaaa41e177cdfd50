//! Training by several processes at once.
//!
//! # What it does
//! Every process runs the same program on the same settings and files (SPMD). Each computes the
//! gradients of its share of a step's rows; the sums are formed in a ring, in an order that does not
//! depend on what arrives first, and every process takes the same step. With ZeRO a process keeps a
//! part only: of the optimizer state (stage 1), of the gradients too (stage 2), of the parameters too
//! (stage 3).
//!
//! # Update rule
//! `g = Σ_r g_r`, where `g_r` is the gradient of the rows of rank `r` of the loss that is divided by
//! the targets of *all* rows: the mean over targets, whatever their split. Clipping, schedules and
//! checkpoints are those of one process, and a checkpoint is resumed by any number of processes.
//!
//! # When to use, when not
//! Where a step takes much longer than the exchange of its gradients, and ZeRO where a process has too
//! little memory. Losses that compare the rows of a micro-batch are refused, since a process sees only
//! its share.
//!
//! # Cost
//! Ψ parameters on N ranks, sent by each rank in a step: `2(N−1)/N Ψ` gradients without ZeRO; with stage 1
//! the parameters that it owns `N−1` times beside it, about `(N−1)/N Ψ`; with stage 2 `(N−1)/N Ψ` gradients
//! for each micro-batch, `(N−1)/N² Ψ` to hand them to their owners, and the parameters; with stage 3 the
//! parameters twice for each micro-batch.
//!
//! # Departures
//! The ring sums all gradients with ZeRO stage 1 as well, which methods that look at gradients need.
//! Stage 2 cuts the ring into equal parts and hands the sums to the owners, so that each sum has the
//! bits of stage 1. What processes say is authenticated when they meet, but neither encrypted nor
//! signed: a network that others can write to is no place for it.
//!
//! # References
//! Rajbhandari et al.: ZeRO: Memory Optimizations Toward Training Trillion Parameter Models, 2019,
//! arXiv 1910.02054. Narayanan et al.: Efficient Large-Scale Language Model Training on GPU Clusters
//! Using Megatron-LM, 2021, arXiv 2104.04473. Dash et al., 2023, arXiv 2312.12705. Patarasuk, Yuan:
//! Bandwidth Optimal All-reduce Algorithms for Clusters of Workstations, 2009.

mod codec;
mod collective;
mod error;
mod exchange;
mod frame;
mod group;
mod hello;
mod layout;
mod part;
mod tcp;

#[cfg(test)]
mod tests;

pub use collective::Collective;
pub use error::ParallelError;
pub use group::{Group, ParallelReport};
pub use hello::{RunIdentity, random_bytes};
pub use layout::Layout;
pub use tcp::{MAX_WORLD, Patience, TcpGroup, listen};

pub(crate) use group::{StartOf, joined, owned, state_bytes};
pub(crate) use layout::{Action, blocks_of, one_forward_one_backward};
