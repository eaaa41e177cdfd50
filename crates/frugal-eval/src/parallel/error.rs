//! The constraints of a plan.

use thiserror::Error;

/// Degrees, layers and batches above this are refused: no machine has them, and products of them
/// stay far from the limits of the types.
pub const MAX_COUNT: u64 = 1 << 24;

/// The constraint that a plan breaks.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum PlanError {
    /// A number of 0, or one that no machine has.
    #[error("{name} is {value}, but must be between 1 and {MAX_COUNT}")]
    Range {
        /// Which one.
        name: &'static str,
        /// Its value.
        value: u64,
    },
    /// T | heads.
    #[error("tensor degree {tensor} does not divide the {heads} attention heads (T | heads)")]
    Heads {
        /// Tensor-parallel degree.
        tensor: u64,
        /// Query heads.
        heads: u64,
    },
    /// T | key-value heads.
    #[error("tensor degree {tensor} does not divide the {heads} key-value heads (T | KV heads)")]
    KeyValueHeads {
        /// Tensor-parallel degree.
        tensor: u64,
        /// Key and value heads.
        heads: u64,
    },
    /// T | hidden.
    #[error("tensor degree {tensor} does not divide the hidden size {hidden} (T | hidden)")]
    Hidden {
        /// Tensor-parallel degree.
        tensor: u64,
        /// Width of the residual stream.
        hidden: u64,
    },
    /// T | ffn.
    #[error("tensor degree {tensor} does not divide the feed-forward width {ffn} (T | ffn)")]
    FeedForward {
        /// Tensor-parallel degree.
        tensor: u64,
        /// Width of the feed-forward layer.
        ffn: u64,
    },
    /// P·v ≤ layers.
    #[error(
        "{pipeline} pipeline stages of {chunks} chunks need as many layers, and there are {layers} (P·v ≤ layers)"
    )]
    Layers {
        /// Stages.
        pipeline: u64,
        /// Chunks of a stage.
        chunks: u64,
        /// Blocks of the model.
        layers: u64,
    },
    /// W = T·P·N.
    #[error(
        "{world} devices are not tensor {tensor} × pipeline {pipeline} × data {data} (W = T·P·N)"
    )]
    World {
        /// Devices.
        world: u64,
        /// T.
        tensor: u64,
        /// P.
        pipeline: u64,
        /// N.
        data: u64,
    },
    /// GBS = b·m·N.
    #[error(
        "a global batch of {batch} sequences is not micro-batch {micro_batch} × micro-batches {micro_batches} × data {data} (GBS = b·m·N)"
    )]
    GlobalBatch {
        /// Sequences of a step.
        batch: u64,
        /// b.
        micro_batch: u64,
        /// m.
        micro_batches: u64,
        /// N.
        data: u64,
    },
    /// P | m, for interleaved schedules.
    #[error(
        "an interleaved schedule needs micro-batches in multiples of the stages: {micro_batches} is none of {pipeline} (P | m)"
    )]
    InterleavedMicroBatches {
        /// m.
        micro_batches: u64,
        /// P.
        pipeline: u64,
    },
    /// Chunks without an interleaved schedule, or an interleaved one of a single chunk.
    #[error(
        "{chunks} chunks of layers on a stage do not go with the schedule {schedule}: interleaved needs 2 or more, the others 1"
    )]
    Chunks {
        /// v.
        chunks: u64,
        /// Name of the schedule.
        schedule: &'static str,
    },
}
