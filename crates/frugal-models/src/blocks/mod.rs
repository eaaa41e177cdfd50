//! Parts that architectures share.

pub mod attention;
pub mod checks;
pub mod gated_mlp;
pub mod mla;
pub mod nsa;
pub mod sparse_moe;
