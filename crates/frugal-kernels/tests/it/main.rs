//! The kernels against double-precision references, finite differences and the portable compositions.
#![recursion_limit = "256"]

mod activation;
mod attention;
mod cross_entropy;
mod linear;
mod norm;
mod optimizer;
mod rope;
mod support;
