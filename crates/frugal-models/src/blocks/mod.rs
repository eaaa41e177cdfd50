//! Parts that architectures share.

pub mod attention;
pub mod checks;
pub mod controlled;
pub mod decoder;
pub mod gated_mlp;
pub mod gqa;
pub mod grouped;
pub mod mla;
pub mod nsa;
pub mod sites;
pub mod sparse_moe;
