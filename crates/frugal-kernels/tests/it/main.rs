//! The kernels against double-precision references, finite differences and the portable compositions.
#![recursion_limit = "256"]

mod activation;
mod add;
mod attention;
mod cross_entropy;
mod linear;
mod memory;
mod norm;
mod optimizer;
mod packed;
mod rope;
mod sparse;
mod support;
