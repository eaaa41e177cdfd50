//! Compiling one loop for several instruction sets, and the arithmetic such loops share.
//!
//! A kernel is written once, for any [`Isa`]. [`multiversion`] compiles it for AVX-512, for AVX2
//! with FMA and for the target's baseline, and picks one when called. Element-wise loops are plain
//! Rust that the compiler turns into vector instructions; sums go through [`Lanes`].

pub(crate) mod bytes;
mod dispatch;
mod instruction_set;
mod lanes;
mod math;

pub(crate) use dispatch::multiversion;
pub(crate) use instruction_set::instruction_set;
pub use instruction_set::{InstructionSet, InstructionSetError};
#[cfg(target_arch = "x86_64")]
pub(crate) use lanes::{Avx2, Avx512};
pub(crate) use lanes::{Baseline, Isa, LANES, Lanes, mul_add};
pub(crate) use math::{
    dot, dots, exp, exp_lanes, max, sigmoid, sigmoid_lanes, softplus_lanes, sum, tanh,
};

/// Elements that one task handles; below this a kernel runs on the calling thread.
pub(crate) const TASK: usize = 1 << 14;

/// How many rows of `width` elements make a task.
pub(crate) fn task_rows(width: usize) -> usize {
    (TASK / width.max(1)).max(1)
}
