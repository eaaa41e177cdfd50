//! What every backbone asks of its input, and element-wise activations.

use std::ops::Range;

use burn::prelude::*;
use frugal_nn::{Content, Embedding, Input, ModelError, Pass};

use crate::activation::Activation;
use crate::architecture::ModelConfig;

/// The rows that the first block's input is made of: tokens looked up in `table` and scaled, or
/// embeddings as they are.
pub(crate) fn look_up(
    config: &ModelConfig,
    table: &Embedding,
    scale: Option<f32>,
    input: &Input<'_>,
    pass: &mut dyn Pass,
) -> Result<Tensor<2>, ModelError> {
    check_layout(input)?;
    match &input.content {
        Content::Tokens(ids) => {
            check_ids(config, ids)?;
            let rows = pass.embedding(table, ids);
            Ok(match scale {
                Some(scale) => rows * scale,
                None => rows,
            })
        }
        Content::Embeddings(rows) if rows.dims()[1] == config.hidden_size => Ok(rows.clone()),
        Content::Embeddings(rows) => Err(ModelError::Content {
            model_type: config.model_type(),
            reason: format!(
                "embeddings are {} wide, the model is {}",
                rows.dims()[1],
                config.hidden_size
            ),
        }),
        Content::Rows { .. } => Err(ModelError::Content {
            model_type: config.model_type(),
            reason: "it reads tokens or embeddings, not rows on a grid".into(),
        }),
    }
}

pub(crate) fn check_layout(input: &Input<'_>) -> Result<(), ModelError> {
    let (tokens, described) = (input.len(), input.layout.tokens());
    if tokens != described
        || tokens == 0
        || input.layout.cu_seqlens.windows(2).any(|w| w[0] >= w[1])
    {
        return Err(ModelError::Layout { tokens, described });
    }
    Ok(())
}

fn check_ids(config: &ModelConfig, ids: &[u32]) -> Result<(), ModelError> {
    let outside = |&id: &u32| id as usize >= config.vocab_size;
    match ids.iter().position(outside) {
        None => Ok(()),
        Some(position) => Err(ModelError::TokenId {
            id: ids[position],
            position,
            vocab_size: config.vocab_size,
        }),
    }
}

/// Blocks that there are.
pub(crate) fn check_range(config: &ModelConfig, range: &Range<usize>) -> Result<(), ModelError> {
    let count = config.num_hidden_layers;
    if range.end <= count && range.start <= range.end {
        return Ok(());
    }
    Err(ModelError::Blocks {
        model_type: config.model_type(),
        first: range.start,
        end: range.end,
        count,
    })
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
