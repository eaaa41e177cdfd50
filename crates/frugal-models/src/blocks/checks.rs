//! What every backbone asks of its input, and element-wise activations.

use burn::prelude::*;
use frugal_nn::{Input, ModelError};

use crate::config::{Activation, ModelConfig};

pub(crate) fn check_input(config: &ModelConfig, input: &Input<'_>) -> Result<(), ModelError> {
    let (tokens, described) = (input.input_ids.len(), input.layout.tokens());
    if tokens != described
        || tokens == 0
        || input.layout.cu_seqlens.windows(2).any(|w| w[0] >= w[1])
    {
        return Err(ModelError::Layout { tokens, described });
    }
    if let Some(position) = input
        .input_ids
        .iter()
        .position(|&id| id as usize >= config.vocab_size)
    {
        return Err(ModelError::TokenId {
            id: input.input_ids[position],
            position,
            vocab_size: config.vocab_size,
        });
    }
    Ok(())
}

/// Learned positions end; rotary ones do not.
pub(crate) fn check_positions(config: &ModelConfig, positions: &[u32]) -> Result<(), ModelError> {
    let last = positions.iter().copied().max().unwrap_or(0) as usize;
    if last >= config.max_position_embeddings {
        let first = config.first_position() as usize;
        return Err(ModelError::TooLong {
            length: last + 1 - first,
            limit: config.max_sequence(),
        });
    }
    Ok(())
}

pub(crate) fn activate(activation: Activation, x: Tensor<2>) -> Tensor<2> {
    match activation {
        Activation::Silu => burn::tensor::activation::silu(x),
        Activation::Gelu => frugal_kernels::gelu(x),
        Activation::GeluTanh => frugal_kernels::gelu_tanh(x),
        Activation::Relu => burn::tensor::activation::relu(x),
    }
}
