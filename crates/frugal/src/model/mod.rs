//! Backbones: frozen, shareable transformer models that adapters act on.
//!
//! All of them read ragged batches ([`SequenceLayout`]): the tokens of all sequences one after
//! another, no padding, so packing several sequences into one call is exact. Hidden states are
//! `[tokens, d_model]`.

mod block;
mod cache;
mod config;
mod decoder;
mod encoder;
mod experts;
mod gpt2;
mod init;
mod latent;
mod layout;
mod linear;
pub mod load;
mod loftq;
mod rope;
pub mod save;
mod site;
mod sparse;
mod weights;

use std::sync::Arc;

use burn::prelude::*;
use thiserror::Error;

pub use block::{mean_pool, select_rows};
pub use cache::KvCache;
pub use config::{
    Activation, ExpertsConfig, LatentConfig, ModelConfig, ModelType, RopeConfig, RopeScaling,
    SparseConfig,
};
pub use decoder::Decoder;
pub use encoder::Encoder;
pub use frugal_kernels::ActivationQuant;
pub use gpt2::Gpt2;
pub use init::random_weights;
pub use layout::{Input, SequenceLayout};
pub use linear::{Embedding, Linear, Norm, Weight, lookup};
pub use loftq::{Correction, Loftq};
pub use rope::inverse_frequencies;
pub use site::{SiteId, SiteInfo, SiteKind, SiteTable};
pub use weights::{
    LoadOptions, Loaded, MemorySource, Quantize, WeightLoader, WeightSource, read_values,
};

use crate::adapt::Pass;

/// What can go wrong with a model.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ModelError {
    /// The configuration has a bad value.
    #[error("{source_name}: `{key}`: {reason}")]
    Config {
        /// File.
        source_name: String,
        /// Key at fault.
        key: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A method that this kind of model has no place for.
    #[error("a model of type `{model_type}` cannot be used with this method: {reason}")]
    Method {
        /// Type.
        model_type: &'static str,
        /// Why, and what would work.
        reason: String,
    },
    /// No backbone for this architecture.
    #[error("{source_name}: model_type `{model_type}` is not supported; supported: {}", ModelType::ALL.map(|(n, _)| n).join(", "))]
    Architecture {
        /// File.
        source_name: String,
        /// What it says.
        model_type: String,
    },
    /// The file's tensors do not fit the configuration.
    #[error("{source_name}: the weights do not fit config.json\n{report}")]
    Load {
        /// File.
        source_name: String,
        /// Lists of tensors.
        report: Box<frugal_formats::safetensors::LoadReport>,
    },
    /// A tensor is not there.
    #[error("{source_name}: tensor `{name}` is missing")]
    MissingTensor {
        /// File.
        source_name: String,
        /// Tensor.
        name: String,
    },
    /// A token id outside the table.
    #[error(
        "token id {id} at position {position} is outside the vocabulary of {vocab_size}: the tokenizer does not belong to this model"
    )]
    TokenId {
        /// The id.
        id: u32,
        /// Index in the batch.
        position: usize,
        /// Rows of the table.
        vocab_size: usize,
    },
    /// Ids and layout disagree, or a sequence is empty.
    #[error(
        "the input has {tokens} tokens but its layout describes {described}, in sequences of at least one token"
    )]
    Layout {
        /// Number of ids.
        tokens: usize,
        /// Number of positions.
        described: usize,
    },
    /// A sequence longer than the positions of the model.
    #[error(
        "a sequence of {length} tokens is longer than the model's {limit} positions: shorten it, or allow truncation"
    )]
    TooLong {
        /// Tokens.
        length: usize,
        /// Positions.
        limit: usize,
    },
    /// Generation asked of an encoder.
    #[error("`{model_type}` models read in both directions and cannot generate: use a decoder")]
    NotCausal {
        /// Architecture.
        model_type: &'static str,
    },
    /// Reading or finding files.
    #[error(transparent)]
    Files(#[from] load::LoadError),
}

/// One frozen part, as [`Backbone::export`] shows it.
pub enum Frozen<'a> {
    /// Linear map.
    Linear(&'a Linear),
    /// Table.
    Embedding(&'a Embedding),
    /// Normalisation.
    Norm(&'a Norm),
}

/// A frozen model. It lives on the plain device and never enters the gradient graph; adapters meet
/// it in [`Backbone::forward`].
pub trait Backbone: Send + Sync {
    /// Sizes and settings.
    fn config(&self) -> &ModelConfig;
    /// Places that a method can act on.
    fn sites(&self) -> &Arc<SiteTable>;
    /// The plain device that the weights are on.
    fn device(&self) -> &Device;
    /// Hidden states after the final norm, `[tokens, d_model]`; fills the cache if one is given.
    ///
    /// # Errors
    /// Ids outside the vocabulary, sequences longer than the positions, a cache given to an
    /// encoder.
    fn forward(
        &self,
        input: &Input<'_>,
        pass: &mut dyn Pass,
        cache: Option<&mut KvCache>,
    ) -> Result<Tensor<2>, ModelError>;
    /// The output head over the vocabulary, where there is one.
    fn lm_head(&self) -> Option<&Linear> {
        None
    }
    /// The dense layer over the first token that `bert` classification uses.
    fn pooler(&self) -> Option<&Linear> {
        None
    }
    /// Shows every frozen part once.
    fn export(&self, visit: &mut dyn FnMut(Frozen<'_>));

    /// Logits `[rows, vocab]` of final hidden states `[rows, d_model]`.
    fn logits(&self, hidden_states: Tensor<2>, pass: &mut dyn Pass) -> Option<Tensor<2>> {
        let logits = pass.linear(self.lm_head()?, hidden_states);
        Some(match self.config().final_logit_softcapping {
            Some(cap) => (logits / cap).tanh() * cap,
            None => logits,
        })
    }
}

/// Builds the backbone that `config` describes from `source`.
///
/// # Errors
/// When tensors are missing, mis-shaped or unreadable.
pub fn build(
    config: ModelConfig,
    source: &dyn WeightSource,
    device: &Device,
) -> Result<Arc<dyn Backbone>, ModelError> {
    build_with(config, source, device, LoadOptions::default())
}

/// [`build`] with a choice of how matrices are held.
///
/// # Errors
/// As [`build`].
pub fn build_with(
    config: ModelConfig,
    source: &dyn WeightSource,
    device: &Device,
    options: LoadOptions,
) -> Result<Arc<dyn Backbone>, ModelError> {
    let sites = Arc::new(SiteTable::new(&config));
    let mut loader = WeightLoader::new(
        source,
        &sites,
        device,
        config.model_type.base_prefix(),
        options,
    )?;
    let sites = sites.clone();
    Ok(match config.model_type {
        ModelType::Gpt2 => Arc::new(Gpt2::load(config, sites, &mut loader)?),
        t if t.is_encoder() => Arc::new(Encoder::load(config, sites, &mut loader)?),
        _ => Arc::new(Decoder::load(config, sites, &mut loader)?),
    })
}

fn check_input(config: &ModelConfig, input: &Input<'_>) -> Result<(), ModelError> {
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
fn check_positions(config: &ModelConfig, positions: &[u32]) -> Result<(), ModelError> {
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

fn activate(activation: Activation, x: Tensor<2>) -> Tensor<2> {
    match activation {
        Activation::Silu => burn::tensor::activation::silu(x),
        Activation::Gelu => frugal_kernels::gelu(x),
        Activation::GeluTanh => frugal_kernels::gelu_tanh(x),
        Activation::Relu => burn::tensor::activation::relu(x),
    }
}
