//! Fused tensor operations for transformer models, on [Burn](burn) tensors.
//!
//! Every operation has two forms with the same result: a composition of Burn operations
//! ([`portable`]), used on any backend, and a kernel of its own for the CPU backend Flex, with a
//! hand-written backward that keeps as little as possible for later. The public functions choose.
//!
//! Layout: batches are ragged. A batch is a flat list of tokens, so activations are
//! `[tokens, features]` and attention gets the sequence boundaries.
//!
//! Tensors may be mixed freely: frozen weights on the plain device, activations on the autodiff
//! device. An input that is not tracked costs no gradient work.
#![recursion_limit = "256"]

mod activation;
mod allocator;
mod attention;
mod blockwise;
mod cache;
mod causal_conv;
mod cross_entropy;
mod depthwise_conv;
mod experts;
mod flex;
mod linear;
mod linear_recurrence;
mod mapped;
mod norm;
mod optimizer;
mod packed;
mod pool;
mod rope;
mod save_policy;
mod selective_scan;
mod simd;
mod sparse;

pub use activation::{geglu_tanh, gelu, gelu_tanh, silu, swiglu};
pub use allocator::{freed_memory, keep_freed_memory};
pub use attention::{AttentionSpec, ScoreBias, attention, biased_attention, cached_attention};
pub use blockwise::{Blockwise, MOMENT_BLOCK, adamw_8bit_step};
pub use cache::{CacheType, KeyValues};
pub use causal_conv::{causal_conv1d, causal_conv1d_state};
pub use cross_entropy::{
    CrossEntropyOptions, IGNORE_INDEX, linear_cross_entropy, quantized_cross_entropy,
    token_log_probs,
};
pub use depthwise_conv::depthwise_conv2d;
pub use experts::{NO_ROW, combine_rows, gather_rows};
pub use linear::{
    LowRankRows, linear, lora_linear, multi_lora_linear, quantized_linear, quantized_lora_linear,
    quantized_multi_lora_linear,
};
pub use linear_recurrence::{LinearRecurrence, linear_recurrence};
pub use mapped::map_file;
pub use norm::{add, add_layer_norm, add_rms_norm, layer_norm, rms_norm};
pub use optimizer::{AdamWStep, adamw_step, grad_norm_sq};
pub use packed::{ActivationQuant, Packed};
pub use pool::on_pool;
pub use rope::rope;
pub use save_policy::SavePolicy;
pub use selective_scan::{SelectiveScan, selective_scan, selective_scan_with_state};
pub use simd::{InstructionSet, InstructionSetError};
pub use sparse::{Sparse, sparse_linear};

/// The operations as compositions of Burn operations, differentiable on every backend.
pub mod portable {
    pub use crate::activation::portable::*;
    pub use crate::attention::portable::*;
    pub use crate::causal_conv::portable::*;
    pub use crate::cross_entropy::portable::*;
    pub use crate::depthwise_conv::portable::*;
    pub use crate::experts::portable::*;
    pub use crate::linear::portable::*;
    pub use crate::linear_recurrence::portable::*;
    pub use crate::norm::portable::*;
    pub use crate::rope::portable::*;
    pub use crate::selective_scan::portable::*;
}
