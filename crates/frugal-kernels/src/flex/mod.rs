//! Kernels for the CPU backend Flex, each with its own backward pass.
//!
//! Every function here returns `None` when an input is not `f32` on Flex; the caller then uses the
//! portable composition. However work is dealt out, the order of a sum depends on the shapes alone,
//! so results are the same for any number of threads and with or without gradients.

mod activation;
mod add;
mod attention;
mod bf16;
mod causal_conv;
mod cross_entropy;
mod dense;
mod depthwise_conv;
mod experts;
mod gemm;
mod linear;
mod matrix;
mod multi_lora;
mod norm;
mod packed;
mod record;
mod recurrence;
mod rope;
mod scan;
mod scratch;
mod sparse;
mod sum;
mod tensor;
mod waiting;
mod weight;

pub(crate) use activation::{Gelu, GeluTanh, Silu, activation, gated};
pub(crate) use add::add;
pub(crate) use attention::{attention, cached_attention};
pub(crate) use causal_conv::causal_conv1d;
pub(crate) use cross_entropy::{linear_cross_entropy, token_log_probs};
pub(crate) use depthwise_conv::depthwise_conv2d;
pub use experts::NO_ROW;
pub(crate) use experts::{combine_rows, gather_rows};
pub(crate) use linear::{linear, lora_linear};
pub(crate) use multi_lora::multi_lora_linear;
pub(crate) use norm::{add_layer_norm, add_rms_norm, layer_norm, rms_norm};
pub(crate) use record::host_rows;
pub(crate) use recurrence::linear_recurrence;
pub(crate) use rope::rope;
pub(crate) use scan::selective_scan;
pub(crate) use sparse::sparse_linear;
pub(crate) use weight::Weight;
