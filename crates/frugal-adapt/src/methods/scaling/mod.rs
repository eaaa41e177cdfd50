//! Factors and shifts of activations or norms.

pub mod beft;
pub mod glora;
pub mod ia3;
pub mod ln_tuning;
pub mod ssf;
