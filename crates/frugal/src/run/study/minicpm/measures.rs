//! What is measured, and by which runs settings are picked.

/// Seed of the runs by which settings are picked; those that are reported have others.
pub(super) const TRIAL_SEED: u64 = 1_000_003;
/// The rate that the factors are multiples of: the paper's.
pub(super) const RATE: f64 = 1e-2;

/// Loss on the text.
pub(super) const LOSS: &str = "test loss";
/// Loss on the target.
pub(super) const TARGET: &str = "target loss";
