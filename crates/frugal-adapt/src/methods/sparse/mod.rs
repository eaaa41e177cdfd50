//! Few of the model's own weights.

pub mod bitfit;
pub mod diff_pruning;
pub mod fish_mask;
pub mod id3;
pub mod pst;
pub mod shira;
pub mod supertuning;
pub mod trainable_tokens;
