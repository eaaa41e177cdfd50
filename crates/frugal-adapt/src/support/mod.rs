//! What several methods share.

pub(crate) mod base_weights;
pub(crate) mod bottleneck;
pub(crate) mod by_site;
pub(crate) mod data_start;
pub(crate) mod dense;
pub(crate) mod dropout;
pub mod layer_targets;
pub(crate) mod lora_like;
pub(crate) mod low_rank;
pub(crate) mod lycoris;
pub(crate) mod model_training;
pub(crate) mod numpy_random;
pub(crate) mod orthogonal;
pub(crate) mod own_files;
pub(crate) mod pair;
pub(crate) mod per_block;
pub(crate) mod per_linear;
pub(crate) mod prompt;
pub(crate) mod rank_budget;
pub(crate) mod residual;
pub(crate) mod singular;
pub(crate) mod sparse;
#[cfg(test)]
pub(crate) mod test_model;
pub(crate) mod text_start;
pub(crate) mod torch_random;
pub(crate) mod values;
