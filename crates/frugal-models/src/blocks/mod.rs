//! Parts that architectures share.

pub mod attention;
pub(crate) mod batch_norm;
pub mod checks;
pub mod controlled;
pub mod decoder;
pub mod gated_mlp;
pub mod gqa;
pub(crate) mod griffin;
pub mod grouped;
pub(crate) mod image_blocks;
pub mod mamba2_mixer;
pub mod mamba_mixer;
pub mod mixer_decoder;
pub mod mixer_init;
pub mod mla;
pub mod nsa;
pub mod pattention;
pub(crate) mod prefix;
#[cfg(test)]
mod prefix_tests;
pub(crate) mod pyramid;
pub(crate) mod recurrence;
pub(crate) mod rg_lru;
pub mod router;
pub(crate) mod scan2d;
pub mod shared;
pub mod sites;
pub mod sparse_moe;
pub mod stream_norm;
pub mod sub_grids;
