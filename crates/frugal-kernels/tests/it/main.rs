//! The kernels against double-precision references, finite differences, the portable compositions
//! and PyTorch.

#![allow(clippy::print_stdout, reason = "tests say what they skip")]
#![recursion_limit = "256"]

mod activation;
mod add;
mod attention;
mod cross_entropy;
mod depthwise_conv;
mod experts;
mod golden;
mod linear;
mod linear_recurrence;
mod memory;
mod norm;
mod optimizer;
mod packed;
mod rope;
mod selective_scan;
mod simd;
mod sparse;
mod support;
